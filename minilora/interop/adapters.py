"""An adapter is saved and loaded in the form that a file has: minilora's own .npz, or a folder of PEFT's."""

from pathlib import Path
from typing import Any

from ..adapters import files
from ..adapters.lora import one_of
from ..nn.storage import file_path


def save_adapter(model: Any, path: str | Path, name: str | None = None, format: str = "minilora") -> Path:
    """Write one adapter alone; returns where.

    name: which; by default the one in use. format: "minilora" writes an .npz with the fingerprint of the base model,
    "peft" a folder that PEFT loads, of LoRA, DoRA, IA3, prompts and prefixes. Raises ValueError where there is no
    adapter, where parameters of the base are trained beside it, which its file would lack, for values that are not
    finite (which, and where), and for a method that the format has no form for.
    """
    one_of(format, ("minilora", "peft"), "save_adapter: format")
    if format == "minilora":
        return files.save_adapter(model, path, name)
    from .peft_saving import save

    return save(model, file_path(path, "save_adapter"), name)


def load_adapter(model: Any, path: str | Path, name: str = "default") -> Any:
    """Put a saved adapter on its base model, under a name, and make it the active one; returns the model.

    path: minilora's .npz, or a folder that PEFT wrote. An adapter of that name is replaced. Raises ValueError when the
    file is damaged, is no adapter, or does not fit the model; the model has not changed then. An .npz knows the base
    that it was trained on; PEFT's files do not, and names and shapes are all that can be checked.
    """
    given = file_path(path, "load_adapter")
    if given.suffix == ".npz" or not given.exists():
        return files.load_adapter(model, path, name)
    if given.is_file():
        from .adapter_files import PICKLED, content

        if content(given) == "pickle" or given.suffix in (".bin", ".pt", ".pth"):
            raise ValueError(f"load_adapter: {given} is pickled, {PICKLED}")
        if given.suffix not in (".safetensors", ".json"):
            return files.load_adapter(model, path, name)
        if not (given.parent / "adapter_config.json").is_file():
            raise ValueError(
                f"load_adapter: {given} is no part of a PEFT folder: there is no adapter_config.json beside it"
            )
    from .peft import load

    return load(model, given if given.is_dir() else given.parent, name)
