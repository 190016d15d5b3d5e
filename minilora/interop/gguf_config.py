"""What a GGUF file's facts mean, as the `config.json` that Hugging Face would have for the same model.

So there is one place, `nn/config_json.py`, that knows what a family's fields do. The keys are those of the GGUF
specification; what llama.cpp's code does and no fact says stands here. A fact about the architecture that is not acted
on is refused by name.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..nn.checks import shown, whole

FAMILIES = {  # llama.cpp's name of an architecture -> Hugging Face's model_type; a Mistral is written as a llama
    "gemma": "gemma", "gemma3": "gemma3_text", "gpt2": "gpt2", "llama": "llama", "phi3": "phi3", "qwen2": "qwen2",
    "qwen3": "qwen3",
}  # fmt: skip
FIELDS = {  # a fact of every architecture -> the field it is
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon", "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq", "attention.sliding_window": "sliding_window",
}  # fmt: skip
REQUIRED = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
_AGREES = ("vocab_size", "attention.value_length", "rope.dimension_count")  # with what is known from others
_SCALING = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scale_linear")
_NOTHING = ("rope.scaling.finetuned", "attention.causal")  # what they say changes nothing here


def config_of(facts: Mapping[str, Any], shapes: Mapping[str, tuple], factors: Any, called: str) -> dict[str, Any]:
    """The fields of a config.json. shapes: those of the file's tensors; factors: `rope_freqs`, or None.

    Raises ValueError for an architecture that is not known, and for facts that are missing or not acted on.
    """
    kind = facts.get("general.architecture")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"{called}: its architecture is {kind!r}, which is not known; {', '.join(FAMILIES)} are")
    said = {key.removeprefix(f"{kind}."): value for key, value in facts.items() if key.startswith(f"{kind}.")}
    for key in (key for key in FIELDS if key in said):
        if not key.endswith(("epsilon", "freq_base", "freq_base_swa")):
            whole(called, f"{kind}.{key}", said[key])
    if missing := [key for key in REQUIRED if key not in said]:
        raise ValueError(f"{called}: it does not say {kind}.{missing[0]}")
    known = {*FIELDS, *_AGREES, *_SCALING, *_NOTHING}
    if others := [key for key, value in said.items() if key not in known and value]:
        fact = f"{kind}.{others[0]} = {shown(said[others[0]])}"
        raise ValueError(f"{called}: {fact} would change the model, and is not acted on")
    config: dict[str, Any] = {"model_type": FAMILIES[kind], "tie_word_embeddings": "output.weight" not in shapes}
    config |= {FIELDS[key]: value for key, value in said.items() if key in FIELDS}
    config["vocab_size"] = shapes.get("token_embd.weight", (0,))[0]
    dim = said.get("attention.key_length", config["hidden_size"] // config["num_attention_heads"])
    for key, value in (("vocab_size", config["vocab_size"]), ("attention.value_length", dim)):
        if said.get(key, value) != value:
            raise ValueError(f"{called}: {kind}.{key} = {said[key]}, expected {value}")
    if (pad := facts.get("tokenizer.ggml.padding_token_id")) is not None:
        config["pad_token_id"] = pad
    if kind == "gpt2":
        config["n_inner"] = config.pop("intermediate_size")
        return config
    if kind == "llama":
        config["model_type"] = "mistral" if "sliding_window" in config else "llama"
        config["attention_bias"] = "blk.0.attn_output.bias" in shapes
        config["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    config["rope_theta"] = said.get("rope.freq_base", 10000.0)
    config["head_dim"] = dim
    if (turned := said.get("rope.dimension_count", dim)) != dim:
        config["partial_rotary_factor"] = turned / dim
    if kind == "gemma3":  # llama.cpp scales queries by the heads' width, but for the largest model's by C / H
        largest = said["block_count"] == 62
        config["query_pre_attn_scalar"] = config["hidden_size"] / config["num_attention_heads"] if largest else dim
    return config | _scaling(said, config, factors, f"{called}: {kind}")


def _scaling(said: Mapping[str, Any], config: Mapping[str, Any], factors: Any, called: str) -> dict[str, Any]:
    """How rotary positions are stretched: a type and a factor, or for Llama 3 the factor of each frequency."""
    if factors is not None:
        return {"rope_scaling": _llama3(factors, config, called)}
    linear = said.get("rope.scale_linear", 1.0)
    kind = said.get("rope.scaling.type", "none" if linear == 1 else "linear")
    if kind == "none":
        return {}
    if kind != "linear":
        raise ValueError(f"{called}.rope.scaling.type = {kind!r} is not known, expected 'none' or 'linear'")
    return {"rope_scaling": {"rope_type": "linear", "factor": said.get("rope.scaling.factor", linear)}}


def _llama3(factors: np.ndarray, config: Mapping[str, Any], called: str) -> dict[str, Any]:
    """The scaling whose formula gives these factors: long waves are slowed by the largest, short ones left alone.

    Published models have low 1, high 4 and 8192 as the length they were trained on first; no fact says so, so the
    factors are compared with those. Raises ValueError where they are others.
    """
    factor, low, high, original = float(np.max(factors)), 1.0, 4.0, 8192
    dim = config["head_dim"]
    waves = 2 * math.pi * config["rope_theta"] ** (np.arange(0, dim, 2) / dim)  # tokens a turn takes
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise ValueError(
            f"{called}: its rope_freqs are not those of Llama 3 with factor {factor:g}, and no others are known"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
