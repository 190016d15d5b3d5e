"""Hugging Face's `config.json`: which sizes of a transformer its fields mean, and which fields are not understood.

A field that is left out has transformers' default for that family; one that would change the parameters and is not
acted on is refused by name, so that what is counted is what transformers builds. Decoders are read with their
language-model head, encoders as the bare model.
"""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checks import unknown, whole

_BERT: dict[str, Any] = dict(
    vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
    max_position_embeddings=512, type_vocab_size=2,
)  # fmt: skip
_LLAMA: dict[str, Any] = dict(
    vocab_size=32000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008,
    max_position_embeddings=2048, num_key_value_heads=None, head_dim=None, attention_bias=False, mlp_bias=False,
    tie_word_embeddings=False,
)  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {  # what transformers 5.24 takes where a family's file leaves a field out
    "bert": _BERT,
    "deberta-v2": {
        **_BERT, "vocab_size": 128100, "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24,
        "intermediate_size": 6144, "type_vocab_size": 0, "max_relative_positions": -1, "position_buckets": -1,
        "position_biased_input": True, "relative_attention": False, "share_att_key": False, "norm_rel_ebd": "none",
        "conv_kernel_size": 0,
    },
    "gemma": {
        **_LLAMA, "vocab_size": 256000, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "intermediate_size": 24576, "max_position_embeddings": 8192, "num_key_value_heads": 16, "head_dim": 256,
        "tie_word_embeddings": True,
    },
    "gpt2": dict(
        vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12, n_inner=None, tie_word_embeddings=True
    ),
    "llama": _LLAMA,
    "mistral": {
        **_LLAMA, "intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8
    },
    "qwen2": {
        **_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768,
        "num_key_value_heads": 32, "attention_bias": True,
    },
    "roberta": {**_BERT, "vocab_size": 50265, "pad_token_id": 1},
}  # fmt: skip
FAMILIES = tuple(DEFAULTS)
# What would change a model's parameters and is not counted, with the only value that is.
_FIXED: dict[str, Any] = {
    "add_cross_attention": False, "position_embedding_type": "absolute", "pruned_heads": {}, "per_layer_config": {},
    "conv_groups": 1,
}  # fmt: skip
_NO_BIAS, _BIAS = ({"attention_bias": have, "mlp_bias": have} for have in (False, True))
_FIXED_OF: dict[str, dict[str, Any]] = {
    "bert": _BIAS,
    "deberta-v2": {**_BIAS, "relative_attention": True, "share_att_key": True},
    "gemma": {"mlp_bias": False},
    "gpt2": _BIAS,
    "llama": {},
    "mistral": _NO_BIAS,
    "qwen2": {"attention_bias": True, "mlp_bias": False},  # always on q, k and v, never on o
    "roberta": _BIAS,
}


def read_config(config: Any, name: str | None = None) -> dict[str, Any]:
    """The arguments of `Architecture` that a `config.json` means: a dictionary, or the path of the file.

    Raises FileNotFoundError, or ValueError for a file that is no such configuration, for another model_type, for a
    value of the wrong kind, and for a field that would change what is counted in a way that is not known.
    """
    if not isinstance(config, Mapping):
        path = Path(config)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a config.json: {error}") from None
        if not isinstance(config, dict):
            raise ValueError(f"{path} is not a config.json: it holds a {type(config).__name__}, expected an object")
        name = name or path.parent.name or path.stem
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        letters = lambda text: (text[:1].lower(), set(text.lower()) - set("-_ "))  # mixtral, gemma2, mllama: no slips
        close = [known for known in FAMILIES if letters(known) == letters(str(family))]
        raise ValueError(unknown("model_type", str(family), list(FAMILIES), close))
    given = config.get("_name_or_path")
    name = name or (given if isinstance(given, str) and given.isprintable() else "") or family
    values = {**DEFAULTS[family], **config}
    read = {"gpt2": _read_gpt2, "bert": _read_bert, "roberta": _read_bert, "deberta-v2": _read_deberta}
    return {"name": name, "family": family, **read.get(family, _read_llama)(_Fields(name, family, values))}


class _Fields:
    """The fields of a config.json, each checked as it is read."""

    def __init__(self, name: str, family: str, values: dict[str, Any]):
        self.name, self.family, self.values = name, family, values
        for field, only in {**_FIXED, **_FIXED_OF[family]}.items():
            self.fixed(field, only)

    def fixed(self, field: str, only: Any) -> None:
        """Refuse a field that has another value than the one which is counted; null is as good as left out."""
        if (value := self.values.get(field)) is None:
            value = DEFAULTS[self.family].get(field, only)
        if value != only or type(value) is not type(only):
            came = f"{self.name}: {field} = {reprlib.repr(value)}"
            raise ValueError(f"{came} is not known for {self.family}, expected {only!r}")

    def whole(self, field: str, least: int = 1) -> int:
        """An integer of at least `least`."""
        return whole(self.name, field, self.values[field], least)

    def whole_or_none(self, field: str) -> int | None:
        """A positive integer, or None where the file says null."""
        return None if self.values[field] is None else self.whole(field)

    def flag(self, field: str) -> bool:
        """True or False."""
        if not isinstance(value := self.values[field], bool):
            raise ValueError(f"{self.name}: {field} = {reprlib.repr(value)}, expected true or false")
        return value

    def sizes(self, width: str, layers: str, heads: str) -> dict[str, Any]:
        """The sizes that every family has. What some call by a name of its own must agree with them."""
        c, h = self.whole(width), self.whole(heads)
        self.fixed("embedding_size", c)
        if "head_dim" not in DEFAULTS[self.family]:
            self.fixed("head_dim", c // h)
            self.fixed("num_key_value_heads", h)
            self.fixed("attention_head_size", c // h)
        return {"vocab_size": self.whole("vocab_size"), "width": c, "layers": self.whole(layers), "heads": h}


def _read_gpt2(c: _Fields) -> dict[str, Any]:
    either = lambda common, own: common if common in c.values else own  # transformers reads both, the common one first
    sizes = c.sizes(
        either("hidden_size", "n_embd"), either("num_hidden_layers", "n_layer"), either("num_attention_heads", "n_head")
    )
    rows = c.whole(either("max_position_embeddings", "n_positions"))
    inner = c.whole_or_none("n_inner") or 4 * sizes["width"]
    head = "tied" if c.flag("tie_word_embeddings") else "untied"
    return dict(**sizes, mlp_width=inner, context=rows, positions=rows, head=head)


def _sizes(c: _Fields) -> dict[str, Any]:
    """The sizes that every family but GPT-2 calls by the same names."""
    sizes = c.sizes("hidden_size", "num_hidden_layers", "num_attention_heads")
    return {**sizes, "mlp_width": c.whole("intermediate_size")}


_ENCODER: dict[str, Any] = dict(head="none", final_norm=False, embedding_norm=True)


def _read_bert(c: _Fields) -> dict[str, Any]:
    reserved = c.whole("pad_token_id", 0) + 1 if c.family == "roberta" else 0  # positions begin after the padding's
    rows, types = c.whole("max_position_embeddings", reserved + 1), c.whole("type_vocab_size", 0)
    parts: dict[str, Any] = dict(context=rows - reserved, positions=rows, token_types=types, pooler=True)
    return dict(**_sizes(c), **parts, **_ENCODER)


def _read_deberta(c: _Fields) -> dict[str, Any]:
    norms = [word.strip() for word in str(c.values["norm_rel_ebd"]).lower().split("|")]
    if "layer_norm" not in norms:
        came = f"{c.name}: norm_rel_ebd = {reprlib.repr(c.values['norm_rel_ebd'])}"
        raise ValueError(f"{came} is not known for deberta-v2, expected 'layer_norm'")
    context, least = c.whole("max_position_embeddings"), -(2**63)  # less than 1 stands for "not given"
    buckets, farthest = c.whole("position_buckets", least), c.whole("max_relative_positions", least)
    return dict(
        **_sizes(c),
        context=context,
        positions=context if c.flag("position_biased_input") else 0,
        token_types=c.whole("type_vocab_size", 0),
        relative_positions=2 * next(size for size in (buckets, farthest, context) if size > 0),
        conv_kernel=c.whole("conv_kernel_size", 0),
        **_ENCODER,
    )


def _read_llama(c: _Fields) -> dict[str, Any]:
    bias = c.flag("attention_bias")
    return dict(
        **_sizes(c),
        context=c.whole("max_position_embeddings"),
        kv_heads=c.whole_or_none("num_key_value_heads") or c.whole("num_attention_heads"),
        head_dim=c.whole_or_none("head_dim"),
        gated=True,
        qkv_bias=bias,
        o_bias=bias and c.family != "qwen2",
        mlp_bias=c.flag("mlp_bias"),
        norm_bias=False,
        head="tied" if c.flag("tie_word_embeddings") else "untied",
    )
