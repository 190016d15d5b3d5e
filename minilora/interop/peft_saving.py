"""A model's adapter is written as a folder that PEFT loads.

Where a matrix of theirs is several of ours (`peft.py`), equal A's become one again. Once they were trained apart,

    [B_q A_q]   [B_q  .    .  ] [A_q]
    [B_k A_k] = [ .  B_k   .  ] [A_k]        is the same update, of three times the rank.
    [B_v A_v]   [ .   .   B_v ] [A_v]

PiSSA is written as the LoRA of twice the rank that it is on the whole W, which PEFT calls converted.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.adapter import Adapter
from ..adapters.files import to_store
from ..adapters.ia3 import IA3, IA3Config
from ..adapters.lora import LoRAConfig
from ..adapters.low_rank import LowRank
from ..adapters.miss import MiSSConfig
from ..adapters.prefix import PrefixConfig
from ..adapters.prompt import PromptConfig
from ..adapters.state import base_parameters
from ..adapters.vera import VeRAConfig
from ..autograd.backend import to_numpy
from ..nn.files import write_beside
from .peft_config import written_targets
from .peft_files import BARE, CONFIG, PREFIX, PROMPT, WEIGHTS
from .peft_modules import HEAD, Arrays, Theirs, architecture_of
from .tensor_files import Stored, write_tensors


def save(model: Any, folder: Path, name: str | None = None) -> Path:
    """Write one adapter as PEFT's adapter_config.json and adapter_model.safetensors; returns the folder.

    Raises ValueError for a method that PEFT has no form for, and for what `to_store` refuses.
    """
    adapter, _ = to_store(model, name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"save_adapter: {folder} is a file; PEFT's form of an adapter is a folder")
    kinds = {type(config) for config in adapter.configs}
    if all(isinstance(config, LoRAConfig) for config in adapter.configs) and len(kinds) == 1:
        config, tensors = _lora(model, adapter)
    elif kinds <= {PromptConfig, PrefixConfig} and len(adapter.configs) == 1:
        config, tensors = _virtual(model, adapter)
    elif kinds == {IA3Config}:
        config, tensors = _ia3(model, adapter)
    else:
        why = "PEFT has another form" if kinds & {VeRAConfig, MiSSConfig} else "PEFT has no form"
        raise ValueError(f"save_adapter: {why} for {adapter.kind}; format='minilora' keeps it")
    words = json.dumps({**_common(model), **config}, indent=2, sort_keys=True).encode()
    write_tensors(folder / WEIGHTS, {key: Stored.of(np.ascontiguousarray(array)) for key, array in tensors.items()})
    write_beside(folder / CONFIG, lambda file: file.write(words))
    return folder


def _common(model: Any) -> dict[str, Any]:
    """What every adapter_config.json has."""
    a = architecture_of(model)
    return {
        "base_model_name_or_path": model.source or None,
        "inference_mode": True,
        "task_type": "CAUSAL_LM" if a.causal and not model.labels else None,
        "revision": None,
    }


def _lora(model: Any, adapter: Adapter) -> tuple[dict[str, Any], Arrays]:
    """LoRA and DoRA: a pair for each of their modules, and what is trained beside."""
    first: Any = adapter.configs[0]
    for what in ("rank_stabilized", "dropout", "bias"):
        if len(values := {getattr(config, what) for config in adapter.configs}) > 1:
            raise ValueError(f"save_adapter: PEFT has one {what} for all layers, and these have {sorted(values)}")
    theirs = Theirs(model, bare=architecture_of(model).head == "none")
    known = {path for parts in theirs.places.values() for path, _ in parts}
    if odd := sorted(adapter.distinct().keys() - known):
        raise ValueError(f"save_adapter: PEFT's files have no name for {odd[0]}; format='minilora' keeps it")
    table = adapter.modules.get("wte")
    if theirs.masked and table is not None and (first.ensure_weight_tying or table.copied):
        raise ValueError("save_adapter: wte is trained for the masked head, too, and PEFT would train it alone")
    pairs, ranks, alphas = _pairs(model, theirs, adapter, first)
    beside, saved, whole = _beside(model, theirs, adapter, ranks)
    r, alpha = (max(list(found.values()), key=list(found.values()).count) for found in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": float(first.dropout),
        "target_modules": written_targets(list(ranks), theirs.kinds),
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != r},
        "alpha_pattern": {module: each for module, each in alphas.items() if each != alpha},
        "bias": first.bias,
        "use_rslora": bool(first.rank_stabilized),
        "use_dora": first.kind == "dora",
        "fan_in_fan_out": any(place.transposed for parts in theirs.places.values() for _, place in parts),
        "init_lora_weights": "gaussian" if first.init == "gaussian" else True,
        "modules_to_save": saved or None,
        **({"task_type": "SEQ_CLS"} if whole else {}),
        "ensure_weight_tying": theirs.tied and HEAD in {*ranks, *saved} and "embed_tokens" in " ".join(theirs.places),
    }, {PREFIX + name: value for name, value in (pairs | beside).items()}


def _pairs(
    model: Any, theirs: Theirs, adapter: Adapter, config: Any
) -> tuple[Arrays, dict[str, int], dict[str, float]]:
    """A and B, and DoRA's lengths, of each of their modules that has an adapted part; and its rank and its alpha."""
    layers = {path: m for path, m in adapter.distinct().items() if isinstance(m, LowRank)}
    tensors: Arrays = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, parts in theirs.places.items():
        if not any(path in layers for path, _ in parts):
            continue
        if module == HEAD and theirs.tied and not config.ensure_weight_tying:
            continue  # the update is for looking up alone
        A, B, s = _joined([layers.get(path) for path, _ in parts], [place.rows for _, place in parts])
        ranks[module] = len(A)
        alphas[module] = _alpha(s, len(A), [layers[path] for path, _ in parts if path in layers], config)
        if module == HEAD and theirs.tied:  # (B A)^T = A^T B^T
            tensors |= {f"{module}.lora_A.weight": B.T, f"{module}.lora_B.weight": A.T}
        elif theirs.kinds[module] == "table":
            tensors |= {f"{module}.lora_embedding_A": A, f"{module}.lora_embedding_B": B}
        else:
            tensors |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
        if config.kind == "dora":
            lengths = [_magnitude(model, layers.get(path), path) for path, _ in parts]
            tensors[f"{module}.lora_magnitude_vector"] = np.concatenate(lengths)
    return tensors, ranks, alphas


def _beside(model: Any, theirs: Theirs, adapter: Adapter, ranks: Any) -> tuple[Arrays, list[str], bool]:
    """What is trained beside, biases and whole modules, the names of these, and whether all of a head for labels is."""
    modules, own = adapter.distinct().items(), base_parameters(model)
    copied = {f"{path}.{name}": to_numpy(getattr(m, name).data) for path, m in modules for name in m.copied}
    in_full = {name.rpartition(".")[0] for name in copied if name.endswith(".weight")}
    names = tuple(name for name, parts in theirs.places.items() if any(path in in_full for path, _ in parts))
    meant = [path for name, parts in theirs.places.items() if names and name.endswith(names) for path, _ in parts]
    in_full |= {*meant}  # pre_classifier ends with classifier: PEFT wants both then
    copied = {n: to_numpy(p.data) for n, p in own.items() if n.rpartition(".")[0] in meant} | copied
    tensors: Arrays = {}
    saved: dict[str, None] = {}
    for name, value in theirs.theirs(copied, lambda name: to_numpy(own[name].data)):
        module, _, last = name.rpartition(".")
        if any(path in in_full for path, _ in theirs.places[module]):
            saved[module] = None
        elif all(getattr(config, "bias", "none") == "none" for config in adapter.configs):
            raise ValueError(
                f"save_adapter: {name} is trained, and PEFT has no module of it; format='minilora' keeps it"
            )
        tensors[f"{module}.base_layer.{last}" if module in ranks else name] = value
    if both := sorted(saved.keys() & ranks.keys()):
        raise ValueError(f"save_adapter: {both[0]} is in part adapted and in part trained in full; PEFT has no form")
    head = {name for name, parts in theirs.places.items() if parts[0][0].startswith("classifier")}
    if head and head <= saved.keys():  # PEFT trains and expects all of it where it is told of labels
        saved = dict.fromkeys("classifier" if name.startswith("classifier.") else name for name in saved)
        return tensors, list(saved), True
    return tensors, list(saved), False


def _joined(layers: list[Any], rows: list[slice | None]) -> tuple[np.ndarray, np.ndarray, float]:
    """A (r, d_in), B (d_out, r) and s of one matrix of theirs; a part of it that is not adapted has rows of zeros."""
    there = [(layer, place) for layer, place in zip(layers, rows, strict=True) if layer is not None]
    pairs = [tuple(to_numpy(p.data) for p in layer.factors()) for layer, _ in there]
    s = there[0][0].config.scale
    if len(layers) == 1:
        return *pairs[0], s
    alike = all(layer.config.scale == s for layer, _ in there)
    shared = alike and all(np.array_equal(A, pairs[0][0]) for A, _ in pairs)
    A = pairs[0][0] if shared else np.concatenate([A for A, _ in pairs])
    B = np.zeros((max(end.stop for end in rows if end is not None), len(A)), pairs[0][1].dtype)
    start = 0
    for (_, part), (layer, place) in zip(pairs, there, strict=True):
        B[place, start : start + part.shape[1]] = part if alike else part * (layer.config.scale / s)
        start += 0 if shared else part.shape[1]
    return A, B, s


def _alpha(s: float, rank: int, layers: list[Any], config: Any) -> float:
    """The alpha that gives this scale at this rank: the layer's own, where the rank is."""
    if rank == layers[0].config.rank:
        return layers[0].config.alpha
    return s * (math.sqrt(rank) if config.rank_stabilized else rank)


def _magnitude(model: Any, layer: Any, path: str) -> np.ndarray:
    """DoRA's lengths of a part's rows: trained, or those of W, which change nothing."""
    if layer is not None:
        return to_numpy(layer.magnitude.data)
    return np.sqrt((to_numpy(model.get_module(path).weight.data) ** 2).sum(axis=1))


def _ia3(model: Any, adapter: Adapter) -> tuple[dict[str, Any], Arrays]:
    """The numbers that stretch each of their matrices; a part of one that is not adapted is stretched by 1."""
    theirs = Theirs(model, bare=architecture_of(model).head == "none")
    layers = {path: m for path, m in adapter.distinct().items() if isinstance(m, IA3)}
    tensors: Arrays = {}
    inputs: list[str] = []
    for module, parts in theirs.places.items():
        there = [layers[path] for path, _ in parts if path in layers]
        if not there or (module == HEAD and theirs.tied):
            continue
        stretched = [to_numpy(layer.ia3_l.data) for layer in there]
        if any(layer.feedforward for layer in there):
            if len(there) < len(parts) or not all(np.array_equal(stretched[0], one) for one in stretched):
                raise ValueError(
                    f"save_adapter: inputs of parts of {module} are stretched apart, which PEFT has no form for"
                )
            inputs.append(module)
            tensors[f"{module}.ia3_l"] = stretched[0][None, :]  # (1, d_in)
            continue
        tensors[f"{module}.ia3_l"] = factor = np.ones((theirs.shape(module)[0], 1), stretched[0].dtype)  # (d_out, 1)
        for path, place in (one for one in parts if one[0] in layers):
            factor[place.rows or slice(None), 0] = to_numpy(layers[path].ia3_l.data)
    targets = [name.removesuffix(".ia3_l") for name in tensors]
    beside, saved, whole = _beside(model, theirs, adapter, dict.fromkeys(targets, 1))
    return {
        "peft_type": "IA3",
        "target_modules": written_targets(targets, theirs.kinds),
        "feedforward_modules": written_targets(inputs, theirs.kinds),
        "fan_in_fan_out": any(place.transposed for parts in theirs.places.values() for _, place in parts),
        "init_ia3_weights": True,
        "modules_to_save": saved or None,
        **({"task_type": "SEQ_CLS"} if whole else {}),
    }, {PREFIX + name: value for name, value in (tensors | beside).items()}


def _virtual(model: Any, adapter: Adapter) -> tuple[dict[str, Any], Arrays]:
    """A prompt (P, C), or a prefix: for each token, and each block, its key and its value; and what is trained beside.

    PEFT knows of virtual tokens by the task: on an encoder it leaves the output alone (FEATURE_EXTRACTION), or, where
    the whole head for labels is trained beside a prompt, wants it in the file (SEQ_CLS, which has no prefixes now).
    """
    front, a, (k, d) = adapter.modules["front"], architecture_of(model), model.cached_heads
    config = {"num_virtual_tokens": front.length, "num_layers": len(model.blocks), "num_transformer_submodules": 1}
    theirs = Theirs(model, bare=a.head == "none")
    beside, saved, whole = _beside(model, theirs, adapter, {})
    if not a.causal or model.labels:
        config["task_type"] = "SEQ_CLS" if whole and isinstance(front.config, PromptConfig) else "FEATURE_EXTRACTION"
    config["modules_to_save"] = saved or None
    tensors = {BARE + name: value for name, value in beside.items()}
    if isinstance(front.config, PromptConfig):
        init = "RANDOM" if front.config.init == "random" else "SAMPLE_VOCAB"
        sizes = {"token_dim": model.width, "num_attention_heads": a.heads}
        config |= {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": init, **sizes}
        return config, tensors | {PROMPT: to_numpy(front.prompt.data)}
    both = np.stack([to_numpy(x.data) for x in (front.keys, front.values)])  # (2, L, P, K D)
    sizes = {"token_dim": k * d, "num_attention_heads": k, "encoder_hidden_size": k * d}
    config |= {"peft_type": "PREFIX_TUNING", "prefix_projection": False, **sizes}
    return config, tensors | {PROMPT: both.transpose(2, 1, 0, 3).reshape(front.length, -1)}
