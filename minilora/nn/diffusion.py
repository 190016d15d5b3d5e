"""DiT: a transformer that tells noise from picture, to be read from top to bottom.

Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", section 3.2. Patches are tokens, and every patch sees
every other. What is known of the picture, how noisy it is (the time t) and of what class it should be, comes in through
the norms: each block makes of it the weight and bias of its two layer norms, and a gate on what attention and MLP add
(adaLN-Zero). The gates start at zero, and so each block starts as the identity.
One class more, the last, stands for none: what it learns is used to guide (`training/diffusion.py`, which also says
what of noise and picture it is that the model is trained to give).

Shapes: B batch, S side of a picture and P of a patch in pixels, T = (S / P)^2 patches, C width, K classes.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, array_module
from ..autograd.signatures import checked, shown
from ..autograd.tensor import Tensor
from . import gpt
from .checks import divides, generator, plain, whole
from .gpt import MLP
from .habits import names_its_settings
from .layers import STANDARD_DEVIATION, Embedding, Linear, as_patches, as_pictures
from .module import Module
from .storage import file_path, load_whole, save_whole

LONGEST = 10000  # of the wavelengths of a time's sines, over 2 pi: Vaswani et al. 2017, section 3.5
EPS = 1e-6  # of the norms, as in the paper's code


@names_its_settings
@dataclass(frozen=True)
class DiTConfig:
    """The sizes of a DiT.

    image_size S and patch_size P in pixels (P divides S), classes K (of the pictures, without the one for none),
    n_layer, n_head H, n_embd C (a multiple of H, and even). Raises ValueError for sizes that are not positive integers
    or do not divide.
    """

    image_size: int = 16
    patch_size: int = 4
    classes: int = 62
    n_layer: int = 6
    n_head: int = 4
    n_embd: int = 64
    bias: ClassVar[bool] = True  # for the parts that are GPT's
    dropout: ClassVar[float] = 0.0

    @property
    def count(self) -> int:
        """How many parameters such a DiT has: n_layer (18 C^2 + 19 C), and what stands before and after the blocks."""
        c, pixels, patches = self.n_embd, self.patch_size**2, (self.image_size // self.patch_size) ** 2
        around = c * (2 * pixels + 1 + patches + self.classes + 1) + pixels + 4 * c * c + 4 * c
        return around + self.n_layer * (18 * c * c + 15 * c)

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            whole("DiTConfig", name, value)
        divides("DiTConfig", self, ("image_size", "patch_size"), ("n_embd", "n_head"))
        if self.n_embd % 2:
            raise ValueError(
                f"DiTConfig: n_embd = {self.n_embd}, expected an even one: half for sines, half for cosines"
            )


class Attention(gpt.Attention):
    """GPT's, where each patch sees all others."""

    def __call__(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x: (B, T, C) -> (B, T, C)"""
        q, k, v = (self.heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (B, H, T, D)
        return self.o_proj(ops.join_heads(ops.attention(q, k, v, causal=False)))  # (B, T, C)


def ada_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) (x - mean) / sqrt(var + eps) + shift: a layer norm, learned per picture.   x: (B, T, C), (B, 1, C)"""
    return ops.layer_norm(x, 1 + scale, shift, EPS)


def parts(made: Tensor, count: int) -> list[Tensor]:
    """What a condition's linear layer gives, as so many shifts, scales and gates.   (B, n C) -> n times (B, 1, C)"""
    cut = made.reshape(made.shape[0], count, 1, made.shape[1] // count)  # (B, n, 1, C)
    return [cut[:, i] for i in range(count)]


def waves_of(times: Array, width: int) -> np.ndarray:
    """A time as C / 2 cosines and C / 2 sines, from quick to slow.   (B,) -> (B, C)"""
    half = width // 2
    angles = times[:, None] * LONGEST ** -(np.arange(half) / half)  # (B, C / 2)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


class Block(Module):
    """x + gate attention(norm(x)), then x + gate mlp(norm(x)), where norms and gates are made of the condition."""

    def __init__(self, config: DiTConfig, rng: np.random.Generator):
        residual_std = STANDARD_DEVIATION / math.sqrt(2 * config.n_layer)  # as in GPT: 2 n_layer terms add up
        self.ada_proj = Linear(config.n_embd, 6 * config.n_embd, True, rng, 0.0)
        self.attn = Attention(config, rng, residual_std)  # type: ignore[arg-type]
        self.mlp = MLP(config, rng, residual_std)  # type: ignore[arg-type]

    def __call__(self, x: Tensor, c: Tensor) -> Tensor:
        """x: (B, T, C), the condition c: (B, C) -> (B, T, C)"""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts(self.ada_proj(c), 6)  # (B, 1, C) each
        x = x + gate_1 * self.attn(ada_norm(x, shift_1, scale_1))
        return x + gate_2 * self.mlp(ada_norm(x, shift_2, scale_2))


class DiT(Module):
    """y = W norm(blocks(W_in patches + positions; c); c),  c = silu(mlp(waves(t)) + table[class])

    config: a DiTConfig; rng: a seed or a numpy Generator for the initial weights, drawn from N(0, 2 / (d_in + d_out))
    (Glorot & Bengio 2010); what makes the norms, and the head, start at zero. Parameters are float32;
    `model.astype("float64")` for gradient checks.

    >>> model = DiT(DiTConfig(image_size=8, n_layer=2, n_embd=16))
    >>> model(np.zeros((3, 8, 8), "float32"), times=500, classes=[0, 1, 61]).shape
    (3, 8, 8)
    """

    def __init__(self, config: DiTConfig, rng: Any = 0):
        if not isinstance(config, DiTConfig):
            raise TypeError(f"DiT: got {shown(config)}, expected a DiTConfig(image_size=16, patch_size=4, ...)")
        rng, c, pixels = generator(rng, "DiT"), config.n_embd, config.patch_size**2
        self.config = config
        self.patch_proj = Linear(pixels, c, True, rng)
        self.wpe = Embedding((config.image_size // config.patch_size) ** 2, c, rng)
        self.time_mlp = [Linear(c, c, True, rng), Linear(c, c, True, rng)]
        self.class_table = Embedding(config.classes + 1, c, rng)
        self.blocks = [Block(config, rng) for _ in range(config.n_layer)]
        self.ada_proj = Linear(c, 2 * c, True, rng, 0.0)
        self.head = Linear(c, pixels, True, rng, 0.0)
        for _, module in self.named_modules():
            if isinstance(module, Linear):
                module.weight.data *= math.sqrt(2 / sum(module.weight.shape)) / STANDARD_DEVIATION
        self.class_table.weight.data /= STANDARD_DEVIATION  # from N(0, 1), as different as times are

    @property
    def none(self) -> int:
        """The class that stands for none."""
        return self.config.classes

    def __call__(self, images: Any, times: Any, classes: Any = None) -> Tensor:
        """What is noise in each picture, and what is not.   images: (B, S, S) -> (B, S, S)

        times: (B,), or one number for all: 0 for no noise, 1000 for nothing else. classes: (B,) integers, or None where
        no class is known. Raises ValueError or TypeError for what does not fit.
        """
        images, times, classes = self._checked(images, times, classes)
        x = self.patch_proj(as_patches(images, self.config.patch_size)) + self.wpe.weight  # (B, T, C)
        c = ops.silu(self.time(times) + self.class_table(classes))  # (B, C)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = parts(self.ada_proj(c), 2)
        y = self.head(ada_norm(x, shift, scale))  # (B, T, P^2)
        return as_pictures(y, self.config.image_size, self.config.patch_size)  # (B, S, S)

    def loss(self, images: Any, times: Any, classes: Any, targets: Any, rng: Any = None) -> Tensor:
        """mean (model(images, times, classes) - targets)^2: Ho et al. 2020, "DDPM", eq. 14.   -> ()"""
        found = self(images, times, classes)
        if np.shape(targets) != found.shape:
            raise ValueError(f"DiT: targets {np.shape(targets)}, expected {found.shape}, as the images have it")
        wrong = found - targets
        return (wrong * wrong).mean()

    def time(self, times: Array) -> Tensor:
        """A time as waves, through an MLP.   (B,) -> (B, C)"""
        first, second = self.time_mlp
        xp, dtype = array_module(self.wpe.weight.data), self.wpe.weight.dtype
        waves = Tensor(xp.asarray(waves_of(times, self.config.n_embd), dtype=dtype))
        return second(ops.silu(first(waves)))

    def _checked(self, images: Any, times: Any, classes: Any) -> tuple[Tensor, Array, Array]:
        """Pictures in the model's precision, times (B,) and classes (B,), or an error that says what came."""
        dtype, side, k = self.wpe.weight.dtype, self.config.image_size, self.config.classes
        if not isinstance(images, Tensor):
            images = Tensor(array_module(self.wpe.weight.data).asarray(plain(images, "DiT: images")))
        if images.dtype.kind not in "fiubc" or images.ndim != 3 or images.shape[1:] != (side, side):
            came = f"{images.shape} of {images.dtype}"
            raise ValueError(f"DiT: images {came}, expected numbers (B, {side}, {side}): grey, and of this size")
        if images.dtype != dtype and images.dtype.kind != "c":
            images = ops.astype(images, dtype)
        b = images.shape[0]
        times = np.asarray(times)
        if times.dtype.kind not in "fiu" or times.shape not in ((), (b,)):
            raise ValueError(f"DiT: times = {shown(times.tolist())}, expected a number, or {b}: one a picture")
        classes = np.full(b, k) if classes is None else np.asarray(classes)
        if classes.dtype.kind not in "iu" or classes.shape != (b,):
            raise ValueError(f"DiT: classes = {shown(classes.tolist())}, expected {b} integers: one a picture")
        if classes.size and not 0 <= classes.min() <= classes.max() <= k:
            came = f"from {classes.min()} to {classes.max()}"
            raise ValueError(f"DiT: classes {came}, expected 0 to {k - 1}, or {k} for none")
        return images, np.broadcast_to(times, b), classes


LETTERS = Path(__file__).parent.parent / "letters.npz"  # a DiT that draws letters, which comes with the package


@checked
def save_diffusion(model: DiT, path: str | Path, dtype: Any = None, record: Mapping[str, Any] | None = None) -> Path:
    """Write a model's sizes and parameters, optionally rounded to another precision, with a record of facts.

    Raises ValueError for a model with adapters or quantised weights, and for numbers that are not finite in that
    precision.
    """
    if str(path) == "letters":
        raise ValueError("save_diffusion: 'letters' is the model that comes with minilora; name the file another way")
    header = {"kind": "diffusion model", **(record or {})}
    return save_whole("save_diffusion", model, file_path(path, "save_diffusion"), dtype, header)


@checked
def load_diffusion(path: str | Path = "letters") -> DiT:
    """The model in a file, in float32; "letters" is the one that comes with the package (`make_letters`)."""
    path = LETTERS if str(path) == "letters" else file_path(path, "load_diffusion")
    return load_whole(path, "diffusion model", DiT, DiTConfig)
