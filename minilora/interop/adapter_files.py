"""Adapters in files, whoever wrote them: what they hold is known at once, their matrices come one at a time.

Three forms, told apart by what is in them and never by their names:

    PEFT's folder    adapter_config.json has r and alpha, adapter_model.safetensors X.lora_A.weight and X.lora_B.weight
    the single file  of image tools (kohya): X.lora_down.weight is A, X.lora_up.weight B, X.alpha a number beside them
    minilora's .npz  X.lora_A and X.lora_B beside a header
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..nn.storage import file_path
from . import kohya_files, npz_files, peft_files
from .pairs import AdapterFile
from .peft_files import CONFIG, PICKLED, WEIGHTS
from .tensor_files import content

__all__ = ["AdapterFile", "content", "read_adapter"]


def read_adapter(path: str | Path) -> AdapterFile:
    """What a file or folder holds of an adapter. Nothing is unpickled, and no matrix read before it is asked for.

    Raises ValueError in one line: for what is no adapter, is damaged or pickled; for an A without its B, shapes of A
    and B that do not fit, and ranks that differ from what the configuration says; for methods that are not known.
    """
    path = file_path(path, "read_adapter")
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {str(path)!r}")
    found = _reader(path)(path)
    return replace(found, matrices=dict(sorted(found.matrices.items(), key=lambda item: in_order(item[0]))))


def in_order(name: str) -> list:
    """Sorts names as people do: layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _reader(path: Path) -> Callable[[Path], AdapterFile]:
    """What reads a path, by what is there. Raises ValueError for what is no adapter."""
    if path.is_dir():
        return peft_files.read
    if path.name in (CONFIG, WEIGHTS) and (path.parent / CONFIG).is_file():
        return lambda path: peft_files.read(path.parent)
    kind = content(path)
    if kind == "pickle":
        raise ValueError(f"{path} is pickled, {PICKLED}")
    if kind == "npz":
        return npz_files.read
    if kind == "safetensors":
        return kohya_files.read
    expected = "PEFT's folder, a .safetensors file of lora_down and lora_up, or minilora's .npz"
    raise ValueError(f"{path} is no adapter: expected {expected}")
