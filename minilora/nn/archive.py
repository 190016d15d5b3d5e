"""An .npz opened with care: what it says it holds is compared with its size before anything of it is read.

A file that somebody else made may be damaged, or say that it holds more than a machine has. An archive of arrays
tells each array's type and shape in a few bytes: known before memory is asked for. Nothing is unpickled.
"""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

HEADER = "header"  # the name of the JSON text among the arrays
KINDS = "fiub"  # real numbers, whole numbers, truth values; the header alone is text
MOST_FREE = 64 * 2**20  # bytes that any file may grow to
MOST_RATIO = 100  # and beyond that, how many times its own size: weights hardly shrink, only zeros do


def read_archive(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """({name: array}, header). Raises ValueError for whatever is not as `storage.save_arrays` writes it."""
    with zipfile.ZipFile(path) as archive:
        check_members(archive, path.stat().st_size)
        arrays = {info.filename.removesuffix(".npy"): read_member(archive, info) for info in archive.infolist()}
    if HEADER not in arrays:
        raise ValueError("it has no header")
    header = json.loads(str(arrays.pop(HEADER)))
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}, expected a table of names and values")
    return arrays, header


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Raises ValueError unless every member is an array, stored or deflated, and all together are in proportion."""
    names = [info.filename for info in archive.infolist()]
    if odd := [name for name in names if not name.endswith(".npy")]:
        raise ValueError(f"it holds {odd[0]!r}, expected arrays")
    if len(set(names)) < len(names):
        raise ValueError("it holds two arrays of one name")
    if any(i.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for i in archive.infolist()):
        raise ValueError("it is compressed in another way than NumPy's")
    total = sum(info.file_size for info in archive.infolist())
    if total > MOST_FREE + MOST_RATIO * size:
        raise ValueError(f"it has {size:,} bytes and says that it holds {total:,}")


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array. Raises ValueError where its type is none of ours, or its shape is not what the member is long."""
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as file:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(file))
        if read is None:
            raise ValueError(f"{name} is no array that NumPy writes")
        shape, _, dtype = read(file)
        text = name == HEADER and dtype.kind == "U" and shape == ()
        if not text and (dtype.kind not in KINDS or dtype.hasobject):
            raise ValueError(f"{name} has dtype {dtype}, expected numbers")
        if any(n < 0 for n in shape) or file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{name} says that it has shape {shape}, which is not its length")
    with archive.open(info) as file:
        return npy.read_array(file, allow_pickle=False)


def write_archive(file: Any, arrays: Mapping[str, np.ndarray], deflate: bool) -> None:
    """Write named arrays as `numpy.savez` does, which before NumPy 2.1 leaves its archive open when a disk is full."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, np.asarray(array), allow_pickle=False)
