"""The single file of image tools (kohya's sd-scripts and what reads its files): lora_down, lora_up and alpha.

X.lora_down.weight   A (r, d_in), or (r, channels, height, width) of a convolution
X.lora_up.weight     B (d_out, r), or (d_out, r, 1, 1)
X.alpha              a number; s = alpha / r, and 1 where there is none
X.lora_mid.weight    a factor (r, r, height, width) between the two, in files of LyCORIS
X.dora_scale         DoRA's lengths
"""

import re
from pathlib import Path

import numpy as np

from .pairs import DORA, AdapterFile, Pair, fitting
from .tensor_files import Stored, open_tensors

PART = re.compile(r"(.+)\.(lora_down\.weight|lora_up\.weight|lora_mid\.weight|alpha|dora_scale)")
HALVES = ("lora_down.weight", "lora_up.weight")


def read(path: Path) -> AdapterFile:
    """What a single file holds. Raises ValueError in one line for another kind of file, and for what does not fit."""
    tensors, metadata = open_tensors(path)
    parts: dict[str, dict[str, Stored]] = {}
    others = {}
    for name, tensor in tensors.items():
        if found := PART.fullmatch(name):
            parts.setdefault(found[1], {})[found[2]] = tensor
        else:
            others[name] = tensor
    pairs = {module: part for module, part in parts.items() if not part.keys().isdisjoint(HALVES)}
    if not pairs:
        raise ValueError(f"{path} {what_else(path, list(tensors))}")
    for module in parts.keys() - pairs.keys():
        others |= {f"{module}.{what}": tensor for what, tensor in parts[module].items()}
    matrices, dora = {}, False
    for module, A, B in fitting(path, pairs, HALVES):
        part, rank = pairs[module], B.shape[1]
        alpha = number(path, f"{module}.alpha", part["alpha"]) if "alpha" in part else float(rank)
        kind = "linear" if len(A.shape) == 2 else "convolution"
        middle, magnitude = part.get("lora_mid.weight"), part.get("dora_scale")
        if middle is not None and (len(A.shape) != 4 or A.shape[2:] != (1, 1) or middle.shape[:2] != (rank, rank)):
            raise ValueError(f"{path}: {module}: lora_mid {middle.shape} does not fit lora_down {A.shape}")
        if magnitude is not None and magnitude.shape[:1] != B.shape[:1]:
            rows = f"expected one for each of {B.shape[0]} rows"
            raise ValueError(f"{path}: {module} has {magnitude.shape} lengths, {rows}")
        matrices[module] = Pair(module, A, B, alpha, alpha / rank, path, kind, magnitude, middle=middle)
        dora = dora or magnitude is not None
    method, needs = ("dora", DORA) if dora else ("lora", "")
    return AdapterFile(path, "kohya", method, metadata, matrices, others, (), (path,), needs)


def number(path: Path, name: str, stored: Stored) -> float:
    """The one number of an array. Raises ValueError for several, and for one that is not finite."""
    if stored.shape not in ((), (1,)):
        raise ValueError(f"{path}: {name} has shape {stored.shape}, expected one number")
    value = float(stored.read().reshape(())[()])
    if not np.isfinite(value):
        raise ValueError(f"{path}: {name} is {value}, expected a number")
    return value


def what_else(path: Path, names: list[str]) -> str:
    """What a .safetensors file without lora_down and lora_up is."""
    if any(".lora_A" in name or ".lora_embedding_A" in name for name in names):
        return "holds PEFT's lora_A and lora_B, and alpha is in adapter_config.json: give the folder that holds both"
    if other := [name for name in names if "hada_" in name or "lokr_" in name]:
        return f"is no LoRA: {other[0]} is of another method, whose update is no s B A"
    return f"is no adapter: it holds {len(names)} tensors, as {', '.join(names[:2])}, and no lora_down and lora_up"
