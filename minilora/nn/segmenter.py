"""A promptable segmenter: a picture, and a point or a box in it -> which pixels belong to what is there.

After Kirillov et al. 2023, "Segment Anything", in small:

    encoder   patches as tokens, through blocks that look both ways; once a picture, whatever is asked of it
    prompt    a point is one place twice, a box two corners: Fourier features of the place, what kind it is, and what
              is seen in its middle
    decoder   blocks over [mask token, prompt, patches]: each looks at all others, so attention goes both ways at once
    mask      logit of a pixel = its features . what the mask token asks for

A patch's token is as wide as its patch has pixels, and a thin crack is thinner than a patch: so a pixel's features are
made of its patch's token **and** of the pixels around it, which bring back what the patches have blurred.

The blocks are those of the language models, not causal: every adapter goes on them. Shapes: B pictures, S pixels of a
side, p of a patch's, N = (S / p)^2 patches, C width, F features of a pixel, w pixels of a window's side.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module, new_array, to_numpy
from ..autograd.signatures import is_real, is_whole, shown
from ..autograd.tensor import Tensor, no_grad
from .architectures import Architecture
from .checks import divides, generator
from .habits import names_its_settings
from .layers import STANDARD_DEVIATION, Embedding, LayerNorm, Linear, as_patches, as_pictures
from .module import Module
from .storage import file_path, load_whole, save_whole
from .transformer import Block, Place

MASK, POINT, FIRST, SECOND = range(4)  # kinds of tokens: the mask's, a point, a box's upper left and lower right corner
BOX_KINDS = [FIRST, SECOND]
BASE = Path(__file__).parent.parent / "segmenter.npz"  # trained on shapes, and shipped


@names_its_settings
@dataclasses.dataclass(frozen=True)
class SegmenterConfig:
    """The sizes of a segmenter.

    size: S, the pixels of a picture's side. patch: p, which divides S. width: C, a multiple of heads. layers: blocks of
    the encoder; decoder_layers: of the decoder. features: F of a pixel. window: w, an odd number of pixels.
    frequencies: of the Fourier features, which double from one to the next. Raises ValueError for sizes that do not
    fit one another.
    """

    size: int = 48
    patch: int = 8
    width: int = 96
    layers: int = 3
    decoder_layers: int = 2
    heads: int = 4
    features: int = 24
    window: int = 7
    frequencies: int = 6

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not is_whole(value) or value < 1:
                raise ValueError(f"SegmenterConfig: {field.name} = {shown(value)}, expected a positive integer")
        divides("SegmenterConfig", self, ("size", "patch"), ("width", "heads"))
        if not self.window % 2:
            raise ValueError(f"SegmenterConfig: window = {self.window}, expected an odd number: a pixel in the middle")

    @property
    def patches(self) -> int:
        """N, how many patches a picture has."""
        return (self.size // self.patch) ** 2

    @property
    def blocks(self) -> int:
        """How many blocks there are, in encoder and decoder together."""
        return self.layers + self.decoder_layers

    @property
    def architecture(self) -> Architecture:
        """What the blocks are made of: those of a language model, which look both ways and are not told of places."""
        sizes = 1, self.width, self.blocks, self.heads, 4 * self.width, self.patches + 3
        return Architecture("segmenter", *sizes, causal=False)


def as_images(caller: str, images: Any, size: int | None = None, alone: bool = False) -> Array:
    """Grey pictures (B, S, S) in [0, 1], or one alone, in float32 or more; or an error that says what came instead."""
    array, what = as_numbers(caller, "image has" if alone else "images have", images), "image" if alone else "images"
    side = "S" if size is None else size
    if array.ndim != 3 - alone or array.shape[-1] != array.shape[-2] or size not in (None, array.shape[-1]):
        wanted, fix = f"({side}, {side})" if alone else f"(B, {side}, {side})", ""
        if array.ndim == 2 and not alone:
            fix = "; for one picture: image[None]"
        elif array.ndim > 2 and array.shape[-1] in (3, 4):
            fix = f"; it looks like colours: {what}[..., :3].mean(-1) makes them grey"
        raise ValueError(
            f"{caller}: {what} {'has' if alone else 'have'} shape {array.shape}, expected {wanted}, grey{fix}"
        )
    if not array.size:
        raise ValueError(f"{caller}: {what} {'has' if alone else 'have'} shape {array.shape}: there is nothing to see")
    least, most = float(array.min()), float(array.max())
    if not (least >= 0 and most <= 1):
        fix = "; divide by 255" if least >= 0 and most > 2 else ""
        raise ValueError(f"{caller}: pixels run from {least:g} to {most:g}, expected 0 to 1{fix}")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def as_numbers(caller: str, what: str, given: Any) -> Array:
    """An array of real numbers, or of True and False. Raises TypeError for what is none."""
    try:
        array = given.data if isinstance(given, Tensor) else new_array(given)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{caller}: {what} {shown(given)}, which is no array: {error}") from None
    if array.dtype.kind not in "buif" or isinstance(given, np.ma.MaskedArray):
        kind = "a mask of its own" if isinstance(given, np.ma.MaskedArray) else f"dtype {array.dtype}"
        raise TypeError(f"{caller}: {what} {kind}, expected plain numbers")
    return array


def as_masks(caller: str, masks: Any, shape: tuple[int, ...]) -> Array:
    """Masks that fit pictures of this shape, True inside, or an error that says what came instead."""
    array = as_numbers(caller, "masks have", masks)
    if array.shape != shape:
        raise ValueError(f"{caller}: masks have shape {array.shape}, the images {shape}")
    if array.dtype.kind != "b" and not bool(((array == 0) | (array == 1)).all()):
        fix = "; masks > 127 makes them of a picture's" if array.max() > 2 else ""
        raise ValueError(f"{caller}: masks hold other numbers than 0 and 1, expected True inside{fix}")
    return array.astype(bool, copy=False)


def as_prompts(caller: str, prompts: Any, count: int, size: int) -> Array:
    """Points (B, 2) or boxes (B, 4), inside a picture, as boxes (B, 4); a point is a box with no extent."""
    array = to_numpy(as_numbers(caller, "prompts have", prompts))
    if array.ndim != 2 or len(array) != count or array.shape[1] not in (2, 4):
        words = f"points ({count}, 2) or boxes ({count}, 4), one for each picture"
        raise ValueError(f"{caller}: prompts have shape {array.shape}, expected {words}")
    what = "point" if array.shape[1] == 2 else "box"
    outside = ~((array >= 0) & (array <= size - 1)).all(axis=1)
    if outside.any():
        place = f"{what} {_place(array[outside][0])}"
        raise ValueError(f"{caller}: {place} is outside the picture, whose pixels are 0 to {size - 1}")
    array = np.concatenate([array, array], axis=1) if what == "point" else array
    turned = (array[:, :2] > array[:, 2:]).any(axis=1)
    if turned.any():
        place = f"box {_place(array[turned][0])}"
        raise ValueError(f"{caller}: {place} has its corners in another order than (x0, y0, x1, y1)")
    return array


def _place(numbers: Array) -> str:
    return f"({', '.join(f'{number:g}' for number in numbers)})"


class Segmenter(Module):
    """logits = features of a pixel . what the mask token asks for, as the module's text has it.

    config: a SegmenterConfig; rng: a seed or a numpy Generator for the initial weights, drawn from N(0, 1 / d_in), not
    from the language models' N(0, 0.02), which so narrow a model is slow to leave. Parameters are float32.
    """

    def __init__(self, config: SegmenterConfig | None = None, rng: Any = 0):
        config = SegmenterConfig() if config is None else config
        if not isinstance(config, SegmenterConfig):
            raise TypeError(f"Segmenter: config = {shown(config)}, expected a SegmenterConfig(size=48, ...)")
        rng, a, c, f = generator(rng, "Segmenter"), config.architecture, config.width, config.features
        self.config = config
        self.patch_proj = Linear(config.patch**2, c, True, rng, 1 / config.patch)
        self.place_proj = Linear(4 * config.frequencies, c, False, rng, 1 / math.sqrt(4 * config.frequencies))
        self.blocks = [Block(a, i, rng) for i in range(config.layers)]
        self.ln_f = LayerNorm(c, True)
        self.kinds = Embedding(4, c, rng)
        self.there_proj = Linear(config.window**2, c, True, rng, 1 / config.window)
        self.decoder = [Block(a, i, rng) for i in range(config.decoder_layers)]
        self.ln_d = LayerNorm(c, True)
        self.patch_up = Linear(c, config.patch**2 * f, True, rng, 1 / math.sqrt(c))
        self.window_up = Linear(config.window**2, f, False, rng, 1 / config.window)
        self.pixel_proj = Linear(f, f, True, rng, 1 / math.sqrt(f))
        self.mask_proj = Linear(c, f + 1, True, rng, 1 / c)
        for part in (*self.blocks, *self.decoder, self.kinds):
            for p in part.parameters():
                p.data *= 1 / math.sqrt(c) / STANDARD_DEVIATION if p.ndim == 2 else 1

    def __call__(self, images: Any, prompts: Any, rng: Any = None) -> Tensor:
        """The logits of every pixel, above 0 inside.   images (B, S, S), prompts (B, 2) or (B, 4) -> (B, S, S)

        prompts: points (x, y) or boxes (x0, y0, x1, y1), in pixels. rng: a numpy Generator, for adapters that drop out.
        Raises ValueError for pictures of another size, or not from 0 to 1, and for prompts outside.
        """
        images, prompts = self.fitting("Segmenter", images, prompts)
        return self.decode(self.encode(images, rng), images, prompts, rng)

    def fitting(self, caller: str, images: Any, prompts: Any) -> tuple[Array, Array]:
        """Pictures, and prompts as boxes (B, 4), or an error that says what does not fit."""
        images = as_images(caller, images, self.config.size)
        return images, as_prompts(caller, prompts, len(images), self.config.size)

    def encode(self, images: Array, rng: Any = None) -> Tensor:
        """A token for each patch, which knows of all others; what is asked comes later.   (B, S, S) -> (B, N, C)"""
        x = self.patch_proj(self._like(as_patches(images, self.config.patch)), rng)  # (B, N, C)
        p, g = self.config.patch, self.config.size // self.config.patch
        middle = (np.arange(g) + 0.5) * p - 0.5  # of each patch, in pixels
        centres = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)  # (N, 2): x, y, row by row
        x = x + self.places(centres, rng)
        for block in self.blocks:
            x = self._through(block, x, rng)
        return self.ln_f(x)

    def decode(self, x: Tensor, images: Array, prompts: Array, rng: Any = None) -> Tensor:
        """The logits, from the patches' tokens and the picture itself.   (B, N, C), (B, S, S), (B, 4) -> (B, S, S)"""
        b, f = len(images), self.config.features
        is_box = (prompts[:, :2] != prompts[:, 2:]).any(axis=1)[:, None]  # (B, 1)
        kinds = np.where(is_box, BOX_KINDS, POINT)  # (B, 2)
        there = self.there_proj(self._like(self._window_at(images, prompts)), rng)  # (B, 1, C)
        asked = self.places(prompts.reshape(b, 2, 2), rng) + self.kinds(kinds) + there  # (B, 2, C)
        token = self.kinds(np.full((b, 1), MASK))  # (B, 1, C)
        z = ops.concatenate([token, asked, x], axis=1)  # (B, 3 + N, C)
        for block in self.decoder:
            z = self._through(block, z, rng)
        z = self.ln_d(z)
        around = self.window_up(self._like(self._windows(images)), rng)  # (B, N p^2, F)
        of_patch = ops.reshape(self.patch_up(z[:, 3:], rng), around.shape)  # (B, N p^2, F)
        pixels = ops.gelu(self.pixel_proj(ops.gelu(of_patch + around), rng))  # (B, N p^2, F)
        wanted = self.mask_proj(z[:, :1], rng)  # (B, 1, F + 1)
        logits = pixels @ ops.swapaxes(wanted[..., :f], 1, 2) + wanted[..., f:]  # (B, N p^2, 1)
        return as_pictures(logits, self.config.size, self.config.patch)

    def places(self, points: Array, rng: Any = None) -> Tensor:
        """W [sin(pi 2^k u), cos(pi 2^k u)], u = place / S, in both directions, k = -1, 0, 1, ...   (..., 2) -> (..., C)

        Fourier features, after Tancik et al. 2020: patches and prompts have the same, so that a point finds its patch.
        """
        k = np.arange(self.config.frequencies) - 1.0
        angles = (points[..., None] + 0.5) * (math.pi / self.config.size) * 2.0**k  # (..., 2, K)
        angles = angles.reshape(*points.shape[:-1], -1)  # (..., 2 K)
        return self.place_proj(self._like(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)), rng)

    def loss(self, images: Any, prompts: Any, masks: Any, rng: Any = None) -> Tensor:
        """Cross-entropy over the pixels, in nats, and the Dice loss of each mask.   -> ()

        Kirillov et al. 2023 weigh a focal loss in the place of the first. masks: (B, S, S), True inside.
        """
        images, prompts = self.fitting("Segmenter.loss", images, prompts)
        masks = as_masks("Segmenter.loss", masks, images.shape)
        logits = self.decode(self.encode(images, rng), images, prompts, rng)
        return ops.binary_cross_entropy(logits, masks) + ops.dice_loss(logits, masks)

    def segment(self, image: Any, point: Any = None, box: Any = None) -> np.ndarray:
        """The pixels that belong to what is at a point, or in a box.   image: (S, S) -> (S, S), True inside

        point: (x, y); box: (x0, y0, x1, y1), in pixels: x to the right, y down. One of the two.
        """
        if (point is None) == (box is None):
            raise ValueError(f"segment: point = {shown(point)}, box = {shown(box)}, expected one of the two")
        name, prompt, many = ("point", point, 2) if box is None else ("box", box, 4)
        if not isinstance(prompt, list | tuple | np.ndarray) or len(prompt) != many or not all(map(is_real, prompt)):
            wanted = "(x, y)" if box is None else "(x0, y0, x1, y1)"
            raise ValueError(f"segment: {name} = {shown(prompt)}, expected {wanted}, numbers of pixels")
        image = as_images("segment", image, self.config.size, alone=True)
        place = as_prompts("segment", [prompt], 1, self.config.size)
        with no_grad():
            x = self.encode(image[None])
            return to_numpy(self.decode(x, image[None], place).data[0] > 0)

    def _through(self, block: Block, x: Tensor, rng: Any) -> Tensor:
        return block(x, rng, None, 0, Place(self.config.architecture, None, 0, x.shape[1], x.data))

    def _like(self, array: Array) -> Tensor:
        """Numbers in the model's precision, on its backend."""
        return Tensor(new_array(array, self.ln_f.weight.dtype))

    def _windows(self, images: Array) -> Array:
        """The w x w pixels around each, in the patches' order; beyond the edge, the edge's.   -> (B, N p^2, w^2)"""
        xp, w = array_module(images), self.config.window
        wide = xp.pad(images, ((0, 0), (w // 2, w // 2), (w // 2, w // 2)), mode="edge")
        views = xp.lib.stride_tricks.sliding_window_view(wide, (w, w), axis=(1, 2))  # (B, S, S, w, w)
        return as_patches(views.reshape(*images.shape, w * w), self.config.patch).reshape(len(images), -1, w * w)

    def _window_at(self, images: Array, prompts: Array) -> Array:
        """The w x w pixels around a point, or around a box's middle.   -> (B, 1, w^2)"""
        xp, w = array_module(images), self.config.window
        wide = xp.pad(images, ((0, 0), (w // 2, w // 2), (w // 2, w // 2)), mode="edge")
        x, y = np.rint((prompts[:, :2] + prompts[:, 2:]) / 2).astype(int).T[:, :, None, None]  # (B, 1, 1) each
        across = np.arange(w)
        seen = wide[np.arange(len(wide))[:, None, None], y + across[:, None], x + across]  # (B, w, w)
        return seen.reshape(len(wide), 1, w * w)


def save_segmenter(model: Segmenter, path: str | Path, dtype: Any = None) -> Path:
    """Write a segmenter's sizes and parameters, rounded to another precision where one is given.

    Raises ValueError for a model with adapters, whose file is `save_adapter`'s, and TypeError for what is no segmenter.
    """
    if str(path) == "base":
        raise ValueError("save_segmenter: 'base' comes with minilora; name the file another way: 'my.npz'")
    path = file_path(path, "save_segmenter")
    if not isinstance(model, Segmenter):
        raise TypeError(f"save_segmenter: got {shown(model)}, expected a Segmenter")
    return save_whole("save_segmenter", model, path, dtype, {"kind": "segmenter"})


def load_segmenter(path: str | Path = "base") -> Segmenter:
    """The segmenter in a file, in float32; "base" is the one that comes with the package, trained on shapes."""
    path = BASE if str(path) == "base" else file_path(path, "load_segmenter")
    return load_whole(path, "segmenter", Segmenter, SegmenterConfig, _check_sizes)


def _check_sizes(config: SegmenterConfig, arrays: Mapping[str, np.ndarray]) -> None:
    c, f = config.width, config.features
    sizes = (4 * c * c, config.patch**2 * c * f, config.window**2 * f, 4 * config.frequencies * c)
    if max(sizes) > max((a.size for a in arrays.values()), default=0) or config.blocks > len(arrays):
        raise ValueError(f"its configuration asks for more than it holds: {len(arrays)} arrays")
