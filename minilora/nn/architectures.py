"""What a transformer is made of: an `Architecture` is a dozen numbers, and every parameter's shape follows from them.

To add a model, add a line to `MODELS`, or read its Hugging Face `config.json` with `from_hugging_face`. Names are those
of `minilora.GPT`, so that one of its state dicts and `parameters(architecture)` can be compared name by name.

>>> size(parameters(find("gpt2")))
124439808
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .checks import is_real, unknown, whole
from .config_defaults import ENCODER, OWN
from .config_json import read_config
from .gpt import GPTConfig
from .storage import blaming, load_arrays

CHOICES = {
    "head": ("tied", "untied", "none", "masked", "labels"), "norm": ("layer", "rms"),
    "rope_scaling": ("", "linear", "llama3"),
    "activation": ("gelu_tanh", "gelu", "silu", "relu"),
}  # fmt: skip
MAY_BE_NONE = (
    "positions", "token_types", "relative_positions", "conv_kernel", "rope_original", "window", "pad_id",
    "labels", "patch",
)  # fmt: skip
DEEPEST = 2_000  # layers: every parameter is listed by name, and the deepest published transformers have 1,000


@dataclass(frozen=True)
class Architecture:
    """What a transformer is made of. The defaults mean GPT-2.

    C = width, H = heads, D = head_dim (default C / H), K = kv_heads (default H; fewer share keys and values among
    groups of heads: Ainslie et al. 2023), F = mlp_width, V = vocab_size. context: the longest sequence. positions: rows
    of a learned position table (0 where positions are rotated or relative). gated: the MLP is W_down (act(W_gate x) *
    W_up x), three matrices instead of two (Shazeer 2020). qkv_bias, o_bias, mlp_bias, norm_bias: which biases there
    are. head: "tied" to the token embedding, "untied", or "none" for an encoder that ends in hidden states,
    "masked" for one that says which token stands where, with the table as its last matrix, or "labels" for one that
    gives each text one of so many `labels`, from its pooler, or without one from a C x C layer of the head. The rest
    that counts are parts of encoders: token_types (rows of a segment table), embedding_norm, pooler (a C x C layer on
    the first token), relative_positions (rows of DeBERTa's table, with a norm), conv_kernel (the width of DeBERTa's
    convolution, with a norm). patch: the numbers of a picture's patch, 0 for texts: patch_proj (C x patch, a bias) and
    a class token, which the head for labels reads, stand in the place of a table of tokens. bits: what its weights
    usually come in. family: the `model_type` that Hugging Face gives it, whose files have names of their own.

    How it computes, step by step in `transformer.py`: norm ("layer" or "rms"), norm_eps, norm_offset (its scale is
    1 + w); activation ("gelu_tanh", "gelu", "silu" or "relu"); rope_base (of rotary positions, 0 without them) and
    rope_fraction (of a head's features that are turned), rope_scaling ("", "linear" or "llama3") with its rope_factor
    and for llama3 rope_low, rope_high and rope_original; window (how many keys a query sees, 0 for all) and full_layers
    (which see all nonetheless), rope_local_base (of the layers with a window, 0 for the same as the others'); qk_norm
    (a norm on each head's queries and keys); query_scale (of q k^T, 0 for 1 / sqrt(D)); scaled_embedding (by sqrt(C));
    post_norms (after attention and MLP, beside those before them); norm_first (False: x + f(x) is normalised, and not
    what goes into f); causal; pad_id (the token that fills up a batch).
    """

    name: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    context: int
    positions: int = 0
    kv_heads: int | None = None
    head_dim: int | None = None
    gated: bool = False
    qkv_bias: bool = True
    o_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    head: str = "tied"
    final_norm: bool = True
    token_types: int = 0
    embedding_norm: bool = False
    pooler: bool = False
    relative_positions: int = 0
    conv_kernel: int = 0
    labels: int = 0
    patch: int = 0
    bits: int = 16
    family: str = "gpt2"
    norm: str = "layer"
    norm_eps: float = 1e-5
    norm_offset: bool = False
    activation: str = "gelu_tanh"
    rope_base: float = 0.0
    rope_fraction: float = 1.0
    rope_scaling: str = ""
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_original: int = 0
    rope_local_base: float = 0.0
    window: int = 0
    full_layers: tuple[int, ...] = ()
    qk_norm: bool = False
    query_scale: float = 0.0
    scaled_embedding: bool = False
    post_norms: bool = False
    norm_first: bool = True
    causal: bool = True
    pad_id: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in (int, int | None) and not (value is None and field.default is None):
                whole(self.name, field.name, value, 0 if field.name in MAY_BE_NONE else 1)
            elif field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{self.name}: {field.name} = {reprlib.repr(value)}, expected True or False")
            elif field.type is float and not (is_real(value) and 0 <= value < math.inf):
                raise ValueError(f"{self.name}: {field.name} = {reprlib.repr(value)}, expected a number, 0 or more")
            elif field.name in CHOICES and (not isinstance(value, str) or value not in CHOICES[field.name]):
                words = ", ".join(map(repr, CHOICES[field.name]))
                raise ValueError(f"{self.name}: {field.name} = {reprlib.repr(value)}, expected one of {words}")
        if not isinstance(self.full_layers, list | tuple):
            raise ValueError(f"{self.name}: full_layers = {reprlib.repr(self.full_layers)}, expected layers' numbers")
        object.__setattr__(self, "full_layers", tuple(self.full_layers))  # a list where it comes from JSON
        for layer in self.full_layers:
            whole(self.name, "full_layers", layer, 0)
        if (self.head == "labels") != (self.labels > 0):
            raise ValueError(f"{self.name}: labels = {self.labels} with head = {self.head!r}: expected both or neither")
        if not 0 < self.rope_fraction <= 1 or not self.rope_factor:
            came = f"rope_fraction = {self.rope_fraction} and rope_factor = {self.rope_factor}"
            raise ValueError(f"{self.name}: {came}, expected above 0, and a fraction of at most 1")
        if self.rope_scaling == "llama3" and not (self.rope_low < self.rope_high and self.rope_original):
            came = f"rope_low = {self.rope_low}, rope_high = {self.rope_high}, rope_original = {self.rope_original}"
            raise ValueError(f"{self.name}: {came}, expected low < high, and the context before it was scaled")
        if self.layers > DEEPEST:
            raise ValueError(f"{self.name}: layers = {self.layers}, expected at most {DEEPEST:,}")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"{self.name}: width {self.width} is not divisible by {self.heads} heads; give head_dim")
        if self.heads % self.key_value_heads:
            raise ValueError(f"{self.name}: {self.heads} heads do not divide into {self.kv_heads} key-value heads")

    @property
    def dim(self) -> int:
        """D, the width of one head."""
        return self.head_dim or self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """K, how many heads of keys and values there are."""
        return self.kv_heads or self.heads

    @property
    def rotated(self) -> int:
        """How many of a head's features are turned by rotary positions."""
        return int(self.dim * self.rope_fraction) if self.rope_base else 0

    def slides(self, layer: int) -> bool:
        """Whether a query of this block sees no further back than the window."""
        return self.window > 0 and layer not in self.full_layers

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """{"attn.q_proj": (d_out, d_in), ...}: the matrices of one block, in the order of the forward pass."""
        c, f = self.width, self.mlp_width
        q, kv = self.heads * self.dim, self.key_value_heads * self.dim
        attention = {"attn.q_proj": (q, c), "attn.k_proj": (kv, c), "attn.v_proj": (kv, c), "attn.o_proj": (c, q)}
        gate = {"mlp.gate_proj": (f, c)} if self.gated else {}
        return {**attention, **gate, "mlp.up_proj": (f, c), "mlp.down_proj": (c, f)}

    def has_bias(self, matrix: str) -> bool:
        """Whether a matrix of a block has a bias."""
        if matrix.startswith("mlp"):
            return self.mlp_bias
        return self.o_bias if matrix == "attn.o_proj" else self.qkv_bias


def labelled(a: Architecture, count: int) -> Architecture:
    """An encoder's architecture with a head for so many labels in the place of another."""
    return replace(a, head="labels", labels=count, pooler=a.family not in ("roberta", "distilbert", "vit"))


def parameters(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every parameter: their sizes add up to the model's exact count."""
    a, c = architecture, architecture.width
    norm = lambda name: {f"{name}.weight": (c,), **({f"{name}.bias": (c,)} if a.norm_bias else {})}
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (a.vocab_size, c)}
    if a.patch:
        shapes = {"class_token": (c,), "patch_proj.weight": (c, a.patch), "patch_proj.bias": (c,)}
    if a.positions:
        shapes["wpe.weight"] = (a.positions, c)
    if a.token_types:
        shapes["token_types.weight"] = (a.token_types, c)
    if a.embedding_norm:
        shapes |= norm("ln_embedding")
    for i in range(a.layers):
        block = f"blocks.{i}"
        shapes |= norm(f"{block}.ln_1")
        for matrix, (d_out, d_in) in a.matrices.items():
            if matrix == "attn.o_proj" and a.qk_norm:
                shapes |= {f"{block}.attn.q_norm.weight": (a.dim,), f"{block}.attn.k_norm.weight": (a.dim,)}
            if matrix.startswith("mlp") and f"{block}.ln_2.weight" not in shapes:
                shapes |= (norm(f"{block}.ln_1_post") if a.post_norms else {}) | norm(f"{block}.ln_2")
            shapes[f"{block}.{matrix}.weight"] = (d_out, d_in)
            if a.has_bias(matrix):
                shapes[f"{block}.{matrix}.bias"] = (d_out,)
        if a.post_norms:
            shapes |= norm(f"{block}.ln_2_post")
    if a.relative_positions:
        shapes |= {"relative.weight": (a.relative_positions, c), **norm("ln_relative")}
    if a.conv_kernel:
        shapes |= {"conv.weight": (c, c, a.conv_kernel), "conv.bias": (c,), **norm("ln_conv")}
    if a.final_norm:
        shapes |= norm("ln_f")
    if a.pooler:
        shapes |= {"pooler.weight": (c, c), "pooler.bias": (c,)}
    if a.head == "untied":
        shapes["head.weight"] = (a.vocab_size, c)
    if a.head == "masked":
        shapes |= {
            "head.dense.weight": (c, c),
            "head.dense.bias": (c,),
            **norm("head.norm"),
            "head.bias": (a.vocab_size,),
        }
    if a.head == "labels":
        last = "classifier" if a.pooler or a.patch else "classifier.out_proj"
        dense = {} if a.pooler or a.patch else {"classifier.dense.weight": (c, c), "classifier.dense.bias": (c,)}
        shapes |= {**dense, f"{last}.weight": (a.labels, c), f"{last}.bias": (a.labels,)}
    return shapes


def size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers arrays of these shapes hold together."""
    return sum(math.prod(shape) for shape in shapes.values())


# --- the models the lecture names ------------------------------------------------------------------------------------


def _gpt(name: str, width: int, layers: int, heads: int, context: int = 1024) -> Architecture:
    """GPT-2's and GPT-3's shape: Radford et al. 2019, table 2; Brown et al. 2020, table 2.1."""
    return Architecture(name, 50257, width, layers, heads, 4 * width, context, positions=context)


def _bert(name: str, width: int, layers: int, heads: int, **other: Any) -> Architecture:
    """Devlin et al. 2019, "BERT", and its relatives, as the bare model of Hugging Face."""
    sizes: dict[str, Any] = {"vocab_size": 30522, "context": 512, "positions": 512, "norm_eps": 1e-12, "pad_id": 0}
    other = {**sizes, "family": name.split("-")[0], "activation": "gelu", **ENCODER, **other}
    return Architecture(name, width=width, layers=layers, heads=heads, mlp_width=4 * width, **other)


def _roberta(name: str, width: int, layers: int, heads: int) -> Architecture:
    """Liu et al. 2019, "RoBERTa": two rows of positions are reserved."""
    own: dict[str, Any] = dict(vocab_size=50265, positions=514, norm_eps=1e-5, pad_id=1, token_types=1, pooler=True)
    return _bert(name, width, layers, heads, **own)


def _llama(name: str, width: int, layers: int, heads: int, mlp_width: int, **other: Any) -> Architecture:
    """Touvron et al. 2023, "Llama 2", and its relatives: rotary positions, RMSNorm, a gated MLP, no biases."""
    plain = dict(qkv_bias=False, o_bias=False, mlp_bias=False, norm_bias=False, gated=True, norm="rms", norm_eps=1e-5)
    sizes = {"vocab_size": 32000, "context": 4096, "head": "untied", "family": name.split("-")[0]}
    other = {**sizes, **plain, "activation": "silu", "rope_base": 1e4, **other}
    return Architecture(name, width=width, layers=layers, heads=heads, mlp_width=mlp_width, **other)


def _llama3(name: str, width: int, layers: int, mlp_width: int, **other: Any) -> Architecture:
    """Llama Team 2024, "The Llama 3 Herd of Models", section 3.2: groups of heads, and a base of 500,000."""
    return _llama(name, width, layers, 32, mlp_width, **dict(kv_heads=8, vocab_size=128256, rope_base=5e5), **other)


def _qwen(name: str, width: int, layers: int, heads: int, kv_heads: int, mlp_width: int, **other: Any) -> Architecture:
    """Yang et al. 2024, "Qwen2", section 2.2; Yang et al. 2025, "Qwen3", section 2. The small ones' heads are tied."""
    sizes: dict[str, Any] = dict(vocab_size=151936, rope_base=1e6, norm_eps=1e-6, head="tied", kv_heads=kv_heads)
    return _llama(name, width, layers, heads, mlp_width, **sizes, **other)


def _gemma(name: str, width: int, layers: int, heads: int, kv_heads: int, mlp_width: int, **other: Any) -> Architecture:
    """Gemma Team 2024, "Gemma", section 2: GeGLU, a tied head, heads of 256; the 2B's share one key and value."""
    sizes: dict[str, Any] = dict(vocab_size=256000, context=8192, head="tied", kv_heads=kv_heads, head_dim=256)
    choices = {"activation": "gelu_tanh", "norm_eps": 1e-6, "pad_id": 0, **OWN["gemma"]}
    return _llama(name, width, layers, heads, mlp_width, **{**sizes, **choices, **other})


def _vit(name: str, width: int, layers: int, heads: int, side: int) -> Architecture:
    """Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", table 1: 224 x 224 pixels, a head for ImageNet."""
    tokens, own = 1 + (224 // side) ** 2, dict[str, Any](patch=3 * side**2, head="labels", labels=1000, causal=False)
    own |= dict(positions=tokens, norm_eps=1e-12, activation="gelu", family="vit")
    return Architecture(name, 1, width, layers, heads, 4 * width, tokens, **own)


def from_gpt_config(config: GPTConfig, name: str = "GPT") -> Architecture:
    """The architecture of our own `minilora.GPT` with this configuration (float32)."""
    c, b, context = config.n_embd, config.bias, config.block_size
    biases: dict[str, Any] = dict(qkv_bias=b, o_bias=b, mlp_bias=b, norm_bias=b)
    return Architecture(
        name, config.vocab_size, c, config.n_layer, config.n_head, 4 * c, context, positions=context, bits=32, **biases
    )


_DEBERTA: dict[str, Any] = dict(
    vocab_size=128100, positions=0, relative_positions=512, conv_kernel=3, family="deberta-v2", norm_eps=1e-7
)  # He et al. 2021, "DeBERTa", in Hugging Face's DebertaV2Model; 256 buckets of distances to each side
_GEMMA3: dict[str, Any] = dict(
    vocab_size=262144, context=32768, family="gemma3_text", rope_base=1e6, rope_local_base=1e4, window=512,
    full_layers=tuple(range(5, 26, 6)), query_scale=256**-0.5, **OWN["gemma3_text"],
)  # fmt: skip  # Gemma Team 2025, "Gemma 3", section 2: five layers with a window to one without
_LLAMA32: dict[str, Any] = dict(
    head="tied", context=131072, rope_scaling="llama3", rope_factor=32.0, rope_original=8192
)  # its published config.json

MODELS: dict[str, Architecture] = {
    model.name: model
    for model in (
        from_gpt_config(GPTConfig(96, 128, 4, 4, 128), "base"),  # the model that comes with the package
        _gpt("gpt2", 768, 12, 12),
        _gpt("gpt2-medium", 1024, 24, 16),
        _gpt("gpt2-large", 1280, 36, 20),
        _gpt("gpt2-xl", 1600, 48, 25),
        _gpt("gpt3-175b", 12288, 96, 96, context=2048),  # dense, where every other layer of the paper's is sparse
        _bert("bert-base", 768, 12, 12, token_types=2, pooler=True),
        _bert("distilbert-base", 768, 6, 12),  # Sanh et al. 2019, "DistilBERT", section 3
        _roberta("roberta-base", 768, 12, 12),
        _roberta("roberta-large", 1024, 24, 16),
        _bert("deberta-v2-xxlarge", 1536, 48, 24, **_DEBERTA),
        _llama("llama-2-7b", 4096, 32, 32, 11008),
        _llama("llama-2-13b", 5120, 40, 40, 13824),
        _llama("llama-2-70b", 8192, 80, 64, 28672, kv_heads=8),
        _llama3("llama-3-8b", 4096, 32, 14336, context=8192),
        _llama3("llama-3.2-1b", 2048, 16, 8192, **_LLAMA32),
        # Allal et al. 2025, "SmolLM2", and its published config.json
        _llama("smollm2-135m", 576, 30, 9, 1536, kv_heads=3, vocab_size=49152, context=8192, head="tied", rope_base=1e5,
               family="llama"),
        # Abdin et al. 2024, "Phi-3", section 2, and the published config.json of Phi-3-mini-4k-instruct
        _llama("phi-3-mini", 3072, 32, 32, 8192, vocab_size=32064, window=2047, family="phi3", pad_id=32000),
        _llama("mistral-7b", 4096, 32, 32, 14336, kv_heads=8, context=32768, window=4096),  # Jiang et al. 2023, table 1
        _qwen("qwen2-0.5b", 896, 24, 14, 2, 4864, context=131072, qkv_bias=True),
        _qwen("qwen3-0.6b", 1024, 28, 16, 8, 3072, context=40960, head_dim=128, **OWN["qwen3"]),
        _gemma("gemma-2b", 2048, 18, 8, 1, 16384),
        _gemma("gemma-7b", 3072, 28, 16, 16, 24576),
        _gemma("gemma-3-1b", 1152, 26, 4, 1, 6912, **_GEMMA3),
        _vit("vit-b/16", 768, 12, 12, 16),
        _vit("vit-l/16", 1024, 24, 16, 16),
        _vit("vit-h/14", 1280, 32, 16, 14),
    )
}  # fmt: skip


def from_hugging_face(config: Any, name: str | None = None) -> Architecture:
    """The architecture that a Hugging Face `config.json` describes: a dictionary, or the path of the file.

    Understands the `model_type`s in `FAMILIES`; see `config_json.py` for what is read, and what raises ValueError.
    """
    return Architecture(**read_config(config, name))


def from_file(path: str | Path) -> Architecture:
    """The architecture of the model in a minilora file: a model's own, an adapter's base, a checkpoint's.

    Raises FileNotFoundError, or ValueError for a file that is damaged or whose arrays are not its configuration's.
    """
    arrays, header = load_arrays(path, None)
    with blaming(path):
        if (kind := header.get("kind")) not in ("model", "adapter", "checkpoint"):
            raise ValueError(f"it holds {reprlib.repr(kind)}, expected a model, an adapter or a checkpoint")
        if isinstance(own := header.get("architecture"), dict):
            fitting: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in own.items()}
            return Architecture(**fitting)
        if not isinstance(config := header.get("config"), dict):
            raise ValueError("it does not say which model it belongs to (an older minilora wrote it); count that model")
        architecture = from_gpt_config(GPTConfig(**config), Path(path).stem)
        prefix = "model." if kind == "checkpoint" else ""
        for name, shape in parameters(architecture).items():
            found = arrays[prefix + name].shape if prefix + name in arrays else None
            if found != shape and (found or kind == "model"):
                raise ValueError(f"it has {found or 'nothing'} for {name}, where its configuration has {shape}")
    return architecture


def find(name: Any) -> Architecture:
    """The architecture that a name, a GPTConfig, a model, or the path of a config.json or a minilora file means.

    Raises ValueError for anything else, with the names there are and the closest one.
    """
    if isinstance(name, Architecture):
        return name
    if isinstance(name, GPTConfig):
        return from_gpt_config(name)
    if isinstance(getattr(name, "config", None), GPTConfig):
        return from_gpt_config(name.config)
    if isinstance(own := getattr(name, "architecture", None), Architecture):
        return own
    if isinstance(name, Mapping) or str(name).endswith(".json"):
        return from_hugging_face(name)
    if str(name).endswith(".npz"):
        return from_file(name)
    if not isinstance(name, str) or name not in MODELS:
        close = [known for known in MODELS if set(known) >= set(str(name).lower()) - set("0123456789")]
        known = unknown("model", str(name), list(MODELS), close)
        raise ValueError(f"{known}; or give the path of a Hugging Face config.json or of a minilora file")
    return MODELS[name]
