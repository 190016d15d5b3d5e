"""A segmenter that knows shapes learns another thing from few scenes: by LoRA, its head, its last blocks, or all of it.

An error is 1 - IoU, the intersection over union of the pixels found and meant, asked by a point, a mean over held-out
scenes. What is forgotten is the error on shapes, which the base was trained on, beside the error on the new task along
a training: methods are compared where both have learned as much (`frontier.py`). A learning rate is chosen on scenes of
its own, for each method.
"""

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..adapters.lora import LoRAConfig, add_lora
from ..nn.segmenter import Segmenter, load_segmenter
from ..training.corpus import PYTHON
from ..training.scenes import Scenes, draw_scenes
from ..training.segmentation import iou, segmenter_steps
from ..training.stopping import stop_at_signals
from .choosing import rates_around
from .runs import Runs, Spec

TASKS = ("plates", "characters", "cracks")
STUDIED = "cracks"  # the one that all methods are tried on, with more and more examples
SHAPES = "shapes"
HEAD = ("ln_d", "patch_up", "window_up", "pixel_proj", "mask_proj")
METHODS: dict[str, tuple[tuple[str, ...], float]] = {  # what is trained, None for LoRA, and where to start for its rate
    "LoRA": ((), 5e-3), "head": (HEAD, 2e-2), "last blocks": (("decoder",), 4e-3), "full": (("",), 1e-3),
}  # fmt: skip
EXAMPLES = (8, 32, 64, 128)
ENOUGH, CHOSEN_AT = 64, 32
MIRRORED = ("cracks",)  # what is the same in a mirror; letters are not
STEPS, LONGER, BATCH = 120, 400, 8  # where methods are compared, and where LoRA alone is taught each task


@dataclass(frozen=True)
class SegmentSpec(Spec):
    """One training of the segmenter. corpus: the kind of scenes, of which there are `examples`, drawn by the seed."""

    corpus: str = STUDIED
    method: str = "LoRA"
    steps: int = STEPS
    batch_size: int = BATCH
    examples: int = ENOUGH
    looks: int = 5


def study_segments(runs: Runs) -> list[dict[str, Any]]:
    """A segmenter that knows shapes, on plates, characters and cracks: LoRA beside a trained head, the last blocks and
    all weights, over the number of examples; and what each forgets of shapes."""
    quick = len(runs.scale.seeds) < 2
    many, rows = SegmentRuns(runs), []
    examples = (EXAMPLES[0], ENOUGH) if quick else EXAMPLES
    short: dict[str, Any] = {"steps": runs.scale.steps} if quick else {}
    rates = {}
    for method, (_, guess) in METHODS.items():
        spec = replace(SegmentSpec(), method=method, **short)
        rates[method], _ = rates_around(many, replace(spec, examples=CHOSEN_AT), guess, 2.0, _chosen)
        specs = [replace(spec, lr=rates[method], examples=n, seed=s) for n in examples for s in runs.scale.seeds]
        rows += [many.row("methods", one) for one in specs]
    spec = replace(SegmentSpec(), lr=rates["LoRA"], **{"steps": LONGER, **short})
    specs = [replace(spec, corpus=task, seed=seed, keep=True) for task in TASKS for seed in runs.scale.seeds]
    return rows + [many.row("tasks", one) for one in specs]


def _chosen(record: Any) -> float:
    return record["choice"]


class SegmentRuns(Runs):
    """Trainings of the shipped segmenter, kept and shared as those of the shipped language model."""

    def __init__(self, runs: Runs):
        vars(self).update(vars(runs))

    def row(self, kind: str, spec: SegmentSpec) -> dict[str, Any]:
        """A run's record, its settings beside what came of it. kind: "methods" or "tasks", what it is for."""
        record = self.record(spec)
        settings = {name: record["spec"][name] for name in ("corpus", "method", "examples", "lr", "seed", "steps")}
        return {
            "kind": kind,
            **settings,
            **{name: value for name, value in record.items() if name not in ("spec", "python")},
        }

    def _train(self, spec: Any) -> tuple[dict[str, Any], Any]:
        model = trainable(load_segmenter(), spec)
        sets = ((spec.corpus, 0), (SHAPES, 0), (spec.corpus, 1))
        new, old, choice = (held_out(task, place, self.scale.windows) for task, place in sets)
        scenes = draw_scenes(spec.corpus, spec.examples, new.images.shape[1], np.random.default_rng((spec.seed, 1)))
        curve: dict[str, list] = {"step": [], "loss": [], "old_loss": []}

        def look(step: int) -> None:
            curve["step"].append(step)
            curve["loss"].append(error(model, new))
            curve["old_loss"].append(error(model, old))

        before = model.segment(new.images[0], point=new.points[0])
        by_box = error(model, new, "box")
        look(0)
        how: dict[str, Any] = {
            "batch_size": spec.batch_size,
            "rng": (spec.seed, 2),
            "pieces": 1,
            "mirrored": spec.corpus in MIRRORED,
        }
        with stop_at_signals() as interrupt:
            for step, _ in segmenter_steps(model, scenes, spec.steps, spec.lr, **how):
                if step + 1 in spec.looked_at:
                    look(step + 1)
                if interrupt.is_set():
                    raise KeyboardInterrupt
        record = {"spec": dataclasses.asdict(spec), "python": PYTHON, "curve": curve, "choice": error(model, choice)}
        record |= {name: curve[name][-1] for name in ("loss", "old_loss")}
        record |= {"before": curve["loss"][0], "old_before": curve["old_loss"][0]}
        record |= {"box_before": by_box, "box": error(model, new, "box")}
        if spec.keep:
            masks = (before, model.segment(new.images[0], point=new.points[0]), new.masks[0])
            record["shown"] = shown(new, masks)
        return record | {"trainable": model.count(trainable=True)}, model


def trainable(model: Segmenter, spec: Any) -> Segmenter:
    """The model with what the spec's method trains made trainable, and the rest frozen."""
    if spec.method == "LoRA":
        return add_lora(model, LoRAConfig(spec.rank, spec.alpha, ("*",)), spec.seed)
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith(METHODS[spec.method][0])
    return model


@functools.cache
def held_out(task: str, place: int, count: int) -> Scenes:
    """Scenes that nothing is trained on: those that are told of (0), and those by which a rate is chosen (1)."""
    return draw_scenes(task, count, rng=np.random.default_rng((place, 10**6)))


def error(model: Segmenter, scenes: Scenes, by: str = "point") -> float:
    """1 - IoU, the mean over the scenes."""
    return round(1 - float(iou(model, scenes, by).mean()), 5)


def shown(scenes: Scenes, masks: Iterable[np.ndarray]) -> dict[str, Any]:
    """The first scene and three masks of it, to be looked at: bytes as hexadecimal text."""
    pixels = np.rint(255 * scenes.images[0]).astype(np.uint8)
    names = ("before", "after", "truth")
    packed = {name: np.packbits(mask).tobytes().hex() for name, mask in zip(names, masks, strict=True)}
    return {"image": pixels.tobytes().hex(), "point": scenes.points[0].tolist(), "side": len(pixels), **packed}


def seen(text: str, side: int) -> np.ndarray:
    """A picture (side, side) of numbers from 0 to 1, or a mask, from the text that a record keeps."""
    numbers = np.frombuffer(bytes.fromhex(text), np.uint8)
    if len(numbers) == side * side:
        return numbers.reshape(side, side) / 255
    return np.unpackbits(numbers)[: side * side].reshape(side, side).astype(bool)
