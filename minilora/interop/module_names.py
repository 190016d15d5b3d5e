"""Names of modules that a single file has lost: image tools write "lora_te_h_0_attn_c_attn" for "h.0.attn.c_attn".

Dots and underscores are one there, so that the way back needs to be told: our own writer stores the names beside the
matrices, and a base has its modules' names. Where neither is at hand names stay as the file has them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..nn.checks import listed
from .base_weights import Base
from .pairs import AdapterFile

KOHYA = re.compile(r"^lora_(?:unet|te\d?|transformer)_")
STORED = "minilora_names"  # in a single file's metadata: {the file's name: the module's}, as JSON
IMAGE = re.compile(r"(^|\.)(down_blocks|up_blocks|mid_block|double_blocks|single_blocks|transformer_blocks)\.")


def key_of(name: str) -> str:
    """What a module's name and its name in a single file have in common."""
    return KOHYA.sub("", name.replace(".", "_"))


def flat_names(names: Iterable[str]) -> dict[str, str]:
    """{module: its name in a single file}. Raises ValueError where two modules would have one name."""
    found: dict[str, str] = {}
    for name in names:
        start = "" if KOHYA.match(name) else "lora_unet_" if IMAGE.search(name) else "lora_te_"
        flat = start + name.replace(".", "_")
        if flat in found.values():
            both = [other for other, there in found.items() if there == flat]
            raise ValueError(f"{both[0]} and {name} would both be called {flat} in a single file")
        found[name] = flat
    return found


def stored_names(adapter: AdapterFile) -> Mapping[str, str]:
    """{the file's name: the module's} that our writer put beside the matrices; {} where others wrote the file."""
    try:
        found = json.loads(adapter.config.get(STORED) or "{}") if adapter.form == "kohya" else {}
    except ValueError:
        return {}
    told = isinstance(found, dict) and all(isinstance(v, str) and key_of(v) == key_of(k) for k, v in found.items())
    return found if told else {}


def with_names(adapter: AdapterFile, base: Base | None = None) -> AdapterFile:
    """An adapter by the names of modules: those that are stored, else those of the base's modules.

    Raises ValueError where a base has no module, or several, of a flat name.
    """
    if adapter.form != "kohya":
        return adapter
    stored, modules = stored_names(adapter), dict[str, list[str]]()
    if base is not None:
        for tensor in base.tensors:
            if tensor.endswith(".weight"):
                modules.setdefault(key_of(tensor.removesuffix(".weight")), []).append(tensor.removesuffix(".weight"))
    found, lacking = {}, []
    for name, pair in adapter.matrices.items():
        known = stored.get(name) or (name if base is None or base.place(name) else None)
        if known is None:
            key = key_of(name)
            ends = [key, *(key.removeprefix(first) for first in ("model_", "transformer_", "text_model_"))]
            there: list[str] = next((modules[k] for k in ends if k in modules), [])
            if len(there) != 1:
                lacking.append(f"{name} ({'several modules' if there else 'no module'})")
                continue
            known = there[0]
        found[known] = replace(pair, name=known)
    if lacking:
        raise ValueError(f"{base and base.path} is not the base of {adapter.path}: {listed(lacking, ', ')}")
    if len(found) < len(adapter.matrices):
        raise ValueError(f"{adapter.path}: two of its matrices are of one module of the base")
    return replace(adapter, matrices=found)
