"""Vision transformers in Hugging Face's folders: `ViTForImageClassification`, and a bare `ViTModel`.

    theirs   vit.encoder.layer.3.attention.attention.query.weight    vit.embeddings.patch_embeddings.projection.weight
    ours     blocks.3.attn.q_proj.weight                             patch_proj.weight, (C, channels P P) as one matrix

In memory transformers 5 calls them otherwise, and so do adapters that PEFT makes of them (`PEFT`).
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..adapters.qlora import QuantizedLinear
from ..autograd.backend import to_numpy
from ..nn.checks import shown
from ..nn.config_json import ACTIVATIONS
from ..nn.storage import Blank, blaming
from ..nn.vision import ViT, ViTConfig
from .config_out import labels_of
from .names import Place
from .shards import CONFIG, open_weights
from .sources import as_value, compare, fill
from .tensor_files import Stored

CLASSES = ("ViTForImageClassification", "ViTModel")
FIELDS = {  # a field of theirs -> ours, and what transformers 5.24 takes where it is left out
    "image_size": ("image_size", 224), "patch_size": ("patch_size", 16), "num_channels": ("channels", 3),
    "num_hidden_layers": ("n_layer", 12), "num_attention_heads": ("n_head", 12), "hidden_size": ("n_embd", 768),
    "intermediate_size": ("mlp_width", 3072), "hidden_act": ("activation", "gelu"), "qkv_bias": ("qkv_bias", True),
    "layer_norm_eps": ("norm_eps", 1e-12),
}  # fmt: skip
_ASIDE = re.compile(r"drop|^pooler_|^encoder_stride$|_range$|_id$|^output_|^attn_implementation$|^add_pooling_layer$")
_COMPUTES = re.compile(
    "head|norm|rope|bias|window|mask|scal|hidden|layer|expert|gat|position|embed|attention|mlp|quant"
)
_BLOCK = {  # our module in a block -> theirs in a file, and in memory
    "ln_1": ("layernorm_before", "layernorm_before"), "ln_2": ("layernorm_after", "layernorm_after"),
    "attn.q_proj": ("attention.attention.query", "attention.q_proj"),
    "attn.k_proj": ("attention.attention.key", "attention.k_proj"),
    "attn.v_proj": ("attention.attention.value", "attention.v_proj"),
    "attn.o_proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.up_proj": ("intermediate.dense", "mlp.fc1"), "mlp.down_proj": ("output.dense", "mlp.fc2"),
}  # fmt: skip


def names_in_file(model: ViT) -> dict[str, str]:
    """{our parameter: its name in a file}"""
    module = {"patch_proj": "vit.embeddings.patch_embeddings.projection", "ln_f": "vit.layernorm"}
    for i in range(len(model.blocks)):
        module |= {f"blocks.{i}.{ours}": f"vit.encoder.layer.{i}.{theirs}" for ours, (theirs, _) in _BLOCK.items()}
    own = {"class_token": "vit.embeddings.cls_token", "wpe.weight": "vit.embeddings.position_embeddings"}
    split = [(name, *name.rpartition(".")[::2]) for name, _ in model.named_parameters()]
    return {name: own.get(name) or f"{module.get(path, path)}.{last}" for name, path, last in split}


def modules_in_memory(model: ViT) -> dict[str, Place]:
    """{our module: its place in transformers' model}, of those that LoRA is put on there as here."""
    blocks = range(len(model.blocks))
    places = {f"blocks.{i}.{ours}": f"vit.layers.{i}.{theirs}" for i in blocks for ours, (_, theirs) in _BLOCK.items()}
    return {
        ours: Place(theirs) for ours, theirs in {**places, "ln_f": "vit.layernorm", "classifier": "classifier"}.items()
    }


def _shape_in_file(name: str, shape: tuple[int, ...], config: ViTConfig) -> tuple[int, ...]:
    """The shape that a parameter of ours has there."""
    if name == "patch_proj.weight":
        return (shape[0], config.channels, config.patch_size, config.patch_size)
    return {"class_token": (1, 1, *shape), "wpe.weight": (1, *shape)}.get(name, shape)


def is_vit(config: Any) -> bool:
    """Whether a config.json is of a vision transformer."""
    return isinstance(config, Mapping) and config.get("model_type") == "vit"


def open_vit(folder: Path, config: Mapping[str, Any], dtype: str) -> ViT:
    """The vision transformer in a folder. Raises ValueError for a config.json that is not understood, or does not fit.

    A bare ViTModel has no head: it gets one for `num_labels` whose scores are zero, to be trained.
    """
    with blaming(folder):
        read, labels = read_config(config), labels_of(_labelled(config), config)
        tensors = {name: t for held in open_weights(folder).values() for name, t in held.items()}
        tensors = {name: tensor for name, tensor in tensors.items() if ".pooler." not in f".{name}"}
        bare = not any(name.startswith("vit.") for name in tensors)
        if read.n_layer > len(tensors):
            raise ValueError(f"num_hidden_layers = {read.n_layer:,}, and it holds {len(tensors)} tensors")
        model = ViT(read, Blank())
    theirs = {ours: name.removeprefix("vit." if bare else "") for ours, name in names_in_file(model).items()}
    if bare:
        theirs = {ours: name for ours, name in theirs.items() if not ours.startswith("classifier.")}
    held = dict(model.named_parameters())
    expected = {name: _shape_in_file(ours, held[ours].shape, read) for ours, name in theirs.items()}
    compare(str(folder), expected, {name: tensor.shape for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        if tensor.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
            raise ValueError(f"{folder}: {name} is of type {tensor.dtype}, expected floats")
    values = {ours: _reader(tensors[name], held[ours].shape) for ours, name in theirs.items()}
    fill(model, values, str(folder), dtype)
    if bare and dtype == "float64":
        model.classifier.astype(dtype)
    model.labels, model.source = labels, str(folder)
    return model


def _reader(stored: Stored, shape: tuple[int, ...]) -> Callable[[], Any]:
    return lambda: as_value(stored.read().reshape(shape))


def _labelled(config: Mapping[str, Any]) -> Any:
    """What `labels_of` asks of an architecture."""
    names = config.get("id2label")
    count = config.get("num_labels", len(names) if isinstance(names, Mapping) and names else 2)
    return SimpleNamespace(name="vit", head="labels", labels=count)


def read_config(config: Mapping[str, Any]) -> ViTConfig:
    """The sizes in a config.json. Raises ValueError for a field that is not understood and would change the model."""
    named = config.get("architectures") or [CLASSES[0]]
    if not isinstance(named, list) or named[0] not in CLASSES:
        raise ValueError(f"architectures = {shown(named)} is not known for vit, expected {' or '.join(CLASSES)}")
    found: dict[str, Any] = {}
    for theirs, (ours, default) in FIELDS.items():
        value = config.get(theirs, default)
        if theirs in ("image_size", "patch_size") and isinstance(value, list) and len({*map(str, value)}) == 1:
            value = value[0]  # of a square
        found[ours] = value
    if found["activation"] not in ACTIVATIONS:
        raise ValueError(f"hidden_act = {shown(found['activation'])} is not known, expected {', '.join(ACTIVATIONS)}")
    found["activation"] = ACTIVATIONS[found["activation"]]
    for field, value in config.items():
        if field not in FIELDS and value and _COMPUTES.search(field) and not _ASIDE.search(field):
            raise ValueError(f"{field} = {shown(value)} is not known for vit, expected none")
    return ViTConfig(**found, labels=_labelled(config).labels)


def described(model: ViT) -> tuple[dict[str, Any], dict[str, Stored]]:
    """(the fields of config.json, the tensors of model.safetensors) that transformers opens as this model.

    Raises ValueError for a weight in few bits.
    """
    if few := next((path for path, m in model.named_modules() if isinstance(m, QuantizedLinear)), ""):
        raise ValueError(f"save_pretrained: {few} is held in few bits; quantise after loading instead")
    c = model.config
    config: dict[str, Any] = {"architectures": [CLASSES[0]], "model_type": "vit"}
    config |= {theirs: getattr(c, ours) for theirs, (ours, _) in FIELDS.items()}
    config["intermediate_size"] = c.mlp_width or 4 * c.n_embd
    config["hidden_act"] = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[c.activation]
    names = model.labels or tuple(f"LABEL_{i}" for i in range(c.labels))
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    theirs = names_in_file(model)
    arrays = {name: to_numpy(p.data).reshape(_shape_in_file(name, p.shape, c)) for name, p in model.named_parameters()}
    return config, {theirs[name]: Stored.of(np.ascontiguousarray(array)) for name, array in arrays.items()}


def config_in(folder: Path) -> Any:
    """What a folder's config.json holds, or None where it has none that is JSON: the other reader says so."""
    try:
        return json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
