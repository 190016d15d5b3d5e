"""What every model of language has, whatever it is made of: a loss, a text that goes on, and room for virtual tokens.

`gpt.py` and `transformer.py` say how logits are computed; here is what is done with them.
Shapes: B batch, T time, H heads, D width of a head, C width, V vocabulary.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module, to_numpy
from ..autograd.checkpoint import recompute
from ..autograd.fused import check_tokens
from ..autograd.signatures import is_real, is_whole, shown
from ..autograd.tensor import Tensor, no_grad
from .characters import CHARACTERS
from .checks import generator
from .layers import Linear
from .module import Module


class Cache:
    """Keys and values of the positions already seen, one pair a block: (B, H, S, D). New ones are appended."""

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.mask: Array | None = None  # which of them are no padding: (B, S), None where all are

    @property
    def length(self) -> int:
        """How many positions are cached."""
        return self.pairs[0][0].shape[2] if self.pairs else 0

    def append(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values; return all of them."""
        if block in self.pairs:
            old_k, old_v = self.pairs[block]
            k = ops.concatenate([old_k, k], axis=2)  # (B, H, S, D)
            v = ops.concatenate([old_v, v], axis=2)
        self.pairs[block] = k, v
        return k, v

    def counting(self, mask: Array | None, new: tuple[int, int]) -> Array | None:
        """Which positions are no padding, those cached and `new` (B, T) more that have this mask: (B, S), or None."""
        if mask is None and self.mask is None:
            return None
        xp = array_module(self.mask if mask is None else mask)
        old = xp.ones((new[0], self.length), bool) if self.mask is None else self.mask
        self.mask = xp.concatenate([old, xp.ones(new, bool) if mask is None else mask], axis=1)
        return self.mask


class LanguageModel(Module):
    """model(tokens) is the logits of the token after each position; a subclass says how.

    vocab_size: V. width: C. places: how many positions there are. cached_heads: (K, D), the heads of keys and values
    that the cache gets in each block. tokenizer: what makes tokens of a text, where there is one. classifier, labels: a
    head for labels, where there is one (`classifier.py`). source: the folder, file or name that the model was opened
    from, "" where it was made here. recompute_blocks: whether training keeps of each block only
    what goes into it, and computes the rest again in the backward pass: the same bits in less memory and more time.
    """

    front: Any  # virtual tokens before every text, a trained prompt or prefix (adapters/prompt.py), or None
    limit = "context"  # what an error calls the number of places
    causal = True  # whether a token sees only what stands before it; virtual tokens do not see the text then
    blocks: list[Any]
    wte: Any
    ln_f: Any

    def __init__(self, vocab_size: int, width: int, places: int, cached_heads: tuple[int, int]):
        self.vocab_size, self.width, self.places, self.cached_heads = vocab_size, width, places, cached_heads
        self.tokenizer: Any = CHARACTERS if vocab_size == CHARACTERS.vocab_size else None
        self.classifier: Any = None
        self.labels: tuple[str, ...] = ()
        self.source = ""
        self.recompute_blocks = False

    @property
    def context(self) -> int:
        """The longest text: as many tokens as there are places, less the virtual tokens in front of it."""
        return self.places - (self.front.length if self.front is not None else 0)

    @property
    def window(self) -> int:
        """How many tokens at a time training and evaluation take."""
        return self.places

    def read(self, tokens: Any, rng: Any = None, cache: Any = None) -> tuple[Array, Cache | None]:
        """The tokens (B, T) of a call, checked, and the cache with the virtual tokens in it where there are any."""
        name = type(self).__name__
        tokens = as_tokens(tokens, name)
        if rng is not None and not hasattr(rng, "random"):
            raise TypeError(
                f"{name}: rng = {shown(rng)}, expected a numpy Generator, as np.random.default_rng(0), or None"
            )
        if cache is not None and not isinstance(cache, Cache):
            raise TypeError(f"{name}: cache = {shown(cache)}, expected a Cache, or None")
        if tokens.ndim != 2 or not tokens.shape[1]:
            raise ValueError(
                f"{name}: tokens have shape {tokens.shape}, expected (B, T); for one sequence: tokens[None]"
            )
        if self.front is not None and (cache is None or not cache.length):
            cache = self.front.fill(self, cache or Cache(), len(tokens), rng)
        end = max(cache.length if cache is not None else 0, self.places - self.context) + tokens.shape[1]
        if end > self.places:
            virtual = f" ({self.front.length} of them virtual)" if self.front is not None else ""
            raise ValueError(f"{name}: {end} tokens{virtual} exceed the {self.limit} = {self.places}")
        return tokens, cache

    def embed(self, tokens: Any) -> Tensor:
        """What the first block gets of each token, but for its position.   (...) integers -> (..., C)"""
        return self.wte(tokens)

    def through(self, block: Any, x: Tensor, rng: Any, cache: Cache | None, *where: Any) -> Tensor:
        """One block of many.   x: (B, T, C) -> (B, T, C)"""
        if self.recompute_blocks and cache is None:  # a cache would be filled twice
            return recompute(block, x, rng, cache, *where)
        return block(x, rng, cache, *where)

    def last(self, tokens: Any, rng: Any = None, cache: Any = None) -> Tensor:
        """What a head reads: the hidden states after the last norm.   (B, T) integers -> (B, T, C)"""
        tokens, cache = self.read(tokens, rng, cache)
        return self.ln_f(self.hidden(self.embed(tokens), rng, cache))

    def scores(self, tokens: Any, rng: Any = None) -> Tensor:
        """The head for labels at every position.   (B, T) integers -> (B, T, labels)"""
        return self.classifier(self.last(tokens, rng), rng)

    def scores_of_texts(self, tokens: Any, mask: Any) -> Tensor:
        """The head for labels at the last token of texts that are padded on the right.   (B, T) -> (B, labels)"""
        return self.scores(tokens)[np.arange(len(tokens)), mask.sum(axis=1) - 1]

    def take_head(self, count: int) -> None:
        """Give the model a head for so many labels, all alike; transformers' decoders have no bias there either."""
        head = Linear(self.width, count, False, np.random.default_rng(0), std=0.0)
        self.classifier = head.astype(self.ln_f.weight.dtype)

    def loss(self, tokens: Any, targets: Any, rng: Any = None) -> Tensor:
        """The mean cross-entropy in nats per target, of tokens or labels.   tokens, targets: (B, T) integers -> ()

        Where there are many logits of a frozen table, as under LoRA, never all of them are held: of one that is trained
        they would be made twice.
        """
        targets = as_tokens(targets, f"{type(self).__name__}.loss")
        if self.labels:
            return ops.cross_entropy(self.scores(tokens, rng), targets)
        table = getattr(self.wte, "weight", None)
        if table is not None and not table.requires_grad:
            return self.wte.cross_entropy(self.last(tokens, rng), targets)
        return ops.cross_entropy(self(tokens, rng), targets)

    def generate(
        self,
        tokens: Any,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        rng: Any = 0,
        use_cache: bool = True,
        top_p: float | None = None,
        stop: Collection[int] = (),
        mask: Any = None,
    ) -> Any:
        """Continue a text by sampling one token at a time from softmax(logits / temperature).

        tokens: (T,) or (B, T) integers -> (T + n,) or (B, T + n); or a list of prompts of several lengths -> a list of
        texts (T_i + n_i,), each of which is what its prompt gives alone. temperature 0 takes the likeliest token; top_k
        samples among the k likeliest; top_p among the likeliest that together have that probability. Of equally likely
        tokens the lower number counts as the likelier. rng: a seed or Generator, which draws a number for each row at
        each step; or a list of them, one a row, which is then drawn as it is alone. stop: tokens that end a text: n is
        smaller when all texts have ended, and in an array one that ended before others repeats its last token. mask:
        (B, T), 0 where a shorter prompt than others is padded, which is on its left: it goes on from its last token.
        Beyond the context the window slides: positions move, so the cache starts anew.
        Raises ValueError for a negative temperature or count, top_k below 1, top_p beyond 0 and 1, a prompt without
        tokens, and logits that are not finite, with the parameter that is not; TypeError for tokens that are not
        integers.
        """
        if unequal(tokens):
            prompts, tokens, mask = side_by_side(tokens, mask)
            texts = self.generate(tokens, max_new_tokens, temperature, top_k, rng, use_cache, top_p, stop, mask)
            both = zip(texts, map(len, prompts), strict=True)
            return [ended_text(text[tokens.shape[1] - length :], length, stop) for text, length in both]
        check_choices(temperature, top_k, top_p, max_new_tokens, use_cache, stop)
        prompt = to_numpy(as_tokens(tokens, "generate"))
        if prompt.ndim not in (1, 2) or prompt.size == 0:
            raise ValueError(f"generate: the prompt has shape {prompt.shape}, expected (T,) or (B, T), T at least 1")
        check_tokens("generate", prompt, self.vocab_size)
        text = prompt.reshape(-1, prompt.shape[-1])  # (B, T)
        counts = None if mask is None else left_padding(mask, prompt.shape).reshape(text.shape)
        rng = Each(rng, len(text)) if isinstance(rng, list | tuple) else generator(rng, "generate")
        ended = np.zeros(len(text), dtype=bool)
        one_more: Any = None  # what reads one more token of each text
        with no_grad(), np.errstate(over="ignore", invalid="ignore"):  # what is not finite is said below
            for _ in range(max_new_tokens):
                if one_more is None or text.shape[1] > self.context:  # the first step, or positions that have moved
                    cache = Cache()
                    seen = None if counts is None else counts[:, -self.context :]
                    logits = self.next_logits(text[:, -self.context :], cache, seen)  # (B, V)
                    one_more = self._reader(cache) if use_cache and text.shape[1] < self.context else None
                else:
                    logits = one_more(text[:, -1])  # (B, V)
                logits = self._finite(to_numpy(logits))
                chosen = sample(logits, temperature, top_k, rng, top_p) if temperature else logits.argmax(axis=1)
                chosen = np.where(ended, text[:, -1], chosen)  # (B,)
                text = np.concatenate([text, chosen[:, None]], axis=1)
                counts = None if counts is None else np.pad(counts, ((0, 0), (0, 1)), constant_values=True)
                if len(stop) and (ended := ended | np.isin(chosen, list(stop))).all():
                    break
        return text if prompt.ndim > 1 else text[0]

    def _finite(self, logits: np.ndarray) -> np.ndarray:
        """The logits, where they are numbers."""
        if not np.isfinite(logits).all():
            why = self.first_not_finite() or f"the numbers on the way to them are too large for {logits.dtype}"
            raise ValueError(f"generate: the logits are not finite; {why}")
        return logits

    def next_logits(self, tokens: Array, cache: Cache, mask: Array | None = None) -> Array:
        """The logits of the token after a text, which is cached.   (B, T) -> (B, V)"""
        return self(tokens, cache=cache, mask=mask).data[:, -1]

    def _reader(self, cache: Cache) -> Any:
        """What maps tokens (B,) to logits (B, V) after what is cached; a subclass may have a quicker one."""
        return lambda tokens: self(tokens[:, None], cache=cache).data[:, -1]


def left_padding(mask: Any, shape: tuple) -> np.ndarray:
    """A mask of prompts, of their shape. Raises ValueError where padding is not on the left alone."""
    counts = to_numpy(as_mask("generate", mask, shape))
    if not counts[..., -1].all() or (counts[..., :-1] > counts[..., 1:]).any():
        raise ValueError("generate: mask has 0 after 1, expected padding on the left: prompts go on from their ends")
    return counts


def unequal(tokens: Any) -> bool:
    """Whether these are prompts of several lengths."""
    rows = list(tokens) if isinstance(tokens, list | tuple) else []
    flat = lambda row: isinstance(row, np.ndarray | Tensor) and row.ndim == 1
    each = all(isinstance(row, list | tuple | range) or flat(row) for row in rows)
    return each and len({len(row) for row in rows}) > 1


def side_by_side(tokens: Any, mask: Any) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Prompts of several lengths, each with padding on its left: -> each, all (B, T), and the mask of all (B, T)."""
    if mask is not None:
        raise TypeError("generate: prompts of several lengths need no mask; it goes with an array that is padded")
    prompts = [as_tokens(row, f"generate: prompt {i}") for i, row in enumerate(tokens)]
    for i, prompt in enumerate(prompts):
        if prompt.ndim != 1 or not prompt.size:
            raise ValueError(f"generate: prompt {i} has shape {prompt.shape}, expected (T,), T at least 1")
        if prompt.dtype.kind not in "iu":
            raise TypeError(f"generate: prompt {i} has dtype {prompt.dtype}, expected integers")
    longest = max(map(len, prompts))
    padded = np.stack([np.pad(to_numpy(prompt).astype(np.int64), (longest - len(prompt), 0)) for prompt in prompts])
    return prompts, padded, np.stack([np.arange(longest) >= longest - len(prompt) for prompt in prompts])


def ended_text(text: np.ndarray, start: int, stop: Collection[int]) -> np.ndarray:
    """A text as far as the first token that ends it, from a place on."""
    ends = np.flatnonzero(np.isin(text[start:], list(stop)))
    return text[: start + ends[0] + 1] if len(ends) else text


class Each:
    """A seed or Generator for each row of a batch, which draw as one: each row as it is drawn alone."""

    def __init__(self, rngs: Sequence[Any], rows: int):
        if len(rngs) != rows:
            raise ValueError(f"generate: rng has {len(rngs)} seeds, expected one, or one for each of {rows} prompts")
        self.rngs = [generator(rng, "generate") for rng in rngs]

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        """(B, ...) numbers from 0 to 1."""
        return np.stack([rng.random(shape[1:]) for rng in self.rngs])


def check_choices(
    temperature: Any, top_k: Any, top_p: Any, max_new_tokens: Any, use_cache: Any = True, stop: Any = ()
) -> None:
    """Raises ValueError or TypeError for a way of sampling that makes no sense."""
    if not isinstance(use_cache, bool | np.bool_):
        raise TypeError(f"generate: use_cache = {shown(use_cache)}, expected True or False")
    if not isinstance(stop, Collection) or not all(is_whole(token) for token in stop):
        raise TypeError(f"generate: stop = {shown(stop)}, expected tokens, such as model.tokenizer.eos")
    if not is_real(temperature) or not temperature >= 0:
        raise ValueError(f"generate: temperature = {shown(temperature)}, expected a number of 0 or more")
    if top_k is not None and (not is_whole(top_k) or top_k < 1):
        raise ValueError(f"generate: top_k = {shown(top_k)}, expected an integer of 1 or more, or None for all")
    if top_p is not None and (not is_real(top_p) or not 0 < top_p <= 1):
        raise ValueError(f"generate: top_p = {shown(top_p)}, expected a number above 0, up to 1, or None for all")
    if not is_whole(max_new_tokens) or max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens = {shown(max_new_tokens)}, expected an integer of 0 or more")


def sample(
    logits: np.ndarray, temperature: float, top_k: int | None, rng: np.random.Generator, top_p: float | None = None
) -> np.ndarray:
    """One token for each row of logits.   (B, V) -> (B,)

    Of equal logits the lower token number counts as the likelier. A logit of -inf is a token that is never drawn.
    Raises ValueError for a row with NaN, infinity, or nothing but -inf.
    """
    largest = logits.max(axis=1, keepdims=True)  # (B, 1), NaN where a row has one
    if not np.isfinite(largest).all():
        raise ValueError(
            f"sample: the largest logit of a row is {largest[~np.isfinite(largest)][0]}, expected a number"
        )
    if temperature == 0:
        return logits.argmax(axis=1)
    z = logits.astype(np.float64) - largest  # at most 0
    if top_k is not None and top_k < z.shape[1]:
        kth = np.partition(z, -top_k, axis=1)[:, -top_k, None]
        above, ties = z > kth, z == kth
        z[~above & ~(ties & (ties.cumsum(axis=1) <= top_k - above.sum(axis=1, keepdims=True)))] = -np.inf
    z /= min(max(temperature, 1e-200), 1e300)  # nothing colder or hotter would differ
    p = np.exp(z)
    if (
        top_p is not None and top_p < 1
    ):  # Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1
        order = (-p).argsort(axis=1, kind="stable")  # (B, V), the likeliest first
        ranked = np.take_along_axis(p, order, axis=1) / p.sum(axis=1, keepdims=True)
        beyond = ranked.cumsum(axis=1) - ranked >= top_p  # what comes before has it already
        np.put_along_axis(p, order, np.where(beyond, 0, ranked), axis=1)
    cumulative = (p / p.sum(axis=1, keepdims=True)).cumsum(axis=1)  # (B, V), the last column is 1
    return (cumulative <= rng.random((len(z), 1)) * cumulative[:, -1:]).sum(axis=1)  # the first that is larger


def as_tokens(tokens: Any, caller: str = "GPT") -> Array:
    """Tokens as an array, where they are: they are checked there, and go to the GPU with the first look-up.

    Raises TypeError for text, a masked array, and what is no array of numbers.
    """
    tokens = tokens.data if isinstance(tokens, Tensor) else tokens
    if isinstance(tokens, str):
        raise TypeError(f"{caller}: got the text {shown(tokens)}, expected integers; ml.encode(text) gives them")
    try:
        array = array_module(tokens).asarray(tokens)
    except ValueError as error:  # rows of unequal lengths
        raise TypeError(f"{caller}: got {shown(tokens)}, expected integers: {error}") from None
    if array.dtype.kind in "OSUV" or isinstance(tokens, np.ma.MaskedArray):
        raise TypeError(f"{caller}: got {shown(tokens)}, expected integers, the numbers of tokens")
    return array


def as_mask(caller: str, mask: Any, shape: tuple[int, ...]) -> Array:
    """A mask as an array of truth values (B, T), or an error that says what came."""
    mask = as_tokens(mask, f"{caller}: mask")
    if mask.shape != shape or not (mask.dtype.kind in "buif" and bool(((mask == 0) | (mask == 1)).all())):
        came = f"{mask.shape} of {mask.dtype}"
        raise ValueError(f"{caller}: mask is {came}, expected {shape}: 1 where a token counts, 0 where it is padding")
    return mask.astype(bool)
