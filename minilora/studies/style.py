"""A font taught by LoRA: a few of its glyphs, and the model that draws letters draws the others of that font.

The base (`letters.npz`) has seen sans-serif fonts alone. Of a font that it has never seen so many characters are shown;
then it draws the rest, which it has never seen in that font. What comes of it is judged by the two vision transformers
that come with the package, of which one says which character a picture is and the other which font, and is measured
against the true font, pixel by pixel. A seed is a font of its own, which characters are shown, and all that is random.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..adapters.attach import add_adapter
from ..adapters.combine import combine_adapters
from ..adapters.files import load_adapter
from ..adapters.lora import LoRAConfig
from ..nn.diffusion import DiT, load_diffusion
from ..nn.vision import load_vision
from ..training.corpus import PYTHON
from ..training.diffusion import draw_letters, train_diffusion
from ..training.glyphs import CHARACTERS, draw_glyphs
from ..training.parallel import blas_of_one_thread
from .runs import SCALE, Runs, Spec, summarise

# A seed each. Of every family that is not of sans fonts, the one farthest from its upright: bold and italic, but of
# Computer Modern, which has no such font, the bold.
TAUGHT = ("STIX Bold Italic", "DejaVu Serif Bold Italic", "Computer Modern Bold")
CHOOSING = "STIX Italic"  # another font, on which rates are chosen: nothing is chosen on those that are told of
MIXED = (  # a bold font, an italic one, and the one that is both; a seed each
    ("DejaVu Serif Bold", "DejaVu Serif Italic", "DejaVu Serif Bold Italic"),
    ("STIX Bold", "STIX Italic", "STIX Bold Italic"),
    ("DejaVu Sans Bold", "DejaVu Sans Oblique", "DejaVu Sans Bold Oblique"),
)
EXAMPLES, RANK, GUIDANCE = 26, 4, 1.0
LONG: dict[str, Any] = {"steps": 400, "batch_size": 64}  # which takes less than half a minute of one core
COPIES = 16  # of a glyph that is shown, each moved by a part of a pixel
PICTURES = 72  # that are judged, at least
RATES = {"lora": (3e-3, 1e-2, 3e-2, 1e-1), "full": (3e-4, 1e-3, 3e-3, 1e-2)}
KEPT = 12  # pictures of a run, to be looked at
BASE: dict[str, Any] = {"method": "full", "steps": 0, "lr": 0.0}  # as it comes
MEASURED = ("character", "font", "both", "error")


@dataclass(frozen=True)
class StyleSpec(Spec):
    """A run that teaches the base one font. font: by its name. examples: how many characters of it are shown. away:
    whether pictures are led away from what the base draws of no character in particular, as `draw_letters` has it.
    """

    corpus: str = "glyphs"
    targets: tuple[str, ...] = ("*",)
    rank: int = RANK
    alpha: float = SCALE * RANK
    steps: int = 150
    batch_size: int = 32
    font: str = TAUGHT[0]
    examples: int = EXAMPLES
    away: bool = False


def shown(spec: Any) -> str:
    """The characters of the font that a run is shown, in an order that the seed draws: the first of 62."""
    return "".join(np.random.default_rng([spec.seed, 2]).permutation(list(CHARACTERS))[: spec.examples])


class StyleRuns(Runs):
    """Runs on the model that draws letters, kept and shared as those on the shipped text model."""

    def __init__(self, runs: Runs):
        vars(self).update(vars(runs))
        self.quick = len(runs.scale.seeds) < 2

    def spec_of(self, seed: int, **changes: Any) -> StyleSpec:
        """A run of this scale's length on the font of a seed, or on another."""
        steps: dict[str, Any] = {"steps": self.scale.steps} if self.quick else {}
        changes |= {"alpha": SCALE * changes["rank"]} if "rank" in changes else {}
        how: dict[str, Any] = {"seed": seed, "font": TAUGHT[seed], "away": True} | steps | changes
        return replace(StyleSpec(), **how)

    def model(self, spec: Any) -> DiT:
        """The base with a run's adapter on it."""
        return load_adapter(load_diffusion("letters"), self.file(spec))

    def _train(self, spec: Any) -> tuple[dict[str, Any], Any]:
        model = load_diffusion("letters")
        if spec.method == "lora":
            add_adapter(model, LoRAConfig(spec.rank, spec.alpha, spec.targets), spec.seed)
        glyphs = draw_glyphs(spec.font, shown(spec), copies=COPIES, rng=spec.seed)
        losses = (
            train_diffusion(model, glyphs, spec.steps, spec.batch_size, spec.lr, rng=spec.seed, pieces=1)
            if spec.steps
            else [0]
        )
        record: dict[str, Any] = {"spec": asdict(spec), "python": PYTHON, "curve": {"step": [spec.steps]}}
        record |= {"train_loss": float(np.mean(losses[-20:])), "trainable": model.count(trainable=True)}
        pictures = drawn(model, spec)
        record["error"] = pixel_error(pictures, true_of(spec, spec.font, 0))
        return record | {"pictures": packed(pictures)}, model


def rest_of(spec: Any) -> list[str]:
    """The characters that a run is not shown, again and again until they are enough to be judged."""
    rest = [c for c in CHARACTERS if c not in shown(spec)]
    return rest * -(-PICTURES // len(rest))


def drawn(model: DiT, spec: Any) -> np.ndarray:
    """Pictures of the characters that were not shown, of every model from the same noise.   (N, S, S)

    Led away from the base they go away from its fonts as well as from the other characters (Park et al. 2025).
    """
    base = load_diffusion("letters") if spec.away else None
    with blas_of_one_thread():  # threads of so small products wait for one another where other work runs
        return draw_letters(model, rest_of(spec), guidance=GUIDANCE, rng=[spec.seed, 3], away_from=base)


def judged(pictures: np.ndarray, spec: Any, font: str = "") -> dict[str, Any]:
    """In which share of the pictures the judges read the right character, see the right font, and both; and the error
    of a pixel against the true font, its root mean square.

    font: the one that is asked for, if not the spec's.
    """
    font, asked = font or spec.font, rest_of(spec)
    judges = {what: load_vision(what) for what in ("characters", "fonts")}
    with blas_of_one_thread():
        says = {what: np.array(judge.labels)[judge.predict(pictures)] for what, judge in judges.items()}
    right, there = says["characters"] == np.array(asked), says["fonts"] == font
    fonts, counts = np.unique(says["fonts"], return_counts=True)
    return {
        "character": float(right.mean()),
        "font": float(there.mean()),
        "both": float((right & there).mean()),
        "error": pixel_error(pictures, true_of(spec, font, 0)),
        "fonts": dict(sorted(zip(fonts.tolist(), counts.tolist(), strict=True), key=lambda one: -one[1])),
    }


def true_of(spec: Any, font: str, jitter: float) -> np.ndarray:
    """The characters that a run is asked for, as a font has them.   (N, S, S)"""
    asked = rest_of(spec)
    rest, copies = list(dict.fromkeys(asked)), len(asked) // len(set(asked))
    images = draw_glyphs(font, rest, copies=copies, jitter=jitter, rng=[spec.seed, 4]).images
    return images.reshape(len(rest), copies, *images.shape[1:]).swapaxes(0, 1).reshape(images.shape)


def packed(pictures: np.ndarray) -> list[str]:
    """Pictures in 256 greys, each a text of hexadecimal digits, as records hold them.   (N, S, S) in [0, 1]"""
    return [picture.tobytes().hex() for picture in (255 * pictures).round().astype(np.uint8)]


def pictures_of(row: Any, which: str) -> np.ndarray:
    """`packed` undone.   -> (N, S, S)"""
    values = np.array([list(bytes.fromhex(text)) for text in row[which]], dtype="float32") / 255
    side = math.isqrt(values.shape[1])
    return values.reshape(-1, side, side)


def pixel_error(pictures: np.ndarray, true: np.ndarray) -> float:
    """The root mean square of the difference, each picture moved by the pixel at most that fits it best.   (N, S, S)"""
    side, wide = true.shape[-1], np.pad(true, ((0, 0), (1, 1), (1, 1)))
    moved = [wide[:, i : i + side, j : j + side] for i, j in itertools.product(range(3), repeat=2)]
    return float(np.sqrt(np.min([((pictures - one) ** 2).mean((1, 2)) for one in moved], axis=0).mean()))


def study_style(runs: Runs) -> list[dict[str, Any]]:
    """How many glyphs of a new font does LoRA need, at which rank, to draw the letters that it never saw in it; and
    full fine-tuning? Each way at the rate with the least error of a pixel on 26 glyphs of another font (`row_of`);
    the true font's own glyphs are judged beside what is drawn. And, of rank 16 and full, in five times as many
    pictures, and what rank 16 draws when it is not led away from the base.
    """
    learners, seeds = StyleRuns(runs), runs.scale.seeds
    rows = [row_of(learners, "base", rates=(0.0,), **BASE)]
    specs = [learners.spec_of(seed) for seed in seeds]
    true = [judged(true_of(spec, spec.font, 1.0), spec) for spec in specs]
    rows.append({"name": "true", **summarise(true, *MEASURED)})
    ranks = {rank: row_of(learners, "lora", rank=rank) for rank in ((RANK,) if learners.quick else (1, RANK, 16))}
    full = row_of(learners, "full", method="full")
    rows += [*ranks.values(), full]
    best: dict[str, Any] = {"lr": ranks[RANK].get("lr", 0.0)}
    if not learners.quick:
        rows.append(row_of(learners, "long", rates=(2.5e-3, 5e-3, 1e-2), rank=16, **LONG))
        best = {"lr": rows[-1].get("lr", 0.0), "rank": 16, **LONG}
        rows.append(row_of(learners, "not led away", rates=(best["lr"],), rank=16, away=False, **LONG))
        rows.append(row_of(learners, "long", rates=(3e-4, 1e-3, 3e-3), method="full", **LONG))
    for examples in () if learners.quick else (10, 52):
        rows.append(row_of(learners, "lora", rates=(ranks[RANK]["lr"],), examples=examples))
        rows.append(row_of(learners, "full", rates=(full["lr"],), method="full", examples=examples))
    return rows + [pictures_row(learners, seed, **best) for seed in seeds]


def pictures_row(learners: StyleRuns, seed: int, **best: Any) -> dict[str, Any]:
    """Characters that were not shown, as the base draws them, as LoRA does from the same noise, and as they are."""
    base, spec = (learners.spec_of(seed, **how) for how in (BASE, best))
    rest = [c for c in CHARACTERS if c not in shown(spec)][:KEPT]
    true = draw_glyphs(spec.font, rest, jitter=0).images
    before, after = (learners.record(one)["pictures"][: len(rest)] for one in (base, spec))
    row = {"name": "pictures", "font": spec.font, "characters": "".join(rest)}
    return row | {"before": before, "after": after, "true": packed(true)}


def row_of(learners: StyleRuns, name: str, rates: Sequence[float] = (), **changes: Any) -> dict[str, Any]:
    """The mean over the seeds of one way to teach a font, at the rate with the least error of a pixel on CHOOSING."""
    seeds, rates = learners.scale.seeds, rates or RATES[changes.get("method", "lora")]
    rates = rates[:2][-1:] if learners.quick else rates
    tried = [{**changes, "lr": rate, "font": CHOOSING} for rate in rates] if len(rates) > 1 else []
    sweep = learners.records(learners.spec_of(seeds[0], **one) for one in tried)
    errors = {one["lr"]: record.get("error", 0.0) for one, record in zip(tried, sweep, strict=True)}  # none in a plan
    best = min(errors, key=errors.__getitem__, default=rates[0])
    specs = [learners.spec_of(seed, **changes | {"lr": best}) for seed in seeds]
    records = learners.records(specs)
    if not all((*sweep, *records)):
        return {}  # of a plan
    said = [judged(pictures_of(record, "pictures"), spec) for record, spec in zip(records, specs, strict=True)]
    told = {key: records[0]["spec"][key] for key in ("method", "rank", "examples", "steps", "batch_size", "lr")}
    row = {"name": name, **told, "trainable": records[0]["trainable"]}
    row["rates"] = {f"{rate:g}": error for rate, error in errors.items()}
    row["fonts"] = [spec.font for spec in specs]
    row["each"] = {share: [one[share] for one in said] for share in ("character", "font")}
    return row | summarise(said, *MEASURED)


def study_style_blocks(runs: Runs) -> list[dict[str, Any]]:
    """Where does style live: LoRA in one block alone, in every two of them, and in all. B-LoRA (Frenkel et al. 2024)
    and block-wise LoRA (Li et al. 2024) train some blocks only, since in theirs style and content part.
    """
    learners, blocks = StyleRuns(runs), range(load_diffusion("letters").config.n_layer)
    pairs = [] if learners.quick else [*itertools.combinations(blocks, 2)]
    sets = [(i,) for i in blocks] + pairs + [tuple(blocks)]
    rows = [{"blocks": [], **row_of(learners, "base", rates=(0.0,), **BASE)}]
    for chosen in sets:
        targets = tuple(f"blocks.{i}.*" for i in chosen)
        rows.append({"blocks": list(chosen), **row_of(learners, "blocks", rates=(1e-2,), targets=targets)})
    return rows


def study_style_mixed(runs: Runs) -> list[dict[str, Any]]:
    """Adapters mixed: the first blocks of one font's and the rest of another's; the mean and the sum of a bold font's
    and an italic font's, beside one that was taught the bold italic; and one adapter at several strengths.
    """
    learners = StyleRuns(runs)
    keep: dict[str, Any] = {"lr": 1e-2, "keep": True}
    seeds, rows = runs.scale.seeds, []
    fonts = {seed: (TAUGHT[seed], TAUGHT[(seed + 1) % len(TAUGHT)], *MIXED[seed]) for seed in seeds}
    learners.records(learners.spec_of(seed, **keep, font=font) for seed in seeds for font in dict.fromkeys(fonts[seed]))
    for strength in (0.0, 1.0) if learners.quick else (0.0, 0.5, 1.0, 1.5):
        found = [at_strength(learners, learners.spec_of(seed, **keep), strength) for seed in seeds]
        rows.append({"kind": "strength", "strength": strength, **summarise(found, *MEASURED)})
    blocks = load_diffusion("letters").config.n_layer
    for first in (0, blocks // 2) if learners.quick else range(blocks + 1):
        found = [by_blocks(learners, seed, first, **keep) for seed in seeds]
        rows.append({"kind": "blocks", "first": first, **summarise(found, "character", "font", "other")})
    for kind in ("bold", "italic", "mean", "sum", "taught"):
        found = [of_two(learners, seed, kind, **keep) for seed in seeds]
        rows.append({"kind": "two fonts", "name": kind, **summarise(found, *MEASURED)})
    return rows


def at_strength(learners: StyleRuns, spec: StyleSpec, strength: float) -> dict[str, Any]:
    """What comes of a font's adapter times a number."""
    return judged(drawn(combine_adapters(learners.model(spec), {"default": strength}), spec), spec)


def by_blocks(learners: StyleRuns, seed: int, first: int, **keep: Any) -> dict[str, Any]:
    """The first so many blocks' part of the adapter of a seed's font, and the rest of the next seed's.

    "font" is the share of pictures in the first font, "other" in the second.
    """
    spec = learners.spec_of(seed, **keep)
    other = learners.spec_of(seed, **keep, font=TAUGHT[(seed + 1) % len(TAUGHT)])
    model = mixed(
        learners, {"one": spec, "two": other}, {"one": 1.0, "two": 1.0}, lambda name, i: (name == "one") == (i < first)
    )
    found = judged(drawn(model, spec), spec)
    return found | {"other": found["fonts"].get(other.font, 0) / sum(found["fonts"].values())}


def of_two(learners: StyleRuns, seed: int, kind: str, **keep: Any) -> dict[str, Any]:
    """A bold font's adapter, an italic one's, their mean and their sum, as drawings of the font that is both."""
    bold, italic, both = MIXED[seed]
    specs = {font: learners.spec_of(seed, **keep, font=font) for font in MIXED[seed]}
    weights = {
        "bold": {bold: 1.0},
        "italic": {italic: 1.0},
        "mean": {bold: 0.5, italic: 0.5},
        "sum": {bold: 1.0, italic: 1.0},
        "taught": {both: 1.0},
    }[kind]
    return judged(drawn(mixed(learners, {font: specs[font] for font in weights}, weights), specs[both]), specs[both])


def mixed(
    learners: StyleRuns,
    specs: dict[str, Any],
    weights: dict[str, float],
    counts: Callable[[str, int], bool] = lambda name, block: True,
) -> DiT:
    """The base with the weighted sum of several runs' adapters; counts(name, block): whether a block's part does.

    What stands before the blocks, and after them, belongs to the first and the last of them.
    """
    model = load_diffusion("letters")
    last = model.config.n_layer - 1
    for name, spec in specs.items():
        load_adapter(model, learners.file(spec), name=name)
        for path, layer in vars(model)["adapters"][name].modules.items():
            place = path.split(".")
            block = int(place[1]) if place[0] == "blocks" else last if place[0] in ("ada_proj", "head") else 0
            if not counts(name, block):
                layer.lora_B.data[...] = 0
    return combine_adapters(model, weights)
