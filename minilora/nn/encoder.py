"""Encoders: BERT, RoBERTa and DistilBERT, beside the decoders of `transformer.py`, whose parts they are made of.

An encoder reads a whole text at once: each token sees those after it as well, and only padding is hidden. Where a
decoder normalises what goes into attention and MLP, an encoder normalises what comes out, with x added (post-norm).

    BERT        positions from 0, segments, a pooler: tanh of a matrix on the first token (Devlin et al. 2019)
    RoBERTa     positions from pad_id + 1, of real tokens alone, one segment (Liu et al. 2019)
    DistilBERT  positions from 0, no segments and no pooler (Sanh et al. 2019)

Virtual tokens (`adapters/prompt.py`, `prefix.py`) take the first P positions, and the text starts at the next, as in
PEFT. A prefix is keys and values that every token of the text sees. The tokens of a prompt see the text as well: they
are part of it, of the first segment, and no padding; a head for labels, which reads the first token, reads theirs.

Shapes: B batch, T time, P tokens of a prompt, C width, V vocabulary, L labels.
"""

from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module
from ..autograd.fused import IGNORED, check_tokens
from ..autograd.signatures import checked
from ..autograd.tensor import Tensor
from .architectures import Architecture, find, labelled
from .checks import generator
from .language_model import LanguageModel, as_mask, as_tokens
from .layers import STANDARD_DEVIATION, Embedding, Linear, parameter
from .module import Module
from .transformer import ACTIVATIONS, MLP, Attention, Place, Transformer, norm


class PostNormBlock(Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), as in Vaswani et al. 2017, section 3.1."""

    def __init__(self, a: Architecture, layer: int, rng: np.random.Generator):
        self.ln_1 = norm(a, a.width)
        self.attn = Attention(a, layer, rng, STANDARD_DEVIATION)
        self.ln_2 = norm(a, a.width)
        self.mlp = MLP(a, rng, STANDARD_DEVIATION)

    def __call__(self, x: Tensor, rng: Any, cache: Any, block: int, place: Place) -> Tensor:
        """x: (B, T, C) -> (B, T, C)"""
        x = self.ln_1(x + self.attn(x, rng, cache, block, place))
        return self.ln_2(x + self.mlp(x, rng))


class MaskedHead(Module):
    """W_table norm(f(W x + b)) + bias: which token stands here (Devlin et al. 2019, section 3.1, "masked LM")."""

    def __init__(self, a: Architecture, rng: np.random.Generator):
        self.activation = "gelu" if a.family == "roberta" else a.activation  # whatever its blocks have
        self.dense = Linear(a.width, a.width, True, rng)
        self.norm = norm(a, a.width)
        self.bias = parameter(np.zeros(a.vocab_size))

    def __call__(self, x: Tensor, table: Embedding, rng: Any = None) -> Tensor:
        """x: (B, T, C) -> (B, T, V)"""
        return table.logits(self.transformed(x, rng)) + self.bias

    def cross_entropy(self, x: Tensor, targets: Any, table: Embedding, rng: Any = None) -> Tensor:
        """The loss of these logits, which are never all held.   (B, T, C), (B, T) -> ()"""
        return table.cross_entropy(self.transformed(x, rng), targets, self.bias)

    def transformed(self, x: Tensor, rng: Any = None) -> Tensor:
        """norm(f(W x + b))   (B, T, C) -> (B, T, C)"""
        return self.norm(ACTIVATIONS[self.activation](self.dense(x, rng)))


class LabelHead(Module):
    """W_out f(W x), f = tanh in RoBERTa and relu in DistilBERT: the scores of a text's labels, from its first token."""

    def __init__(self, a: Architecture, rng: np.random.Generator, std: float = STANDARD_DEVIATION):
        self.activation = "relu" if a.family == "distilbert" else "tanh"
        self.dense = Linear(a.width, a.width, True, rng)
        self.out_proj = Linear(a.width, a.labels, True, rng, std)

    def __call__(self, x: Tensor, rng: Any = None) -> Tensor:
        """x: (B, C) -> (B, L)"""
        y = self.dense(x, rng)
        return self.out_proj(ops.relu(y) if self.activation == "relu" else ops.tanh(y), rng)


class Encoder(Transformer):
    """hidden = blocks(norm(wte[tokens] + token_types[segments] + wpe[positions])), and what its head makes of them.

    architecture: an Architecture, or what `find` takes; rng: a seed or a numpy Generator for the initial weights, drawn
    from N(0, 0.02). `ml.Transformer(architecture)` makes one where the architecture is an encoder's. The head is the
    architecture's: "none", hidden states; "masked", logits for what stands at each token; "labels", scores of the text.
    """

    causal = False

    @checked
    def __init__(self, architecture: Any, rng: Any = 0):
        a = find(architecture)
        if a.norm_first or a.relative_positions or a.rope_base or a.head not in ("none", "masked", "labels"):
            raise ValueError(f"{a.name} is an encoder of the family {a.family!r}, counted and not run")
        LanguageModel.__init__(self, a.vocab_size, a.width, a.context, (a.key_value_heads, a.dim))
        self.architecture = a
        rng = generator(rng, "Encoder")
        self.wte = Embedding(a.vocab_size, a.width, rng)
        self.wpe: Any = Embedding(a.positions, a.width, rng)
        self.token_types = Embedding(a.token_types, a.width, rng) if a.token_types else None
        self.ln_embedding = norm(a, a.width) if a.embedding_norm else None
        self.blocks = [PostNormBlock(a, i, rng) for i in range(a.layers)]
        self.pooler: Any = Linear(a.width, a.width, True, rng) if a.pooler else None
        self.head: Any = MaskedHead(a, rng) if a.head == "masked" else None
        if a.head == "labels":
            self.classifier = Linear(a.width, a.labels, True, rng) if a.pooler else LabelHead(a, rng)
        self.front: Any = None

    @property
    def ln_f(self) -> Any:  # type: ignore[override]
        """The norm that hidden states come from: the last block's second one."""
        return self.blocks[-1].ln_2

    @property
    def ties_table(self) -> bool:
        """Whether the head reads the embedding table, too."""
        return self.architecture.head == "masked"

    def __call__(
        self, tokens: Any, rng: Any = None, cache: Any = None, mask: Any = None, token_types: Any = None
    ) -> Tensor:
        """What the head makes of a text.   tokens: (B, T) integers -> (B, T, C), (B, T, V) or (B, L)

        mask: (B, T), 1 where a token counts and 0 where it is padding, on either side: no token sees it, and what comes
        out there means nothing. token_types: (B, T), which segment each token is of; all of the first unless given.
        Raises ValueError for what does not fit, and TypeError for tokens that are not integers.
        """
        x = self.states(tokens, rng, cache, mask, token_types)  # (B, P + T, C)
        if self.architecture.head == "labels":
            return self.of_text(x, rng)
        x = self._of_tokens(x)  # (B, T, C)
        return x if self.head is None else self.logits(x, rng)

    def last(
        self, tokens: Any, rng: Any = None, cache: Any = None, mask: Any = None, token_types: Any = None
    ) -> Tensor:
        """Hidden states, which every head reads.   (B, T) integers -> (B, T, C)"""
        return self._of_tokens(self.states(tokens, rng, cache, mask, token_types))

    def states(
        self, tokens: Any, rng: Any = None, cache: Any = None, mask: Any = None, token_types: Any = None
    ) -> Tensor:
        """Hidden states, those of a prompt's virtual tokens first.   (B, T) integers -> (B, P + T, C)"""
        if cache is not None:
            raise ValueError(
                "Encoder: cache = ...: an encoder reads a whole text at once, and keeps nothing of earlier ones"
            )
        tokens, cache = self.read(tokens, rng)  # a prefix is cached
        mask = None if mask is None else as_mask("Encoder", mask, tokens.shape)
        x, segments, positions = self.embed(tokens), self._segments(tokens, token_types), self.positions(tokens)
        if self.front is not None and mask is not None:
            mask = _after(array_module(mask).ones, self.front.length, mask)  # (B, P + T)
        if self.prompt is not None:
            row = self.prompt + array_module(x.data).zeros((len(tokens), 1, 1), x.data.real.dtype)  # (B, P, C)
            x, positions = ops.concatenate([row, x], axis=1), None  # (B, P + T, C)
            segments = None if segments is None else _after(array_module(segments).zeros, self.front.length, segments)
        return self.hidden(x, rng, cache, mask, segments, positions)

    @property
    def prompt(self) -> Any:
        """The embeddings of virtual tokens that go in with the text's, (P, C), or None."""
        return getattr(self.front, "prompt", None)

    def _of_tokens(self, x: Tensor) -> Tensor:
        """Hidden states without those of virtual tokens.   (B, P + T, C) -> (B, T, C)"""
        return x if self.prompt is None else x[:, len(self.prompt) :]

    def _segments(self, tokens: Array, token_types: Any) -> Array | None:
        """Which segment each token is of, (B, T), or None where all are of the first."""
        a = self.architecture
        if token_types is None:
            return None
        if not a.token_types:
            raise ValueError(f"Encoder: token_types: {a.name} has no segments; leave them out")
        token_types = as_tokens(token_types, "Encoder: token_types")
        if token_types.shape != tokens.shape:
            raise ValueError(f"Encoder: token_types have shape {token_types.shape}, the tokens {tokens.shape}")
        check_tokens("Encoder", token_types, a.token_types, "token_types")
        return token_types

    def positions(self, tokens: Array) -> Array | None:
        """The row of RoBERTa's position table for each token, (B, T): padding has its own. None: one after another."""
        a = self.architecture
        if a.family != "roberta":
            return None
        real = tokens != a.pad_id
        return (real.cumsum(axis=1) + self.places - self.context) * real + a.pad_id

    def hidden(
        self,
        x: Tensor,
        rng: Any = None,
        cache: Any = None,
        mask: Any = None,
        segments: Any = None,
        positions: Any = None,
    ) -> Tensor:
        """Embeddings, with those of segments and positions, normed, through all blocks.   x: (B, T, C) -> (B, T, C)

        segments: (B, T), all of the first unless given. positions: (B, T), after what is cached, one after another,
        unless given, as where nobody knows which embeddings are of padding. Virtual tokens of a prefix are cached.
        """
        xp, a, past = array_module(x.data), self.architecture, cache.length if cache is not None else 0
        if self.token_types is not None:
            x = x + self.token_types(xp.zeros(x.shape[:2], np.int64) if segments is None else segments)
        if positions is None:
            positions = xp.arange(past, past + x.shape[1])  # (T,)
            positions = positions + a.pad_id + 1 if a.family == "roberta" else positions
        x = x + self.wpe(positions)
        x = x if self.ln_embedding is None else self.ln_embedding(x)
        place = Place(a, mask, past, x.shape[1], x.data)
        for i, block in enumerate(self.blocks):
            x = self.through(block, x, rng, cache, i, place)
        return x

    def logits(self, x: Tensor, rng: Any = None) -> Tensor:
        """What the masked-language head makes of hidden states.   (B, T, C) -> (B, T, V)"""
        if self.head is None:
            raise ValueError(f"Encoder: {self.architecture.name} has no masked-language head")
        return self.head(x, self.wte, rng)

    def pooled(self, x: Tensor, rng: Any = None) -> Tensor:
        """tanh(W x_0 + b) of the first token's hidden state, virtual or not.   (B, T, C) -> (B, C)"""
        if self.pooler is None:
            raise ValueError(f"Encoder: {self.architecture.name} has no pooler")
        return ops.tanh(self.pooler(x[:, 0], rng))

    def of_text(self, x: Tensor, rng: Any = None) -> Tensor:
        """The scores of a text's labels.   hidden states (B, T, C) -> (B, L)"""
        return self.classifier(x[:, 0] if self.pooler is None else self.pooled(x, rng), rng)

    def scores(self, tokens: Any, rng: Any = None, mask: Any = None) -> Tensor:
        """The head for labels on each text.   (B, T) integers -> (B, L)"""
        return self.of_text(self.states(tokens, rng, None, mask), rng)

    def scores_of_texts(self, tokens: Any, mask: Any) -> Tensor:
        """As `scores`.   (B, T) -> (B, L)"""
        return self.scores(tokens, mask=mask)

    def take_head(self, count: int) -> None:
        """Have a head for so many labels: the one that is there, or a new one in the place of another, all alike.

        BERT's reads the pooler, which is a new one where there was none. Raises ValueError where there is a head for
        another number of labels, and under an adapter, which may be on what gives way.
        """
        a, rng, dtype = self.architecture, np.random.default_rng(0), self.ln_f.weight.dtype
        if a.head == "labels" and a.labels == count:
            return
        if a.head == "labels":
            raise ValueError(f"add_classifier: {count} labels, but {a.name} has a head for {a.labels}")
        if getattr(self, "adapters", None):
            raise ValueError("add_classifier: the encoder has an adapter; give it the head first, then the adapter")
        a = labelled(a, count)
        if not a.pooler:
            self.pooler = None
        elif self.pooler is None:
            self.pooler = Linear(a.width, a.width, True, rng).astype(dtype)
        head: Any = Linear(a.width, count, True, rng, std=0.0) if a.pooler else LabelHead(a, rng, 0.0)
        self.classifier, self.head, self.architecture = head.astype(dtype), None, a

    def loss(self, tokens: Any, targets: Any, rng: Any = None, mask: Any = None, token_types: Any = None) -> Tensor:
        """The mean cross-entropy in nats: of the tokens that were masked, or of labels.   -> ()

        targets: (B, T) integers, -100 where a token was not masked; for a head "labels" (B,), one for each text, or
        (B, T) with one that counts in each row, as `Examples` have them.
        """
        a, targets = self.architecture, as_tokens(targets, "Encoder.loss")
        if a.head == "none":
            fix = 'an architecture with head="masked" or head="labels", or ml.add_classifier(model, labels)'
            raise ValueError(f"Encoder.loss: {a.name} has no head, and hidden states have no loss; take {fix}")
        x = self.states(tokens, rng, None, mask, token_types)  # (B, P + T, C)
        if a.head == "labels":
            return ops.cross_entropy(self.of_text(x, rng), of_each_text(targets))
        x = self._of_tokens(x)  # (B, T, C)
        if mask is not None:
            counts = as_mask("Encoder.loss", mask, targets.shape)
            targets = array_module(targets).where(counts, targets.astype(np.int64), IGNORED)
        return self.head.cross_entropy(x, targets, self.wte, rng)

    def generate(self, *arguments: Any, **options: Any) -> np.ndarray:
        """Refused: an encoder has seen what comes next."""
        raise ValueError(f"generate: {self.architecture.name} is an encoder: it reads texts, and goes on with none")


def of_each_text(targets: Array) -> Array:
    """The label of each text, (B,), of targets (B,) or (B, T). Raises ValueError for two that count in one row."""
    if targets.ndim == 2:
        if ((targets != IGNORED).sum(axis=1) > 1).any():
            raise ValueError(f"Encoder.loss: a row of targets has two labels; one counts, and the others are {IGNORED}")
        targets = targets.max(axis=1)  # IGNORED is below all labels
    return targets


def _after(filled: Any, count: int, rows: Array) -> Array:
    """Rows with `count` numbers more in front of each, made by xp.ones or xp.zeros.   (B, T) -> (B, P + T)"""
    return array_module(rows).concatenate([filled((len(rows), count), rows.dtype), rows], axis=1)


Transformer.encoder = Encoder
