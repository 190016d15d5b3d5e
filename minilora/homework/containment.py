"""How a submission's process is started and watched, and what it can reach.

Always: a process group of its own, a scratch folder, none of this process's environment, and limits of time, memory and
processes. That bounds accidents and simple mischief; the code still runs with this user's rights. With `isolate`, on
Linux, it also gets namespaces of its own (unshare(1)): no network, no other processes, a file system that is read-only
but for the scratch folder, and without the folders that hold solutions, submissions and grades.
"""

import contextlib
import ctypes
import os
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEPT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "SYSTEMROOT", "LD_LIBRARY_PATH")
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")  # a kernel is small; threads wait for cores
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's <sys/prctl.h>
PAUSE = 0.2  # seconds between two looks at a running submission


@dataclass(frozen=True)
class Limits:
    """What one submission may take: seconds in all, bytes of memory (each process, and all together), processes."""

    seconds: float
    memory: int = 2 * 2**30
    processes: int = 64


def environment(scratch: Path) -> dict[str, str]:
    """The environment of a submission: what Python needs to run, and a home folder that is empty."""
    home = scratch / "home"
    home.mkdir(exist_ok=True)
    named = {name: os.environ[name] for name in KEPT if name in os.environ}
    places = {name: str(home) for name in ("HOME", "TMPDIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")}
    threads = dict.fromkeys(ONE_THREAD, "1")
    fixed = {"PYTHONUSERBASE": site.getuserbase(), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}
    return named | places | threads | fixed


def run_contained(argv: Sequence[str], scratch: Path, limits: Limits, hidden: Sequence[Path] | None = None) -> str:
    """Run `python ARGV` in `scratch`: -> "" when it ended by itself, else what ended it.

    hidden: with a list, even an empty one, the process is isolated, and sees these folders empty.
    Raises ValueError where this system cannot isolate.
    """
    import psutil  # comes with ipykernel

    prefix = [] if hidden is None else isolating(scratch, hidden)
    spared = {child.pid for child in psutil.Process().children(recursive=True)}
    adopt_orphans(True)  # those whose parent a submission has killed
    with subprocess.Popen(
        [*prefix, sys.executable, *argv], cwd=scratch, env=environment(scratch), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            return watch(process, limits)
        finally:
            end_children(spared)
            adopt_orphans(False)


def watch(process: subprocess.Popen, limits: Limits) -> str:
    """Wait for the process, and look at what it and its children take: -> "", or what it took too much of."""
    import psutil

    stop = time.monotonic() + limits.seconds
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(PAUSE)
            return f"its process was ended by signal {-code}" if code < 0 else ""
        if time.monotonic() > stop:
            return f"more than {limits.seconds:.0f} seconds"
        family = []
        with contextlib.suppress(psutil.Error):
            top = psutil.Process(process.pid)
            family = [top, *top.children(recursive=True)]
        if held(family, False) > limits.memory and held(family, True) > limits.memory:
            return f"more than {limits.memory / 2**20:,.0f} MiB of memory"
        if len(family) > limits.processes:
            return f"more than {limits.processes} processes"


def held(family: Sequence[Any], shared: bool) -> int:
    """Bytes that processes hold. shared: count a page of several forks once; that takes longer to find out."""
    import psutil

    total = 0
    for member in family:
        with contextlib.suppress(psutil.Error):
            own = member.memory_info().rss
            with contextlib.suppress(psutil.AccessDenied):  # not everybody may look so closely
                own = getattr(member.memory_full_info(), "pss", own) if shared else own  # Linux alone tells it
            total += own
    return total


def end_children(spared: Collection[int] = ()) -> None:
    """End all that this process started, but for some. Stopped first, so that nothing multiplies meanwhile."""
    import psutil

    for _ in range(50):
        children = [child for child in psutil.Process().children(recursive=True) if child.pid not in spared]
        children = [child for child in children if alive(child)]
        if not children:
            return
        for method in ("suspend", "kill"):
            for child in children:
                with contextlib.suppress(psutil.Error):
                    getattr(child, method)()
        psutil.wait_procs(children, timeout=1)


def alive(process: Any) -> bool:
    """Whether it still runs: what has ended and waits to be asked for its exit code does not."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def adopt_orphans(wanted: bool) -> None:
    """On Linux, make what loses its parent a child of this process, where it can be found and ended; or stop that."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(SUBREAPER, int(wanted), 0, 0, 0)


# --- Isolation.

SCRIPT = r"""
set -e
scratch=$1; hidden=$2; python=$3; up=$4; shift 4
"$python" -c "$up"
mount --make-rprivate /
mount --bind "$scratch" "$scratch"
awk '{print $2}' /proc/self/mounts | while read -r place; do
    place=$(printf '%b' "$place")
    case "$place" in "$scratch" | /proc | /proc/*) continue ;; esac
    mount -o remount,bind,ro "$place" 2>/dev/null || test ! -w "$place" || case "$place" in
        /sys | /sys/*) ;;
        *) echo "cannot make $place read-only" >&2; exit 1 ;;
    esac
done
printf '%s' "$hidden" | while read -r place; do mount -t tmpfs -o ro,size=4k none "$place"; done
cd "$scratch"
exec setpriv --no-new-privs --inh-caps=-all --ambient-caps=-all --bounding-set=-all -- "$@"
"""  # no capability is left, so that what is read-only or hidden stays so
# The new network has a loopback that is down, and a kernel talks to nbgrader over it: SIOCSIFFLAGS, IFF_UP.
LOOPBACK = "import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH14x', b'lo', 1))"


def isolating(scratch: Path, hidden: Sequence[Path]) -> list[str]:
    """The beginning of a command line that isolates what follows it.

    Raises ValueError where there is no unshare or setpriv, or the system lets this user make no namespaces.
    """
    if missing := [program for program in ("unshare", "setpriv", "mount", "awk") if not shutil.which(program)]:
        raise ValueError(f"--isolate needs Linux's {missing[0]}, which is not here; grade in a virtual machine instead")
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    unshare = ["unshare", *own, "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
    places = "".join(f"{path.resolve()}\n" for path in hidden if path.is_dir())
    begin = [*unshare, "sh", "-c", SCRIPT, "isolate", str(scratch), places, sys.executable, LOOPBACK]
    trial = subprocess.run([*begin, "true"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if trial.returncode:
        why = (trial.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"--isolate: this system does not let us ({why}); grade as root, or in a virtual machine")
    return begin
