"""The judges that come with minilora: two small vision transformers that say which character a glyph is, and of which
font it is. `python -m minilora.training.judges` trains both again.

The judge of characters never sees the fonts of HELD_OUT: what it says of these is how well it reads a font that it does
not know. Beside jitter it is trained on shear, width and weight as other fonts may have them. The judge of fonts knows
them all. Both see some glyphs blurred and with noise, since what a model draws is never as clean as a font.
"""

from pathlib import Path

import numpy as np

from ..autograd.signatures import checked
from ..nn.vision import OURS, ViT, ViTConfig, save_vision
from .glyphs import CHARACTERS, FONTS, HELD_OUT, Glyphs, draw_glyphs
from .loop import train_step
from .optim import AdamW, cosine_schedule

SEEN = tuple(font for font in FONTS if font not in HELD_OUT)
BATCH, RATE, WARMUP = 64, 2e-3, 200
WIDTH = {"characters": 64, "fonts": 96}  # twenty fonts are harder to tell apart than 62 characters
COPIES, PASSES = 16, 3  # of each character in each font; how often they are shown, worn otherwise, before others are


def worn(images: np.ndarray, rng: np.random.Generator, by: float = 1.0) -> np.ndarray:
    """Glyphs as a model may draw them: mixed with their blur by up to by / 2, noise of up to by / 10.   (B, S, S)"""
    each = rng.random((2, len(images), 1, 1), dtype=np.float32)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    blur = sum(padded[:, i : i + images.shape[1], j : j + images.shape[2]] for i in range(3) for j in range(3)) / 9
    noise = rng.standard_normal(images.shape, dtype=np.float32)
    return np.clip(images + by * (each[0] / 2 * (blur - images) + each[1] / 10 * noise), 0, 1)


def labels_of(glyphs: Glyphs, what: str) -> np.ndarray:
    """What a judge of "characters" or of "fonts" should say."""
    return glyphs.character if what == "characters" else glyphs.font


def accuracy(model: ViT, glyphs: Glyphs, what: str) -> float:
    """The share of glyphs that a judge gets right."""
    return float((model.predict(glyphs.images) == labels_of(glyphs, what)).mean())


@checked
def train_judge(what: str, steps: int = 5000, seed: int = 0, fonts: tuple[str, ...] | None = None) -> ViT:
    """A judge of "characters" or of "fonts", trained from the beginning; the same seed gives the same one.

    fonts: those to train on; by default SEEN for characters, all for fonts.
    """
    if what not in OURS:
        raise ValueError(f"train_judge: what = {what!r}, expected one of {', '.join(OURS)}")
    from tqdm import trange  # here, so that `import minilora` stays quick

    of_fonts = what == "fonts"
    fonts = fonts or (FONTS if of_fonts else SEEN)
    model = ViT(ViTConfig(n_embd=WIDTH[what], labels=len(fonts) if of_fonts else len(CHARACTERS)), rng=seed)
    model.labels = fonts if of_fonts else tuple(CHARACTERS)
    optimizer, rng = AdamW(model.parameters(), lr=RATE, weight_decay=0.05), np.random.default_rng([seed, 1])
    by = 0.4 if of_fonts else 1.0  # a font is told by fine strokes
    order = np.zeros(0, int)
    for step in (bar := trange(steps, unit="step", leave=False, disable=None)):
        if len(order) < BATCH:  # all have been seen: draw others
            glyphs = draw_glyphs(fonts, copies=COPIES, variety=0.0 if of_fonts else 1.0, rng=rng)
            order = np.concatenate([rng.permutation(len(glyphs)) for _ in range(PASSES)])
        rows, order = order[:BATCH], order[BATCH:]
        optimizer.lr = cosine_schedule(step, steps, RATE, WARMUP, 0.0)
        batch = worn(glyphs.images[rows], rng, by), labels_of(glyphs, what)[rows]
        bar.set_postfix(loss=f"{train_step(model, optimizer, *batch, max_norm=1.0, pieces=2):.3f}")
    return model


def report(model: ViT, what: str) -> dict[str, float]:
    """How often a judge is right on glyphs that it has not been trained on, of all fonts, and of those held out."""
    parts = {"fresh": FONTS, "held out": HELD_OUT} if what == "characters" else {"fresh": FONTS}
    return {part: accuracy(model, draw_glyphs(fonts, copies=8, rng=12345), what) for part, fonts in parts.items()}


def main(folder: Path | None = None) -> None:
    """Train both judges, and write them where they are read from, with what they get right."""
    for what, path in OURS.items():
        model = train_judge(what)
        facts = report(model, what)
        save_vision(model, path if folder is None else folder / path.name, "float16", {"accuracy": facts})
        print(f"{what}: {facts}")


if __name__ == "__main__":
    main()
