"""PEFT's folder: adapter_config.json and adapter_model.safetensors, of PEFT 0.21's LoRA and of what it calls others."""

import difflib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..nn.checks import is_real, is_whole, shown
from .pairs import DORA, AdapterFile, Pair, fitting, require_rank
from .tensor_files import Stored, content, open_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
BARE = "base_model."  # where the base model is in no wrapper: beside virtual tokens
VIRTUAL, PROMPT = ("PROMPT_TUNING", "PREFIX_TUNING"), "prompt_embeddings"
PICKLED = (
    "and what is pickled may run any program as soon as it is opened, so it never is here; where you trust its author, "
    "PyTorch converts it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'adapter_model.safetensors')"
)
LINEAR = re.compile(r"(.+)\.(lora_A|lora_B)(?:\.([^.]+))?\.weight")  # X.lora_A.weight, or with the adapter's name
EMBEDDING = re.compile(r"(.+)\.(lora_embedding_A|lora_embedding_B)(?:\.([^.]+))?")
MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.([^.]+))??(?:\.weight)?")
TYPES = (  # PEFT 0.21's peft_type
    "ADALORA", "ADAMSS", "ADAPTION_PROMPT", "BEFT", "BOFT", "BONE", "C3A", "CARTRIDGE", "CPT", "DEFT", "DELORA",
    "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "LORA",
    "MISS", "MULTITASK_PROMPT_TUNING", "OFT", "OSF", "PEANUT", "POLY", "PREFIX_TUNING", "PROMPT_TUNING", "PSOFT",
    "PVERA", "P_TUNING", "RANDLORA", "ROAD", "SHADOW", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS",
    "UNILORA", "VBLORA", "VERA", "WAVEFT", "XLORA",
)  # fmt: skip
OTHER_UPDATES = (  # settings of LoRA under which A and B are something else than the factors of Delta W
    "target_parameters", "use_qalora", "use_bdlora", "monteclora_config", "kasa_config", "arrow_config",
)  # fmt: skip
RESIDUAL = ("pissa", "corda", "olora", "lora_ga", "loftq")  # starts that take B_0 A_0, or an error, out of W


def read(folder: Path) -> AdapterFile:
    """What a PEFT folder holds. Raises ValueError in one line for what is missing, pickled, or does not fit."""
    config = read_config(folder)
    tensors, _ = open_tensors(weights_file(folder))
    path, kind = folder / WEIGHTS, config["peft_type"]
    inside = PREFIX if kind not in VIRTUAL or PREFIX + PROMPT in tensors else BARE
    named = {name.removeprefix(inside): tensor for name, tensor in tensors.items()}
    method = "dora" if config.get("use_dora") else kind.lower()
    inputs = (folder / CONFIG, path)
    if kind != "LORA":
        return AdapterFile(folder, "peft", method, config, {}, named, (), inputs)
    if other := [name for name in OTHER_UPDATES if config.get(name)]:
        raise ValueError(f"{folder / CONFIG}: {other[0]} = {shown(config[other[0]])}: its update is no s B A")
    pairs, magnitudes, others = sort(path, named)
    if config.get("use_dora") and (bare := sorted(pairs.keys() - magnitudes.keys())):
        raise ValueError(f"{path}: {bare[0]} has no lora_magnitude_vector, which use_dora asks for")
    if not config.get("use_dora") and magnitudes:
        raise ValueError(f"{path}: {next(iter(magnitudes))} has a lora_magnitude_vector, and use_dora is not set")
    if not pairs:
        raise ValueError(f"{path} holds no lora_A and lora_B, among {len(named)} tensors")
    matrices = {}
    for kinds in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
        those = {module: halves for module, halves in pairs.items() if not halves.keys().isdisjoint(kinds)}
        for module, A, B in fitting(path, those, kinds):
            rank, alpha = settings(config, module, folder / CONFIG)
            require_rank(path, module, B.shape[1], rank)
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            what = "embedding" if "embedding" in kinds[0] else "linear" if len(A.shape) == 2 else "convolution"
            matrices[module] = Pair(module, A, B, alpha, scale, path, what, magnitudes.get(module))
    matrices = {module: matrices[module] for module in pairs}  # in the order of the file
    return AdapterFile(folder, "peft", method, config, matrices, others, notes(config), inputs, needs(config))


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, its numbers checked. Raises ValueError for what is none, and for an unknown peft_type."""
    path = folder / CONFIG
    if not path.is_file():
        inside = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}"))
        hint = f"; its folder {inside[0]!r} has one" if inside else ""
        raise FileNotFoundError(f"there is no {CONFIG} in {str(folder)!r}{hint}")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ValueError(f"{path} has no peft_type, which says what kind of adapter it is")
    if (kind := config["peft_type"].upper()) not in TYPES:
        close = difflib.get_close_matches(kind, TYPES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{path}: peft_type = {shown(config['peft_type'])} is no method of PEFT 0.21{hint}")
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(name) or {}, Mapping):
            raise ValueError(f"{path}: {name} = {shown(config[name])}, expected {{module: number}}")
    return {**config, "peft_type": kind}


def weights_file(folder: Path) -> Path:
    """adapter_model.safetensors. Raises ValueError where there is only a pickled one, FileNotFoundError for none."""
    if (path := folder / WEIGHTS).is_file() and content(path) != "pickle":
        return path
    for pickled in (path, folder / "adapter_model.bin", *sorted(folder.glob("*.bin")), *sorted(folder.glob("*.pt"))):
        if pickled.is_file():
            raise ValueError(f"{pickled} is pickled, {PICKLED}")
    raise FileNotFoundError(f"there is no {WEIGHTS} in {str(folder)!r}")


def sort(path: Path, named: Mapping[str, Stored]) -> tuple[dict, dict[str, Stored], dict[str, Stored]]:
    """({module: {half: tensor}}, {module: magnitude}, {name: any other tensor}).

    Raises ValueError where one matrix is there twice, or names hold more than one adapter's.
    """
    pairs: dict[str, dict[str, Stored]] = {}
    magnitudes, others, adapters = {}, {}, set()
    for name, tensor in named.items():
        if found := LINEAR.fullmatch(name) or EMBEDDING.fullmatch(name):
            module, half, adapter = found.groups()
            if half in pairs.setdefault(module, {}):
                raise ValueError(f"{path}: {module} has {half} twice")
            pairs[module][half] = tensor
            adapters.add(adapter or "default")
        elif found := MAGNITUDE.fullmatch(name):
            magnitudes[found[1]] = tensor
        else:
            others[name] = tensor
    if len(adapters) > 1:
        raise ValueError(
            f"{path} holds the matrices of several adapters: {', '.join(sorted(adapters))}; expected one's"
        )
    return pairs, magnitudes, others


def settings(config: Mapping[str, Any], module: str, path: Path) -> tuple[int, float]:
    """(r, alpha) of a module: those of the first pattern that means it, or those for all, as PEFT finds them."""
    found = []
    for name, usual, default in (("rank_pattern", "r", 8), ("alpha_pattern", "lora_alpha", 8)):
        value = config.get(usual, default)
        for pattern, special in (config.get(name) or {}).items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    value = special
                    break
            except re.error as error:
                raise ValueError(f"{path}: {name}: {shown(pattern)} is no regular expression: {error}") from None
        found.append(value)
    rank, alpha = found
    if not is_whole(rank) or rank < 1:
        raise ValueError(f"{path}: {module} has r = {shown(rank)}, expected a positive integer")
    if not is_real(alpha) or not math.isfinite(alpha):
        raise ValueError(f"{path}: {module} has lora_alpha = {shown(alpha)}, expected a number")
    return rank, alpha


def needs(config: Mapping[str, Any]) -> str:
    """Why a LoRA adapter's Delta W cannot be had without W; "" where it can."""
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(RESIDUAL):
        return f"it started from {start}, and s B A counts from the residual base that PEFT makes then, not from W"
    return DORA if config.get("use_dora") else ""


def notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader of a LoRA adapter's numbers should know."""
    acts = "aLoRA: the update acts from its invocation tokens on"
    return (acts,) if config.get("alora_invocation_tokens") else ()
