"""The weights that an adapter was trained on, from a checkpoint's files: one at a time, by the names of modules."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.quantization import Packed
from ..nn.architectures import from_hugging_face, parameters
from ..nn.checks import listed
from ..nn.module import in_precision
from ..nn.storage import BASE
from . import fetch
from .gguf_file import open_gguf
from .names import Place, module_names
from .npz_files import open_archive
from .pairs import AdapterFile, Pair
from .shards import CONFIG, open_weights
from .sources import Source
from .tensor_files import Stored, open_tensors

CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # model types whose linear layers are (d_in, d_out)
CONV1D_LAYERS = ("c_attn", "c_fc", "c_proj", "q_attn")
OURS = ("blocks", "wte", "wpe", "ln_f", "head")  # what names of our modules begin with


@dataclass(frozen=True)
class Base:
    """A checkpoint. tensors: {name in its files: Stored}; config: its config.json, {} where there is none; called:
    {a single file's name: the module's} where an adapter of that form was opened beside it.
    """

    path: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any]
    called: Mapping[str, str] = field(default_factory=dict)

    def place(self, module: str) -> Place | None:
        """Where a module's weight is: under its own name, or one that differs in its first parts alone.

        The file of a bare model lacks the first parts of a module's name: "transformer.h.0.attn.c_attn" is
        "h.0.attn.c_attn" there. A module of ours is looked up in the table of its family's names.
        """
        module = self.called.get(module, module)
        first, _, rest = module.partition(".")
        last = module.rpartition(".")[2]
        turned = self.config.get("model_type") in CONV1D and last in CONV1D_LAYERS
        for name in (
            module,
            rest,
            rest.partition(".")[2],
            *(f"{p}.{module}" for p in ("model", "transformer", "bert")),
        ):
            if f"{name}.weight" in self.tensors:
                return Place(name, None, turned)
        if first in OURS and self.config.get("model_type") is not None:
            place = module_names(from_hugging_face(self.config)).get(module)
            there = (
                self.place(place.module) if place is not None and place.module.partition(".")[0] not in OURS else None
            )
            return there and place._replace(module=there.module)  # type: ignore[union-attr]
        return None

    def fault(self, pair: Pair, adapter: AdapterFile) -> str | None:
        """What is wrong with this base for one matrix; None where it fits."""
        if (place := self.place(pair.name)) is None:
            return f"no weight of {pair.name}"
        shape = self.tensors[f"{place.module}.weight"].shape
        rows, columns = oriented(shape, pair, self.turned(place, pair, adapter))
        rows = rows if place.rows is None else len(range(rows)[place.rows])
        return None if (rows, columns) == pair.shape else f"{pair.name} is {pair.shape}, the base's weight {shape}"

    def check(self, adapter: AdapterFile) -> None:
        """Raises ValueError that lists the matrices which this base lacks or has in another shape."""
        if faults := [words for pair in adapter.matrices.values() if (words := self.fault(pair, adapter))]:
            raise ValueError(f"{self.path} is not the base of {adapter.path}: {listed(faults)}")

    def weight(self, pair: Pair, adapter: AdapterFile) -> np.ndarray:
        """W (d_out, d_in) in float64, as Delta W is. Raises ValueError where it is not finite."""
        place = self.place(pair.name)
        assert place is not None, f"{pair.name}: check this base first"
        stored = self.tensors[f"{place.module}.weight"].read()
        try:
            array = in_precision(stored, stored.dtype).astype(float)
        except ValueError as error:
            raise ValueError(f"{self.path}: {place.module}.weight: {error}") from None
        array = array.T if self.turned(place, pair, adapter) else array.reshape(len(array), -1)
        return array if place.rows is None else array[place.rows]

    def turned(self, place: Place, pair: Pair, adapter: AdapterFile) -> bool:
        """Whether the file holds the transpose of what Delta W is added to."""
        told = adapter.config.get("fan_in_fan_out") is True and not self.config.get("model_type")
        return place.transposed or pair.kind == "embedding" or (told and pair.kind == "linear")


def oriented(shape: tuple[int, ...], pair: Pair, turned: bool) -> tuple[int, int]:
    """The shape of a weight as a matrix (d_out, d_in), a kernel's height and width among its columns."""
    if len(shape) < 2:
        return (*shape, 0, 0)[:2]  # type: ignore[return-value]
    return (shape[1], shape[0]) if turned and len(shape) == 2 else (shape[0], int(np.prod(shape[1:])))


def open_base(path: str | Path) -> Base:
    """A Hugging Face folder (model.safetensors, or its shards and their index), a .gguf file, one that `minilora fetch`
    knows by its name, or a model file of minilora's.

    Raises FileNotFoundError or ValueError in one line for what is missing, pickled or damaged.
    """
    path = (
        BASE
        if str(path) == "base" and not Path(path).exists()
        else fetch.cached(str(path))
        if path in fetch.MODELS
        else Path(path)
    )
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r}; expected a Hugging Face folder")
    if path.is_file():
        if path.suffix == ".gguf":
            return from_source(open_gguf(path))
        if path.suffix == ".safetensors":
            return Base(path, open_tensors(path)[0], read_json(path.with_name(CONFIG)))
        tensors, header = open_archive(path)
        if header.get("kind") != "model":
            raise ValueError(f"{path} holds {header.get('kind', 'something else')!r}, expected a model")
        return Base(path, tensors, {})
    tensors = {name: tensor for held in open_weights(path).values() for name, tensor in held.items()}
    return Base(path, tensors, read_json(path / CONFIG))


def from_source(source: Source) -> Base:
    """A file's weights by our names for them, and by those that a Hugging Face folder of the same model has."""
    shapes, tensors = parameters(source.architecture), {}
    joined: dict[str, list[Stored]] = {}  # their module -> ours that are in it, one over the other
    for name, read in source.values.items():
        tensors[name] = Stored(shapes[name], np.dtype("float32"), _floats(read))
    for ours, place in module_names(source.architecture).items():
        if f"{ours}.weight" in tensors:
            joined.setdefault(place.module, []).append(tensors[f"{ours}.weight"])
    for module, parts in joined.items():
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        rows = lambda parts=parts: np.concatenate([part.read() for part in parts])
        tensors.setdefault(f"{module}.weight", Stored(shape, np.dtype("float32"), rows))
    return Base(Path(source.called), tensors, {"model_type": "as ours"})  # (d_out, d_in) throughout


def _floats(read: Callable[[], Any]) -> Callable[[], np.ndarray]:
    """What reads a tensor as floats, of few bits or not."""

    def floats() -> np.ndarray:
        value = read()
        return value.dequantize(np.float32) if isinstance(value, Packed) else value

    return floats


def read_json(path: Path) -> dict[str, Any]:
    """A table in a JSON file, {} where there is no file. Raises ValueError for what is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected a table")
    return found
