"""Adapters into files, in the three forms that `adapter_files.py` reads: each loads where its form comes from.

The numbers are the pairs'; the configuration is the source's, with the ranks, alphas and targets that they have now.
"""

import contextlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.adapter import METHODS
from ..nn.files import write_beside
from ..nn.module import in_precision
from ..nn.storage import save_arrays
from .pairs import AdapterFile, Pair
from .peft_files import CONFIG, PREFIX, WEIGHTS
from .tensor_files import Stored, write_tensors

ENDINGS = {"kohya": ".safetensors", "minilora": ".npz"}  # of the forms that are files


def pair_of(like: Pair, B: np.ndarray, A: np.ndarray, scale: float, dtype: Any = None) -> Pair:
    """A pair with Delta W = B A at a scale s, of the kind of another one, and in its precision or in dtype.

    B (d_out, r), A (r, d_in); sqrt(s) is taken out of each. Raises ValueError for numbers that this precision lacks.
    """
    scale = scale if scale > 0 else 1.0
    kernel = like.a.shape[1:] if like.middle is None else (like.a.shape[1], *like.middle.shape[2:])
    shapes = (len(A), *kernel), (len(B), len(A), *(1 for _ in like.b.shape[2:]))
    try:
        a, b = (in_precision(array / math.sqrt(scale), dtype or like.a.dtype) for array in (A, B))
    except ValueError as error:
        raise ValueError(f"{like.name}: {error}") from None
    stored = [Stored.of(array.reshape(shape)) for array, shape in zip((a, b), shapes, strict=True)]
    alone: dict[str, Any] = dict.fromkeys(("start", "middle", "magnitude"))
    return replace(like, a=stored[0], b=stored[1], alpha=tidy(scale * len(A)), scale=scale, **alone)


def tidy(value: float) -> float | int:
    """A number that is whole but for rounding, as a whole one."""
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else value


def write_adapter(adapter: AdapterFile, path: str | Path) -> Path:
    """Write an adapter in its form: a folder of PEFT's, a single file or an .npz. Whole, or not there at all.

    Raises ValueError where the place is one of the files that the adapter is read from, or of another kind, and where
    what is beside the pairs is not finite.
    """
    path = Path(path)
    refuse_inputs(path, adapter.inputs)
    check_place(path, adapter.form)
    for name, stored in adapter.others.items():
        try:
            in_precision(array := stored.read(), array.dtype)
        except ValueError as error:
            raise ValueError(f"{adapter.path}: {name}: {error}") from None
    return {"peft": write_peft, "kohya": write_kohya, "minilora": write_npz}[adapter.form](adapter, path)


def refuse_inputs(path: Path, inputs: Iterable[Path]) -> None:
    """Raises ValueError where an output is an input, or the folder that it is in and that would be written into."""
    for place in inputs:
        for one in (place, place.parent) if place.name in (CONFIG, WEIGHTS) else (place,):
            if os.path.realpath(path) == os.path.realpath(one) or (path.exists() and os.path.samefile(path, one)):
                raise ValueError(f"the output {str(path)!r} is an input; choose another name")


def check_place(path: Path, form: str, new: bool = False) -> None:
    """Raises an error where a folder would be written over a file, a file over a folder, or a name is another form's.

    new: whether the form is another than the input's, so that the name must say it.
    """
    if form == "peft" and ((path.exists() and not path.is_dir()) or path.suffix in ENDINGS.values()):
        raise NotADirectoryError(f"{str(path)!r} names a file, and a PEFT adapter is a folder; choose another output")
    if form != "peft" and path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder, and a {form} adapter is a file; choose another output")
    if form != "peft" and path.suffix != ENDINGS[form] and (new or path.suffix in ENDINGS.values()):
        raise ValueError(f"the output {str(path)!r} should end in {ENDINGS[form]}, as files of the form {form} do")


# --- PEFT ------------------------------------------------------------------------------------------------------------


def write_peft(adapter: AdapterFile, folder: Path) -> Path:
    """adapter_config.json and adapter_model.safetensors."""
    tensors: dict[str, Stored] = {}
    for name, pair in adapter.matrices.items():
        ends = (
            ("lora_embedding_A", "lora_embedding_B") if pair.kind == "embedding" else ("lora_A.weight", "lora_B.weight")
        )
        tensors |= {f"{PREFIX}{name}.{ends[0]}": pair.a, f"{PREFIX}{name}.{ends[1]}": pair.b}
        if pair.magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = pair.magnitude
    tensors |= {f"{PREFIX}{name}": tensor for name, tensor in adapter.others.items()}
    words = json.dumps(peft_config(adapter), indent=2, sort_keys=True) + "\n"
    return folder_beside(folder, {
        WEIGHTS: lambda path: write_tensors(path, tensors),
        CONFIG: lambda path: write_beside(path, lambda file: file.write(words.encode())),
    })  # fmt: skip


def peft_config(adapter: AdapterFile) -> dict[str, Any]:
    """The source's configuration with the ranks and alphas that the pairs have; its targets stay."""
    config = dict(adapter.config)
    root = bool(config.get("use_rslora"))
    alphas = {n: tidy(p.scale * (math.sqrt(p.rank) if root else p.rank)) for n, p in adapter.matrices.items()}
    ranks = {name: pair.rank for name, pair in adapter.matrices.items()}
    (rank, _), (alpha, _) = Counter(ranks.values()).most_common(1)[0], Counter(alphas.values()).most_common(1)[0]
    config |= {"r": rank, "lora_alpha": alpha}
    if not any(pair.magnitude for pair in adapter.matrices.values()):
        config["use_dora"] = False
    config["rank_pattern"] = {name: r for name, r in ranks.items() if r != rank}
    config["alpha_pattern"] = {name: a for name, a in alphas.items() if a != alpha}
    return config


def targets_by_name(adapter: AdapterFile) -> dict[str, Any]:
    """What PEFT's configuration says where the targets are exactly these modules, by their whole names."""
    none: dict[str, Any] = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    return {"target_modules": list(adapter.matrices), **none}


def folder_beside(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> Path:
    """Write the files of a folder beside it, then move them in: a new folder is whole, or not there at all."""
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name[:80]}-{os.getpid()}.part")
    try:
        beside.mkdir()
        for name, write in writers.items():
            write(beside / name)
        if folder.exists() and any(folder.iterdir()):
            for name in writers:
                os.replace(beside / name, folder / name)
        else:
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()  # it is empty
            os.rename(beside, folder)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(beside)
    return folder


# --- the single file, and ours ---------------------------------------------------------------------------------------


def write_kohya(adapter: AdapterFile, path: Path) -> Path:
    """lora_down, lora_up and alpha of each matrix, and the metadata with the rank and alpha that most have."""
    tensors: dict[str, Stored] = {}
    for name, pair in adapter.matrices.items():
        tensors |= {f"{name}.lora_down.weight": pair.a, f"{name}.lora_up.weight": pair.b}
        if pair.middle is not None:
            tensors[f"{name}.lora_mid.weight"] = pair.middle
        if pair.magnitude is not None:
            tensors[f"{name}.dora_scale"] = pair.magnitude
        tensors[f"{name}.alpha"] = Stored.of(np.array(pair.scale * pair.rank, alpha_type(pair.a.dtype)))
    said = {"ss_network_dim": str(adapter.rank), "ss_network_alpha": f"{tidy(adapter.scale * adapter.rank)}"}  # type: ignore[operator]
    metadata = {**adapter.config, **{name: value for name, value in said.items() if name in adapter.config}}
    return write_tensors(path, tensors | adapter.others, metadata or None)


def alpha_type(dtype: np.dtype) -> np.dtype:
    """Of a number beside matrices: theirs, but float32 at least, so that the scale keeps its digits."""
    return np.dtype("float64") if dtype == np.float64 else np.dtype("float32")


def write_npz(adapter: AdapterFile, path: Path) -> Path:
    """The arrays by their names beside the source's header, with one configuration for all matrices."""
    arrays: dict[str, Any] = {}
    for name, pair in adapter.matrices.items():
        arrays |= {f"{name}.lora_A": pair.a.read(), f"{name}.lora_B": pair.b.read()}
        if pair.start is not None:
            arrays |= {f"{name}.lora_A0": pair.start[0].read(), f"{name}.lora_B0": pair.start[1].read()}
        if pair.magnitude is not None:
            arrays[f"{name}.magnitude"] = pair.magnitude.read()
    arrays |= {name: stored.read() for name, stored in adapter.others.items()}
    return save_arrays(path, arrays, {**adapter.config, "methods": npz_methods(adapter)})


def npz_methods(adapter: AdapterFile) -> list[dict[str, Any]]:
    """The header's methods: those that are not LoRA as they were, and one that holds every matrix's rank and alpha."""
    kept = [one for one in adapter.config["methods"] if not issubclass(METHODS[one["kind"]], METHODS["lora"])]
    source = next(one for one in adapter.config["methods"] if one not in kept)
    start = any(pair.start is not None for pair in adapter.matrices.values())
    ranks = {name: pair.rank for name, pair in adapter.matrices.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alphas = {name: tidy(pair.scale * pair.rank) for name, pair in adapter.matrices.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    kind = source["kind"] if any(pair.magnitude for pair in adapter.matrices.values()) else "lora"
    known = {one.name for one in fields(METHODS[kind])}
    config = METHODS[kind](**{name: v for name, v in source["config"].items() if name in known})
    config = replace(
        config, rank=rank, alpha=alpha, rank_stabilized=False, target_modules=tuple(adapter.matrices),
        exclude_modules=(), layers_to_transform=None, init=config.init if start else "kaiming",
        rank_pattern={name: r for name, r in ranks.items() if r != rank},
        alpha_pattern={name: a for name, a in alphas.items() if a != alpha},
    )  # fmt: skip
    return [{"kind": config.kind, "config": asdict(config)}, *kept]
