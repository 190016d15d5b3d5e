"""The files of weights in a Hugging Face folder: one, or several and the index that says which tensor is in which."""

import json
from pathlib import Path

from .tensor_files import Stored, open_tensors

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def open_weights(folder: Path) -> dict[Path, dict[str, Stored]]:
    """{file: {name: tensor}}, in the order of their names. As transformers does, the one file is taken before an index.

    Raises FileNotFoundError where a file is missing, ValueError for pickled ones and for an index that is not true.
    """
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: open_tensors(folder / WEIGHTS)[0]}
    if not (folder / INDEX).is_file():
        if pickled := sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*")):
            raise ValueError(never_opened(pickled[0]))
        other = sorted(folder.glob("*.gguf"))
        fix = f"open {other[0]}" if other else f"a model's folder has {WEIGHTS}, or {INDEX} and its shards"
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}; {fix}")
    try:
        places = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
        files = sorted({*places.values()})
        wrong = next((name for name in files if Path(name).name != name), None)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / INDEX} is no index of tensors, {{weight_map: {{name: file}}}}: {error}") from None
    if wrong is not None:
        raise ValueError(f"{folder / INDEX}: it names the file {wrong!r}, expected one in this folder")
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, of {len(files)} that {INDEX} names")
    held = {file: open_tensors(folder / file)[0] for file in files}
    if absent := [name for name, file in places.items() if name not in held[file]]:
        raise ValueError(f"{folder}: {places[absent[0]]} has no {absent[0]}, which {INDEX} says is there")
    return {folder / file: {name: tensor for name, tensor in tensors.items() if places.get(name, file) == file}
            for file, tensors in held.items()}  # fmt: skip


def never_opened(path: Path) -> str:
    """Why a pickled file is refused, and what makes another one of it."""
    code = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{path.parent}')"
    return (
        f"{path} is pickled: opening it would run whatever code is in it. Where you trust it, convert it once: "
        f"python -c \"{code}.save_pretrained('{path.parent}')\""
    )
