"""One thing that was measured, beside another, and the bar it has to reach: a row of the benchmark."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

LORA, FULL = "LoRA step", "full fine-tuning step"
TRAINING = {"lora": LORA, "full": FULL}
MEMORY = "peak memory of a LoRA step"
CORES = "LoRA step in pieces on threads or processes, beside one piece on one thread"
MORE_CORES = "LoRA step with a core for each piece, by a model fitted to these"
GROWTH = {"lora": "LoRA step as it grows", "full": "full fine-tuning step as it grows"}
GROWTH_OF_MEMORY = {method: f"peak memory of a {words}" for method, words in GROWTH.items()}
EXPONENT = ": exponent"
REAL_STEP, REAL_MEMORY = "LoRA step on a real model", "peak memory of a process with a real model"
GENERATION = "generation with cache, tokens a second of one sequence"
UNMERGED = "generation with an adapter that is not merged"
TWO_ADAPTERS = "generation with two adapters in a batch of two"
NF4 = "generation with an adapter on weights in NF4"
BATCHED = "generation from eight prompts of several lengths, a token of each"
SENT = "bytes that a process gives to the sum of gradients, a LoRA step"
EXCHANGED = "time of the sum of gradients once all are there, a LoRA step"
TOGETHER = "LoRA step of two processes, 50 steps"
ALLREDUCE = "start of a sum over processes (alpha); a byte's time (beta) is in the record"
SIDE_BY_SIDE = "24 runs of a study, side by side"
TO_START = "workers of a cluster, until they have imported all"
SCALARS = "overhead of a primitive on a scalar, forward and backward"
IMPORT = "import minilora, beyond NumPy"
DEMO = "minilora demo, whole process"
EAGER, HIPS, PEFT_EAGER = "PyTorch eager", "HIPS autograd", "transformers and PEFT"
NUMPY_PRODUCTS, TORCH_PRODUCTS = "the products in NumPy", "the products in PyTorch"
BLAS = "products alone"  # NumPy's time for the products of a step's layers, over PyTorch's for the same
PRODUCTS, OWN_FULL, ITSELF, ALL_CHAINS = "matrix products", "our full step", "", "all together"
MERGED, ONE_BY_ONE, THREADS = "the merged model", "one by one", "threads of one"
ONE_WORKER, ONE_PROCESS = "one worker", "one process"
SERVED = ("tiny", "small", "medium")
EVERY = ("tiny", "small", "medium", "gpt2")

# (what, size, against): the most that the ratio, or our own seconds where there is nothing beside, may be on two cores.
BARS: dict[tuple[str, str, str], float] = {
    **{(LORA, size, EAGER): 1.0 for size in EVERY},
    **{(LORA, size, PRODUCTS): most for size, most in (("tiny", 3.5), ("medium", 1.35), ("gpt2", 1.6))},
    **{(LORA, size, OWN_FULL): 0.75 for size in ("small", "medium")},
    **{(FULL, size, EAGER): 1.1 for size in EVERY},
    **{(what, model, EAGER): 1.0 for what in (LORA, FULL) for model in ("vit", "dit", "segmenter")},
    **{(MEMORY, size, EAGER): 1.0 for size in EVERY},
    **{(GENERATION, size, EAGER): 1.0 for size in ("tiny", "small")},
    **{(UNMERGED, size, MERGED): 1 / 0.8 for size in SERVED},  # 0.8 of its tokens a second
    **{(TWO_ADAPTERS, size, MERGED): 1 / 0.7 for size in SERVED},
    **{(NF4, size, MERGED): 1 / 0.5 for size in SERVED},
    **{(TOGETHER, size, THREADS): 1.1 for size in ("tiny", "small")},
    (SIDE_BY_SIDE, "2 workers", ONE_WORKER): 0.6,
    **{(of["lora"], "length 2,048", EAGER): 1.0 for of in (GROWTH, GROWTH_OF_MEMORY)},
    **{(GROWTH_OF_MEMORY[method] + EXPONENT, "length ≥ 512", EAGER): 1.15 for method in TRAINING},
    (REAL_STEP, "smollm2-135m", PEFT_EAGER): 1.0,
    (REAL_MEMORY, "smollm2-135m", PEFT_EAGER): 0.8,
    (SCALARS, ALL_CHAINS, HIPS): 0.5,
    (IMPORT, "", ITSELF): 0.1,
    (DEMO, "", EAGER): 1.1,
    (DEMO, "", ITSELF): 60.0,
}
SAME_BLAS = 1.05  # from here up NumPy's products are slower than PyTorch's, and a bar is what BARS says
WITH_SAME_BLAS = {(LORA, size, EAGER): most for size, most in zip(EVERY, (0.85, 0.8, 0.85, 0.8), strict=True)}
GPU_BARS: dict[tuple[str, str, str], float] = {(LORA, size, EAGER): 1.5 for size in ("medium", "gpt2")}


@dataclass(frozen=True)
class Row:
    """What was measured at which size, against what: medians, and the ratio in turns with its quartiles.

    unit: "s", "bytes", "s/token" or "exponent". theirs, ratio and quartiles are None where there is nothing
    beside. bar: the most that the ratio (or ours, where there is none) should be, or None. details: what else is known.
    """

    what: str
    size: str
    against: str
    unit: str
    ours: float
    theirs: float | None = None
    ratio: float | None = None
    quartiles: list[float] | None = None
    turns: int = 1
    bar: float | None = None
    details: Mapping[str, Any] | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the bar is reached; None where there is none."""
        return None if self.bar is None else (self.ours if self.ratio is None else self.ratio) <= self.bar

    def record(self) -> dict[str, Any]:
        """The row as JSON holds it."""
        return {**asdict(self), "reached": self.reached}


def row(what: str, size: str, against: str, unit: str, numbers: Mapping[str, Any], on_gpu: bool = False,
        details: Mapping[str, Any] | None = None, blas: float | None = None) -> Row:  # fmt: skip
    """A row with its bar, from what `turns.ratio` gives, or {"ours": ...} alone. blas: the ratio of products alone."""
    bar = (GPU_BARS if on_gpu else BARS).get((what, size, against))
    if blas is not None and blas < SAME_BLAS:
        bar = WITH_SAME_BLAS.get((what, size, against), bar)
    return Row(what, size, against, unit, **numbers, bar=bar, details=details)
