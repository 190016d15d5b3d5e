"""Files and folders that a command writes: refused before the work where they cannot be, or would cost another file."""

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from ..nn.files import require_replaceable


def output_file(text: str) -> Path:
    """An option that takes a file to write. Found unwritable here, it costs nothing; after the training, all of it."""
    path = Path(text)
    if not text:
        raise argparse.ArgumentTypeError("got '', expected a file to write")
    if path.is_dir() or text.endswith("/"):
        raise IsADirectoryError(f"{text!r} is a folder, expected a file to write")
    if str(path) == "base":
        raise OSError("'base' is the name of the model that comes with minilora, which a file could not be told from")
    require_replaceable(path)
    if not path.exists() or path.is_file():  # a device or a pipe is written into
        require_writable(path.parent)
    return path


def output_folder(text: str) -> Path:
    """An option that takes a folder to write into."""
    if not text or (text.endswith((".npz", ".gguf", ".safetensors")) and not Path(text).is_dir()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a folder: a model that others trained is one")
    require_writable(Path(text))
    return Path(text)


def output_place(text: str) -> Path:
    """An option that takes a file to write, or a folder to write into, as the model has it."""
    return output_folder(text) if Path(text).is_dir() or text.endswith("/") else output_file(text)


def require_writable(folder: Path) -> None:
    """Raises OSError, naming the folder, when a file could not be written there, were it made. It makes nothing."""
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(f"cannot write to {str(there)!r}: it is a file, expected a folder")
    probe = there / f".minilora-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to the folder {str(folder)!r}: {error.strerror}") from None


def same(one: str | Path, other: str | Path) -> bool:
    """Whether two paths are one file, or would be: through links and whatever the spelling."""
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def refuse_overwriting(outputs: Iterable[tuple[str, Path]], inputs: Iterable[tuple[str, str | Path | None]]) -> None:
    """Raises ValueError when an output is an input, or is another output. Each is ("what it is", path)."""
    told: list[tuple[str, Path | str]] = [(what, path) for what, path in inputs if path]
    for what, path in outputs:
        for other, there in told:
            if same(path, there) and (not os.path.exists(path) or os.path.isfile(path) or os.path.isdir(path)):
                raise ValueError(f"{what} {str(path)!r} would overwrite {other} {str(there)!r}; choose another file")
        told.append((what, path))


@contextlib.contextmanager
def claimed(*paths: Path) -> Iterator[None]:
    """Inside the block no other process that asks can have these files to write. Raises ValueError when one has."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(_claim(path))
        yield


@contextlib.contextmanager
def _claim(path: Path) -> Iterator[None]:
    """A locked file beside the path; the system lets go of the lock when the process ends, however it ends."""
    if path.exists() and not path.is_file():
        yield  # a device has room for two
        return
    if os.name == "nt":  # has no such locks
        yield
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{os.fsdecode(os.fsencode(target.name)[:200])}.lock")
    file = _lock(lock, path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        file.close()


def _lock(lock: Path, path: Path) -> IO[bytes]:
    import fcntl

    while True:
        file = open(lock, "ab")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):  # else its last holder has just removed it
                return file
        except BlockingIOError:
            file.close()
            raise ValueError(f"another run is writing {str(path)!r}; choose another file, or wait for it") from None
        except FileNotFoundError:
            pass
        file.close()
