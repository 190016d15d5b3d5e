"""Hugging Face's folders: `config.json`, weights in one or more `.safetensors`, and a tokenizer where there is one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.quantization import Half
from ..autograd.backend import to_numpy
from ..nn.architectures import Architecture, from_hugging_face
from .config_out import labels_of, with_head
from .names import TIED, family_of, module_names
from .shards import CONFIG, open_weights
from .sources import Share, Source, Value, as_value, compare, shares
from .tensor_files import Stored, float_type

FLOATS = ("float64", "float32", "float16", "bfloat16")
BUFFERS = re.compile(  # what older versions wrote beside the parameters, and every model makes anew
    r"(^|\.)(attn\.(masked_)?bias|rotary_emb\.\w*inv_freq|embeddings\.(position|token_type)_ids|embed_scale)$"
)
ASIDE = {  # parts that files of a family, or with a head, may have and the model does not read
    "gemma3_text": re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\."),  # what a gemma3 sees with
    "masked": re.compile(r"(^|\.)(pooler|seq_relationship)\."),  # which of two sentences is first: of pre-training
}


def open_folder(folder: Path) -> Source:
    """The model in a Hugging Face folder. Raises FileNotFoundError or ValueError that say what is missing or wrong."""
    if not (folder / CONFIG).is_file():
        adapter, other = (folder / "adapter_config.json").is_file(), sorted(folder.glob("*.gguf"))
        fix = f"open {other[0]}" if other else "a model's folder has one"
        raise FileNotFoundError(
            f"{folder} has no {CONFIG}; {'it holds an adapter: ml.load_adapter(model, folder)' if adapter else fix}"
        )
    bare = from_hugging_face(folder / CONFIG, folder.resolve().name)
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    architecture = with_head(bare, config)
    found = {name: tensor for held in open_weights(folder).values() for name, tensor in held.items()}
    ours, theirs = shares(architecture, module_names(architecture))
    aside = [BUFFERS, *(what for key, what in ASIDE.items() if key in (architecture.family, architecture.head))]
    found = {name: tensor for name, tensor in found.items() if not any(what.search(name) for what in aside)}
    named = {_known_as(name, architecture, theirs): tensor for name, tensor in found.items()}
    if len(named) < len(found):
        raise ValueError(f"{folder}: it has one tensor under two names")
    _drop_second(folder, ours, named)
    compare(str(folder), theirs, {name: tensor.shape for name, tensor in named.items()})
    for name, tensor in named.items():
        if tensor.dtype.name not in FLOATS:
            raise ValueError(f"{folder}: {name} is of type {tensor.dtype}, expected one of {', '.join(FLOATS)}")
    values = {name: _reader(named[share.tensor], share) for name, share in ours.items()}

    def tokenizer() -> Any:
        from .tokenizer import from_folder

        return from_folder(folder) if (folder / "tokenizer.json").is_file() else None

    return Source(str(folder), architecture, values, tokenizer, labels_of(architecture, config))


def _reader(stored: Stored, share: Share) -> Callable[[], Value]:
    return lambda: as_value(share.of(stored.read()))


def _known_as(name: str, architecture: Architecture, expected: Any) -> str:
    """A tensor's name with the prefix that a model with a head gives it, and the words of today."""
    name = name.replace("language_model.", "", 1) if architecture.family == "gemma3_text" else name
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))  # of the first BERTs
    prefix = family_of(architecture).prefix
    return prefix + name if name not in expected and prefix + name in expected else name


def _drop_second(folder: Path, ours: dict[str, Share], named: dict[str, Stored]) -> None:
    """Leave out what is in the file a second time, such as a tied head. Raises ValueError where the two differ."""
    expected = {share.tensor for share in ours.values()}
    for name in TIED.keys() & named.keys() - expected:
        first = named.get(ours[TIED[name]].tensor) if TIED[name] in ours else None
        if first is not None:
            second = named[name]
            same = second.shape == first.shape and second.dtype == first.dtype
            if not same or (second.read().view(np.uint8) != first.read().view(np.uint8)).any():
                raise ValueError(
                    f"{folder}: {name} differs from {ours[TIED[name]].tensor}, and {CONFIG} says they are one: "
                    "tie_word_embeddings should be false"
                )
            del named[name]


def as_stored(model: Any, architecture: Architecture) -> dict[str, Stored]:
    """{a tensor's name in a Hugging Face file: what makes it of our parameters}, fused and turned as the family does.

    Raises ValueError for parameters that are not the architecture's, and for a weight in few bits.
    """
    held = dict(model.named_parameters())
    packed = {f"{path}.weight": m.quantized for path, m in model.named_modules() if hasattr(m, "quantized")}
    ours, theirs = shares(architecture, module_names(architecture))
    if others := [name for name in (*held, *packed) if name not in ours]:
        fix = "; ml.save_adapter keeps a head for labels beside LoRA" if others[0].startswith("classifier.") else ""
        raise ValueError(f"save_pretrained: {architecture.name} has {others[0]}, which no config.json of it says{fix}")
    if few := [name for name, weight in packed.items() if not isinstance(weight, Half)]:
        fix = "load_pretrained(place) makes floats of a file; quantise those again after loading"
        raise ValueError(f"save_pretrained: {few[0]} is held as {packed[few[0]].kind}, which is not written; {fix}")
    parts: dict[str, list[str]] = {}
    for name, share in ours.items():
        parts.setdefault(share.tensor, []).append(name)
    bits = {weight.kind for weight in packed.values()}
    found = {}
    for tensor, names in parts.items():
        arrays = [packed[name] if name in packed else held[name].data for name in names]
        dtype = _written_in(arrays, bits)
        read = lambda arrays=arrays, dtype=dtype, turned=ours[names[0]].transposed: _joined(arrays, dtype, turned)
        found[tensor] = Stored(theirs[tensor], dtype, read)
    return found


def _written_in(arrays: list[Any], bits: set[str]) -> np.dtype:
    """The precision that arrays are held in. Floats beside matrices of 16 bits have 16, too, if that loses nothing."""
    kinds = {array.kind if isinstance(array, Half) else array.dtype.name for array in arrays}
    if len(bits) == 1 and kinds == {"float32"}:
        dtype = float_type(*bits)
        if all((to_numpy(array).astype(dtype).astype("float32") == array).all() for array in arrays):
            return dtype
    return float_type(kinds.pop()) if len(kinds) == 1 else np.dtype("float32")


def _joined(arrays: list[Any], dtype: np.dtype, turned: bool) -> np.ndarray:
    """Our arrays as one of the file's."""
    plain = [array.bits if isinstance(array, Half) else to_numpy(array) for array in arrays]
    if dtype.itemsize > 2:
        plain = [a.dequantize() if isinstance(a, Half) else p for a, p in zip(arrays, plain, strict=True)]
    whole = np.concatenate(plain) if len(plain) > 1 else plain[0]
    whole = whole.view(dtype) if whole.dtype == np.uint16 else whole.astype(dtype, copy=False)
    return whole.T if turned else whole
