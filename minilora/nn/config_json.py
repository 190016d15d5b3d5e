"""Hugging Face's `config.json`: which transformer its fields mean, and which fields are not understood.

A field that is left out has transformers' default for that family; one that would change the model and is not acted on
is refused by name, so that what is counted and run is what transformers builds. Decoders are read with their
language-model head, encoders as the bare model. Dropout is no part of an architecture, and not read.
"""

import json
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checks import is_real, unknown, whole
from .config_defaults import DEFAULTS, ENCODER, FAMILIES, FIXED, FIXED_OF, OWN

# A field that is not read is refused where its name speaks of what is computed, unless it speaks of these.
_COMPUTES = re.compile(
    "expert|moe|router|cross|softcap|rope|rotary|scal|multiplier|window|att|norm|head|layer|hidden|bias|mask|sink|clip"
    "|residual|tie_|tied|mlp|ffn|parallel|quant|conv|ssm|state|activation|embed|position|pattern|chunk|interleave|spars"
)
_ASIDE = re.compile(
    "drop|_token|^summary_|^output_|attn_implementation|^chunk_size_feed_forward$|^pooler_|^classifier_"
    "|^tie_word_embeddings$|^tie_weights_$|^head_dim$|^num_key_value_heads$|^attention_head_size$|^embedding_size$"
)
ACTIVATIONS = {  # transformers' names for them
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu", "swish": "silu",
    "relu": "relu",
}  # fmt: skip
_SCALINGS = {  # of rotary positions, with the fields that each has
    "default": (), "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}  # fmt: skip


def read_config(config: Any, name: str | None = None) -> dict[str, Any]:
    """The arguments of `Architecture` that a `config.json` means: a dictionary, or the path of the file.

    Of a gemma3, which also sees, this is the language model. Raises FileNotFoundError, or ValueError for a file that is
    no such configuration, for another model_type, for a value of the wrong kind, and for a field that would change the
    model in a way that is not known.
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
    given = config.get("_name_or_path")
    if config.get("model_type") == "gemma3" and isinstance(config.get("text_config"), Mapping):
        config = {"model_type": "gemma3_text", **config["text_config"]}
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        letters = lambda text: (text[:1].lower(), set(text.lower()) - set("-_ "))  # mixtral, gemma2, mllama: no slips
        close = [known for known in FAMILIES if letters(known) == letters(str(family))]
        raise ValueError(unknown("model_type", str(family), list(FAMILIES), close))
    name = name or (given if isinstance(given, str) and given.isprintable() else "") or family
    read = {"gpt2": _read_gpt2, "bert": _read_bert, "roberta": _read_bert, "distilbert": _read_distilbert}
    fields = _Fields(name, family, {**DEFAULTS[family], **config})
    found = {
        **read.get(family, _read_deberta if family == "deberta-v2" else _read_llama)(fields),
        **OWN.get(family, {}),
    }
    if family != "deberta-v2":  # which is counted, and not run
        fields.refuse_others(config)
    return {"name": name, "family": family, **found}


class _Fields:
    """The fields of a config.json, each checked as it is read."""

    def __init__(self, name: str, family: str, values: dict[str, Any]):
        self.name, self.family, self.values = name, family, values
        self.read: set[str] = set()
        for field, only in {**FIXED, **FIXED_OF[family]}.items():
            self.fixed(field, only)

    def value(self, field: str) -> Any:
        """What the file says, or the family's default."""
        self.read.add(field)
        return self.values.get(field)

    def wrong(self, field: str, value: Any, expected: str) -> ValueError:
        """The error about a value that will not do."""
        return ValueError(f"{self.name}: {field} = {reprlib.repr(value)}, expected {expected}")

    def not_known(self, field: str, value: Any, expected: str) -> ValueError:
        """The error about a choice that is not acted on."""
        came = f"{self.name}: {field} = {reprlib.repr(value)}"
        return ValueError(f"{came} is not known for {self.family}, expected {expected}")

    def fixed(self, field: str, only: Any) -> None:
        """Refuse a field that has another value than the one which is acted on; null is as good as left out."""
        if (value := self.value(field)) is None:
            value = DEFAULTS[self.family].get(field, only)
        if value != only or type(value) is not type(only):
            raise self.not_known(field, value, repr(only))

    def refuse_others(self, given: Mapping[str, Any]) -> None:
        """Refuse what the file says of the computation, and was not read."""
        for field, value in given.items():
            if field not in self.read and value and _COMPUTES.search(field) and not _ASIDE.search(field):
                raise self.not_known(field, value, "none")

    def whole(self, field: str, least: int = 1) -> int:
        """An integer of at least `least`."""
        return whole(self.name, field, self.value(field), least)

    def whole_or_none(self, field: str, least: int = 1) -> int | None:
        """An integer of at least `least`, or None where the file says null."""
        return None if self.value(field) is None else self.whole(field, least)

    def flag(self, field: str) -> bool:
        """True or False."""
        if not isinstance(value := self.value(field), bool):
            raise self.wrong(field, value, "true or false")
        return value

    def number(self, field: str, values: Mapping[str, Any] | None = None) -> float:
        """A number above 0; of a table within the file, where one is given."""
        value: Any = self.value(field) if values is None else values.get(field)
        if not is_real(value) or not 0 < value < float("inf"):
            raise self.wrong(field, value, "a number above 0")
        return float(value)

    def table(self, field: str, value: Any) -> dict[str, Any]:
        """An object within the file; null is an empty one."""
        if not isinstance(value, Mapping | None):
            raise self.wrong(field, value, "an object or null")
        return dict(value or {})

    def activation(self, field: str) -> str:
        """Our name for the MLP's activation."""
        value = self.value(field)
        if value == "gelu" and self.family == "gemma":  # of old files, and meant the other one: transformers #29402
            value = "gelu_pytorch_tanh"
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.not_known(field, value, f"one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def either(self, **common: str) -> list[str]:
        """Which of a family's own name and the common one a file has: transformers reads both, the common one first."""
        self.read |= {*common, *common.values()}
        return [name if name in self.values else own for own, name in common.items()]

    def sizes(self, width: str, layers: str, heads: str, mlp_width: str | None = None) -> dict[str, Any]:
        """The sizes that every family has. What some call by a name of its own must agree with them."""
        c, h = self.whole(width), self.whole(heads)
        self.fixed("embedding_size", c)
        if "head_dim" not in DEFAULTS[self.family]:
            self.fixed("head_dim", c // h)
            self.fixed("num_key_value_heads", h)
            self.fixed("attention_head_size", c // h)
        found = {"vocab_size": self.whole("vocab_size"), "width": c, "layers": self.whole(layers), "heads": h}
        return found if mlp_width is None else {**found, "mlp_width": self.whole(mlp_width)}


_COMMON = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")  # most families' names


def _read_gpt2(c: _Fields) -> dict[str, Any]:
    sizes = c.sizes(*c.either(n_embd="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads"))
    rows = c.whole(c.either(n_positions="max_position_embeddings")[0])
    return dict(
        **sizes,
        mlp_width=c.whole_or_none("n_inner") or 4 * sizes["width"],
        context=rows,
        positions=rows,
        head="tied" if c.flag("tie_word_embeddings") else "untied",
        norm_eps=c.number("layer_norm_epsilon"),
        activation=c.activation("activation_function"),
        query_scale=0.0 if c.flag("scale_attn_weights") else 1.0,
        pad_id=c.whole_or_none("pad_token_id", 0),
    )


def _read_bert(c: _Fields) -> dict[str, Any]:
    pad = c.whole_or_none("pad_token_id", 0)
    if pad is None and c.family == "roberta":
        raise c.wrong("pad_token_id", pad, "an integer: positions begin after it")
    reserved = pad + 1 if pad is not None and c.family == "roberta" else 0  # positions begin after the padding's
    rows, types = c.whole("max_position_embeddings", reserved + 1), c.whole("type_vocab_size", 0)
    parts: dict[str, Any] = dict(context=rows - reserved, positions=rows, token_types=types, pooler=True, pad_id=pad)
    eps, activation = c.number("layer_norm_eps"), c.activation("hidden_act")
    own = {**ENCODER, **parts, "norm_eps": eps, "activation": activation, "causal": c.flag("is_decoder")}
    return {**c.sizes(*_COMMON), **own}


def _read_distilbert(c: _Fields) -> dict[str, Any]:
    rows, activation = c.whole("max_position_embeddings"), c.activation("activation")
    width, depth, heads = c.either(dim="hidden_size", n_layers="num_hidden_layers", n_heads="num_attention_heads")
    sizes = c.sizes(width, depth, heads, "hidden_dim")
    parts: dict[str, Any] = dict(context=rows, positions=rows, pad_id=c.whole_or_none("pad_token_id", 0))
    return dict(**sizes, **parts, norm_eps=1e-12, activation=activation, **ENCODER)


def _read_deberta(c: _Fields) -> dict[str, Any]:
    norms = [word.strip() for word in str(c.value("norm_rel_ebd")).lower().split("|")]
    if "layer_norm" not in norms:
        raise c.not_known("norm_rel_ebd", c.value("norm_rel_ebd"), "'layer_norm'")
    context, least = c.whole("max_position_embeddings"), -(2**63)  # less than 1 stands for "not given"
    buckets, farthest = c.whole("position_buckets", least), c.whole("max_relative_positions", least)
    return dict(
        **c.sizes(*_COMMON),
        context=context,
        positions=context if c.flag("position_biased_input") else 0,
        token_types=c.whole("type_vocab_size", 0),
        relative_positions=2 * next(size for size in (buckets, farthest, context) if size > 0),
        conv_kernel=c.whole("conv_kernel_size", 0),
        norm_eps=c.number("layer_norm_eps"),
        activation=c.activation("hidden_act"),
        **ENCODER,
    )


def _read_llama(c: _Fields) -> dict[str, Any]:
    bias, sizes = c.flag("attention_bias"), c.sizes(*_COMMON)
    activation = "hidden_activation" if c.family == "gemma3_text" else "hidden_act"
    if c.family == "gemma" and c.value("hidden_activation") is not None:  # the name in old files, which may be null
        c.fixed("hidden_activation", "gelu_pytorch_tanh")
    squared = c.number("query_pre_attn_scalar") if c.family == "gemma3_text" else None
    return dict(
        **sizes,
        context=c.whole("max_position_embeddings"),
        kv_heads=c.whole_or_none("num_key_value_heads") or sizes["heads"],
        head_dim=c.whole_or_none("head_dim"),
        gated=True,
        qkv_bias=bias,
        o_bias=bias and c.family != "qwen2",
        mlp_bias=c.flag("mlp_bias"),
        norm_bias=False,
        head="tied" if c.flag("tie_word_embeddings") else "untied",
        norm="rms",
        norm_eps=c.number("rms_norm_eps"),
        activation=c.activation(activation),
        query_scale=0.0 if squared is None else squared**-0.5,
        pad_id=c.whole_or_none("pad_token_id", 0),
        **_windows(c, sizes["layers"]),
        **_rotation(c),
    )


def _windows(c: _Fields, layers: int) -> dict[str, Any]:
    """How far back a query sees, and the layers that see everything nonetheless."""
    if "sliding_window" not in DEFAULTS[c.family]:
        return {}
    window = c.whole_or_none("sliding_window") or 0
    if c.family in ("mistral", "phi3"):  # in every layer
        return {"window": window}
    if c.family == "gemma3_text":
        pattern = c.whole(
            "_sliding_window_pattern" if "_sliding_window_pattern" in c.values else "sliding_window_pattern"
        )
        slides = [bool((i + 1) % pattern) for i in range(layers)]
        c.read |= {"sliding_window_pattern", "_sliding_window_pattern"}
    else:
        window = window if c.flag("use_sliding_window") else 0
        first = c.whole("max_window_layers", 0)
        slides = [bool(window) and i >= first for i in range(layers)]
    if (kinds := c.value("layer_types")) is not None:
        known = {"full_attention": False, "sliding_attention": True}
        if not isinstance(kinds, list | tuple) or len(kinds) != layers or not all(str(kind) in known for kind in kinds):
            raise c.not_known("layer_types", kinds, f"{layers} of {' and '.join(known)}")
        slides = [known[kind] for kind in kinds]
    if any(slides) and not window:
        raise c.wrong("sliding_window", c.value("sliding_window"), "an integer: layer_types has layers that slide")
    full = tuple(i for i, slide in enumerate(slides) if not slide)
    return {"window": window, "full_layers": full} if any(slides) else {}


def _rotation(c: _Fields) -> dict[str, Any]:
    """What turns queries and keys: `rope_parameters`, or in older files `rope_theta` and `rope_scaling`."""
    scaling = c.table("rope_scaling", c.value("rope_scaling"))
    given = c.table("rope_parameters", c.value("rope_parameters"))
    theta, local = c.value("rope_theta"), {}
    if c.family == "gemma3_text":  # of two kinds of layers; a scaling is of those that see everything
        both = {kind: c.table(kind, given.pop(kind, None)) for kind in ("full_attention", "sliding_attention")}
        if given:
            raise c.not_known("rope_parameters", given, "full_attention and sliding_attention")
        base = {"rope_theta": c.value("rope_local_base_freq"), **both["sliding_attention"]}
        if (kind := base.pop("rope_type", base.pop("type", "default"))) != "default" or len(base) > 1:
            raise c.not_known("rope_parameters of sliding_attention", {"rope_type": kind, **base}, "the default type")
        local["rope_local_base"] = c.number("rope_theta", base)
        given, scaling = {**both["full_attention"], **scaling}, {}
    given = {"rope_theta": theta, **(scaling or given)}
    old, kind = given.pop("type", "default"), given.pop("rope_type", None)
    kind = old if kind is None else kind
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise c.not_known("rope_type", kind, f"one of {', '.join(_SCALINGS)}")
    found: dict[str, Any] = {
        "rope_base": c.number("rope_theta", given),
        "rope_scaling": "" if kind == "default" else kind,
    }
    fraction = given.pop("partial_rotary_factor", c.value("partial_rotary_factor"))
    if not is_real(fraction) or not 0 < fraction <= 1 or (fraction != 1 and c.family != "phi3"):
        raise c.not_known(
            "partial_rotary_factor", fraction, "a number above 0, at most 1" if c.family == "phi3" else "1.0"
        )
    if (original := c.whole_or_none("original_max_position_embeddings")) is None:
        original = given.get("original_max_position_embeddings", c.value("max_position_embeddings"))
    if others := given.keys() - {"rope_theta", "original_max_position_embeddings", *_SCALINGS[kind]}:
        raise c.not_known(f"{min(others)} of rope_type {kind!r}", given[min(others)], "none")
    if kind != "default":
        found["rope_factor"] = c.number("factor", given)
    if kind == "llama3":
        found["rope_low"], found["rope_high"] = (c.number(f"{end}_freq_factor", given) for end in ("low", "high"))
        found["rope_original"] = whole(c.name, "original_max_position_embeddings", original)
    return {**found, **local, "rope_fraction": float(fraction)}
