"""minilora's own files of adapters, read one matrix at a time."""

import contextlib
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ..adapters.adapter import METHODS
from ..adapters.files import from_recipe
from ..adapters.targets import REGULAR, matches
from ..nn import archive
from ..nn.storage import HEADER, blaming, said
from .pairs import DORA, AdapterFile, Pair, fitting, require_rank
from .tensor_files import Stored

PART = re.compile(r"(.+)\.(lora_A|lora_B|lora_A0|lora_B0|magnitude)")


def read(path: Path) -> AdapterFile:
    """What a file of `save_adapter` holds. Raises ValueError in one line for another one, and for what does not fit."""
    arrays, header = open_archive(path)
    if header.get("kind") != "adapter":
        raise ValueError(f"{path} holds {header.get('kind', 'something else')!r}, expected 'adapter'")
    with blaming(path):
        configs = from_recipe(header["methods"])
    lora = [config for config in configs if isinstance(config, METHODS["lora"])]
    parts: dict[str, dict[str, Stored]] = {}
    others = {}
    for name, array in arrays.items():
        if lora and (found := PART.fullmatch(name)):
            parts.setdefault(found[1], {})[found[2]] = array
        else:
            others[name] = array
    matrices = {}
    for module, A, B in fitting(path, parts, ("lora_A", "lora_B")):
        part, rank = parts[module], B.shape[1]
        told, alpha, scale = settings(lora, module, rank)
        require_rank(path, module, rank, told)
        start = (part["lora_A0"], part["lora_B0"]) if "lora_A0" in part and "lora_B0" in part else None
        kind = "embedding" if module == "wte" else "linear"
        matrices[module] = Pair(module, A, B, alpha, scale, path, kind, part.get("magnitude"), start)
    method = "+".join(dict.fromkeys(config.kind for config in configs))
    needs = DORA if any(pair.magnitude is not None for pair in matrices.values()) else ""
    return AdapterFile(path, "minilora", method, header, matrices, others, (), (path,), needs)


def settings(configs: list[Any], module: str, rank: int) -> tuple[int, float, float]:
    """(r, alpha, s) of a module, from the configuration that targets it; of several, from the one of its rank."""
    found = []
    for config in configs:
        targets = config.target_modules
        regular = isinstance(targets, str) and REGULAR.search(targets)
        if re.fullmatch(targets, module) if regular else any(matches(one, module) for one in targets):
            r = next((value for pattern, value in config.rank_pattern.items() if matches(pattern, module)), config.rank)
            alpha = next((v for pattern, v in config.alpha_pattern.items() if matches(pattern, module)), config.alpha)
            found.append((r, float(alpha), float(alpha / (math.sqrt(r) if config.rank_stabilized else r))))
    if not found:
        raise ValueError(f"no configuration in its header targets {module}")
    return next((settings for settings in found if settings[0] == rank), found[0])


def open_archive(path: Path) -> tuple[dict[str, Stored], Mapping[str, Any]]:
    """({name: Stored}, header) of an .npz, whose arrays are read when they are asked for."""
    with _whole(path):
        with zipfile.ZipFile(path) as file:
            archive.check_members(file, path.stat().st_size)
            found = {i.filename.removesuffix(".npy"): _stored(path, file, i) for i in file.infolist()}
        if HEADER not in found:
            raise ValueError("it has no header")
        header = archive.json.loads(str(found.pop(HEADER).read()))
        if not isinstance(header, dict):
            raise ValueError("its header is no table of names and values")
    return found, header


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is a damaged file's ValueError, but where it is not there or not ours to read."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
        raise
    except Exception as error:  # NumPy, zipfile, zlib and JSON raise many kinds where a file is damaged
        words = said(error).removeprefix(f"{path} is no complete minilora file: ")
        raise ValueError(f"{path} is no complete minilora file: {words}") from None


def _stored(path: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Stored:
    with file.open(info) as member:
        version = npy.read_magic(member)
        shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(member)

    def read() -> np.ndarray:
        with _whole(path), zipfile.ZipFile(path) as again:
            return archive.read_member(again, info)

    return Stored(shape, dtype, read)
