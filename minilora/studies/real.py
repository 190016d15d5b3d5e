"""What a real language model learns of a task in minutes, told by running its answers, and what English it forgets.

SmolLM2 (Allal et al. 2025), as `minilora fetch` keeps it in 4 bits, is asked held-out questions in SQL, adapted by LoRA
on those bits (QLoRA, Dettmers et al. 2023), and asked the same questions again. While it learns, its loss on English
prose is followed beside its loss on the answers: a frontier between learning and forgetting (Biderman et al. 2024,
section 4.3), a line for each learning rate.
"""

import dataclasses
import functools
import platform
import re
import time
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

from ..adapters.attach import add_adapter
from ..adapters.lora import lora_layers
from ..analysis import low_rank, rank
from ..interop import pretrained
from ..training.corpus import PYTHON, Corpus
from ..training.loop import evaluate
from ..training.parallel import cores
from ..training.run import Run
from ..training.tasks import PAIRS, answers, load_task, task_named
from .runs import Runs, Spec, configuration, settings, trained
from .turns import processor

MODEL = "smollm2-135m"
LIBRARIES = ("numpy", "gguf", "tokenizers", "ml_dtypes")
DIRECTIONS = 4  # of Delta W, in which W is looked at: as in the study `subspaces` and in the paper's table 7
SHOWN = 4  # answers that a record keeps, to be read
LOOKS = 4  # along a run
WINDOWS = 12  # of 256 tokens of English; and three times as many answers
RATES = (1e-3, 2e-3, 4e-3)
SHORT = {"rank": 2, "questions": 2, "batch_size": 2}  # with --quick, and so few steps and windows, and one rate
SHORT_STEPS = 4


@dataclass(frozen=True)
class RealSpec(Spec):
    """A run on a model that others trained. steps = 0 is the model as it came.

    dtype: how its weights are held. questions: how many it is asked at the end. looks: how often on the way, the end
    among them, the losses are measured.
    """

    corpus: str = "sql"
    targets: tuple[str, ...] = ("*",)
    lr: float = 2e-3
    steps: int = 150
    keep: bool = True
    model: str = MODEL
    dtype: str = "file"
    questions: int = 100
    looks: int = 1


def study_real(runs: Runs) -> list[dict[str, Any]]:
    """A real model on questions in SQL: right answers before LoRA and after, by execution; and what English it forgets.

    Rows: the model as it came (steps 0), each seed at the middle rate, and the first seed at every other rate.
    """
    quick = len(runs.scale.seeds) < 2
    short: dict[str, Any] = {**SHORT, "steps": min(SHORT_STEPS, runs.scale.steps)} if quick else {}
    spec, looks = replace(RealSpec(), **short), 2 if quick else LOOKS
    real = RealRuns(runs)
    rows = [real.row(replace(spec, steps=0, keep=False))]
    rows += [real.row(replace(spec, seed=seed, looks=1 if seed else looks)) for seed in runs.scale.seeds]
    rows += [real.row(replace(spec, lr=lr, looks=looks)) for lr in RATES if lr != spec.lr and not quick]
    return rows


def clocks() -> np.ndarray:
    """Now, in seconds and in processor seconds: (2,)"""
    return np.array([time.perf_counter(), time.process_time()])


class RealRuns(Runs):
    """Runs on a model that others trained, kept and shared as those on the shipped one."""

    def __init__(self, runs: Runs):
        vars(self).update(vars(runs))

    def row(self, spec: RealSpec) -> dict[str, Any]:
        """A run's record, its settings beside what came of it."""
        record = self.record(spec)
        return {**{name: record["spec"][name] for name in ("lr", "seed", "steps", "rank", "batch_size", "dtype")},
                **{name: value for name, value in record.items() if name != "spec"}}  # fmt: skip

    def _train(self, spec: Any) -> tuple[dict[str, Any], Any]:
        model = pretrained.load_pretrained(spec.model, spec.dtype)
        model.recompute_blocks = False  # which saves memory, and takes time
        pairs = load_task(spec.corpus, model.tokenizer, PAIRS, spec.seed)
        pairs = replace(pairs, validation=load_task(spec.corpus, model.tokenizer, pairs=1).validation)  # for every seed
        old, windows = english(model.tokenizer), WINDOWS if len(self.scale.seeds) > 1 else 1
        add_adapter(model, configuration(spec), spec.seed)
        curve: dict[str, list] = {"step": [], "loss": [], "old_loss": []}
        looks, times = {round(spec.steps * i / spec.looks) for i in range(1, spec.looks + 1)}, np.zeros(2)
        started = clocks()
        for step in trained(Run(model, pairs, settings(spec)), spec.steps):
            times += clocks() - started
            self.bar.set_postfix_str(f"lr={spec.lr:g} seed={spec.seed} step {step} of {spec.steps}")
            if step in looks:
                curve["step"].append(step)
                curve["loss"].append(round(evaluate(model, pairs, 3 * windows), 5))
                curve["old_loss"].append(round(evaluate(model, old, windows), 5))
            started = clocks()
        seconds, processor_seconds = times.round(1).tolist()
        record: dict[str, Any] = {"spec": dataclasses.asdict(spec), "python": PYTHON, "curve": curve}
        record |= {"seconds": seconds, "processor_seconds": processor_seconds}  # of the training alone
        record |= {"loss": curve["loss"][-1], "old_loss": curve["old_loss"][-1]}
        record |= {"trainable": model.count(trainable=True), **self._asked(model, spec), **machine()}
        return record | (changes(model) if spec.steps else {}), model

    def _asked(self, model: Any, spec: Any) -> dict[str, Any]:
        """How many held-out questions it answers rightly, by execution; and the first of them, to be read."""
        questions = task_named(spec.corpus)(spec.questions, held_out=True)
        said = answers(model, questions)
        marks = [question.mark(answer) for question, answer in zip(questions, said, strict=True)]
        shown = [
            {"question": q.prompt.splitlines()[-2], "known": q.completion, "answer": answer.strip(), "right": mark}
            for q, answer, mark in list(zip(questions, said, marks, strict=True))[:SHOWN]
        ]
        return {"right": sum(marks), "asked": len(marks), "shown": shown}


@functools.cache
def prose() -> str:
    """English that every Python has: what is prose in the language reference behind help(), without code and grammar.

    It is about Python, and a model that has read the web has likely read it: what it knew of it, it may forget.
    """
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys(p.strip("\n") for t in sorted(topics) for p in re.split(r"\n\s*\n", topics[t]))
    whole = lambda p: p[0].isupper() and p.endswith(".") and len(p) > 120
    found = (p for p in paragraphs if p and whole(p) and not re.search(r"[=<>{}\[\]|\\]|\.\.\.|__|\(\)", p))
    return "\n\n".join(re.sub(r'["*`]', "", " ".join(p.split())) for p in found)


def english(tokenizer: Any) -> Corpus:
    """`prose` in a model's tokens: nothing is trained on it, and all of it is there to be measured on."""
    tokens = tokenizer.encode(prose(), frame=False)
    return Corpus("prose of python-docs", tokens, tokens, unit="tokens")


def changes(model: Any) -> dict[str, Any]:
    """Every Delta W in few numbers: its spectrum over its largest value, its energy rank, its amplification.

    spectrum: medians over the matrices. energy_rank: means by kind of matrix. amplification: medians by kind of
    ||Delta W||_F / ||U^T W V||_F (Hu et al. 2021, section 7.3), U and V the first 4 singular vectors of Delta W.
    """
    spectra: list[np.ndarray] = []
    energy: dict[str, list] = {}
    amplified: dict[str, list] = {}
    for path, layer in lora_layers(model).items():
        kind = path.split(".")[-1].removesuffix("_proj")
        u, s, vt = low_rank.svd(layer.config.scale * layer.lora_B.data, layer.lora_A.data)
        there = np.linalg.norm(u[:, :DIRECTIONS].T @ layer.weight.data @ vt[:DIRECTIONS].T)  # ||U^T W V||
        spectra.append(s / s[0])
        energy.setdefault(kind, []).append(rank.energy_rank(s))
        amplified.setdefault(kind, []).append(np.linalg.norm(s) / there)
    return {
        "spectrum": np.median(spectra, axis=0).round(5).tolist(),
        "energy_rank": {kind: float(np.mean(values)) for kind, values in energy.items()},
        "amplification": {kind: round(float(np.median(values)), 4) for kind, values in amplified.items()},
    }


def machine() -> dict[str, Any]:
    """What a run was made on."""
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
    return {"processor": processor(), "cores": cores(), "versions": versions}
