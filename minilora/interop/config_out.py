"""The `config.json` that says an architecture, so that transformers builds the same model from it.

It is what `nn/config_json.py` reads, and read again before it is written: what a family's file cannot say is refused.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..nn.architectures import Architecture, from_hugging_face
from ..nn.checks import shown
from ..nn.config_json import ACTIVATIONS

CLASSES = {  # transformers' class -> (model_type, head of an encoder)
    "GPT2LMHeadModel": ("gpt2", ""), "LlamaForCausalLM": ("llama", ""), "MistralForCausalLM": ("mistral", ""),
    "Phi3ForCausalLM": ("phi3", ""), "Qwen2ForCausalLM": ("qwen2", ""), "Qwen3ForCausalLM": ("qwen3", ""),
    "GemmaForCausalLM": ("gemma", ""), "Gemma3ForCausalLM": ("gemma3_text", ""),
    "BertModel": ("bert", "none"), "BertForMaskedLM": ("bert", "masked"),
    "BertForSequenceClassification": ("bert", "labels"), "BertForPreTraining": ("bert", "masked"),
    "RobertaModel": ("roberta", "none"), "RobertaForMaskedLM": ("roberta", "masked"),
    "RobertaForSequenceClassification": ("roberta", "labels"),
    "DistilBertModel": ("distilbert", "none"), "DistilBertForMaskedLM": ("distilbert", "masked"),
    "DistilBertForSequenceClassification": ("distilbert", "labels"),
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # of several names the first


def with_head(a: Architecture, config: Mapping[str, Any]) -> Architecture:
    """An encoder's architecture with the head that its config.json names; a decoder's as it is.

    Raises ValueError for a head that is not known.
    """
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else ""
    if a.causal or not name:
        return a
    family, head = CLASSES.get(str(name), ("", ""))
    if family != a.family:
        known = ", ".join(name for name, (family, _) in CLASSES.items() if family == a.family)
        raise ValueError(f"{a.name}: architectures = {shown(named)} is not known for {a.family}, expected {known}")
    labels = config.get("num_labels", len(config.get("id2label") or ()) or 2) if head == "labels" else 0
    pooler = a.pooler and (head == "none" or (head == "labels" and a.family == "bert"))
    return dataclasses.replace(a, head=head, labels=labels, pooler=pooler)


def labels_of(a: Architecture, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels' names in a config.json; () where they are "LABEL_0" and so on, which says no more than a number.

    Raises ValueError for names that are not those of 0, 1, ...
    """
    names = config.get("id2label") if a.head == "labels" else None
    if not names:
        return ()
    try:
        found = {int(number): name for number, name in names.items()}
        in_order = tuple(found[i] for i in range(a.labels))
    except (AttributeError, TypeError, ValueError, KeyError):
        raise ValueError(
            f"{a.name}: id2label = {shown(names)}, expected a name for each of 0 to {a.labels - 1}"
        ) from None
    if not all(isinstance(name, str) for name in in_order) or len({*in_order}) < a.labels:
        raise ValueError(f"{a.name}: id2label = {shown(names)}, expected texts, no two alike")
    return () if in_order == _unnamed(a.labels) else in_order


def _unnamed(count: int) -> tuple[str, ...]:
    """What transformers calls labels that have no names."""
    return tuple(f"LABEL_{i}" for i in range(count))


def config_for(a: Architecture, labels: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a config.json; labels: what an encoder's are called.

    Raises ValueError where they would not say this architecture.
    """
    head = "" if a.causal else a.head
    name = next((name for name, said in CLASSES.items() if said == (a.family, head)), None)
    if name is None:
        known = ", ".join(dict.fromkeys(family for family, _ in CLASSES.values()))
        raise ValueError(f"save_pretrained: {a.name} is of the family {a.family!r}, expected {known}")
    config = {"architectures": [name], "model_type": a.family, "vocab_size": a.vocab_size, "pad_token_id": a.pad_id}
    config |= {"tie_word_embeddings": a.head != "untied"}
    write = {"gpt2": _gpt2, "bert": _bert, "roberta": _bert, "distilbert": _distilbert}.get(a.family, _llama)
    config |= write(a)
    if a.labels:
        names = tuple(labels) or _unnamed(a.labels)
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    understood = with_head(from_hugging_face(config, a.name), config)
    for field in dataclasses.fields(a):
        ours, theirs = (_plain(each, field.name) for each in (a, understood))
        if ours != theirs and field.name != "bits":
            came = f"save_pretrained: {a.name} has {field.name} = {ours!r}"
            raise ValueError(f"{came}, which the config.json of a {a.family} cannot say: there it is {theirs!r}")
    return config


def _plain(a: Architecture, field: str) -> Any:
    """A field's value, with its default spelled out."""
    spelled: dict[str, Callable[[], Any]] = {
        "head_dim": lambda: a.dim,
        "kv_heads": lambda: a.key_value_heads,
        "query_scale": lambda: a.query_scale or a.dim**-0.5,
        "full_layers": lambda: [i for i in range(a.layers) if not a.slides(i)],
        "rope_original": lambda: a.rope_original if a.rope_scaling == "llama3" else 0,
    }
    return spelled[field]() if field in spelled else getattr(a, field)


def _gpt2(a: Architecture) -> dict[str, Any]:
    return {
        "n_positions": a.positions,
        "n_embd": a.width,
        "n_layer": a.layers,
        "n_head": a.heads,
        "n_inner": a.mlp_width,
        "activation_function": _NAMES[a.activation],
        "layer_norm_epsilon": a.norm_eps,
        "scale_attn_weights": a.query_scale != 1,
    }


def _bert(a: Architecture) -> dict[str, Any]:
    return {
        "hidden_size": a.width,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "intermediate_size": a.mlp_width,
        "max_position_embeddings": a.positions,
        "type_vocab_size": a.token_types,
        "layer_norm_eps": a.norm_eps,
        "hidden_act": _NAMES[a.activation],
    }


def _distilbert(a: Architecture) -> dict[str, Any]:
    return {
        "dim": a.width,
        "n_layers": a.layers,
        "n_heads": a.heads,
        "hidden_dim": a.mlp_width,
        "max_position_embeddings": a.positions,
        "activation": _NAMES[a.activation],
    }


def _llama(a: Architecture) -> dict[str, Any]:
    config: dict[str, Any] = {
        "hidden_size": a.width,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.key_value_heads,
        "head_dim": a.dim,
        "intermediate_size": a.mlp_width,
        "max_position_embeddings": a.context,
        "rms_norm_eps": a.norm_eps,
        "hidden_act": _NAMES[a.activation],
        "attention_bias": a.qkv_bias,
        "mlp_bias": a.mlp_bias,
        "rope_theta": a.rope_base,
        "rope_scaling": _scaling(a),
    }
    if a.rope_fraction != 1:
        config["partial_rotary_factor"] = a.rope_fraction
    if a.family.startswith("gemma"):
        act = "gelu_pytorch_tanh" if a.activation == "gelu_tanh" else config["hidden_act"]
        config["hidden_activation"] = config["hidden_act"] = act  # an old and a new name
    if a.family in ("mistral", "phi3"):
        config["sliding_window"] = a.window or None
    if a.family in ("qwen2", "qwen3", "gemma3_text"):
        config["layer_types"] = [f"{'sliding' if a.slides(i) else 'full'}_attention" for i in range(a.layers)]
        config["sliding_window"] = a.window or None
    if a.family in ("qwen2", "qwen3"):
        config["use_sliding_window"] = a.window > 0
        config["max_window_layers"] = min((i for i in range(a.layers) if a.slides(i)), default=a.layers)
    if a.family == "gemma3_text":
        del config["hidden_act"]
        config |= {
            "rope_local_base_freq": a.rope_local_base,
            "query_pre_attn_scalar": round((a.query_scale or a.dim**-0.5) ** -2),
        }
    return config


def _scaling(a: Architecture) -> dict[str, Any] | None:
    """How rotary positions are stretched, under the names of transformers 4 and 5."""
    if not a.rope_scaling:
        return None
    found: dict[str, Any] = {"rope_type": a.rope_scaling, "factor": a.rope_factor}
    if a.rope_scaling == "llama3":
        found |= {"low_freq_factor": a.rope_low, "high_freq_factor": a.rope_high}
        found["original_max_position_embeddings"] = a.rope_original
    return found
