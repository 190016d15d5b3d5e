"""How fast is it? Training steps, generation, memory, primitives and imports, beside the peers that are installed.

    record = bench(["tiny", "small"])       the measurements, as JSON holds them
    print(report.table(record))       what `minilora bench` prints

All sides compute the same thing, on the same shapes, data and threads, and take turns in one run
(`studies/turns.py`): only their ratios mean anything. Each part has a file: who takes a training step `peers`, the
peers `pytorch` and `arrays`; then `scalars`, `generation`, `images`, `real`, `processes`, `scaling`, `pieces`,
`exchange`, `cluster`, `demo`, `profile`; what was asked of each number `rows`; table and figures `report`, `figure` and
`curves`.
"""

import gc
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from ..autograd.backend import use_backend
from ..studies.runs import FORMAT
from ..studies.turns import LeftOut, processor, ratio, take_turns
from ..training.parallel import cores
from .cluster import cluster_rows
from .exchange import exchange_rows, together_rows
from .generation import generation_rows, serving_rows
from .images import MODELS, image_rows
from .peers import METHODS, ON_GPU, PEERS, SIZES, Workload, compare_losses, matrix_product, our_step, peer_steps
from .pieces import cores_rows
from .processes import demo_rows, import_rows, memory_rows
from .products import product_steps
from .profile import profile
from .real import real_rows
from .rows import BLAS, EAGER, NUMPY_PRODUCTS, OWN_FULL, PRODUCTS, SERVED, TORCH_PRODUCTS, TRAINING, Row, row
from .scalars import scalar_rows
from .scaling import scaling_jobs

USUAL = ("import", "scalars", "generation", "memory", "lora", "full")
PARTS = (
    *USUAL,
    "images",
    "model",
    "exchange",
    "scaling",
    "cores",
    "cluster",
)  # minutes and two GiB; and processes, of which two cores have few
GENERATION_SIZES = ("tiny", "small")
GPU_BATCH = {"medium": 64, "gpt2": 8}  # a GPU is idle at the batches that a laptop is busy with
PRODUCT, GPU_PRODUCT = 2048, 8192  # rows and columns of the large product
Job = tuple[str, Callable[[], list[Row]]]  # its name, and what measures it


def step_rows(workload: Workload, peers: Sequence[str], turns: int, backend: str = "numpy") -> list[Row]:
    """A training step beside the peers', the matrix-product limit and, for LoRA, our own full fine-tuning.

    The limit is the step's floating-point operations at the rate that a large product reaches in the same turn. Beside
    PyTorch stands what NumPy's products of the step's own shapes take over PyTorch's: what of the ratio is BLAS.
    Raises ArithmeticError where a peer's losses differ from ours by more than 1e-4.
    """
    on_gpu = backend == "cupy"
    others, left_out = peer_steps(workload, peers, "cuda" if on_gpu else "cpu")
    ours = our_step(workload)
    differences = compare_losses(ours, others)
    n = GPU_PRODUCT if on_gpu else PRODUCT
    contenders = [ours, *others, matrix_product(n)]
    if workload.method == "lora":
        contenders.append(our_step(replace(workload, method="full"), OWN_FULL))
    if not on_gpu and any(other.name == EAGER for other in others):
        contenders += product_steps(workload)
    times = take_turns(contenders, turns)
    alone = [times.pop(name) for name in (NUMPY_PRODUCTS, TORCH_PRODUCTS) if name in times]
    blas = ratio(*alone) if alone else None
    times[PRODUCTS] *= workload.operations() / (2 * n**3)
    facts = {"batch": workload.data[0].shape[0], "operations": workload.operations(), "left_out": left_out}
    rows = [
        row(TRAINING[workload.method], workload.size, name, "s", ratio(times["minilora"], theirs), on_gpu,
            {**facts, "loss_difference": differences.get(name)}, blas["ratio"] if blas else None)
        for name, theirs in times.items() if name != "minilora"
    ]  # fmt: skip
    if blas:
        rows.insert(1, row(TRAINING[workload.method], workload.size, BLAS, "s", blas))
    return rows


def bench(
    sizes: Sequence[str] = ("tiny", "small", "medium"),
    parts: Sequence[str] = USUAL,
    peers: Sequence[str] = tuple(PEERS),
    turns: int = 15,
    backend: str = "numpy",
    batch: int | None = None,
    with_profile: bool = False,
    with_demo: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure: -> {"format", "study", "machine", "rows", "left_out": {what: why}, "profile"}; see `rows.Row`.

    Ctrl-C ends it with what has been measured so far. Raises ValueError for an unknown size, part, peer or backend, and
    ArithmeticError where a peer does not compute what we compute.
    """
    for what, chosen, known in (("size", sizes, SIZES), ("part", parts, PARTS), ("peer", peers, PEERS)):
        if wrong := [name for name in chosen if name not in known]:
            raise ValueError(f"bench: no {what} {wrong[0]!r}; there are {', '.join(known)}")
    if turns < 1:
        raise ValueError(f"bench: turns = {turns}, expected 1 or more")
    if backend != "numpy" and with_demo:
        raise ValueError(f"bench: the demo is measured on 'numpy', not on {backend!r}")
    if backend == "cupy":
        os.environ["CUPY_TF32"] = "0"  # float32 products; CuPy reads this when it is imported
    record: dict[str, Any] = {"format": FORMAT, "study": "bench", "rows": [], "left_out": {}, "profile": []}
    with use_backend(backend):
        record["machine"] = machine(backend)
        loads = [
            Workload(size, method, batch or (GPU_BATCH.get(size) if backend == "cupy" else None))
            for method in METHODS if method in parts for size in sizes
        ]  # fmt: skip
        able = [name for name in peers if backend == "numpy" or name in ON_GPU]
        jobs = other_jobs(sizes, parts, peers, turns, batch) if backend == "numpy" else []
        jobs += [(f"{TRAINING[w.method]} at {w.size}", partial(step_rows, w, able, turns, backend)) for w in loads]
        if with_profile:
            jobs += [(f"profile at {w.size}", partial(profile_into, record, w)) for w in loads]
        if with_demo:
            jobs.append(("demo", partial(demo_rows, min(3, turns))))
        measure(record, jobs, progress)
    return record


def other_jobs(
    sizes: Sequence[str], parts: Sequence[str], peers: Sequence[str], turns: int, batch: int | None
) -> list[Job]:
    """What is measured beside training steps, on a processor: fresh processes first, while this one is still small."""
    jobs: list[Job] = []
    if "import" in parts:
        jobs.append(("import", partial(import_rows, turns)))
    if "memory" in parts and "torch" in peers:
        jobs += [(f"memory at {size}", partial(memory_rows, size, min(5, turns), batch)) for size in sizes]
    if "model" in parts and "torch" in peers:
        jobs.append(("a real model", partial(real_rows, turns)))
    if "images" in parts and "torch" in peers:
        jobs += [(f"a model of pictures, {name}", partial(image_rows, name, turns)) for name in MODELS]
    if "exchange" in parts:
        able = [size for size in sizes if size in GENERATION_SIZES]
        jobs += [(f"two processes at {size}", partial(together_rows, size, min(5, turns))) for size in able]
        jobs += [(f"exchange at {size}", partial(exchange_rows, size, turns)) for size in able]
    if "scalars" in parts and "autograd" in peers:
        jobs.append(("scalars", partial(scalar_rows, turns)))
    if "generation" in parts and "torch" in peers:
        able = [size for size in sizes if size in GENERATION_SIZES]
        jobs += [(f"generation at {size}", partial(generation_rows, size, turns)) for size in able]
    if "generation" in parts:
        able = [size for size in sizes if size in SERVED]
        jobs += [(f"serving at {size}", partial(serving_rows, size, turns)) for size in able]
    if "cores" in parts:
        jobs += [(f"pieces and threads at {size}", partial(cores_rows, size, turns)) for size in sizes]
    if "cluster" in parts:
        jobs.append(("runs on a cluster", partial(cluster_rows, min(3, turns))))
    if "scaling" in parts and "torch" in peers:
        jobs += scaling_jobs(turns)
    return jobs


def profile_into(record: dict[str, Any], workload: Workload) -> list[Row]:
    """Profile a step into the record; a profile has no rows of its own."""
    record["profile"].append(profile(workload))
    return []


def measure(record: dict[str, Any], jobs: Sequence[Job], progress: bool) -> None:
    """Run the jobs, one after the other, into the record."""
    from tqdm import tqdm  # here, as everywhere: imported only when there is a bar to show

    bar = tqdm(jobs, disable=not progress, unit="part", dynamic_ncols=True, leave=False)
    name = "everything"
    try:
        for name, job in bar:
            bar.set_description(name)
            try:
                rows = [r.record() for r in job()]
            except LeftOut as reason:
                record["left_out"][name] = str(reason)
                continue
            for r in rows:
                record["left_out"] |= (r["details"] or {}).pop("left_out", {})
            record["rows"] += rows
            gc.collect()  # the models of this job, before the next ones are built
    except KeyboardInterrupt:
        record["left_out"][f"{name}, and what comes after it"] = "interrupted"
        record["interrupted"] = True


def machine(backend: str = "numpy") -> dict[str, Any]:
    """What the numbers were measured on: processor or GPU, threads, and the versions of everything that takes part."""
    names = ("minilora", "numpy", "torch", "jax", "autograd", *(("cupy-cuda12x",) if backend == "cupy" else ()))
    versions = {"python": platform.python_version() + getattr(sys, "abiflags", "")}  # t: without a lock
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[call-overload, index]
    own = [library for library in threadpool_info() if library["internal_api"] == "openblas"]
    kernels = [library["architecture"] for library in own][:1]  # which OpenBLAS chooses by the processor
    facts = {
        "processor": processor(),
        "cores": cores(),
        "threads": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "blas": " ".join([blas["name"], blas["version"], *kernels]),
        "backend": backend,
        "versions": versions,
    }
    if backend == "cupy":
        import cupy

        facts["gpu"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return facts
