"""ViT: a picture's patches are the tokens of a transformer, to be read from top to bottom.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1. A picture is cut into patches, each of which one
matrix makes into a token; in front of them stands a token of the picture's class, which is learned. Positions are
learned, too. The blocks are those of the other transformers, with norms in front (pre-norm), and each token sees all
others; a head reads the class token.

Shapes: B batch, S side of a picture and P of a patch in pixels, N = (S / P)^2 patches, T = 1 + N tokens, C width,
H heads, D width of a head, L labels.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module
from ..autograd.fused import IGNORED
from ..autograd.signatures import checked, is_real, is_whole, shown
from ..autograd.tensor import Tensor, no_grad
from .architectures import Architecture
from .checks import divides, flag, generator, plain, whole
from .habits import names_its_settings
from .layers import Embedding, LayerNorm, Linear, parameter
from .module import Module
from .storage import file_path, load_whole, save_whole
from .transformer import ACTIVATIONS, Attention, Block, Place

AT_ONCE = 256  # pictures that `predict` and `attention_maps` take at a time
OURS = {  # the judges that come with the package (`training/judges.py`)
    name: Path(__file__).parent.parent / f"judge_{name}.npz" for name in ("characters", "fonts")
}


@names_its_settings
@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The sizes of a vision transformer.

    image_size S and patch_size P in pixels (P divides S), channels (1 of grey pictures, 3 of colours), n_layer,
    n_head H, n_embd C (a multiple of H), labels L; mlp_width: of the MLPs, 4 C where it is None; activation: theirs;
    qkv_bias: whether queries, keys and values have one; norm_eps: of the layer norms. Raises ValueError for sizes that
    are not positive integers or do not divide.
    """

    image_size: int = 16
    patch_size: int = 4
    channels: int = 1
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 64
    labels: int = 62
    mlp_width: int | None = None
    activation: str = "gelu"
    qkv_bias: bool = True
    norm_eps: float = 1e-12  # as transformers has it

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "channels", "n_layer", "n_head", "n_embd", "labels", "mlp_width"):
            value = getattr(self, name)
            if not (value is None and name == "mlp_width"):
                whole("ViTConfig", name, int(value) if is_whole(value) else value)
        divides("ViTConfig", self, ("image_size", "patch_size"), ("n_embd", "n_head"))
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"ViTConfig: activation = {shown(self.activation)}, expected {', '.join(ACTIVATIONS)}")
        flag(self.qkv_bias, "ViTConfig: qkv_bias")
        if not is_real(self.norm_eps) or not 0 < self.norm_eps < 1:
            raise ValueError(f"ViTConfig: norm_eps = {shown(self.norm_eps)}, expected a small number above 0")

    @property
    def patches(self) -> int:
        """N, how many patches a picture has."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def blocks(self) -> Architecture:
        """What its blocks are made of: those of a language model that looks both ways."""
        inside = self.mlp_width or 4 * self.n_embd
        own: dict[str, Any] = dict(qkv_bias=self.qkv_bias, norm_eps=self.norm_eps, activation=self.activation)
        own |= dict(family="vit", causal=False, head="labels", labels=self.labels, positions=1 + self.patches)
        own |= dict(patch=self.channels * self.patch_size**2, bits=32)
        return Architecture("vit", 1, self.n_embd, self.n_layer, self.n_head, inside, 1 + self.patches, **own)

    @property
    def count(self) -> int:
        """How many parameters such a model has."""
        c, f = self.n_embd, self.mlp_width or 4 * self.n_embd
        block = 4 * c * c + (4 if self.qkv_bias else 1) * c + 2 * c * f + f + c + 4 * c
        around = c * (self.channels * self.patch_size**2 + 1) + (2 + self.patches) * c + 2 * c
        return around + self.n_layer * block + self.labels * (c + 1)


class ViT(Module):
    """logits = W ln_f(blocks([class; W_in patches] + positions))_0 + b

    config: a ViTConfig; rng: a seed or a numpy Generator for the initial weights, drawn from N(0, 0.02). Parameters are
    float32; `model.astype("float64")` for gradient checks. model.labels: what the labels are called, where that is
    known; model.source: the folder that it was opened from.

    >>> model = ViT(ViTConfig(image_size=8, n_layer=1, n_embd=16, labels=3))
    >>> model(np.zeros((5, 8, 8), "float32")).shape
    (5, 3)
    """

    def __init__(self, config: ViTConfig, rng: Any = 0):
        if not isinstance(config, ViTConfig):
            raise TypeError(f"ViT: got {shown(config)}, expected a ViTConfig(image_size=16, patch_size=4, ...)")
        rng, c, a = generator(rng, "ViT"), config.n_embd, config.blocks
        self.config = config
        self.labels: tuple[str, ...] = ()
        self.source = ""
        self.patch_proj = Linear(config.channels * config.patch_size**2, c, True, rng)
        self.class_token = parameter(rng.normal(0, 0.02, c))
        self.wpe = Embedding(a.context, c, rng)
        self.blocks = [Block(a, i, rng) for i in range(a.layers)]
        self.ln_f = LayerNorm(c, True, config.norm_eps)
        self.classifier: Any = Linear(c, config.labels, True, rng)

    def __call__(self, images: Any, rng: Any = None) -> Tensor:
        """The scores of each picture's labels.   (B, S, S), or (B, channels, S, S) -> (B, L)

        rng: a numpy Generator for adapters that drop out. Raises ValueError or TypeError for pictures of another size,
        with other channels, of whole numbers, or that are no pictures.
        """
        return self.classifier(self.ln_f(self.hidden(images, rng)[:, 0]), rng)

    def hidden(self, images: Any, rng: Any = None) -> Tensor:
        """What the last block gives, the class token first.   (B, S, S) -> (B, T, C)"""
        x = self.embed(images, rng)
        place = self.place(x)
        for i, block in enumerate(self.blocks):
            x = block(x, rng, None, i, place)
        return x

    def embed(self, images: Any, rng: Any = None) -> Tensor:
        """Tokens with their positions, before the first block.   (B, S, S) -> (B, T, C)"""
        x = self.patch_proj(self.patches(self.read(images)), rng)  # (B, N, C)
        first = ops.broadcast_to(self.class_token, (x.shape[0], 1, x.shape[2]))  # (B, 1, C)
        return ops.concatenate([first, x], axis=1) + self.wpe.weight

    def place(self, x: Tensor) -> Place:
        """What its blocks are told of tokens' places, which is nothing: positions are in the embeddings."""
        return Place(self.config.blocks, None, 0, x.shape[1], x.data)

    def patches(self, images: Tensor) -> Tensor:
        """Pictures cut into patches, row after row.   (B, channels, S, S) -> (B, N, channels P^2)"""
        (b, channels), p = images.shape[:2], self.config.patch_size
        n = self.config.image_size // p
        cut = images.reshape(b, channels, n, p, n, p)
        return ops.transpose(cut, (0, 2, 4, 1, 3, 5)).reshape(b, n * n, channels * p * p)

    def loss(self, images: Any, labels: Any, rng: Any = None) -> Tensor:
        """The mean cross-entropy in nats.   images (B, S, S), labels (B,) integers, -100 does not count -> ()"""
        logits = self(images, rng)
        labels = plain(labels.data if isinstance(labels, Tensor) else labels, "ViT.loss: labels")
        if labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
            came = f"{labels.shape} of {labels.dtype}"
            raise ValueError(f"ViT.loss: labels are {came}, expected {logits.shape[0]} integers, one for each picture")
        counting = labels[labels != IGNORED]
        if counting.size and not 0 <= counting.min() <= counting.max() < self.config.labels:
            came = f"from {counting.min()} to {counting.max()}"
            raise ValueError(f"ViT.loss: labels run {came}, expected 0 to {self.config.labels - 1}")
        return ops.cross_entropy(logits, labels)

    def predict(self, images: Any) -> Array:
        """The likeliest label of each picture, however many.   (B, S, S) -> (B,) integers"""
        with no_grad():
            return np.concatenate([self(part).data.argmax(axis=1) for part in _some(images)])

    def attention_maps(self, images: Any) -> Array:
        """How much each token looks at each other, in every block: rows are the tokens that look, and add up to 1.

        (B, S, S) -> (B, n_layer, H, T, T). Row 0 is the class token's; columns from 1 on are the patches, row by row.
        """
        with no_grad():
            return np.concatenate([self._maps(part) for part in _some(images)])

    def _maps(self, images: Any) -> Array:
        x, found = self.embed(images), []
        place = self.place(x)
        for i, block in enumerate(self.blocks):
            found.append(looks(block.attn, block.ln_1(x)))  # (B, H, T, T)
            x = block(x, None, None, i, place)
        return np.stack(found, axis=1)

    def take_head(self, count: int) -> None:
        """Have a new head for so many labels, all alike; one for as many that have no names stays.

        Raises ValueError under an adapter, which may be on the old one.
        """
        if count == self.config.labels and not self.labels:
            return
        if getattr(self, "adapters", None):
            raise ValueError("add_classifier: the model has an adapter; give it the head first, then the adapter")
        head = Linear(self.config.n_embd, count, True, np.random.default_rng(0), std=0.0)
        self.classifier = head.astype(self.ln_f.weight.dtype)
        self.config = dataclasses.replace(self.config, labels=count)

    def read(self, images: Any) -> Tensor:
        """Pictures in the model's precision, (B, channels, S, S), or an error that says what came instead."""
        c = self.config
        x = images if isinstance(images, Tensor) else Tensor(plain(images, "ViT: images"))
        wanted = f"({'B' if c.channels == 1 else f'B, {c.channels}'}, {c.image_size}, {c.image_size})"
        if x.dtype.kind in "biu":
            raise TypeError(f"ViT: images of {x.dtype}, expected floats, such as images / 255")
        if x.ndim == 3 and c.channels == 1 and len(x.data):
            x = x.reshape(len(x.data), 1, *x.shape[1:])
        if x.ndim != 4 or x.shape[1:] != (c.channels, c.image_size, c.image_size) or not x.size:
            side, grey = (c.image_size,) * 2, "images.mean(axis=-1) makes colours grey"
            fix = "; for one picture: image[None]" if images.shape in (side, (c.channels, *side)) else ""
            fix = f"; {grey}" if c.channels == 1 and x.shape[-1] in (3, 4) and x.ndim == 4 else fix
            raise ValueError(f"ViT: images have shape {tuple(np.shape(images))}, expected {wanted}{fix}")
        if not bool(array_module(x.data).isfinite(x.data).all()):
            raise ValueError("ViT: images hold NaN or infinity")
        dtype = self.ln_f.weight.data.real.dtype
        return x if x.dtype.kind == "c" or x.dtype == dtype else ops.astype(x, dtype)


def _some(images: Any) -> list[Any]:
    """Pictures, so many at a time."""
    images = plain(images.data if isinstance(images, Tensor) else images, "ViT: images")
    return [images[i : i + AT_ONCE] for i in range(0, max(len(images), 1), AT_ONCE)] if images.ndim else [images]


def looks(attention: Attention, x: Tensor) -> Array:
    """softmax(q k^T / sqrt(D)): what `ops.attention` multiplies the values by.   (B, T, C) -> (B, H, T, T)"""
    q, k = (ops.split_heads(proj(x), attention.n_head) for proj in (attention.q_proj, attention.k_proj))
    return ops.softmax(q @ k.swapaxes(-1, -2) * attention.scale).data


@checked
def save_vision(model: ViT, path: str | Path, dtype: Any = None, record: Mapping[str, Any] | None = None) -> Path:
    """Write a vision transformer, optionally rounded to another precision, with a record of facts; returns the path.

    Raises ValueError for a model with adapters or quantised weights, and for numbers that are not finite in that
    precision.
    """
    if str(path) in OURS:
        raise ValueError(f"save_vision: {str(path)!r} comes with minilora; name the file another way: 'my.npz'")
    header = {"kind": "vision model", "labels": model.labels, **(record or {})}
    return save_whole("save_vision", model, file_path(path, "save_vision"), dtype, header)


@checked
def load_vision(path: str | Path) -> ViT:
    """The vision transformer in a file, in float32; "characters" and "fonts" are the judges that come with minilora.

    A judge sees glyphs as `draw_glyphs` gives them, and says which character, or which font, each is.
    """
    path = OURS[str(path)] if str(path) in OURS else file_path(path, "load_vision")
    return load_whole(path, "vision model", ViT, ViTConfig, _check_count, _name)


def _check_count(config: ViTConfig, arrays: Mapping[str, np.ndarray]) -> None:
    held = sum(array.size for array in arrays.values())
    if config.count != held:
        raise ValueError(f"its configuration asks for {config.count:,} parameters, it holds {held:,}")


def _name(model: ViT, header: Mapping[str, Any]) -> None:
    model.labels = tuple(header["labels"])
    if model.labels and len(model.labels) != model.config.labels:
        raise ValueError(f"it has {len(model.labels)} names for {model.config.labels} labels")
