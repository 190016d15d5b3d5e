"""PEFT's adapter_config.json: what its fields mean here, and which of them are not acted on, and so are refused."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..nn.checks import shown
from .peft_files import RESIDUAL

LORA = (  # what a LoRA's file says of what it does, all of it acted on
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "bias", "use_rslora",
    "use_dora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "ensure_weight_tying",
)  # fmt: skip
VIRTUAL = (  # and what a prompt's or a prefix's does
    "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
    "prompt_tuning_init", "modules_to_save",
)  # fmt: skip
IA3 = ("target_modules", "feedforward_modules", "exclude_modules", "fan_in_fan_out", "modules_to_save")
WITHOUT_EFFECT = (  # what says where a file is from, how the training began, or how it is computed
    "peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version",
    "megatron_core", "qalora_group_size", "runtime_config", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "velora_config", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    "encoder_hidden_size", "prefix_projection", "init_weights", "init_ia3_weights",
)  # fmt: skip


def check_fields(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a field that is set and not acted on, by its name; False, null and {} are as if left out."""
    known = {*WITHOUT_EFFECT, *{"LORA": LORA, "IA3": IA3}.get(config["peft_type"], VIRTUAL)}
    for name, value in config.items():
        if name not in known and value not in (None, False, [], {}, ""):
            raise ValueError(f"{name} = {shown(value)} is not acted on here: the outputs would be others than PEFT's")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(RESIDUAL):
        fix = "PEFT converts it: model.save_pretrained(folder, path_initial_model_for_weight_conversion=START)"
        raise ValueError(f"init_lora_weights = {start!r}: A and B belong to a base less its first B A, not to W; {fix}")


def meant(config: Mapping[str, Any], modules: Mapping[str, str]) -> set[str]:
    """Of a base model's modules, {name: "linear", "table" or "output"}, those that a LoRA's file targets, as PEFT does.

    A list means names and last parts of names, and of these the layers that layers_to_transform numbers; a text is a
    regular expression on whole names, or "all-linear", which leaves out the output layer. Raises ValueError for a
    regular expression that is none.
    """
    wanted, left_out = config.get("target_modules"), config.get("exclude_modules") or ()
    saved = config.get("modules_to_save") or ()
    try:
        if isinstance(wanted, str) and wanted.lower() == "all-linear":
            found = {name for name, kind in modules.items() if kind == "linear"}
        elif isinstance(wanted, str):
            found = {name for name in modules if re.fullmatch(wanted, name)}
        else:
            found = {name for name in modules if ends_with(name, wanted or ()) and _in_layers(config, name)}
        if isinstance(left_out, str):
            found = {name for name in found if not re.fullmatch(left_out, name)}
        return {
            name
            for name in found
            if not (ends_with(name, left_out) or any(re.match(rf"(^|.*\.){part}($|\..*)", name) for part in saved))
        }
    except re.error as error:
        raise ValueError(f"target_modules = {shown(wanted)} is no regular expression: {error}") from None


def ends_with(name: str, parts: Iterable[str]) -> bool:
    """Whether a name is one of these, or ends with a dot and one of them."""
    return any(name == part or name.endswith(f".{part}") for part in ([] if isinstance(parts, str) else parts))


def _in_layers(config: Mapping[str, Any], name: str) -> bool:
    """Whether a name's first number is one of layers_to_transform; behind one of layers_pattern, where that is set."""
    wanted, before = config.get("layers_to_transform"), config.get("layers_pattern") or r"[^.]*"
    if wanted is None or wanted == []:
        return True
    before = [before] if isinstance(before, str) else before
    found = [re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name) for pattern in before]
    layers = wanted if isinstance(wanted, list) else [wanted]
    return any(match is not None and int(match[1]) in layers for match in found)


def written_targets(targets: list[str], modules: Iterable[str]) -> list[str]:
    """The shortest list that means these modules and none of the others: "attn.c_attn" where every block's is one."""
    inside = lambda name: found[1] if (found := re.match(r".*?\.\d+\.(.+)", name)) else name
    others = {inside(name) for name in set(modules) - set(targets)}
    return list(dict.fromkeys(name if inside(name) in others else inside(name) for name in targets))
