"""How few parameters are enough to learn from rewards, beside the same task learnt from examples.

The shipped model is first trained to write names of Unicode characters, the same for all. Then each way has to make it
write names with the word WITH in them, as LATIN SMALL LETTER A WITH ACUTE has:
    rewards     REINFORCE (`training/reinforce.py`): 1 for a text of the model's own that is such a name, else 0
    examples    supervised training on such names from the training text
in equally many steps of as many texts, with the same optimiser, each size of update at its own best learning rate.

Schulman et al. 2025, "LoRA Without Regret", argue that an episode of a policy gradient brings about one bit, so that
LoRA of rank 1 has room for it; Morris et al. 2026, "Learning to Reason in 13 Parameters" (arXiv 2602.04118), go below
rank 1, and find examples to need far larger updates. Yin et al. 2025, "Evaluating Parameter Efficient Methods for RLVR"
(arXiv 2512.23165), find rank 1 and VeRA to be bottlenecks.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..nn.characters import decode, encode
from ..nn.storage import load_model
from ..training.corpus import PYTHON
from ..training.examples import Example, Examples
from ..training.loop import evaluate, train_step
from ..training.optim import AdamW
from ..training.reinforce import reinforce, rewards_of, write_episodes
from .runs import SCALE, Runs, Spec, prepare, summarise

WORD = " WITH "
LINE = encode("\n")  # what a name is written after, and what ends it
LONGEST = 40  # characters of a name, its end among them
JUDGED = 8  # names that a model writes to be judged, for each of the scale's windows; a quarter of them on the way
SHOWN = 6  # names that a record keeps, to be read
NAMES_STEPS, NAMES_RATE = 3, 3e-3  # of the training before: so many times the scale's steps

SIZES: dict[str, dict[str, Any]] = {  # what is trained, the smallest first
    "one matrix": {"rank": 1, "targets": ("blocks.3.mlp.down_proj",)},
    "last block": {"rank": 1, "targets": ("blocks.3.*",)},
    "r=1": {"rank": 1},
    "r=2": {"rank": 2},
    "r=8": {"rank": 8},
    "r=32": {"rank": 32},
    "full": {"method": "full"},
}
RATES = {"one matrix": (3e-3, 1e-2, 3e-2, 1e-1), "last block": (3e-3, 1e-2, 3e-2, 1e-1), "full": (3e-4, 1e-3, 3e-3)}
LORA_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
WAYS = ("rewards", "examples")


@dataclass(frozen=True)
class RewardSpec(Spec):
    """A run of one of the WAYS: steps of batch_size texts. base: the key of the run that taught it to write names."""

    steps: int = 60
    batch_size: int = 16
    looks: int = 6
    way: str = "rewards"
    base: str = ""


def reward(name: str) -> float:
    """1 for a whole name with the word in it, else 0: a rule, which has no derivative."""
    return float(WORD in name and name.endswith("\n"))


def study_rewards(runs: Runs) -> list[dict[str, Any]]:
    """How few parameters are enough to learn a rule from rewards, and how few from examples that keep the rule?

    A rate is chosen by the mean over the seeds of the share of right names at the end, among the two that are best at
    the first seed; of equal ones, by the mean on the way.
    """
    quick = len(runs.scale.seeds) < 2
    right = lambda records: np.mean([(r["reward"], np.mean(r["curve"]["reward"])) for r in records], axis=0).tolist()
    learners, rows = RewardRuns(runs), []
    of = lambda way, name, lr: learners.records(learners.spec_of(way, name, lr, seed) for seed in runs.scale.seeds)
    for way in WAYS:
        for name in ("r=1", "full") if quick else SIZES:
            rates = RATES.get(name, LORA_RATES)
            sweep = learners.records(learners.spec_of(way, name, lr, 0) for lr in (rates[1:2] if quick else rates))
            tried = [record["spec"]["lr"] for record in sorted(sweep, key=lambda record: right([record]))[-2:]]
            records = max([of(way, name, lr) for lr in tried], key=right)
            first = records[0]
            curves = [record["curve"] for record in records]
            row = {"way": way, "size": name, "lr": first["spec"]["lr"]}
            row |= {key: first[key] for key in ("trainable", "names")}
            row |= {key: first["spec"][key] for key in ("steps", "batch_size")}
            row |= summarise(records, "before", "reward", "different", "base_loss", "loss")
            row["curve"] = {"step": curves[0]["step"], "reward": [curve["reward"] for curve in curves]}
            row["rates"] = {f"{record['spec']['lr']:g}": record["reward"] for record in sweep}
            rows.append(row)
    return rows


class RewardRuns(Runs):
    """Runs that go on from a model that writes names, kept and shared as those on the shipped one."""

    def __init__(self, runs: Runs):
        vars(self).update(vars(runs))
        self.names = runs.spec(
            corpus="unicode-names", method="full", lr=NAMES_RATE, steps=NAMES_STEPS * runs.scale.steps, keep=True
        )
        self.base = runs.file(self.names)
        self.judged = JUDGED * runs.scale.windows

    @functools.cached_property
    def before(self) -> dict[str, float]:
        """The share of right names that all begin with, and the loss on names."""
        model, corpus = load_model(self.base), self.corpus(self.names.corpus)
        loss = evaluate(model, corpus, self.scale.windows)
        return {"before": judge(model, self.judged)["reward"], "base_loss": loss}

    def spec_of(self, way: str, size: str, lr: float, seed: int) -> RewardSpec:
        """The run of one size of update, shorter where the scale is."""
        changes = dict(SIZES[size])
        changes["alpha"] = SCALE * changes.get("rank", 8)
        steps, samples = min(60, self.scale.steps), min(16, 2 * self.scale.batch_size)
        return RewardSpec(way=way, lr=lr, seed=seed, steps=steps, batch_size=samples, base=self.names.key, **changes)

    def _train(self, spec: Any) -> tuple[dict[str, Any], Any]:
        model, corpus = load_model(self.base), self.corpus(spec.corpus)
        prepare(model, spec)
        curve: dict[str, list] = {"step": [0], "reward": [self.before["before"]]}
        for step in learning(model, spec, examples_of(decode(corpus.train))):
            judged = judge(model, self.judged if step == spec.steps else self.judged // 4, spec.seed)
            curve["step"].append(step)
            curve["reward"].append(judged["reward"])
        record = {"spec": asdict(spec), "python": PYTHON, "curve": curve, "trainable": model.count(trainable=True)}
        return record | self.before | judged | {"loss": evaluate(model, corpus, self.scale.windows)}, model


def judge(model: Any, samples: int, seed: int = 0) -> dict[str, Any]:
    """Which share of the names that a model writes is right, which share is different, and the first of them."""
    rng = np.random.default_rng([seed, 1])
    written = write_episodes(model, LINE, samples, LONGEST, LINE.tolist(), rng).texts
    right, different = float(rewards_of(written, reward).mean()), len(set(written)) / len(written)
    return {"reward": right, "different": different, "names": [name.strip("\n") for name in written[:SHOWN]]}


def examples_of(text: str) -> Examples:
    """The names of a text that the rule rewards, each written after the end of another."""
    rows: list[Example] = [
        (encode(f"\n{name}"), encode(f"{name}\n"))
        for name in text.split("\n")
        if len(name) < LONGEST and reward(f"{name}\n")
    ]
    return Examples("names with the word", rows, [], what="names")


def learning(model: Any, spec: Any, examples: Examples) -> Iterator[int]:
    """Train in the spec's way; the steps taken, at each of its looks."""
    optimizer = AdamW(model.named_parameters(), spec.lr, (0.9, 0.99), weight_decay=0.0)
    rng = np.random.default_rng(spec.seed)
    for before, step in itertools.pairwise(spec.looked_at):
        if spec.way == "rewards":
            how = {"samples": spec.batch_size, "longest": LONGEST, "stop": LINE.tolist(), "progress": False}
            reinforce(model, optimizer, reward, LINE, step - before, rng, **how)
        for _ in range(step - before if spec.way == "examples" else 0):
            tokens, targets, _ = examples.batch(spec.batch_size, LONGEST, rng)
            train_step(model, optimizer, tokens, targets, max_norm=1.0)
        yield step
