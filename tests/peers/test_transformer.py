"""Every family beside transformers' own model: drawn tiny configurations, random weights copied, eager attention."""

import contextlib

import numpy as np
import pytest

import minilora as ml
from minilora.interop.names import module_names
from minilora.nn.architectures import from_hugging_face
from minilora.nn.transformer import Transformer

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers: pip install 'minilora[peers]'")

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
BOUND = {"float64": 1e-10, "float32": 1e-5}
V = 37


@contextlib.contextmanager
def in_double():
    """transformers takes norms and softmax in float32, whatever the weights are in: here, float32 means float64."""
    kept = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept[:3]
        torch.set_default_dtype(kept[3])


def common(rng, **own):
    """What most families' configurations have, drawn."""
    kv = int(rng.choice([1, 2]))
    heads = kv * int(rng.choice([1, 2, 3]))
    sizes = dict(
        vocab_size=V, hidden_size=heads * 8, num_hidden_layers=3, num_attention_heads=heads, num_key_value_heads=kv,
        intermediate_size=int(rng.integers(5, 40)), max_position_embeddings=64, pad_token_id=None,
        rms_norm_eps=float(rng.choice([1e-6, 1e-5])), tie_word_embeddings=bool(rng.integers(2)),
    )  # fmt: skip
    return {**sizes, **own}


def rope(rng, *kinds):
    """Rotary positions of one of these kinds."""
    base = float(rng.choice([100.0, 10000.0]))
    linear = dict(rope_type="linear", factor=2.5, rope_theta=base)
    llama3 = dict(**LLAMA3, rope_theta=base, original_max_position_embeddings=24)
    return {"default": dict(rope_type="default", rope_theta=base), "linear": linear, "llama3": llama3}[
        rng.choice(kinds)
    ]


def gpt2(rng):
    return dict(
        vocab_size=V, n_embd=12, n_layer=3, n_head=int(rng.choice([1, 2, 3])), n_positions=40,
        n_inner=[None, 19][rng.integers(2)], tie_word_embeddings=bool(rng.integers(2)),
        activation_function=str(rng.choice(["gelu_new", "gelu", "relu"])), layer_norm_epsilon=1e-3,
        scale_attn_weights=bool(rng.integers(2)), bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def llama(rng):
    return common(
        rng, attention_bias=bool(rng.integers(2)), mlp_bias=bool(rng.integers(2)), head_dim=int(rng.choice([6, 8])),
        hidden_act=str(rng.choice(["silu", "gelu"])), rope_parameters=rope(rng, "default", "linear", "llama3"),
    )  # fmt: skip


def mistral(rng):
    return common(rng, sliding_window=[None, 3, 7][rng.integers(3)], rope_parameters=rope(rng, "default", "linear"))


def phi3(rng):
    turned = dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=float(rng.choice([1.0, 0.75, 0.5])))
    return common(rng, sliding_window=[None, 4][rng.integers(2)], rope_parameters=turned)


def qwen2(rng):
    slides = bool(rng.integers(2))
    return common(
        rng, use_sliding_window=slides, sliding_window=4, max_window_layers=1, rope_parameters=rope(rng, "default")
    )


def qwen3(rng):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"] if rng.integers(2) else None
    window = dict(use_sliding_window=kinds is not None, sliding_window=5, layer_types=kinds)
    return common(rng, head_dim=10, attention_bias=bool(rng.integers(2)), rope_parameters=rope(rng, "llama3"), **window)


def gemma(rng):
    return common(rng, head_dim=6, attention_bias=bool(rng.integers(2)), rope_parameters=rope(rng, "default", "linear"))


def gemma3(rng):
    both = {"full_attention": rope(rng, "default", "linear"), "sliding_attention": rope(rng, "default")}
    return common(
        rng, head_dim=6, sliding_window=4, query_pre_attn_scalar=int(rng.choice([6, 30])), rope_parameters=both,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip


FAMILIES = {
    "gpt2": ("GPT2", "LMHeadModel", gpt2), "llama": ("Llama", "ForCausalLM", llama),
    "mistral": ("Mistral", "ForCausalLM", mistral), "phi3": ("Phi3", "ForCausalLM", phi3),
    "qwen2": ("Qwen2", "ForCausalLM", qwen2), "qwen3": ("Qwen3", "ForCausalLM", qwen3),
    "gemma": ("Gemma", "ForCausalLM", gemma), "gemma3_text": ("Gemma3", "ForCausalLM", gemma3),
}  # fmt: skip
cases = pytest.mark.parametrize("family, seed", [(family, seed) for family in FAMILIES for seed in range(6)])
each_family = pytest.mark.parametrize("family", FAMILIES)
precisions = pytest.mark.parametrize("dtype", BOUND)


def both(family, seed, dtype):
    """transformers' model with every parameter drawn, and ours with the same; and {our parameter: theirs}."""
    name, head, draw = FAMILIES[family]
    rng = np.random.default_rng(seed)
    kind = f"{name}TextConfig" if family == "gemma3_text" else f"{name}Config"
    config = getattr(transformers, kind)(**draw(rng), attn_implementation="eager")
    theirs = getattr(transformers, name + head)(config).eval()
    ours = Transformer(from_hugging_face(config.to_dict())).astype(dtype)
    with torch.no_grad():
        for p in theirs.parameters():
            around = 1 if p.ndim == 1 and not family.startswith("gemma") else 0  # norms and biases
            p.copy_(torch.tensor(around + rng.normal(0, 0.15, p.shape)))
    places = pairs(ours, dict(theirs.named_parameters()))
    ours.load_state_dict({name: part(p.detach()) for name, (p, part) in places.items()})
    return theirs, ours, places


def pairs(ours, their_parameters):
    """{our parameter: (theirs, what of it is ours)}"""
    found = {}
    names = module_names(ours.architecture)
    for name, _ in ours.named_parameters():
        path, _, last = name.rpartition(".")
        place = names[path]
        rows = slice(None) if place.rows is None else place.rows
        turned = place.transposed and last == "weight"
        part = lambda t, rows=rows, turned=turned: (t.numpy().T if turned else t.numpy())[rows]
        found[name] = their_parameters[f"{place.module}.{last}"], part
    return found


def error(ours, theirs):
    """The largest difference beside the largest entry; where all are rounding, as of k's bias in GPT-2, beside 0.01."""
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / max(np.abs(theirs).max(), 0.01)


def text(seed, length=None, rows=2):
    rng = np.random.default_rng(100 + seed)
    return rng.integers(V, size=(rows, length or int(rng.integers(6, 16))))


def with_precision(dtype):
    return in_double() if dtype == "float64" else contextlib.nullcontext()


@precisions
@cases
def test_logits_loss_and_every_gradient(family, seed, dtype):
    with with_precision(dtype):
        theirs, ours, places = both(family, seed, dtype)
        tokens = text(seed)
        out = theirs(torch.tensor(tokens), labels=torch.tensor(tokens))
        out.loss.backward()
    assert error(ours(tokens).data, out.logits.detach().numpy()) < BOUND[dtype]
    loss = ours.loss(tokens[:, :-1], tokens[:, 1:])
    assert error(loss.data, out.loss.item()) < BOUND[dtype]
    names = [name for name, _ in ours.named_parameters()]
    for name, g in zip(names, ml.grad(loss, ours.parameters()), strict=True):
        p, part = places[name]
        assert error(g, part(p.grad)) < BOUND[dtype], name


@precisions
@pytest.mark.parametrize("side", ["left", "right"])
@each_family
def test_padding_changes_nothing_and_is_transformers(family, side, dtype):
    """Positions count real tokens alone, as in transformers' generate; a batch is as its texts one by one."""
    with with_precision(dtype):
        theirs, ours, places = both(family, 3, dtype)
        tokens, mask = text(3, 11), np.ones((2, 11), int)
        mask[1, slice(0, 4) if side == "left" else slice(7, 11)] = 0
        labels = np.where(mask[:, 1:] * mask[:, :-1], tokens[:, 1:], -100)
        places_of = torch.tensor((mask.cumsum(1) - 1).clip(0))
        out = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask), position_ids=places_of)
        loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].reshape(-1, V), torch.tensor(labels.reshape(-1)))
        loss.backward()
    logits, real = ours(tokens, mask=mask).data, mask.astype(bool)
    assert np.isfinite(logits).all()
    assert error(logits[real], out.logits.detach().numpy()[real]) < BOUND[dtype]
    assert error(logits[1][real[1]], ours(tokens[1:, real[1]]).data[0]) < BOUND[dtype]
    found = ours.loss(tokens[:, :-1], labels, mask=mask[:, :-1])
    assert error(found.data, loss.item()) < BOUND[dtype]
    names = [name for name, _ in ours.named_parameters()]
    for name, g in zip(names, ml.grad(found, ours.parameters()), strict=True):
        p, part = places[name]
        assert error(g, part(p.grad)) < BOUND[dtype], name


@each_family
def test_generation_is_transformers(family):
    """The likeliest tokens, from prompts of two lengths, padded on the left: with its cache and with ours."""
    with in_double():
        theirs, ours, _ = both(family, 4, "float64")
        tokens, mask = text(4, 7), np.ones((2, 7), int)
        mask[0, :3] = 0
        out = theirs.generate(
            torch.tensor(tokens), attention_mask=torch.tensor(mask), max_new_tokens=12, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        ).numpy()  # fmt: skip
    np.testing.assert_array_equal(ours.generate(tokens, 12, temperature=0, mask=mask), out)
    np.testing.assert_array_equal(ours.generate(tokens[0, 3:], 12, temperature=0), out[0, 3:])
