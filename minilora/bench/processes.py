"""What only a fresh process can tell: the time of an import, the peak memory of a step, the time of the whole demo."""

import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..studies.turns import LeftOut, ratio
from ..training.loop import train_step
from ..training.optim import AdamW
from ..training.processes import SETTLED
from .peers import Workload, in_team
from .pytorch import LEARNING_RATE, TorchGPT, import_torch
from .rows import DEMO, EAGER, IMPORT, ITSELF, MEMORY, Row, row

PROC = Path("/proc")  # of Linux: a folder for each process
CLEAR = PROC / "self" / "clear_refs"


def fresh(code: str, before: Sequence[str] = (), **environment: str) -> Any:
    """Run Python code in a process of its own: -> what it printed last, read as JSON.

    before: words in front of the command, such as mpiexec's. environment: variables to set; "" removes one. Raises
    ChildProcessError with the last line that the process said.
    """
    variables = {name: value for name, value in {**os.environ, **environment}.items() if value}
    done = subprocess.run(
        [*before, sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables
    )
    if done.returncode:
        raise ChildProcessError(f"bench: a process that measures failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- import ----------------------------------------------------------------------------------------------------------

IMPORTS = """
import time
start = time.perf_counter()
import numpy
between = time.perf_counter()
import minilora
print([between - start, time.perf_counter() - between])
"""


def import_rows(turns: int) -> list[Row]:
    """Seconds that `import minilora` takes after `import numpy`, and NumPy's own, in processes that do nothing else."""
    with tempfile.TemporaryDirectory() as folder:  # bytecode is there from the second import on, as users have it
        told = partial(fresh, IMPORTS, PYTHONPYCACHEPREFIX=folder, PYTHONDONTWRITEBYTECODE="")
        told()
        numpy_seconds, seconds = np.array([told() for _ in range(turns)]).T
    details = {"quartiles": [float(q) for q in np.quantile(seconds, (0.25, 0.75))]}
    return [
        row(IMPORT, "", ITSELF, "s", {"ours": float(np.median(seconds)), "turns": turns}, details=details),
        row(IMPORT, "", "import numpy", "s", ratio(seconds, numpy_seconds)),
    ]


# --- memory ----------------------------------------------------------------------------------------------------------


def memory_rows(size: str, turns: int, batch: int | None = None) -> list[Row]:
    """Bytes that a LoRA step adds at its peak, ours and PyTorch's."""
    return [row(MEMORY, size, EAGER, "bytes", ratio(*peaks(Workload(size, "lora", batch), turns)))]


def peaks(workload: Workload, turns: int) -> np.ndarray:
    """Bytes that a step adds at its peak, each time in a process of its own: ours, and PyTorch's.   (2, turns)

    Raises LeftOut where the system has no /proc that can forget a peak, or without PyTorch.
    """
    if not CLEAR.exists():
        raise LeftOut("the peak of one step is told by Linux alone")
    import_torch()
    code = f"from {__name__} import Workload, peak_of_step; print(peak_of_step({workload!r}, %r))"
    return np.array([[fresh(code % side) for side in ("ours", "theirs")] for _ in range(turns)], float).T


def peak_of_step(workload: Workload, side: str) -> int:
    """Bytes of physical memory that steps need at their peak, beyond what the process holds before them.

    Before them stand the model, the optimiser and its state, and all code that steps load: steps on two tokens a text
    have been made, and freed memory given back. The peak (VmHWM) is that of the three steps alone; those of processes
    that compute pieces are added, whether or not they come at one time.
    """
    tokens, targets = workload.data
    if side == "ours":
        model = workload.model()
        optimizer = AdamW(model.named_parameters(), LEARNING_RATE)
        step = in_team(model, optimizer, lambda x, y: train_step(model, optimizer, x, y))
    else:
        peer = TorchGPT(workload.model())
        adamw = peer.torch.optim.AdamW(peer.trained(), LEARNING_RATE)
        step = lambda x, y: peer.train_step(adamw, peer.tensor(x), peer.tensor(y))
    for _ in range(SETTLED + 1):
        step(tokens[:, :2], targets[:, :2])
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's: give back what it kept, or it would be used again without being counted
        trim(0)
    processes = [PROC / str(pid) for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children()))]
    before = sum(status("VmRSS", process) for process in processes)
    for process in processes:
        (process / "clear_refs").write_text("5")  # forget the peak so far: proc(5)
    for _ in range(3):
        step(tokens, targets)
    return sum(status("VmHWM", process) for process in processes) - before


def status(name: str, process: Path = PROC / "self") -> int:
    """A number of bytes out of a process's /proc/PID/status."""
    lines = (process / "status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


# --- the demo --------------------------------------------------------------------------------------------------------

TRAINING = f"from {__name__.rpartition('.')[0]}.demo import train_all; import json; print(json.dumps(train_all()))"


def demo_rows(turns: int) -> list[Row]:
    """Seconds of `minilora demo`, from start to end, and of a process that does the demo's two trainings in PyTorch.

    Raises LeftOut without PyTorch.
    """
    import_torch()
    ours, theirs, losses = np.empty(turns), np.empty(turns), {}
    for turn in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-m", "minilora", "demo", "--output", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            ours[turn] = time.perf_counter() - start
        if done.returncode:
            raise ChildProcessError(f"bench: minilora demo failed: {(done.stderr.splitlines() or ['?'])[-1]}")
        start = time.perf_counter()
        losses = fresh(TRAINING)
        theirs[turn] = time.perf_counter() - start
    beside = ratio(ours, theirs)
    details = {"validation_loss_in_pytorch": losses}
    return [
        row(DEMO, "", EAGER, "s", beside, details=details),
        row(DEMO, "", ITSELF, "s", {"ours": beside["ours"], "turns": turns}),
    ]
