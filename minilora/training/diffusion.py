"""Diffusion: pictures from noise, by a model that tells the two apart (`nn/diffusion.py`).

To train it, noise is added to pictures, more of it the later the time t (Ho et al. 2020, "DDPM", eq. 4). To draw, noise
is all there is at first; and step by step what the model takes for noise is taken away (Song et al. 2021, "DDIM", eq.
12). What the model gives is v, of which both the picture and the noise follow; one that gives the noise (Ho et al.
2020, eq. 14) has nothing to say of the picture where there is little of it, and here learned to draw several times as
slowly. Guidance helps a character to be drawn as it was asked for: the model is asked twice, with the class and without
one, and what the class changes counts 1 + w times (Ho & Salimans 2022, eq. 6).

    model = ml.load_diffusion("letters")
    glyphs = ml.draw_glyphs("DejaVu Serif", "ABCDEFGHIJKLM", copies=8)
    ml.add_lora(model, ml.LoRAConfig(rank=4, target_modules="*"))
    ml.train_diffusion(model, glyphs, steps=300)
    pictures = ml.draw_letters(model, "QRST")
"""

import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd.backend import Array
from ..autograd.signatures import checked, shown
from ..autograd.tensor import no_grad
from ..nn.checks import generator
from ..nn.diffusion import DiT, DiTConfig, load_diffusion, save_diffusion
from .checks import NOT_NEGATIVE, integer, number
from .glyphs import CHARACTERS, SANS, Glyphs, draw_glyphs
from .loop import train_step
from .optim import AdamW, Optimizer, cosine_schedule
from .processes import Team

TIMES = 1000  # T: at time 0 a picture has no noise, at T it has nothing else
UNNAMED = 0.1  # of the pictures in training: without their class, for guidance


@functools.cache
def kept() -> np.ndarray:
    """alpha-bar_t for t = 0 to T: how much of a picture's variance is left at time t, from 1 to nearly 0.   (T + 1,)

    alpha-bar_t = f(t) / f(0),  f(t) = cos((t / T + s) / (1 + s) pi / 2)^2,  s = 0.008, where from one time to the next
    at most 0.999 is lost: Nichol & Dhariwal 2021, "Improved DDPM", eq. 17 and section 3.2.
    """
    f = np.cos((np.arange(TIMES + 1) / TIMES + 0.008) / 1.008 * math.pi / 2) ** 2
    lost = np.minimum(1 - f[1:] / f[:-1], 0.999)  # beta_t
    return np.concatenate([[1.0], np.cumprod(1 - lost)])


def shares(times: Any) -> tuple[np.ndarray, np.ndarray]:
    """How much of a picture and how much of the noise there is at a time: sqrt(a) and sqrt(1 - a), a = alpha-bar_t."""
    a = kept()[times][..., None, None]
    return np.sqrt(a).astype("float32"), np.sqrt(1 - a).astype("float32")


def add_noise(images: Array, noise: Array, times: Any) -> tuple[Array, Array]:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) eps,  v = sqrt(a) eps - sqrt(1 - a) x_0.   x_0 in [-1, 1], eps: (B, S, S)

    Ho et al. 2020, eq. 4; Salimans & Ho 2022, "Progressive Distillation", section 4.
    """
    of_picture, of_noise = shares(times)
    return of_picture * images + of_noise * noise, of_picture * noise - of_noise * images


def diffusion_step(
    model: DiT, optimizer: Optimizer, images: Array, classes: Array, rng: np.random.Generator, pieces: int | None = None
) -> float:
    """One step of training on pictures in [-1, 1] and their classes. Returns the loss before it: mean (v - model)^2.

    Each picture gets a time of its own, and noise; one in ten loses its class.   images: (B, S, S), classes: (B,)
    """
    b = len(images)
    times, noise = rng.integers(1, TIMES + 1, b), rng.standard_normal(images.shape, dtype="float32")
    classes = np.where(rng.random(b) < UNNAMED, model.none, classes)
    noisy, v = add_noise(images, noise, times)
    return train_step(model, optimizer, (noisy, times, classes), v, max_norm=1.0, pieces=pieces)


@checked
def train_diffusion(
    model: DiT,
    glyphs: Glyphs,
    steps: int = 300,
    batch_size: int = 64,
    lr: float = 2e-3,
    warmup: int = 20,
    rng: Any = 0,
    pieces: int | None = None,
    progress: bool = False,
) -> list[float]:
    """Train what is trainable on glyphs: AdamW, up to lr over `warmup` steps and down along half a cosine.

    glyphs: as draw_glyphs gives them, of the model's size; each batch is drawn from them. pieces: how many a batch is
    split into, for the same bits on any number of cores. Returns each step's loss. Raises ValueError for what does not
    fit, and FloatingPointError where the loss is not finite.
    """
    from tqdm import tqdm  # here, so that `import minilora` stays quick

    steps, batch_size = (
        integer(f"train_diffusion: {n}", v, 1) for n, v in (("steps", steps), ("batch_size", batch_size))
    )
    if not len(glyphs):
        raise ValueError("train_diffusion: glyphs has no pictures, expected one or more, as draw_glyphs gives them")
    rng, losses, images = generator(rng, "train_diffusion"), [], 2 * glyphs.images - 1
    classes = classes_of("train_diffusion", model, glyphs.characters)[glyphs.character]
    optimizer = AdamW(model.parameters(trainable=True), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    bar = tqdm(total=steps, disable=not progress, unit="step", leave=False)
    with bar, Team(model, optimizer.parameters):
        for step in range(steps):
            optimizer.lr = cosine_schedule(step, steps, lr, warmup)
            rows = rng.integers(len(images), size=batch_size)
            losses.append(diffusion_step(model, optimizer, images[rows], classes[rows], rng, pieces))
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            bar.update()
    return losses


def classes_of(caller: str, model: DiT, characters: Sequence[str]) -> np.ndarray:
    """The classes of characters. Raises ValueError for one that the model does not know."""
    known = CHARACTERS[: model.config.classes]
    if unknown := [c for c in characters if len(c) != 1 or c not in known]:
        raise ValueError(f"{caller}: the model cannot draw {shown(unknown[0])}; it knows {known}")
    return np.array([known.index(c) for c in characters], dtype=int)


@checked
def draw_letters(
    model: DiT,
    characters: str | Sequence[str],
    steps: int = 20,
    guidance: float = 1.0,
    rng: Any = 0,
    on_the_way: bool = False,
    away_from: DiT | None = None,
) -> Array:
    """A picture of each character, from noise: by DDIM in so many steps.

    guidance: w in (1 + w) v(x, class) - w v(x), 0 for none (Ho & Salimans 2022, eq. 6, for eps). away_from: the model
    that gives v(x), by default the same one. Where that is the model as it was before it was taught a font, what is
    drawn is led away from the old fonts as well as from the other characters (Park et al. 2025, "Steering Guidance").
    rng: a seed or a numpy Generator of the noise at first, all that is left to chance. Returns (N, S, S) in [0, 1], 1
    is ink; on_the_way: (steps + 1, N, S, S), from noise to picture. Raises ValueError for a character that the model
    does not know, for guidance below 0, and for an away_from of other sizes.
    """
    guidance = number("draw_letters: guidance", guidance, NOT_NEGATIVE)
    steps, side = integer("draw_letters: steps", steps, 1), model.config.image_size
    classes = classes_of("draw_letters", model, characters)
    other = model if away_from is None else away_from
    if other.config.image_size != side:
        came = f"{other.config.image_size} x {other.config.image_size}"
        raise ValueError(f"draw_letters: away_from draws {came} pixels, expected {side} x {side}, as the model does")
    x = generator(rng, "draw_letters").standard_normal((len(classes), side, side), dtype="float32")
    way, times = [x], np.linspace(TIMES, 0, min(steps, TIMES) + 1).round().astype(int)
    for time, earlier in itertools.pairwise(times):
        way.append(ddim_step(way[-1], guided(model, other, way[-1], time, classes, guidance), time, earlier))
    pictures = (np.stack(way) if on_the_way else way[-1]) / 2 + 0.5
    return pictures.clip(0, 1)


def guided(model: DiT, other: DiT, x: Array, time: int, classes: Array, guidance: float) -> Array:
    """(1 + w) v(x, class) - w v(x), the latter of the other model: what the class changes counts 1 + w times.

    (B, S, S) -> (B, S, S)
    """
    with no_grad():
        v = model(x, time, classes).data
        return v if not guidance else (1 + guidance) * v - guidance * other(x, time).data


def ddim_step(x: Array, v: Array, time: int, earlier: int) -> Array:
    """From time t to s < t:  x_s = sqrt(a_s) x_0 + sqrt(1 - a_s) eps,  x_0 = sqrt(a_t) x_t - sqrt(1 - a_t) v.

    Song et al. 2021, eq. 12 with sigma = 0; x_0 is that of Salimans & Ho 2022, section 4, cut to [-1, 1], where all
    pictures are, and eps is the noise that is then beside it.
    """
    (picture_now, noise_now), (picture_then, noise_then) = shares(time), shares(earlier)
    picture = (picture_now * x - noise_now * v).clip(-1, 1)
    noise = (x - picture_now * picture) / noise_now
    return picture_then * picture + noise_then * noise


def make_letters(path: str | Path = "letters.npz", steps: int = 10_000, rng: int = 0, progress: bool = True) -> DiT:
    """The model that comes with the package, anew: the same numbers on a machine of the same kind, in ten minutes.

    python -c "from minilora.training.diffusion import make_letters; make_letters('letters.npz')"
    """
    model, glyphs = DiT(DiTConfig(), rng), draw_glyphs(SANS, copies=32, rng=rng)
    losses = train_diffusion(model, glyphs, steps, lr=3e-3, warmup=100, rng=rng, pieces=1, progress=progress)
    record = {
        "fonts": SANS,
        "characters": CHARACTERS,
        "steps": steps,
        "seed": rng,
        "loss": float(np.mean(losses[-500:])),
    }
    save_diffusion(model, path, "float16", record)
    return load_diffusion(path)
