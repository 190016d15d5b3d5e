"""Every primitive and its counterpart in PyTorch, for the comparisons at ordinary and at extreme values."""

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import head

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
F = torch.nn.functional

TOKENS = np.array([[0, 3, 1], [3, 2, 3]])
SOME = np.array([[0, -100, 1], [-100, 2, -100]])  # targets; PyTorch's ignore_index is -100 too
CONDITION = np.array([[True, False, True, False]])
WEIGHT = np.random.default_rng(3).standard_normal((5, 4))
SOFT = np.random.default_rng(4).random((3, 4))  # targets of masks
KEEP = np.array([[0.0, 2.0, 2.0], [2.0, 0.0, 2.0], [2.0, 2.0, 2.0]])  # a dropout mask, p = 1/2


def mask(x):
    """What dropout keeps with the same generator: how it draws is its own affair."""
    return torch.tensor(ops.dropout(torch.ones_like(x).numpy(), 0.4, np.random.default_rng(1)).data != 0)


def explicit_attention(q, k, v, keep):
    """Attention as the formula says, for what PyTorch's own has no argument for: a given dropout mask."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -math.inf).softmax(-1) * torch.tensor(keep, dtype=q.dtype)) @ v


def sdpa(q, k, v, **options):
    return F.scaled_dot_product_attention(q, k, v, **options)


def grouped(q, k, v):
    """Six heads at two of keys, the last three of five positions, of which the second text's first is padding."""
    return sdpa(
        q, k, v, attn_mask=LAST_OF_FIVE & torch.tensor(PADDED, dtype=torch.bool)[:, None, None], enable_gqa=True
    )


def turned(x):
    """Rotary positions as transformers writes them: x cos + rotate_half(x) sin, with the angles twice side by side."""
    cos, sin = (torch.tensor(np.tile(f(ANGLES), 2), dtype=x.dtype) for f in (np.cos, np.sin))
    return x * cos + torch.cat([-x[..., 2:], x[..., :2]], -1) * sin


def in_stretches(x, weight, bias=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "LOGITS", 8)
        return ops.linear_cross_entropy(x, weight, SOME, bias)


def rows_of(part, dtype):
    return WEIGHT[part].astype(dtype)


def bce(z, targets):
    return F.binary_cross_entropy_with_logits(z, torch.tensor(targets, dtype=z.dtype))


def dice(z, targets):
    """The Dice loss of masks, with 1 added above and below the line."""
    p, t = z.sigmoid().flatten(1), torch.tensor(targets, dtype=z.dtype).flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()


def mean_loss(logits, targets=TOKENS):
    return F.cross_entropy(logits.flatten(0, -2), torch.tensor(targets).flatten())


ANGLES = np.arange(6.0).reshape(3, 2)
PADDED = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
X, POSITIVE = (3, 4), "positive"
BAND = torch.ones(150, 150, dtype=torch.bool).tril().triu(-9)  # each query's last ten keys
LAST_OF_FIVE = torch.ones(3, 5, dtype=torch.bool).tril(2)  # three queries, at the last three of five positions

# primitive, what distinguishes this row, ours, PyTorch's, shapes of the inputs, "positive" where they must be
ROWS = [
    ("add", "", ops.add, torch.add, (X, (3, 1))),
    ("subtract", "", ops.subtract, torch.sub, (X, (4,))),
    ("multiply", "", ops.multiply, torch.mul, ((2, 1, 4), (3, 1))),
    ("divide", "", ops.divide, torch.div, (X, (3, 1)), POSITIVE),
    ("negate", "", ops.negate, torch.neg, (X,)),
    ("power", "", ops.power, torch.pow, (X, (3, 1)), POSITIVE),
    ("power", "cube", lambda x: x**3, lambda x: x**3, (X,)),
    ("power", "inverse", lambda x: x**-1.5, lambda x: x**-1.5, (X,), POSITIVE),
    ("power", "exponent", lambda x: 2.0**x, lambda x: 2.0**x, (X,)),
    ("exp", "", ops.exp, torch.exp, (X,)),
    ("log", "", ops.log, torch.log, (X,), POSITIVE),
    ("sqrt", "", ops.sqrt, torch.sqrt, (X,), POSITIVE),
    ("tanh", "", ops.tanh, torch.tanh, (X,)),
    ("relu", "", ops.relu, torch.relu, (X,)),
    ("gelu", "", ops.gelu, lambda x: F.gelu(x, approximate="tanh"), (X,)),
    ("gelu_exact", "", ops.gelu_exact, F.gelu, (X,)),
    ("silu", "", ops.silu, F.silu, (X,)),
    ("gated", "silu", lambda a, b: ops.gated(a, b, ops.silu), lambda a, b: F.silu(a) * b, (X, X)),
    ("gated", "gelu", lambda a, b: ops.gated(a, b, ops.gelu), lambda a, b: F.gelu(a, approximate="tanh") * b, (X, X)),
    ("gated", "gelu_exact", lambda a, b: ops.gated(a, b, ops.gelu_exact), lambda a, b: F.gelu(a) * b, (X, X)),
    ("where", "", lambda a, b: ops.where(CONDITION, a, b), lambda a, b: torch.where(torch.tensor(CONDITION), a, b),
     (X, (1, 4))),
    ("matmul", "broadcast", ops.matmul, torch.matmul, ((2, 1, 3, 4), (5, 4, 2))),
    ("matmul", "matrix vector", ops.matmul, torch.matmul, ((2, 3, 4), (4,))),
    ("matmul", "vector matrix", ops.matmul, torch.matmul, ((4,), (2, 4, 3))),
    ("matmul", "vectors", ops.matmul, torch.matmul, ((4,), (4,))),
    ("sum", "", lambda x: ops.sum(x, axis=(0, 2)), lambda x: x.sum((0, 2)), ((2, 3, 4),)),
    ("mean", "", lambda x: ops.mean(x, axis=1, keepdims=True), lambda x: x.mean(1, keepdim=True), ((2, 3, 4),)),
    ("max", "", lambda x: ops.max(x, axis=-1), lambda x: x.amax(-1), (X,)),
    ("max", "axes", lambda x: ops.max(x, axis=(0, 2)), lambda x: x.amax((0, 2)), ((2, 3, 4),)),
    ("astype", "", lambda x: ops.astype(ops.astype(x, "float64"), x.dtype), lambda x: x.double().to(x.dtype), (X,)),
    ("abs", "", ops.abs, torch.abs, (X,)),
    ("sin", "", ops.sin, torch.sin, (X,)),
    ("cos", "", ops.cos, torch.cos, (X,)),
    ("log1p", "", ops.log1p, torch.log1p, (X,), POSITIVE),
    ("expm1", "", ops.expm1, torch.expm1, (X,)),
    ("sigmoid", "", ops.sigmoid, torch.sigmoid, (X,)),
    ("maximum", "", ops.maximum, torch.maximum, (X, (3, 1))),
    ("minimum", "", ops.minimum, torch.minimum, (X, (4,))),
    ("clip", "numbers", lambda x: ops.clip(x, -0.5, 0.5), lambda x: x.clamp(-0.5, 0.5), (X,)),
    ("clip", "bounds", ops.clip, torch.clamp, (X, (3, 1), (4,))),
    ("clip", "above", lambda x, high: ops.clip(x, None, high), lambda x, high: x.clamp(max=high), (X, (4,))),
    ("dot", "vectors", ops.dot, torch.dot, ((4,), (4,))),
    ("dot", "batches", ops.dot, lambda a, b: torch.tensordot(a, b, ([-1], [-2])), ((2, 3, 4), (5, 4, 2))),
    ("outer", "", ops.outer, torch.outer, ((3,), (4,))),
    ("einsum", "batch", lambda a, b: ops.einsum("...ik,jk->...ij", a, b),
     lambda a, b: torch.einsum("...ik,jk->...ij", a, b), ((2, 3, 4), (5, 4))),
    ("einsum", "trace", lambda a: ops.einsum("ii", a), lambda a: torch.einsum("ii", a), ((3, 3),)),
    ("einsum", "diagonal", lambda a, b: ops.einsum("iij,kj->ik", a, b), lambda a, b: torch.einsum("iij,kj->ik", a, b),
     ((3, 3, 2), (4, 2))),
    ("min", "", lambda x: ops.min(x, axis=0), lambda x: x.amin(0), (X,)),
    ("var", "", lambda x: ops.var(x, axis=0), lambda x: x.var(0, correction=0), (X,)),
    ("std", "", lambda x: ops.std(x, ddof=1), lambda x: x.std(), (X,)),
    ("std", "axes", lambda x: ops.std(x, axis=(0, 2)), lambda x: x.std((0, 2), correction=0), ((2, 3, 4),)),
    ("norm", "", ops.norm, torch.linalg.norm, (X,)),
    ("norm", "axis", lambda x: ops.norm(x, axis=1), lambda x: torch.linalg.norm(x, dim=1), (X,)),
    ("logsumexp", "", lambda x: ops.logsumexp(x, axis=-1), lambda x: x.logsumexp(-1), (X,)),
    ("prod", "", lambda x: ops.prod(x, axis=1), lambda x: x.prod(1), (X,)),
    ("cumsum", "", lambda x: ops.cumsum(x, axis=0), lambda x: x.cumsum(0), (X,)),
    ("flatten", "", ops.flatten, torch.flatten, (X,)),
    ("squeeze", "", lambda x: ops.squeeze(x, 1), lambda x: x.squeeze(1), ((3, 1, 4),)),
    ("expand_dims", "", lambda x: ops.expand_dims(x, -1), lambda x: x.unsqueeze(-1), (X,)),
    ("broadcast_to", "", lambda x: ops.broadcast_to(x, (2, 3, 4)), lambda x: x.expand(2, 3, 4), ((3, 1),)),
    ("swapaxes", "", lambda x: ops.swapaxes(x, 0, -1), lambda x: x.swapaxes(0, -1), ((2, 3, 4),)),
    ("repeat", "", lambda x: ops.repeat(x, 2, axis=1), lambda x: x.repeat_interleave(2, 1), (X,)),
    ("stack", "", lambda a, b: ops.stack([a, b], axis=1), lambda a, b: torch.stack([a, b], 1), (X, X)),
    ("astype", "", lambda x: ops.astype(x, x.dtype), lambda x: x.to(x.dtype), (X,)),
    ("reshape", "", lambda x: ops.reshape(x, (2, -1)), lambda x: x.reshape(2, -1), (X,)),
    ("transpose", "", lambda x: ops.transpose(x, (2, 0, 1)), lambda x: x.permute(2, 0, 1), ((2, 3, 4),)),
    ("index", "slices", lambda x: x[1:, None, ..., ::2], lambda x: x[1:, None, ..., ::2], (X,)),
    ("index", "repeats", lambda x: x[[0, 2, 0], [1, 1, 1]], lambda x: x[[0, 2, 0], [1, 1, 1]], (X,)),
    ("index", "mask", lambda x: x[:, CONDITION[0]], lambda x: x[:, torch.tensor(CONDITION[0])], (X,)),
    ("concatenate", "", lambda a, b: ops.concatenate([a, b], axis=1), lambda a, b: torch.cat([a, b], 1), (X, (3, 2))),
    ("softmax", "", ops.softmax, lambda x: x.softmax(-1), (X,)),
    ("softmax", "axis", lambda x: ops.softmax(x, axis=0), lambda x: x.softmax(0), (X,)),
    ("log_softmax", "", ops.log_softmax, lambda x: x.log_softmax(-1), (X,)),
    ("cross_entropy", "", lambda x: ops.cross_entropy(x, TOKENS), mean_loss, ((2, 3, 5),)),
    ("cross_entropy", "some rows", lambda x: ops.cross_entropy(x, SOME), lambda x: mean_loss(x, SOME), ((2, 3, 5),)),
    ("cross_entropy", "long", lambda x: ops.cross_entropy(x, np.arange(3000) % 3),
     lambda x: F.cross_entropy(x, torch.arange(3000) % 3), ((3000, 3),)),
    ("sum", "long", lambda x: ops.sum(x, axis=0), lambda x: x.sum(0), ((3000, 2),)),
    ("mean", "long", lambda x: ops.mean(x, axis=0), lambda x: x.mean(0), ((3000, 2),), POSITIVE),
    ("var", "long", lambda x: ops.var(x, axis=0), lambda x: x.var(0, correction=0), ((3000, 2),)),
    ("norm", "long", ops.norm, torch.linalg.norm, ((3000, 2),)),
    ("softmax", "long", lambda x: ops.softmax(x, axis=0), lambda x: x.softmax(0), ((3000, 2),)),
    ("linear", "long", ops.linear, F.linear, ((3000, 4), (2, 4), (2,))),
    ("layer_norm", "wide", ops.layer_norm, lambda x, w, b: F.layer_norm(x, (768,), w, b, 1e-5),
     ((4, 768), (768,), (768,))),
    ("rms_norm", "wide", ops.rms_norm, lambda x, w: F.rms_norm(x, (768,), w, 1e-6), ((4, 768), (768,))),
    ("embedding", "", lambda w: ops.embedding(w, TOKENS), lambda w: F.embedding(torch.tensor(TOKENS), w), ((4, 3),)),
    ("layer_norm", "", ops.layer_norm, lambda x, w, b: F.layer_norm(x, (4,), w, b, 1e-5), ((2, 3, 4), (4,), (4,))),
    ("layer_norm", "no bias", ops.layer_norm, lambda x, w: F.layer_norm(x, (4,), w, None, 1e-5), (X, (4,))),
    ("rms_norm", "", ops.rms_norm, lambda x, w: F.rms_norm(x, (4,), w, 1e-6), ((2, 3, 4), (4,))),
    ("linear_cross_entropy", "", lambda x, w: ops.linear_cross_entropy(x, w, SOME),
     lambda x, w: mean_loss(x @ w.T, SOME), ((2, 3, 4), (5, 4))),
    ("linear_cross_entropy", "stretches", in_stretches, lambda x, w: mean_loss(x @ w.T, SOME), ((2, 3, 4), (5, 4))),
    ("linear_cross_entropy", "bias", in_stretches, lambda x, w, b: mean_loss(F.linear(x, w, b), SOME),
     ((2, 3, 4), (5, 4), (5,))),
    ("linear_cross_entropy_on_demand", "", lambda x, b: ops.linear_cross_entropy_on_demand(x, rows_of, TOKENS, 5, b),
     lambda x, b: mean_loss(F.linear(x, torch.tensor(WEIGHT).to(x.dtype), b)), ((2, 3, 4), (5,))),
    ("linear", "", ops.linear, F.linear, ((2, 3, 4), (5, 4), (5,))),
    ("linear", "no bias", ops.linear, F.linear, (X, (5, 4))),
    ("linear_on_demand", "", lambda x, b: ops.linear_on_demand(x, WEIGHT.astype, b),
     lambda x, b: F.linear(x, torch.tensor(WEIGHT).to(x.dtype), b), ((2, 3, 4), (5,))),
    ("linear_on_demand", "no bias", lambda x: ops.linear_on_demand(x, WEIGHT.astype),
     lambda x: F.linear(x, torch.tensor(WEIGHT).to(x.dtype)), (X,)),
    ("lora_linear", "", lambda x, w, b, A, B: ops.lora_linear(x, w, b, A, B, 0.5),
     lambda x, w, b, A, B: F.linear(x, w + 0.5 * B @ A, b), ((2, 3, 4), (5, 4), (5,), (2, 4), (5, 2))),
    ("split_heads", "", lambda x: ops.split_heads(x, 2),
     lambda x: x.unflatten(2, (2, 2)).transpose(1, 2), ((2, 3, 4),)),
    ("join_heads", "", ops.join_heads, lambda x: x.transpose(1, 2).flatten(2), ((2, 2, 3, 4),)),
    ("attention", "blocks", ops.attention, lambda *qkv: sdpa(*qkv, is_causal=True), ((2, 2, 150, 4),) * 3),
    ("attention", "", ops.attention, lambda *qkv: sdpa(*qkv, is_causal=True), ((2, 3, 4),) * 3),
    ("attention", "not causal", lambda *qkv: ops.attention(*qkv, causal=False), sdpa, ((2, 3, 4),) * 3),
    ("attention", "cached keys", ops.attention, lambda *qkv: sdpa(*qkv, attn_mask=LAST_OF_FIVE),
     ((2, 3, 4), (2, 5, 4), (2, 5, 6))),
    ("attention", "scale", lambda *qkv: ops.attention(*qkv, scale=0.3),
     lambda *qkv: sdpa(*qkv, is_causal=True, scale=0.3),
     ((2, 3, 4),) * 3),
    ("attention", "padding", lambda *qkv: ops.attention(*qkv, causal=False, mask=PADDED),
     lambda *qkv: sdpa(*qkv, attn_mask=torch.tensor(PADDED, dtype=torch.bool)[:, None, None]),
     ((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4))),
    ("attention", "window", lambda *qkv: ops.attention(*qkv, window=10), lambda *qkv: sdpa(*qkv, attn_mask=BAND),
     ((2, 150, 4),) * 3),
    ("attention", "groups", lambda *qkv: ops.attention(*qkv, mask=PADDED), grouped,
     ((2, 6, 3, 4), (2, 2, 5, 4), (2, 2, 5, 6))),
    ("attention", "groups in blocks", ops.attention, lambda *qkv: sdpa(*qkv, is_causal=True, enable_gqa=True),
     ((6, 150, 4), (2, 150, 4), (2, 150, 4))),
    ("rotate", "", lambda x: ops.rotate(x, np.cos(ANGLES), np.sin(ANGLES)), turned, ((2, 3, 4),)),
    ("attention", "dropout", lambda *qkv: ops.attention(*qkv, keep=KEEP.astype(qkv[0].dtype)),
     lambda *qkv: explicit_attention(*qkv, KEEP), ((2, 3, 4),) * 3),
    ("binary_cross_entropy", "", lambda z: ops.binary_cross_entropy(z, SOFT), lambda z: bce(z, SOFT), (X,)),
    ("binary_cross_entropy", "truth", lambda z: ops.binary_cross_entropy(z, SOFT > 0.5), lambda z: bce(z, SOFT > 0.5),
     (X,)),
    ("dice_loss", "", lambda z: ops.dice_loss(z, SOFT), lambda z: dice(z, SOFT), (X,)),
    ("dice_loss", "truth", lambda z: ops.dice_loss(z, SOFT[None] > 0.5), lambda z: dice(z, SOFT[None] > 0.5),
     ((1, 3, 4),)),
    ("dropout", "", lambda x: ops.dropout(x, 0.4, np.random.default_rng(1)), lambda x: x * mask(x) / 0.6, (X,)),
]  # fmt: skip
