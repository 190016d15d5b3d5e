"""The capstone: a student's own text and recipe, trained within a budget and graded on pages that nobody has seen.

A student hands in two files, text.txt and recipe.json: which model, which method, which settings. Whoever grades does
the training. So the hidden pages, which a secret seed chooses anew, cannot have been trained on; a budget cannot be
overrun; and an adapter of another base, or trained for longer, cannot be handed in.

    bits per character = nats per token * tokens / characters / ln 2        on the hidden pages, before and after
    share = (base - adapted) / (base - full fine-tuning)                    full: every weight, with the whole budget
"""

import hashlib
import json
import math
import secrets
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import minilora as ml

from ..adapters.adapter import METHODS
from ..nn.characters import Characters, count_foreign, plain
from ..nn.files import write_beside
from ..studies.records import write_json
from ..training.corpus import Corpus
from .grading import read_submission
from .table import printable

PAGE = 1000  # characters
HIDDEN = 0.2  # the share of pages that is hidden
SHORTEST, LONGEST = 20_000, 5_000_000  # characters of a text
FOREIGN = 0.05  # the largest share of characters that the model has no number for
REPEATED = 0.3  # the largest share of the hidden pages that may stand in the others, too
PACKED = 0.12  # the least that a text may be packed to: what packs better says one thing again and again
PIECE = 32  # characters that count as the same when they stand in both parts
LARGEST_OPTION = 4096  # of a rank or a width, before anything is built
TRAINING = ("steps", "batch_size", "lr", "warmup", "floor", "betas", "weight_decay", "max_norm", "seed", "lr_ratio")
FILES = ("text.txt", "recipe.json")


@dataclass(frozen=True)
class Budget:
    """What a recipe may spend on a model: trained parameters, and tokens that training reads. full_lr: the rate of the
    full fine-tuning beside it, None where that takes too long."""

    parameters: int
    tokens: int
    full_lr: float | None


BUDGETS = {"base": Budget(50_000, 256_000, 1e-3), "smollm2-135m": Budget(1_000_000, 32_000, None)}


@dataclass(frozen=True)
class Entry:
    """A line of the leaderboard: bits per character of the base, of the recipe, and of full fine-tuning."""

    student: str
    key: str = ""
    note: str = ""
    model: str = ""
    method: str = ""
    base: float | None = None
    adapted: float | None = None
    full: float | None = None
    trained: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def share(self) -> float | None:
        """How much of what full fine-tuning gains the recipe gains; None where there is nothing to compare with."""
        if self.base is None or self.adapted is None or self.full is None or self.base <= self.full:
            return None
        return (self.base - self.adapted) / (self.base - self.full)

    @property
    def gain(self) -> float:
        """By which share the bits fell."""
        return 0.0 if self.base is None or self.adapted is None else 1 - self.adapted / self.base


def capstone(folder: str | Path, output: str | Path, seed: int | None = None, progress: bool = False) -> list[Entry]:
    """Train and grade every STUDENT/text.txt with its recipe.json in a folder: -> the leaderboard, best first.

    A folder that has the two files itself is one student's. seed: of the hidden pages, by default a secret one that is
    kept in OUTPUT/seed.txt. What was graded with it and has not changed is not trained again. Raises FileNotFoundError
    where there is nothing to grade; a student whose files do not do stops nobody: the entry's note says why.
    """
    folder, output = Path(folder), Path(output)
    places = find_entries(folder)
    output.mkdir(parents=True, exist_ok=True)
    seed = secret(output) if seed is None else seed
    kept = output / "capstone.json"
    before = {e["student"]: Entry(**e) for e in json.loads(kept.read_text())} if kept.is_file() else {}
    entries: dict[str, Entry] = dict(before)
    for place in tqdm(places, "training", unit=" students", disable=not progress):
        name = place.resolve().name
        try:
            text, recipe = (read_submission(place / file, folder) for file in FILES)
            key = hashlib.sha256(repr((text, recipe, seed)).encode()).hexdigest()
            if name in before and before[name].key == key:
                continue
            entries[name] = replace(graded(text, read_recipe(recipe), seed), student=name, key=key)
        except (OSError, TypeError, ValueError) as error:
            entries[name] = Entry(name, note=f"not graded: {' '.join(str(error).split())}")
        write_json(kept, [asdict(entry) for entry in entries.values()])  # so that it is not trained again
    ranked = [entries[place.resolve().name] for place in places]
    return sorted(ranked, key=lambda e: (e.base is None, -(e.share or 0.0), -e.gain, e.student))


def find_entries(folder: Path) -> list[Path]:
    """The students' folders. Raises FileNotFoundError where there is none."""
    if (folder / FILES[0]).is_file():
        return [folder]
    found = [place for place in sorted(folder.glob("*")) if any((place / file).exists() for file in FILES)]
    if not found:
        raise FileNotFoundError(f"capstone: no {FILES[0]} and {FILES[1]} in {str(folder)!r}, nor in folders inside it")
    return found


def secret(output: Path) -> int:
    """The seed of the hidden pages: drawn once, and kept with whoever grades."""
    place = output / "seed.txt"
    if not place.is_file():
        write_beside(place, lambda file: file.write(str(secrets.randbits(63)).encode()))
    return int(place.read_text())


# --- What a student hands in.


def read_recipe(text: str) -> dict[str, Any]:
    """The recipe in a JSON text. Raises ValueError, with the place, for what it cannot have."""
    try:
        recipe = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"recipe.json is no JSON: {error}") from None
    expected = {"model": str, "method": str, "options": dict, "settings": dict}
    if not isinstance(recipe, dict) or set(recipe) != set(expected):
        named = list(recipe) if isinstance(recipe, dict) else type(recipe).__name__
        raise ValueError(f"recipe.json has {named}, expected {list(expected)}")
    for key, kind in expected.items():
        if not isinstance(recipe[key], kind):
            raise ValueError(f"recipe.json: {key} is {recipe[key]!r}, expected a {kind.__name__}")
    for key, known in {"model": BUDGETS, "method": METHODS}.items():
        if recipe[key] not in known:
            raise ValueError(f"recipe.json: {key} is {recipe[key]!r}, expected one of {', '.join(known)}")
    if others := [key for key in recipe["settings"] if key not in TRAINING]:
        raise ValueError(f"recipe.json: settings has {others[0]!r}, which is not free; free are {', '.join(TRAINING)}")
    for key, value in recipe["options"].items():
        if isinstance(value, int) and value > LARGEST_OPTION:
            raise ValueError(f"recipe.json: options: {key} is {value:,}, expected at most {LARGEST_OPTION:,}")
    return recipe


def split(text: str, seed: int) -> tuple[str, str]:
    """(public pages, hidden pages) of a text, drawn with the seed. Raises ValueError for a text that is no test."""
    if not SHORTEST <= len(text) <= LONGEST:
        raise ValueError(f"text.txt has {len(text):,} characters, expected {SHORTEST:,} to {LONGEST:,}")
    packed = len(zlib.compress(text.encode(), 9)) / len(text.encode())
    if packed < PACKED:
        raise ValueError(
            f"text.txt packs to {packed:.0%} of its size, expected {PACKED:.0%} or more: it repeats itself"
        )
    pages = [text[n : n + PAGE] for n in range(0, len(text), PAGE)]
    chosen = set(np.random.default_rng(seed).permutation(len(pages))[: round(HIDDEN * len(pages))].tolist())
    parts = ["".join(p for n, p in enumerate(pages) if (n in chosen) == hidden) for hidden in (False, True)]
    if (again := repeated(*parts)) > REPEATED:
        raise ValueError(f"text.txt repeats itself: {again:.0%} of the hidden pages stand in the others word for word")
    return parts[0], parts[1]


def repeated(public: str, hidden: str) -> float:
    """The share of the hidden text, in pieces, that stands in the public one."""
    there = {public[n : n + PIECE] for n in range(len(public))}
    starts = range(0, len(hidden) - PIECE + 1, PIECE)
    return sum(hidden[n : n + PIECE] in there for n in starts) / max(len(starts), 1)


# --- Training and grading.


def graded(text: str, recipe: Mapping[str, Any], seed: int) -> Entry:
    """Train a recipe on the public pages of a text, and measure it on the hidden ones. Raises ValueError beyond the
    budget."""
    budget, model = BUDGETS[recipe["model"]], ml.load_model("base") if recipe["model"] == "base" else pretrained(recipe)
    corpus, per_character = as_corpus(model, *split(text, seed))
    base = ml.evaluate(model, corpus) * per_character
    settings = ml.Settings(**{"steps": 200, "batch_size": 8, **recipe["settings"]})
    read = settings.steps * settings.batch_size * model.window
    if read > budget.tokens:
        raise ValueError(
            f"{settings.steps:,} steps of {settings.batch_size} x {model.window} tokens read {read:,}, "
            f"the budget is {budget.tokens:,}"
        )
    ml.add_adapter(model, METHODS[recipe["method"]](**recipe["options"]), rng=settings.seed)
    if (trained := model.count(trainable=True)) > budget.parameters:
        raise ValueError(f"the recipe trains {trained:,} parameters, the budget is {budget.parameters:,}")
    start = time.perf_counter()
    adapted = trained_loss(model, corpus, settings) * per_character
    seconds, full = time.perf_counter() - start, None
    if budget.full_lr is not None:
        whole = ml.Settings(budget.tokens // (8 * model.window), batch_size=8, lr=budget.full_lr, seed=settings.seed)
        full = trained_loss(ml.load_model("base"), corpus, whole) * per_character
    told = ", ".join(f"{key} {value}" for key, value in recipe["options"].items())
    return Entry(
        "", "", "", recipe["model"], f"{recipe['method']} {told}".strip(), base, adapted, full, trained, read, seconds
    )


def pretrained(recipe: Mapping[str, Any]) -> Any:
    """A fetched model. Raises ValueError, with the command that fetches it, where it is not there."""
    return ml.load_pretrained(recipe["model"])


def as_corpus(model: Any, public: str, hidden: str) -> tuple[Corpus, float]:
    """The two parts as the model's tokens, and bits per character for each nat per token of the hidden one."""
    if isinstance(model.tokenizer, Characters):
        public, hidden = plain(public), plain(hidden)
        if (share := count_foreign(public + hidden) / len(public + hidden)) > FOREIGN:
            raise ValueError(f"text.txt: {share:.0%} of its characters are outside the vocabulary, newline and ASCII")
    train, validation = (np.asarray(model.tokenizer.encode(part)) for part in (public, hidden))
    return Corpus("capstone", train, validation).require(model.window), len(validation) / len(hidden) / math.log(2)


def trained_loss(model: Any, corpus: Corpus, settings: ml.Settings) -> float:
    """Nats per token on the hidden pages, after training on the others."""
    settings.evaluate_every, settings.evaluation_windows = settings.steps, 1  # the loop's own looks decide nothing
    ml.train(ml.Run(model, corpus, settings), progress=False)
    return ml.evaluate(model, corpus)


# --- The leaderboard.

TITLES = ("", "student", "share", "bits", "base", "full", "parameters", "seconds", "model", "method")


def leaderboard(entries: list[Entry]) -> list[list[str]]:
    """Its rows as text, titles first."""
    number = lambda value, form: "-" if value is None else format(value, form)
    rows = [list(TITLES)]
    for place, e in enumerate(entries, 1):
        if e.base is None:
            rows.append(["-", e.student, *["-"] * 6, e.note])
            continue
        bits = [number(value, ".3f") for value in (e.adapted, e.base, e.full)]
        rows.append(
            [
                str(place),
                e.student,
                number(e.share, ".0%"),
                *bits,
                f"{e.trained:,}",
                f"{e.seconds:.0f}",
                e.model,
                e.method,
            ]
        )
    return rows


def as_text(rows: list[list[str]]) -> str:
    """Aligned columns; the last ones are words."""
    wide = [max(len(row[n]) for row in rows if len(row) == len(TITLES)) for n in range(len(TITLES))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if n in (1, 8, 9) else cell.rjust(w)
            for n, (cell, w) in enumerate(zip(row, wide, strict=False))
        ]
        lines.append("  ".join(cells).rstrip() if len(row) == len(TITLES) else f"{row[0]}  {row[1]}  {row[-1]}")
    return "\n".join(map(printable, lines))


def save_leaderboard(rows: list[list[str]], path: Path) -> Path:
    """The rows as a Markdown table, to be shown to the class."""
    cells = [
        [cell.replace("|", "\\|") for cell in [*row[:-1], *[""] * (len(TITLES) - len(row)), row[-1]]] for row in rows
    ]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "|" + "---|" * len(TITLES))
    return write_beside(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))
