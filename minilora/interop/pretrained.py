"""Models that others have trained, from their files, and ours in files that transformers opens."""

import json
import os
from pathlib import Path
from typing import Any

from ..adapters.state import carried
from ..autograd.signatures import checked, shown
from ..nn.architectures import find
from ..nn.checks import unknown
from ..nn.files import write_beside
from ..nn.gpt import GPT
from ..nn.module import Module
from ..nn.storage import said
from ..nn.transformer import Transformer
from ..nn.vision import ViT
from . import fetch, vit_files
from .config_out import config_for
from .extras import extra
from .folders import as_stored, open_folder
from .gguf_file import open_gguf
from .shards import WEIGHTS, never_opened
from .sources import Source, built
from .tensor_files import Stored, write_tensors

FILES = (".npz", ".gguf", ".safetensors", ".bin", ".json")  # what ends like this is no folder
TEMPLATE = "chat_template.jinja"
OF_A_TOKENIZER = (TEMPLATE, "tokenizer.json", "tokenizer_config.json", "generation_config.json")
DTYPES = ("float32", "float64", "float16", "bfloat16", "file")


@checked
def load_pretrained(place: str | os.PathLike, dtype: str = "float32") -> Any:
    """The model in a Hugging Face folder or a .gguf file, or one that `minilora fetch` knows by its name.

    place: a folder with config.json and model.safetensors (or its shards and their index), a .gguf file, a name such
    as "smollm2-135m" that was fetched, or "organisation/name" on the hub where `huggingface_hub` is installed.
    dtype: how matrices and the table of tokens are held: "float32" or "float64", to be trained; "float16" or
    "bfloat16", made float32 on the way through each product; "file", as they are stored, GGUF's blocks of few bits
    too. What is held in fewer bits is frozen: put LoRA on it. With blocks of few bits `model.recompute_blocks` is on,
    which saves memory and takes time. Norms and biases are floats. `model.tokenizer` is the tokenizer, where the files
    have one, `model.source` is the place, `model.labels` what a head for labels calls them. Raises FileNotFoundError
    for what is not there, ImportError for a library that is not installed, and ValueError for what does not fit: names,
    shapes, numbers that are none; nothing is built then. A folder of a vision transformer ("vit") gives a ViT.
    """
    if dtype not in DTYPES:
        raise ValueError(f"load_pretrained: {unknown('dtype', str(dtype), [*DTYPES])}")
    if not os.fspath(place):
        raise ValueError("load_pretrained: place = '', expected a folder, a .gguf file or a name")
    path = _found(place)
    if path.suffix == ".npz" and path.is_file():
        raise ValueError(f"load_pretrained: {path} is a file of minilora's own: ml.load_model({str(path)!r})")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise ValueError(never_opened(path))
    if path.suffix in (".safetensors", ".json") and path.is_file():
        raise ValueError(f"load_pretrained: {path} is a part of a model: open its folder, {path.parent}")
    if path.is_dir() and vit_files.is_vit(config := vit_files.config_in(path)):
        return vit_files.open_vit(path, config, dtype)
    source = open_folder(path) if path.is_dir() else open_gguf(path)
    model = built(source, dtype)
    model.tokenizer, model.source = _tokenizer(source), os.fspath(place)
    return model


def _tokenizer(source: Source) -> Any:
    """The tokenizer in the files, if it goes with the model."""
    tokenizer = source.tokenizer()
    return None if tokenizer is None else tokenizer.fit(source.architecture.vocab_size, source.called)


def _found(place: Any) -> Path:
    """The folder or file that is meant. Raises FileNotFoundError, with the names there are."""
    path = Path(place)
    if path.exists():
        return path
    name = str(place)
    if name in fetch.MODELS:
        return fetch.cached(name)
    if name == "base":
        raise ValueError("load_pretrained: 'base' comes with minilora: ml.load_model('base')")
    if name.count("/") == 1 and path.suffix not in (".gguf", ".npz") and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    raise FileNotFoundError(
        f"load_pretrained: there is no folder or file {name!r}; names that `minilora fetch` knows: "
        f"{', '.join(fetch.MODELS)}"
    )


def _from_hub(name: str) -> Path:
    """The folder of a model on the Hugging Face hub, downloaded or from its cache."""
    try:
        hub = extra("huggingface_hub", name)
    except ImportError:
        raise FileNotFoundError(
            f"load_pretrained: there is no folder {name!r} here; to have it from the Hugging Face hub: "
            'pip install "minilora[hub]"'
        ) from None
    try:
        return Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except Exception as error:  # the hub's, the network's and the cache's have no class in common
        raise FileNotFoundError(
            f"load_pretrained: there is no folder {name!r} here, and none from the hub: {said(error)}"
        ) from None


@checked
def save_pretrained(model: Module, folder: str | os.PathLike) -> Path:
    """Write a model as a Hugging Face folder, which transformers' from_pretrained and ours open; returns its path.

    config.json, model.safetensors (matrices in the precision that they are held in, a tied head not twice), and where
    the model has one its tokenizer. A GPT is written as a gpt2, a ViT as a vit. Raises ValueError for a model with an
    adapter, one in few bits, numbers that are none, and what a config.json of its family cannot say; TypeError for what
    is none of these models. Files are whole or not there: the weights are written first, and where that fails nothing
    has changed.
    """
    if not isinstance(model, GPT | Transformer | ViT):
        raise TypeError(f"save_pretrained: got {shown(model)}, expected a GPT, a Transformer or a ViT")
    if carried(model):
        fix = "ml.merge_lora(model), then ml.remove_lora(model); or ml.save_adapter(model, path) for the adapter alone"
        raise ValueError(f"save_pretrained: the model has an adapter; {fix}")
    path = _new_folder(folder)
    config, tensors = vit_files.described(model) if isinstance(model, ViT) else _described(model)
    if wrong := model.first_not_finite():
        raise ValueError(f"save_pretrained: {wrong}")
    config["dtype"] = max((tensor.dtype for tensor in tensors.values()), key=lambda dtype: dtype.itemsize).name
    texts = _tokenizer_files(model, config)
    texts["config.json"] = json.dumps(config, indent=2)
    _refuse_others(path, texts, getattr(getattr(model, "tokenizer", None), "template", None))
    write_tensors(path / WEIGHTS, tensors)
    for name, text in texts.items():
        _write_text(path / name, text)
    return path


def _described(model: Any) -> tuple[dict[str, Any], dict[str, Stored]]:
    """(the fields of config.json, the tensors) of a model of language."""
    architecture = find(model)
    return config_for(architecture, model.labels), as_stored(model, architecture)


def _new_folder(folder: str | os.PathLike) -> Path:
    """The folder to write. Raises ValueError for a name that would be opened as another thing, or no name."""
    path = Path(folder)
    if not os.fspath(folder) or (path.suffix in FILES and not path.is_dir()):
        fix = "; ml.save_model(model, path) writes an .npz, of a GPT" if path.suffix == ".npz" else ""
        raise ValueError(f"save_pretrained: folder = {shown(folder)}, expected the name of a folder{fix}")
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"save_pretrained: {path} is a file, expected a folder, or a new name")
    return path


def _refuse_others(path: Path, texts: dict[str, str], template: str | None) -> None:
    """Raises ValueError where a tokenizer would stay in the folder that is not this model's."""
    stays = [name for name in OF_A_TOKENIZER if name not in texts and (path / name).is_file()]
    if "tokenizer.json" in texts:
        stays = [name for name in stays if name == TEMPLATE and (path / name).read_text("utf-8") != template]
    if stays:
        raise ValueError(f"save_pretrained: {path} holds {stays[0]} of another model; choose another folder")


def _tokenizer_files(model: Any, config: dict[str, Any]) -> dict[str, str]:
    """{name: text} of the files that say the model's tokenizer, whose first and last tokens go into the config, too."""
    tokenizer: Any = getattr(model, "tokenizer", None)
    if not hasattr(tokenizer, "files"):
        return {}
    ends, begin = sorted(tokenizer.eos), tokenizer.special.get("bos_token")
    tokens: dict[str, Any] = {"bos_token_id": tokenizer.backend.token_to_id(begin) if begin else None}
    tokens["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    config |= tokens
    generation = json.dumps(tokens | {"pad_token_id": config["pad_token_id"]}, indent=2)
    return {**tokenizer.files(), "generation_config.json": generation}


def _write_text(path: Path, text: str) -> None:
    write_beside(path, lambda file: file.write(text.encode()))
