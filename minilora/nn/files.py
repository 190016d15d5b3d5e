"""Files that are written whole or not at all, and stay what they were: their mode, a link, a device."""

import contextlib
import errno
import io
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_beside(path: str | Path, write: Callable[[Any], object], size: int | None = None) -> Path:
    """Call `write(file)` on a new file beside `path`, then rename it: the old file, or the whole new one, never half.

    The file keeps its mode and owner, a new one has those of the process; a link's target is written, and into a device
    or a pipe what would be the file. size: bytes it is about to have, for the message. Raises OSError, which names
    `path`, where it cannot be written; nothing is left of the attempt then, nor of those of processes that were killed.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{_prefix(target)}{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        if path.exists() and not path.is_file():  # a folder, a device, a pipe
            _write_into(path, write)
            return path
        target.parent.mkdir(parents=True, exist_ok=True)
        require_replaceable(path)
        _sweep(target)
        _write_new(temporary, target, write)
        os.replace(temporary, target)
        _sync(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            needs = f" (the file needs about {size:,} bytes)" if size else ""
            raise OSError(error.errno, f"{error.strerror}{needs}", str(path)) from None
        raise
    return path


def require_replaceable(path: Path) -> None:
    """Raises OSError when a file is there that is protected from writing, or a link that leads to itself."""
    if os.path.islink(os.path.realpath(path)):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is protected from writing", str(path))


def _write_into(path: Path, write: Callable[[Any], object]) -> None:
    content = io.BytesIO()  # what writes a file may want to go back in it
    write(content)
    with open(path, "wb") as file:
        file.write(content.getbuffer())


def _write_new(temporary: Path, target: Path, write: Callable[[Any], object]) -> None:
    """A new file with the target's mode and owner, or the process's where there is none; it is on the disk after."""
    before = target.stat() if target.exists() else None
    mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    with open(descriptor, "wb") as file:
        if before is not None:
            made = os.stat(temporary)
            for owner in (before.st_uid, -1):  # only root gives a file to another owner, anybody to a group of theirs
                if (made.st_uid, made.st_gid) != (before.st_uid, before.st_gid):
                    with contextlib.suppress(OSError):
                        os.chown(temporary, owner, before.st_gid)
                        break
            os.chmod(temporary, mode)  # the umask is for new files
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Put a folder's names on the disk, where a system can: after a power cut the new file is found under its name."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prefix(target: Path) -> str:
    """What the names of a target's temporary files on this machine begin with: all of them short enough."""
    name = os.fsdecode(os.fsencode(target.name)[:80])
    return f".{name}.{os.uname().nodename[:40] if hasattr(os, 'uname') else 'here'}-"


def _sweep(target: Path) -> None:
    """Remove what killed processes of this machine left of their attempts to write a file."""
    if os.name == "nt":  # there, asking for a process would end it
        return
    with contextlib.suppress(OSError):  # a folder may be one to write into, and not to look into
        for name in os.listdir(target.parent):
            found = re.fullmatch(re.escape(_prefix(target)) + r"(\d+)-[0-9a-f]{8}\.part", name)
            if found and not alive(int(found[1])):
                (target.parent / name).unlink()


def alive(process: int) -> bool:
    """Whether a process of this number runs on this machine; not to be asked on Windows, where it would end it."""
    try:
        os.kill(process, 0)  # no signal, only the question
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
