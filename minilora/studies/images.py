"""A vision transformer that reads letters and figures learns Greek: how many examples, and what it forgets.

The base is the shipped judge of characters. Its new task is the 24 Greek letters, drawn in ten of the fonts that it
knows, told apart in three that it never saw. What it forgets is read by its old head, put back on the trained blocks.
"""

import functools
from functools import partial
from typing import Any

import numpy as np

from ..adapters.lora import LoRAConfig, add_lora
from ..autograd.tensor import no_grad
from ..nn.classifier import add_classifier
from ..nn.vision import ViT, load_vision
from ..training.glyphs import HELD_OUT, Glyphs, draw_glyphs
from ..training.judges import SEEN
from ..training.loop import train_step
from ..training.optim import AdamW, cosine_schedule
from ..training.parallel import blas_of_one_thread
from ..training.processes import Team
from .frontier import SHARES, envelope, olds, points, reach
from .records import kept_rows
from .runs import Runs, summarise

GREEK = "αβγδεζηθικλμνξοπρστυφχψω"
WITH_GREEK = tuple(font for font in SEEN if font.startswith(("DejaVu", "STIX")))
CHOOSING = ("DejaVu Sans Bold", "DejaVu Serif", "STIX Italic")  # fonts whose letters choose the rate
LEARNING = tuple(font for font in WITH_GREEK if font not in CHOOSING)
TESTING = tuple(font for font in HELD_OUT if font.startswith(("DejaVu", "STIX")))  # which nobody has seen
EXAMPLES = (1, 3, 10)  # of each letter
METHODS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {  # what is trained, and at which rates
    "head": (("classifier",), (3e-3, 1e-2, 3e-2)),
    "last block": (("classifier", "ln_f", "blocks.3"), (1e-3, 3e-3, 1e-2)),
    "lora": ((), (1e-3, 3e-3, 1e-2)),
    "full": (("",), (3e-4, 1e-3, 3e-3)),
}
LORA = LoRAConfig(rank=4, alpha=8, target_modules="*", modules_to_save=("classifier",))
STEPS, BATCH, LOOKS = 60, 32, 5


@functools.cache
def pictures() -> tuple[Glyphs, Glyphs, Glyphs]:
    """What the base knew, Greek of the fonts to test on, and of those that choose: the same for every run."""
    known = draw_glyphs(SEEN, rng=1)
    return known[::4], draw_glyphs(TESTING, GREEK, copies=2, rng=2), draw_glyphs(CHOOSING, GREEK, copies=2, rng=3)


def prepared(base: ViT, method: str, seed: int) -> ViT:
    """A copy of the base with a head for Greek, of which the method's part is trainable."""
    model = ViT(base.config)
    model.load_state_dict(base.state_dict())
    model.labels = base.labels
    add_classifier(model, tuple(GREEK))
    if method == "lora":
        return add_lora(model, LORA, seed)
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith(METHODS[method][0])
    return model


def old_errors(model: ViT, base: ViT, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of the old task's pictures that the base's head gets wrong on the model's blocks."""
    with no_grad():
        states = model.ln_f(model.hidden(images)[:, 0])
        return float((base.classifier(states).data.argmax(axis=1) != labels).mean())


def learning(base: ViT, method: str, examples: int, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """One run: errors on letters of new fonts, and on what the base knew, on the way."""
    rng, (known, new, choosing) = np.random.default_rng([seed, examples]), pictures()
    drawn = draw_glyphs(LEARNING, GREEK, rng=rng)  # one of each letter in each font
    rows = [rng.permutation(np.flatnonzero(drawn.character == i))[:examples] for i in range(len(GREEK))]
    text = drawn[np.concatenate(rows)]
    model = prepared(base, method, seed)
    optimizer = AdamW(model.parameters(trainable=True), lr=lr, weight_decay=0.0)
    curve: dict[str, list] = {"step": [], "loss": [], "old_loss": []}
    with blas_of_one_thread(), Team(model, optimizer.parameters):
        for step in range(steps + 1):
            if step % max(steps // LOOKS, 1) == 0 or step == steps:
                curve["step"].append(step)
                curve["loss"].append(float((model.predict(new.images) != new.character).mean()))
                curve["old_loss"].append(old_errors(model, base, known.images, known.character))
            if step < steps:
                optimizer.lr = cosine_schedule(step, steps, lr, max(steps // 10, 1))
                batch = rng.choice(len(text), min(BATCH, len(text)), replace=False)
                train_step(model, optimizer, text.images[batch], text.character[batch], pieces=2)
    return {
        "lr": lr, "seed": seed, "curve": curve, "error": curve["loss"][-1], "old_error": curve["old_loss"][-1],
        "chosen_by": float((model.predict(choosing.images) != choosing.character).mean()),
        "trainable": model.count(trainable=True),
    }  # fmt: skip


def tried(base: ViT, method: str, examples: int, runs: Runs, rates: tuple, every: bool) -> list[dict[str, Any]]:
    """A run at each rate with the first seed; with the others at every rate where that is asked for, else the best."""
    steps, (first, *others) = min(STEPS, runs.scale.steps), runs.scale.seeds
    found = [learning(base, method, examples, lr, first, steps) for lr in rates]
    best = min(found, key=lambda run: run["chosen_by"])["lr"]
    pairs = [(lr, seed) for lr in (rates if every else (best,)) for seed in others]
    return found + [learning(base, method, examples, *pair, steps) for pair in pairs]


def study_images(runs: Runs) -> list[dict[str, Any]]:
    """A classifier of letters and figures learns Greek from few pictures: LoRA, the head alone, the last block, or all
    weights; each at its own best rate, and what is forgotten at equal error on Greek."""
    quick, base, rows = len(runs.scale.seeds) < 2, load_vision("characters"), []
    kept: dict[str, list[dict[str, Any]]] = {}  # of the most examples at the end
    for examples in EXAMPLES[::2] if quick else EXAMPLES:
        for method, (_, rates) in METHODS.items():
            rates, every = rates[1:2] if quick else rates, examples == EXAMPLES[-1]
            words = ("images", method.replace(" ", "-"), examples)
            kept[method] = kept_rows(runs.folder, words, partial(tried, base, method, examples, runs, rates, every))
            runs.bar.update()
            alike = [[run for run in kept[method] if run["lr"] == lr] for lr in rates]
            whole = [many for many in alike if len(many) == len(runs.scale.seeds)]
            best = min(whole, key=lambda many: float(np.mean([run["chosen_by"] for run in many])))
            row = {"method": method, "examples": examples, "lr": best[0]["lr"], "trainable": best[0]["trainable"]}
            rows.append({**row, **summarise(best, "error", "old_error"), "matched": []})
    forgotten = matched({method: many for method, many in kept.items() if method != "head"})
    for row in rows[-len(METHODS) :]:
        row["matched"] = forgotten.get(str(row["method"]), [])
    return rows


def matched(kept: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """{method: errors on the old task of each seed, at errors on the new one that every method reaches}"""
    seeds = sorted({row["seed"] for many in kept.values() for row in many})
    frontiers = {
        method: [envelope(points(row["curve"] for row in many if row["seed"] == seed)) for seed in seeds]
        for method, many in kept.items()
    }
    before = max(row["curve"]["loss"][0] for many in kept.values() for row in many)
    deepest = max(reach(each) for each in frontiers.values())
    news = [max(before - share * (before - deepest), deepest) for share in SHARES]  # which rounding might pass by
    return {method: [{"error": new, "old": olds(each, new)} for new in news] for method, each in frontiers.items()}
