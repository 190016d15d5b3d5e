"""A PEFT folder is put on a model: its configuration in our words, its tensors under our names.

    theirs   transformer.h.3.attn.c_attn.lora_A.weight (r, C)    .lora_B.weight (3C, r)
    ours     blocks.3.attn.q_proj.lora_A (r, C), .lora_B (C, r), and as much of k_proj and v_proj

Where a matrix of theirs is several of ours, one over another, its A is one and its B's stand over another: each of ours
gets the same A and its rows of B, and together they compute what theirs does. The way out: `peft_saving.py`.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.adapter import Adapter
from ..adapters.attach import attach, build
from ..adapters.dora import DoRAConfig
from ..adapters.files import fill
from ..adapters.ia3 import IA3Config
from ..adapters.lora import LoRAConfig
from ..adapters.prefix import PrefixConfig
from ..adapters.prompt import PromptConfig
from ..adapters.state import brought, changeable, refuse_merged
from ..nn.layers import Linear
from ..nn.storage import blaming
from . import peft_files
from .pairs import AdapterFile, Pair
from .peft_config import check_fields, meant
from .peft_modules import HEAD, UNSURE, Arrays, Theirs, architecture_of


def load(model: Any, folder: Path, name: str = "default") -> Any:
    """Put an adapter of a PEFT folder on a model, under a name; returns the model.

    LoRA, DoRA and rsLoRA, PiSSA where it was converted, IA3, prompts and prefixes, with what is trained beside. Raises
    ValueError, and changes nothing, for what is no such folder, does not fit the model, or is not acted on here.
    """
    refuse_merged(changeable(model, "load_adapter"), "load_adapter")
    file = peft_files.read(folder)
    with blaming(folder):
        kind = file.config["peft_type"]
        if kind not in READERS:
            raise ValueError(f"peft_type = {kind!r} is not known here; {', '.join(READERS)} are")
        check_fields(file.config)

        def make() -> Adapter:
            config, arrays = READERS[kind](model, file)
            adapter = build("load_adapter", model, config, 0)
            fill(brought(model, adapter), arrays)
            return adapter

        return attach(model, name, make, "load_adapter")


def _lora(model: Any, file: AdapterFile) -> tuple[LoRAConfig, Arrays]:
    """The configuration and the numbers of a LoRA or DoRA."""
    config, theirs = file.config, Theirs(model)
    if any(theirs.prefix + name in theirs.places for name in file.matrices):
        theirs = Theirs(model, bare=True)
    arrays: Arrays = {}
    pairs: dict[str, Pair] = {}  # of each of our layers
    tied = _tie(theirs, file)
    matrices = {module: pair for module, pair in file.matrices.items() if not (tied and module == HEAD)}
    for module, pair in matrices.items():
        parts, shape = theirs.of(module), theirs.shape(module)
        if pair.shape != shape:
            raise ValueError(f"{module}: A and B are of a weight {pair.shape}, here it is {shape}; {UNSURE}")
        A, B = wide(pair.A), wide(pair.B)
        for path, place in parts:
            rows = place.rows or slice(None)
            pairs[path] = pair
            arrays |= {f"{path}.lora_A": A, f"{path}.lora_B": B[rows]}
            if pair.magnitude is not None:
                arrays[f"{path}.magnitude"] = wide(pair.magnitude.read()).reshape(-1)[rows]
    if odd := sorted((meant(config, theirs.kinds) ^ matrices.keys()) - ({HEAD} if tied else set())):
        which, has = ("does not mean", "are there") if odd[0] in matrices else ("means", "are missing")
        raise ValueError(f"its configuration {which} {odd[0]}, whose A and B {has}")
    beside, saved = _beside(theirs, file)
    r, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    kind = DoRAConfig if config.get("use_dora") else LoRAConfig
    return kind(
        rank=r,
        alpha=alpha,
        target_modules=_short(model, pairs),
        dropout=config.get("lora_dropout") or 0.0,
        init="gaussian" if config.get("init_lora_weights") == "gaussian" else "kaiming",
        rank_stabilized=bool(config.get("use_rslora")),
        rank_pattern={path: pair.rank for path, pair in pairs.items() if pair.rank != r},
        alpha_pattern={path: pair.alpha for path, pair in pairs.items() if pair.alpha != alpha},
        bias=config.get("bias") or "none",
        modules_to_save=tuple(saved),
        ensure_weight_tying=tied,
    ), arrays | beside


def _tie(theirs: Theirs, file: AdapterFile) -> bool:
    """Whether the updates of a tied table and of its head are one. Raises ValueError where the head has its own."""
    if not theirs.tied or HEAD not in file.matrices:
        return False
    head = file.matrices[HEAD]
    for pair in (pair for name, pair in file.matrices.items() if theirs.kinds.get(name) == "table"):
        alike = pair.scale == head.scale and np.array_equal(pair.A, head.B.T) and np.array_equal(pair.B, head.A.T)
        if theirs.of(pair.name)[0][0] == "wte" and alike:
            return True
    raise ValueError(f"it adapts {HEAD}, which this model ties to its embedding table, and the table otherwise, or not")


def _beside(theirs: Theirs, file: AdapterFile) -> tuple[Arrays, dict[str, None]]:
    """The numbers of what is trained beside A and B, under our names, and our modules that are trained in full.

    A base's own weight, which PEFT writes beside an adapted table, must be this base's. Raises ValueError for another
    one, and for what the configuration does not name.
    """
    wanted = file.config.get("modules_to_save") or ()
    wanted = [wanted] if isinstance(wanted, str) else [*wanted]
    along = theirs.tied and file.config.get("ensure_weight_tying") and not any(HEAD.endswith(part) for part in wanted)
    wanted += [HEAD] if along else []  # with its table
    arrays: Arrays = {}
    saved: dict[str, None] = {}
    for name, stored in file.others.items():
        if ".original_module." in name:  # the base's own, which bias = "all" takes along
            continue
        module, _, last = re.sub(r"\.(base_layer|modules_to_save)\.", ".", name).rpartition(".")
        ours = theirs.ours(f"{module}.{last}", wide(stored.read()))
        above = [module[:end] for end, letter in enumerate(module + ".") if letter == "."]
        if name.endswith(".base_layer.weight"):
            _require_same(theirs.model, name, ours, stored.dtype)
            continue
        if any(one.endswith(part) for part in wanted for one in above):
            saved |= dict.fromkeys(path for path, _ in theirs.of(module))
        elif last != "bias" or file.config.get("bias") in (None, "none"):
            raise ValueError(f"it holds {name}, which its configuration does not name in modules_to_save")
        if odd := [key for key in ours if key in arrays and not np.array_equal(arrays[key], ours[key])]:
            raise ValueError(f"{name} was trained apart from {odd[0]}, and this model ties the two")
        arrays |= ours
    if "wte" in saved and (theirs.masked or (theirs.tied and f"{HEAD}.weight" not in file.others)):
        raise ValueError(
            "modules_to_save: the embedding table was trained apart from the head, and this model ties the two"
        )
    held = {name.rpartition(".")[0] for name in file.others}
    meant_whole = [name for name in theirs.places if any(name.endswith(part) for part in wanted)]
    if lost := [
        name for name in meant_whole if name not in held and not (along and name == HEAD and "wte" not in saved)
    ]:
        raise ValueError(f"its configuration trains {lost[0]} in full (modules_to_save), and it does not hold it")
    return arrays, saved


def _require_same(model: Any, name: str, ours: Arrays, dtype: np.dtype) -> None:
    """Raise ValueError where a file holds another base's weight, rounded as it was."""
    for key, value in ours.items():
        path, _, last = key.rpartition(".")
        module = model.get_module(path)
        if last in module.packed():  # in few bits it is no more what it was
            continue
        held = wide(getattr(module, last).data.astype(dtype))
        if held.shape != value.shape or (held != value).any():
            raise ValueError(f"its {name} is another base model's: this one holds other numbers")


def _short(model: Any, pairs: Any) -> tuple[str, ...]:
    """The fewest names that mean these layers and no others: "q_proj", where every q_proj is one of them."""
    last = lambda path: path.rpartition(".")[2]
    others = {last(path) for path, m in model.named_modules() if isinstance(m, Linear) and path not in pairs}
    return tuple(dict.fromkeys(path if last(path) in others else last(path) for path in pairs))


def _prompt(model: Any, file: AdapterFile) -> tuple[PromptConfig, Arrays]:
    """The embeddings (P, C) of virtual tokens."""
    prompt, beside, saved = _virtual(model, file, "PROMPT_TUNING")
    init = "random" if file.config.get("prompt_tuning_init", "RANDOM") == "RANDOM" else "vocabulary"
    return PromptConfig(len(prompt), init, modules_to_save=saved), {"front.prompt": prompt} | beside


def _prefix(model: Any, file: AdapterFile) -> tuple[PrefixConfig, Arrays]:
    """The keys and values of virtual tokens: a row of theirs is a token's, for each block its key, then its value."""
    both, beside, saved = _virtual(model, file, "PREFIX_TUNING")
    layers, (k, d) = len(model.blocks), model.cached_heads
    if both.shape[1] != 2 * layers * k * d:
        has, wanted = (
            f"rows of {both.shape[1]} numbers",
            f"2 x {layers} blocks x {k} heads x {d} = {2 * layers * k * d}",
        )
        raise ValueError(f"prompt_embeddings has {has}, this model's cache takes {wanted}; {UNSURE}")
    keys, values = both.reshape(len(both), layers, 2, k * d).transpose(2, 1, 0, 3)  # (L, P, K D) each
    own = {"front.keys": keys, "front.values": values}
    return PrefixConfig(len(both), modules_to_save=saved), own | beside


def _virtual(model: Any, file: AdapterFile, kind: str) -> tuple[np.ndarray, Arrays, tuple[str, ...]]:
    """The one tensor of a prompt or a prefix, what is trained beside it, and our modules that are.

    Raises ValueError for another length than the configuration's.
    """
    others = {**file.others}
    if (stored := others.pop(peft_files.PROMPT, None)) is None:
        raise ValueError(f"it holds {', '.join(file.others) or 'nothing'}, expected prompt_embeddings of {kind}")
    found = wide(stored.read())
    if found.ndim != 2 or len(found) != file.config.get("num_virtual_tokens"):
        told = file.config.get("num_virtual_tokens")
        raise ValueError(f"prompt_embeddings has shape {found.shape}, its configuration num_virtual_tokens = {told}")
    if (file.config.get("num_transformer_submodules") or 1) != 1:
        raise ValueError("num_transformer_submodules = 2 is for a model with an encoder and a decoder")
    theirs = Theirs(model, bare=architecture_of(model).head == "none")
    beside, saved = _beside(theirs, replace(file, others=others))
    return found, beside, tuple(saved)


def _ia3(model: Any, file: AdapterFile) -> tuple[IA3Config, Arrays]:
    """The numbers that stretch: (1, d_in) in front of a matrix of theirs, (d_out, 1) behind one."""
    theirs, others = Theirs(model), {**file.others}
    held = {name.removesuffix(".ia3_l"): others.pop(name) for name in [*others] if name.endswith(".ia3_l")}
    arrays: Arrays = {}
    paths: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for module, stored in held.items():
        (d_out, d_in), factor = theirs.shape(module), wide(stored.read())
        if (shape := factor.shape) not in ((1, d_in), (d_out, 1)):
            raise ValueError(f"{module}.ia3_l has shape {shape}, expected (1, {d_in}) or ({d_out}, 1); {UNSURE}")
        inputs = shape == (1, d_in)
        for path, place in theirs.of(module):
            paths[inputs][path] = None
            arrays[f"{path}.ia3_l"] = factor.reshape(-1)[slice(None) if inputs else place.rows or slice(None)]
    if odd := sorted(meant(file.config, theirs.kinds) ^ held.keys()):
        which, has = ("does not mean", "is there") if odd[0] in held else ("means", "is missing")
        raise ValueError(f"its configuration {which} {odd[0]}, whose ia3_l {has}")
    beside, saved = _beside(theirs, replace(file, others=others))
    every = _short(model, paths[True] | paths[False])
    return IA3Config(every, _short(model, paths[True]), modules_to_save=tuple(saved)), arrays | beside


def wide(array: np.ndarray) -> np.ndarray:
    """At least float32: numbers of 16 bits, those that NumPy does not know among them, become so."""
    return array if array.dtype.kind == "f" and array.dtype.itemsize >= 4 else array.astype(np.float32)


READERS = {"LORA": _lora, "PROMPT_TUNING": _prompt, "PREFIX_TUNING": _prefix, "IA3": _ia3}
