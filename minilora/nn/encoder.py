"""Encoders: BERT, RoBERTa and DistilBERT, beside the decoders of `transformer.py`, whose parts they are made of.

An encoder reads a whole text at once: each token sees those after it as well, and only padding is hidden. Where a
decoder normalises what goes into attention and MLP, an encoder normalises what comes out, with x added (post-norm).

    BERT        positions from 0, segments, a pooler: tanh of a matrix on the first token (Devlin et al. 2019)
    RoBERTa     positions from pad_id + 1, of real tokens alone, one segment (Liu et al. 2019)
    DistilBERT  positions from 0, no segments and no pooler (Sanh et al. 2019)

Shapes: B batch, T time, C width, V vocabulary, L labels.
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
        return table.logits(self.norm(ACTIVATIONS[self.activation](self.dense(x, rng)))) + self.bias


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
        x = self.last(tokens, rng, cache, mask, token_types)  # (B, T, C)
        if self.head is not None:
            return self.logits(x, rng)
        return self.of_text(x, rng) if self.architecture.head == "labels" else x

    def last(
        self, tokens: Any, rng: Any = None, cache: Any = None, mask: Any = None, token_types: Any = None
    ) -> Tensor:
        """Hidden states, which every head reads.   (B, T) integers -> (B, T, C)"""
        if cache is not None or self.front is not None:
            what = "cache = ..." if cache is not None else "virtual tokens in front of the text"
            raise ValueError(
                f"Encoder: {what}: an encoder reads a whole text at once, and keeps nothing of earlier ones"
            )
        tokens, _ = self.read(tokens, rng)
        mask = None if mask is None else as_mask("Encoder", mask, tokens.shape)
        return self.hidden(self.embed(tokens, token_types), rng, None, mask)

    def embed(self, tokens: Any, token_types: Any = None) -> Tensor:
        """The sum of a token's three rows, normalised.   (B, T) integers -> (B, T, C)"""
        x = self.wte(tokens)
        if self.token_types is not None:
            x = x + self.token_types(self._segments(tokens, token_types))
        elif token_types is not None:
            raise ValueError(f"Encoder: token_types: {self.architecture.name} has no segments; leave them out")
        x = x + self.wpe(self.positions(tokens))
        return x if self.ln_embedding is None else self.ln_embedding(x)

    def _segments(self, tokens: Array, token_types: Any) -> Array:
        """Which segment each token is of, (B, T)."""
        xp, a = array_module(tokens), self.architecture
        if token_types is None:
            return xp.zeros(tokens.shape, np.int64)
        token_types = as_tokens(token_types, "Encoder: token_types")
        if token_types.shape != tokens.shape:
            raise ValueError(f"Encoder: token_types have shape {token_types.shape}, the tokens {tokens.shape}")
        check_tokens("Encoder", token_types, a.token_types, "token_types")
        return token_types

    def positions(self, tokens: Array) -> Array:
        """The row of the position table for each token: (T,), or in RoBERTa, where padding has its own, (B, T)."""
        xp, a = array_module(tokens), self.architecture
        if a.family != "roberta":
            return xp.arange(tokens.shape[1])
        real = tokens != a.pad_id
        return real.cumsum(axis=1) * real + a.pad_id

    def hidden(self, x: Tensor, rng: Any = None, cache: Any = None, mask: Any = None) -> Tensor:
        """Embeddings through all blocks.   x: (B, T, C) -> (B, T, C)"""
        place = Place(self.architecture, mask, 0, x.shape[1], x.data)
        for i, block in enumerate(self.blocks):
            x = self.through(block, x, rng, None, i, place)
        return x

    def logits(self, x: Tensor, rng: Any = None) -> Tensor:
        """What the masked-language head makes of hidden states.   (B, T, C) -> (B, T, V)"""
        if self.head is None:
            raise ValueError(f"Encoder: {self.architecture.name} has no masked-language head")
        return self.head(x, self.wte, rng)

    def pooled(self, x: Tensor, rng: Any = None) -> Tensor:
        """tanh(W x_0 + b) of the first token's hidden state.   (B, T, C) -> (B, C)"""
        if self.pooler is None:
            raise ValueError(f"Encoder: {self.architecture.name} has no pooler")
        return ops.tanh(self.pooler(x[:, 0], rng))

    def of_text(self, x: Tensor, rng: Any = None) -> Tensor:
        """The scores of a text's labels.   hidden states (B, T, C) -> (B, L)"""
        return self.classifier(x[:, 0] if self.pooler is None else self.pooled(x, rng), rng)

    def scores(self, tokens: Any, rng: Any = None, mask: Any = None) -> Tensor:
        """The head for labels on each text.   (B, T) integers -> (B, L)"""
        return self.of_text(self.last(tokens, rng, None, mask), rng)

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
        x = self.last(tokens, rng, None, mask, token_types)
        if a.head == "labels":
            return ops.cross_entropy(self.of_text(x, rng), of_each_text(targets))
        if mask is not None:
            counts = as_mask("Encoder.loss", mask, targets.shape)
            targets = array_module(targets).where(counts, targets.astype(np.int64), IGNORED)
        return ops.cross_entropy(self.logits(x, rng), targets)

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


Transformer.encoder = Encoder
