"""The runs behind the studies: what one is, how it is trained, kept and read again, and how its costs are measured.

A `Spec` says everything about a run. A finished run is kept in a folder, under a name made from its spec, so that a
study which was interrupted goes on where it stopped, and studies share the runs they have in common. Losses are in nats
per character on held-out text, times in seconds, sizes in bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..adapters.adapter import METHODS
from ..adapters.attach import add_adapter
from ..adapters.files import load_adapter, save_adapter, stored_parameters
from ..adapters.initialise import GRADIENT
from ..adapters.lora import lora_layers
from ..adapters.lora_ga import add_lora_ga
from ..adapters.qlora import quantize_model
from ..nn.storage import load_model, save_model
from ..training.corpus import PYTHON, Corpus, load_corpus
from ..training.loop import evaluate, length_of, train_step
from ..training.optim import AdamW, cosine_schedule
from ..training.parallel import blas_of_one_thread
from ..training.processes import Team
from ..training.run import Run, Settings
from ..training.stopping import stop_at_signals
from .choosing import Between
from .records import read_json, write_json

FORMAT = 1  # of the records; a file with another number was made by another version
OLD_TEXT = "python-docs"  # what the base model was pretrained on: its loss afterwards is what was forgotten
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
SCALE = 2.0  # alpha / r where a study does not vary it
BLOCK = 500  # characters: of so long blocks a text is put together that is less than the whole


@dataclass(frozen=True)
class Spec:
    """One fine-tuning run, completely: two runs with equal specs give equal numbers.

    method: "full" trains every weight in place; every other is the name of a method in `adapters`. rank, alpha,
    rank_stabilized and targets are LoRA's and DoRA's; options: whatever else the method's configuration takes.
    start: how A and B begin ("lora": A random and B zero; "B random": A zero; "both zero"; "both random"). lr_ratio:
    B's learning rate over A's. quantized: the base in few bits, as `quantize_model` takes it. characters: how much of
    the training text there is, in blocks from all over it, which the seed draws (None: all of it). keep: whether what
    was trained is kept, for studies that look at it. looks: how often on the way the losses on both texts are measured,
    the end among them. pull: weight decay towards the base (`pull_back`). trained: which of A and B are, "AB", "A" or
    "B"; the other is frozen as it began. choice: whether the looks measure, in the old text's place, windows between
    those that are told of, so that a step can be chosen.
    """

    corpus: str = "unicode-names"
    method: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    rank_stabilized: bool = False
    targets: tuple[str, ...] = ALL
    start: str = "lora"
    lr: float = 1e-2
    steps: int = 100
    batch_size: int = 8
    characters: int | None = None
    seed: int = 0
    keep: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    lr_ratio: float = 1.0
    quantized: dict[str, Any] = field(default_factory=dict)
    looks: int = 5
    pull: float = 0.0
    trained: str = "AB"
    choice: bool = False

    @property
    def looked_at(self) -> list[int]:
        """The steps at which the looks are, 0 and the last among them."""
        return sorted({round(self.steps * look / self.looks) for look in range(self.looks + 1)})

    @property
    def key(self) -> str:
        """A name for the files of this run, made from what differs from the defaults: new fields leave old names."""
        usual = {f.name: getattr(type(self)(), f.name) for f in fields(self)}
        changed = {name: value for name, value in asdict(self).items() if value != usual[name]}
        text = json.dumps([FORMAT, type(self).__name__, changed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Scale:
    """How large the studies are: `FULL` is what the committed records hold, `QUICK` shows every study in minutes."""

    name: str
    steps: int
    batch_size: int
    seeds: tuple[int, ...]
    corpora: tuple[str, ...]
    learning_rates: tuple[float, ...]
    middle_rates: tuple[float, ...]  # for bottleneck adapters and biases
    high_rates: tuple[float, ...]  # for prompts and prefixes
    ranks: tuple[int, ...]
    characters: tuple[int, ...]
    windows: int


FULL = Scale(
    name="full",
    steps=100,
    batch_size=8,
    seeds=(0, 1, 2),
    corpora=("unicode-names", "python-code"),
    learning_rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    middle_rates=(3e-3, 1e-2, 3e-2, 1e-1),
    high_rates=(1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    ranks=(1, 2, 4, 8, 16, 32, 64),
    characters=(2_000, 8_000, 32_000),
    windows=48,
)
QUICK = Scale(
    name="quick",
    steps=20,
    batch_size=8,
    seeds=(0,),
    corpora=("unicode-names",),
    learning_rates=(1e-3, 1e-2),
    middle_rates=(3e-2,),
    high_rates=(3e-1,),
    ranks=(1, 8, 64),
    characters=(2_000, 128_000),
    windows=8,
)


class Runs:
    """Runs by their specs: a finished one is read from its file, another is trained and kept."""

    def __init__(self, folder: str | Path = "runs/study", scale: Scale = FULL, progress: bool = True):
        self.folder, self.scale = Path(folder) / scale.name, scale
        self.bar = tqdm(unit="run", disable=not progress, leave=False, dynamic_ncols=True)
        self.pythons = {PYTHON}  # whose texts were read: now, and when the runs that are used were trained
        self.wanted: dict[str, tuple[Runs, Spec]] | None = None  # in a plan (`grid.py`), the runs that are not made yet
        self._corpora: dict[str, Corpus] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to make these runs: not the bar, nor the texts, which it reads itself."""
        return {**vars(self), "bar": None, "wanted": None, "_corpora": {}}

    def spec(self, **changes: Any) -> Spec:
        """A spec of this scale's length."""
        return replace(Spec(steps=self.scale.steps, batch_size=self.scale.batch_size), **changes)

    def corpus(self, name: str) -> Corpus:
        """A corpus, loaded once."""
        if name not in self._corpora:
            self._corpora[name] = load_corpus(name)
        return self._corpora[name]

    def record(self, spec: Spec) -> dict[str, Any]:
        """What came of a run: losses before and after on the new and the old text, curve, sizes, times."""
        path = self.folder / f"{spec.key}.json"
        if not _finished(path, spec):
            if self.wanted is not None:
                self.wanted[spec.key] = self, spec
                return {}
            self.bar.set_postfix_str(f"{spec.method} {spec.corpus} r={spec.rank} lr={spec.lr:g} seed={spec.seed}")
            with blas_of_one_thread():  # and `settings` fixes the pieces: the same bits on any number of cores
                record, model = self._train(spec)
            if spec.keep:
                (save_model if spec.method == "full" else save_adapter)(model, path.with_suffix(".npz"))
            write_json(path, record)
        self.bar.update()
        record = read_json(path, "delete it, and `minilora study` makes it anew")
        self.pythons.add(record.get("python", "unknown"))
        return record

    def records(self, specs: Iterable[Spec]) -> list[dict[str, Any]]:
        """The records of several runs."""
        return [self.record(spec) for spec in specs]

    def file(self, spec: Spec) -> Path:
        """The file of what a run with keep=True trained: an adapter, or a whole model."""
        if not self.record(spec):
            raise KeyError(f"{spec.key} is not made yet")
        return self.folder / f"{spec.key}.npz"

    def model(self, spec: Spec) -> Any:
        """The trained model of a run with keep=True."""
        path = self.file(spec)
        return load_model(path) if spec.method == "full" else load_adapter(base_model(spec), path)

    def _train(self, spec: Spec) -> tuple[dict[str, Any], Any]:
        model, corpus = base_model(spec), self.corpus(spec.corpus)
        before = evaluate(model, corpus, self.scale.windows)
        if spec.characters is not None:
            corpus = replace(corpus, train=blocks(corpus.train, spec.characters, spec.seed))
        prepare(model, spec, corpus)
        run = Run(model, corpus, settings(spec))
        texts = {"loss": corpus, "old_loss": self.corpus(OLD_TEXT)}
        if spec.choice:
            texts = {"loss": corpus, "choice": Between(corpus.name, corpus.train, corpus.validation)}
        curve: dict[str, list] = {"step": [], **{name: [] for name in texts}}
        looked_at = spec.looked_at
        for step in trained(run, spec.steps, spec.pull):
            if step in looked_at:
                curve["step"].append(step)
                for name, text in texts.items():
                    curve[name].append(round(evaluate(model, text, self.scale.windows), 5))
        stored = run.optimizer.parameters if spec.method == "full" else stored_parameters(model).values()
        record = {
            "spec": asdict(spec),
            "python": PYTHON,
            "before": before,
            "curve": curve,
            **{name: curve[name][-1] for name in texts},
            "trainable": sum(p.size for p in run.optimizer.parameters),
            "stored_bytes": sum(p.data.nbytes for p in stored),
        }
        return record, model


def blocks(text: np.ndarray, size: int, seed: int) -> np.ndarray:
    """So much of a text, a block from each of so many equal parts, which the seed draws: one piece is of one topic."""
    many = -(-size // BLOCK)
    part = len(text) / many
    if part < BLOCK:
        return text[:size]
    starts = (np.arange(many) * part + np.random.default_rng(seed).random(many) * (part - BLOCK)).astype(int)
    return text[starts[:, None] + np.arange(BLOCK)].ravel()[:size]


def _finished(path: Path, spec: Spec) -> bool:
    """Whether a run is kept, and whole: its curve ends where the run does, and its model is there if it should be."""
    if not path.exists() or (spec.keep and not path.with_suffix(".npz").exists()):
        return False
    return json.loads(path.read_text(encoding="utf-8"))["curve"]["step"][-1] == spec.steps


def trained(run: Run, stop: int, pull: float = 0.0) -> Iterator[int]:
    """The steps taken, 0 first, then after each up to `stop`, as `train` takes them: a look between them changes none.

    pull: after each step the weights go back towards where they began (`pull_back`). Ctrl-C, SIGTERM and SIGHUP end it
    after the step that it is in, with KeyboardInterrupt.
    """
    s, length = run.settings, length_of("train", run.model, run.corpus, run.settings.window)
    began = [p.data.copy() for p in run.optimizer.parameters] if pull else []
    team = Team(run.model, run.optimizer.parameters)
    with stop_at_signals() as interrupt:
        yield 0
        for step in range(stop):
            run.optimizer.lr = cosine_schedule(step, s.steps, s.lr, s.warmup, s.floor * s.lr)
            tokens, targets, *_ = run.corpus.batch(s.batch_size, length, run.rng)
            with team:
                train_step(run.model, run.optimizer, tokens, targets, run.rng, s.max_norm, s.pieces)
            if pull:
                pull_back(run.optimizer, began, pull)
            if interrupt.is_set():
                raise KeyboardInterrupt
            yield step + 1
        if interrupt.is_set():
            raise KeyboardInterrupt


def pull_back(optimizer: AdamW, began: Sequence[np.ndarray], pull: float) -> None:
    """w <- w - lr pull (w - w_0): weight decay towards the base in place of 0, decoupled from the gradient as AdamW's.

    The penalty pull / 2 |w - w_0|^2 is Li, Grandvalet & Davoine's L2-SP (2018, "Explicit Inductive Bias for Transfer
    Learning with Convolutional Networks"), which adds it to the loss; Adam would divide its gradient by its size.
    """
    for p, w_0 in zip(optimizer.parameters, began, strict=True):
        p.data -= optimizer.lr * pull * (p.data - w_0)
        p.changed()


def settings(spec: Spec) -> Settings:
    """How a run is trained."""
    return Settings(
        steps=max(spec.steps, 1),
        batch_size=spec.batch_size,
        lr=spec.lr,
        warmup=max(spec.steps // 10, 1),
        seed=spec.seed,
        lr_ratio=spec.lr_ratio,
        pieces=2,
    )


def base_model(spec: Spec) -> Any:
    """The shipped model, in few bits where the spec asks for it."""
    model = load_model("base")
    return quantize_model(model, **spec.quantized) if spec.quantized else model


def configuration(spec: Spec) -> Any:
    """The configuration of the spec's method."""
    if spec.method not in METHODS:
        raise ValueError(f"study: method = {spec.method!r}; there are {', '.join(METHODS)}")
    of_spec = {"rank": spec.rank, "alpha": spec.alpha, "target_modules": spec.targets}
    of_spec["rank_stabilized"] = spec.rank_stabilized
    takes = dict.fromkeys(("lora", "dora", "lora-fa"), tuple(of_spec))
    takes |= dict.fromkeys(("vera", "miss"), ("rank", "target_modules"))
    return METHODS[spec.method](**{name: of_spec[name] for name in takes.get(spec.method, ())}, **spec.options)


def prepare(model: Any, spec: Spec, corpus: Corpus | None = None) -> None:
    """Make the parameters trainable that the spec's method trains, and start them as it says.

    corpus: the text that a start from the loss's gradient reads, four batches of it; by default the spec's.
    """
    if spec.method == "full":
        return  # in place: no second copy of the weights
    if spec.start == "lora" and spec.trained == "A":
        raise ValueError('study: trained = "A" from B = 0 would learn nothing; give start = "B random"')
    if spec.options.get("init") == GRADIENT:
        rng, text = np.random.default_rng(spec.seed), corpus or load_corpus(spec.corpus)
        batches = [text.batch(spec.batch_size, model.context, rng) for _ in range(4)]
        add_lora_ga(model, configuration(spec), batches, spec.seed)
    else:
        add_adapter(model, configuration(spec), spec.seed)
    rng = np.random.default_rng(spec.seed)
    for layer in lora_layers(model).values():
        if spec.start == "both zero":
            layer.lora_A.data[...] = 0
        elif spec.start == "both random":
            layer.lora_B.data[...] = rng.normal(0, 1 / spec.rank, layer.lora_B.shape)
        elif spec.start == "B random":  # what A's start is by its d_in, by B's d_in, which is r
            layer.lora_A.data[...] = 0
            layer.lora_B.data[...] = rng.uniform(-(spec.rank**-0.5), spec.rank**-0.5, layer.lora_B.shape)
        for part in {"A", "B"} - set(spec.trained):
            getattr(layer, f"lora_{part}").requires_grad = False


def summarise(records: Sequence[Mapping[str, Any]], *numbers: str) -> dict[str, Any]:
    """{number: its mean over the seeds, number_spread: half the distance from least to most, "seeds": how many}"""
    summary: dict[str, Any] = {"seeds": len(records)}
    if not all(records):  # of a plan
        return summary
    for number in numbers:
        values = [record[number] for record in records]
        summary[number] = float(np.mean(values))
        summary[f"{number}_spread"] = float(np.max(values) - np.min(values)) / 2
    return summary


def over_seeds(runs: Runs, spec: Spec, *numbers: str, seeds: tuple[int, ...] | None = None) -> dict[str, Any]:
    """`summarise` of the runs of a spec with every seed, and how many parameters they train."""
    specs = [replace(spec, seed=seed) for seed in seeds or runs.scale.seeds]
    records = runs.records(specs)
    return {**summarise(records, *(numbers or ("loss", "old_loss"))), "trainable": records[0].get("trainable")}


def rates_of(scale: Scale, method: str) -> tuple[float, ...]:
    """The learning rates that a method is tried at."""
    return {
        **dict.fromkeys(("prompt", "prefix"), scale.high_rates),
        **dict.fromkeys(("houlsby", "pfeiffer", "bitfit"), scale.middle_rates),
    }.get(method, scale.learning_rates)


def best_rate(runs: Runs, method: str, corpus: str, **changes: Any) -> float:
    """The learning rate with the lowest validation loss, at the first seed."""
    rates = rates_of(runs.scale, method)
    sweep = [runs.spec(method=method, corpus=corpus, lr=lr, **{"keep": True, **changes}) for lr in rates]
    return min(runs.records(sweep), key=lambda record: record["loss"])["spec"]["lr"]
