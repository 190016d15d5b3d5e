"""Every method that a LoRA lecture names, on one model and two texts: what each learns, forgets and costs.

The studies here set LoRA beside its alternatives. As in `studies.py`, each returns plain records, and figures are drawn
from those alone. Times are medians of turns that all methods take in one run, and are told as ratios.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..adapters.attach import remove_adapter
from ..adapters.merge import merge_adapter
from ..adapters.qlora import quantize_model
from ..analysis.counting import count, plan
from ..autograd.tensor import no_grad
from ..nn.gpt import GPT, Cache, GPTConfig
from ..nn.layers import Linear
from ..nn.storage import load_model
from ..training.loop import evaluate, train_step
from ..training.optim import AdamW
from .costs_of_steps import measure_steps, peak_bytes, weight_bytes
from .runs import (
    OLD_TEXT,
    SCALE,
    Runs,
    Scale,
    Spec,
    base_model,
    best_rate,
    over_seeds,
    prepare,
    rates_of,
    summarise,
)
from .turns import beside

NF4 = {"kind": "nf4", "block": 64, "double": True}
QV: dict[str, Any] = {"targets": ("q_proj", "v_proj")}

# What each method changes of a `Spec`. From "bitfit" on, each trains about as many parameters as LoRA of rank 8 on q
# and v does, 16,384, where it can: there are fewer biases, and a prompt of 128 tokens would leave no room for text.
COMPARED: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {},  # rank 8 on all matrices: the LoRA of every other study
    "last-blocks": {"method": "last-blocks", "options": {"blocks": 1}},
    "bitfit": {"method": "bitfit"},
    "prompt": {"method": "prompt", "options": {"tokens": 32}},
    "prefix": {"method": "prefix", "options": {"tokens": 16}},
    "prefix-mlp": {"method": "prefix", "options": {"tokens": 16, "hidden": 128}},
    "houlsby": {"method": "houlsby", "options": {"bottleneck": 8}},
    "pfeiffer": {"method": "pfeiffer", "options": {"bottleneck": 16}},
    "lora-all": {"rank": 2, "alpha": SCALE * 2},
    "lora-qv": QV,
    "rslora": {**QV, "rank_stabilized": True},
    "lora+": {**QV, "lr_ratio": 16.0},
    "pissa": {**QV, "options": {"init": "pissa"}},
    "dora": {**QV, "method": "dora"},
    "qlora": {**QV, "quantized": NF4},
    "lora-ga": {**QV, "options": {"init": "lora-ga"}},
    "lora-fa": {**QV, "method": "lora-fa", "rank": 16, "alpha": SCALE * 16},
    "miss": {**QV, "method": "miss", "rank": 16},
    "vera": {"method": "vera", "rank": 256},  # on all matrices; of more random directions a step is slow
    "ia3": {"method": "ia3"},
}

# Rates that hold a method's best inside, where those of `rates_of` do not: LoRA on few matrices asks for high ones.
GRIDS: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("lora-all", "lora-qv", "pissa", "dora", "qlora", "lora-ga", "miss"), (3e-3, 1e-2, 3e-2, 1e-1)),
    "lora-fa": (1e-2, 3e-2, 1e-1, 3e-1),
    "vera": (1e-2, 3e-2, 1e-1, 3e-1),
    "ia3": (3e-2, 1e-1, 3e-1, 1.0, 3.0),
    "prefix-mlp": (3e-3, 1e-2, 3e-2),
}


def grid(scale: Scale, name: str) -> tuple[float, ...]:
    """The learning rates that a method of COMPARED is tried at."""
    usual = rates_of(scale, COMPARED[name].get("method", "lora"))
    return GRIDS.get(name, usual) if len(scale.seeds) > 1 else usual


def study_methods(runs: Runs) -> list[dict[str, Any]]:
    """Every method at its own best learning rate: what is learned, forgotten, trained, stored, and paid in a step.

    The rate is chosen by the new text alone, at the first seed; sweep: the way of every rate that was tried, so that
    what is forgotten can be told at a matched loss on the new text.
    """
    rows: list[dict[str, Any]] = []
    for corpus in runs.scale.corpora:
        old = evaluate(load_model("base"), runs.corpus(OLD_TEXT), runs.scale.windows)
        for name, changes in COMPARED.items():
            changes = {"method": "lora", "keep": name in ("lora", "full"), **changes}
            tried = runs.records(runs.spec(corpus=corpus, lr=lr, **changes) for lr in grid(runs.scale, name))
            lr = min(tried, key=lambda record: record["loss"])["spec"]["lr"]
            records = runs.records(runs.spec(corpus=corpus, lr=lr, seed=seed, **changes) for seed in runs.scale.seeds)
            curves = [record["curve"] for record in records]
            row = {"corpus": corpus, "method": name, "lr": lr, "trainable": records[0]["trainable"], "old_before": old}
            row |= summarise(records, "before", "loss", "old_loss", "stored_bytes")
            row["curve"] = {"step": curves[0]["step"]}
            row["curve"] |= {number: [curve[number] for curve in curves] for number in ("loss", "old_loss")}
            row["sweep"] = [{"lr": record["spec"]["lr"], "curve": record["curve"]} for record in tried]
            rows.append(row)
    quick = len(runs.scale.seeds) < 2
    specs = {name: runs.spec(**changes) for name, changes in COMPARED.items()}
    costs, delays = measure_steps(runs, specs, 3 if quick else 15), token_ratios(COMPARED, 5 if quick else 60)
    return [row | costs[row["method"]] | delays[row["method"]] for row in rows]


# --- latency ---------------------------------------------------------------------------------------------------------


def adapted(model: Any, changes: Mapping[str, Any]) -> Any:
    """A model with the adapter of a spec; all weights trained in place are the model itself."""
    prepare(model, Spec(**changes))
    return model


def token_ratios(methods: Mapping[str, Mapping[str, Any]], turns: int) -> dict[str, dict[str, Any]]:
    """{name: {"token_ratio", "mergeable"}}: time of a cached token over the base model's, as it is served: merged where
    the method can be, for one sequence."""
    calls, mergeable = {"base": _token_calls(load_model("base"), 1, 16)}, {}
    for name, changes in methods.items():
        spec = Spec(**changes)
        model = adapted(base_model(spec), changes)
        mergeable[name] = plan("base", spec.method).mergeable
        if mergeable[name] and spec.method != "full":
            merge_adapter(model)
            remove_adapter(model)
        calls[name] = _token_calls(model, 1, 16)
    ratios = beside(calls, "base", turns)
    return {name: {"token_ratio": ratios[name]["ratio"], "mergeable": mergeable[name]} for name in methods}


def _forward_call(model: Any, batch: int, length: int) -> Callable[[], object]:
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=(batch, length))

    def call() -> None:
        with no_grad():
            model(tokens)

    return call


def _token_calls(model: Any, batch: int, length: int) -> Callable[[], object]:
    """One more token after `length` cached ones, as often as it is called."""
    rng = np.random.default_rng(0)
    tokens, one = (rng.integers(model.config.vocab_size, size=(batch, n)) for n in (length, 1))
    with no_grad():
        start = Cache()
        model(tokens, cache=start)

    def call() -> None:
        with no_grad():
            cache = Cache()
            cache.pairs = dict(start.pairs)  # the arrays are shared; a token adds to its own copy
            model(one, cache=cache)

    return call


SERVED = {
    "base": None,
    "lora": QV,
    "lora merged": QV,
    "houlsby": COMPARED["houlsby"],
    "pfeiffer": COMPARED["pfeiffer"],
    "prefix": COMPARED["prefix"],
    "prompt": COMPARED["prompt"],
}
BIG = GPTConfig(vocab_size=96, block_size=128, n_layer=12, n_head=12, n_embd=768)  # GPT-2 small's blocks


def study_latency(runs: Runs) -> list[dict[str, Any]]:
    """What a method adds to the time of a forward pass and of one generated token: the paper's table 1."""
    quick = len(runs.scale.seeds) < 2
    shapes: dict[str, Sequence[tuple[int, int]]] = {"base": [(1, 16), (1, 80), (8, 80), (32, 80)]}
    if not quick:
        shapes["gpt2"] = [(1, 16), (1, 80), (4, 80)]
    rows = []
    for size, many in shapes.items():
        models = {}
        for name, changes in SERVED.items():
            model = load_model("base") if size == "base" else GPT(BIG)
            models[name] = model if changes is None else adapted(model, changes)
            if name.endswith(" merged"):
                merge_adapter(model)
        for batch, length in many:
            repeats = 5 if quick else 15 if size == "gpt2" else 60
            for task, maker in (("forward", _forward_call), ("token", _token_calls)):
                calls = {name: maker(model, batch, length) for name, model in models.items()}
                for name, numbers in beside(calls, "base", repeats).items():
                    shape = {"model": size, "task": task, "batch": batch, "length": length}
                    rows.append({**shape, "method": name, **numbers})
            runs.bar.update()
    return rows


# --- memory ----------------------------------------------------------------------------------------------------------

GPT2 = GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)


def study_memory(runs: Runs) -> list[dict[str, Any]]:
    """Memory of a training step with AdamW, measured, beside its parts by formula: LoRA against full fine-tuning."""
    sizes = {"base": (load_model("base").config, 8), "gpt2": (GPT2, 1)}  # a text of 128 tokens in a batch
    if len(runs.scale.seeds) < 2:
        del sizes["gpt2"]  # which takes more than 2 GiB
    rows = []
    for size, (config, batch) in sizes.items():
        full = 0.0
        for method in ("full", "lora-qv", "lora"):
            spec = Spec(**COMPARED[method])
            memory = step_memory(GPT(config), spec, batch, 128)
            full = full or memory
            counted = count(config, spec.method, spec.rank, spec.targets, batch=batch, length=128)
            row = {"model": size, "method": method, "batch": batch, "length": 128, "memory_bytes": memory}
            rows.append({**row, "share_of_full": memory / full, **counted.training_memory_bytes})
            runs.bar.update()
    return rows


def step_memory(model: Any, spec: Spec, batch: int, length: int) -> float:
    """Bytes of weights and optimiser state, and the most that one of five training steps allocates beside them.

    The most, since the threads that share a batch do not meet at their peaks in every step.
    """
    prepare(model, spec)
    optimizer = AdamW(model.named_parameters())
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=(batch, length))
    train_step(model, optimizer, tokens, tokens)  # the first step makes the moments
    moments = sum(array.nbytes for arrays in optimizer.state.values() for array in arrays)
    peak = max(peak_bytes(lambda: train_step(model, optimizer, tokens, tokens)) for _ in range(5))
    return weight_bytes(model) + moments + peak


# --- how each scales -------------------------------------------------------------------------------------------------

SIZES: dict[str, tuple[str, str, tuple[int, ...]]] = {  # name: (method, what its size is called, sizes)
    "LoRA": ("lora", "rank", (1, 2, 4, 8, 16, 32, 64)),
    "adapters": ("pfeiffer", "bottleneck", (1, 4, 16, 64, 128)),
    "prefix": ("prefix", "tokens", (1, 4, 16, 32, 64, 96)),
    "prompt": ("prompt", "tokens", (1, 4, 16, 32, 64, 96)),
}


def study_sizes(runs: Runs) -> list[dict[str, Any]]:
    """Loss against the number of trained parameters (the paper's figure 2), each method at its best learning rate."""
    rows, quick = [], len(runs.scale.seeds) < 2
    for corpus in runs.scale.corpora:
        for name, (method, size, sizes) in SIZES.items():
            chosen = sizes[1::2] if quick else sizes
            middle = chosen[len(chosen) // 2]
            lr = best_rate(runs, method, corpus, **_sized(method, size, middle))
            for n in chosen:
                spec = runs.spec(corpus=corpus, method=method, lr=lr, **_sized(method, size, n))
                row = {"corpus": corpus, "method": name, "size": n, "lr": lr, **over_seeds(runs, spec)}
                row["context"], row["base_loss"] = _shortened(runs, corpus, n if size == "tokens" else 0)
                rows.append(row)
    return rows


def _sized(method: str, size: str, n: int) -> dict[str, Any]:
    if method == "lora":
        return {"rank": n, "alpha": SCALE * n, "keep": True}  # the runs of the other studies
    return {"options": {size: n}, "keep": False}


def _shortened(runs: Runs, corpus: str, virtual: int) -> tuple[int, float]:
    """The text that fits beside so many virtual tokens, and the base model's loss where it sees no more than that."""
    model = load_model("base")
    size = model.window
    tokens, targets = (rows[:, virtual:] for rows in runs.corpus(corpus).validation_windows(size, runs.scale.windows))
    with no_grad():
        return size - virtual, model.loss(tokens, targets).item()


# --- few bits --------------------------------------------------------------------------------------------------------

BITS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"kind": "int8", "block": 64, "double": False},
    "nf4, blocks of 16": {"kind": "nf4", "block": 16, "double": False},
    "nf4": {"kind": "nf4", "block": 64, "double": False},
    "nf4, double": NF4,
    "int4, double": {"kind": "int4", "block": 64, "double": True},
    "nf4, one scale": {"kind": "nf4", "block": 2**16, "double": False},  # for a whole matrix of the base model
    "int4, one scale": {"kind": "int4", "block": 2**16, "double": False},
}


def study_bits(runs: Runs) -> list[dict[str, Any]]:
    """Loss against bits a weight, on the base model's own text: quantised, after QLoRA, merged and quantised again."""
    rows = []
    corpus, lr = runs.corpus(OLD_TEXT), 3e-3  # a rate that does no harm to a base that is trained already
    for name, quantized in BITS.items():
        model = base_model(Spec(quantized=quantized))
        row: dict[str, Any] = {"base": name, "bytes": weight_bytes(model), "bits": bits_per_weight(model)}
        row["loss_before"] = evaluate(model, corpus, runs.scale.windows)
        again = []
        specs = [
            runs.spec(corpus=OLD_TEXT, quantized=quantized, lr=lr, seed=seed, keep=True) for seed in runs.scale.seeds
        ]
        for spec in specs:
            model = runs.model(spec)
            merge_adapter(model)
            remove_adapter(model)
            merged = evaluate(model, corpus, runs.scale.windows)
            if quantized:
                quantize_model(model, **quantized)
            again.append({"merged_loss": merged, "again_loss": evaluate(model, corpus, runs.scale.windows)})
        row |= over_seeds(runs, specs[0], "loss") | summarise(again, "merged_loss", "again_loss")
        rows.append(row)
    return rows


def bits_per_weight(model: Any) -> float:
    """Mean bits a weight of the linear layers, scales included."""
    linears = [m for _, m in model.named_modules() if isinstance(m, Linear)]
    held = sum(sum(b.nbytes for b in m.buffers().values()) or m.weight.data.nbytes for m in linears)
    return 8 * held / sum(m.weight.size for m in linears)
