"""What a transformer is made of: an `Architecture` is a dozen numbers, and every parameter's shape follows from them.

To add a model, add a line to `MODELS`, or read its Hugging Face `config.json` with `from_hugging_face`. Names are those
of `minilora.GPT`, so that one of its state dicts and `parameters(architecture)` can be compared name by name.

>>> size(parameters(find("gpt2")))
124439808
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .checks import unknown, whole
from .config_json import read_config
from .gpt import GPTConfig
from .storage import blaming, load_arrays

DEEPEST = 2_000  # layers: every parameter is listed by name, and the deepest published transformers have 1,000


@dataclass(frozen=True)
class Architecture:
    """The sizes of a transformer.

    C = width, H = heads, D = head_dim (default C / H), K = kv_heads (default H; fewer share keys and values among
    groups of heads: Ainslie et al. 2023), F = mlp_width, V = vocab_size. context: the longest sequence. positions: rows
    of a learned position table (0 where positions are rotated or relative). gated: the MLP is W_down (act(W_gate x) *
    W_up x), three matrices instead of two (Shazeer 2020). qkv_bias, o_bias, mlp_bias, norm_bias: which biases there
    are; a norm without one is an RMSNorm or a bias-free LayerNorm. head: "tied" to the token embedding, "untied", or
    "none" for an encoder that ends in hidden states. The rest are parts of encoders: token_types (rows of a segment
    table), embedding_norm, pooler (a C x C layer on the first token), relative_positions (rows of DeBERTa's table, with
    a norm), conv_kernel (the width of DeBERTa's convolution, with a norm). bits: what its weights usually come in.
    family: the `model_type` that Hugging Face gives it, whose files have names of their own.
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
    bits: int = 16
    family: str = "gpt2"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, parts = getattr(self, field.name), ("positions", "token_types", "relative_positions", "conv_kernel")
            if field.type in (int, int | None) and not (value is None and field.default is None):
                whole(self.name, field.name, value, 0 if field.name in parts else 1)
            elif field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{self.name}: {field.name} = {reprlib.repr(value)}, expected True or False")
        if self.layers > DEEPEST:
            raise ValueError(f"{self.name}: layers = {self.layers}, expected at most {DEEPEST:,}")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"{self.name}: width {self.width} is not divisible by {self.heads} heads; give head_dim")
        if self.heads % self.key_value_heads:
            raise ValueError(f"{self.name}: {self.heads} heads do not divide into {self.kv_heads} key-value heads")
        if self.head not in ("tied", "untied", "none"):
            raise ValueError(f"{self.name}: head = {self.head!r}, expected 'tied', 'untied' or 'none'")

    @property
    def dim(self) -> int:
        """D, the width of one head."""
        return self.head_dim or self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """K, how many heads of keys and values there are."""
        return self.kv_heads or self.heads

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


def parameters(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every parameter: their sizes add up to the model's exact count."""
    a, c = architecture, architecture.width
    norm = lambda name: {f"{name}.weight": (c,), **({f"{name}.bias": (c,)} if a.norm_bias else {})}
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (a.vocab_size, c)}
    if a.positions:
        shapes["wpe.weight"] = (a.positions, c)
    if a.token_types:
        shapes["token_types.weight"] = (a.token_types, c)
    if a.embedding_norm:
        shapes |= norm("ln_embedding")
    for i in range(a.layers):
        shapes |= norm(f"blocks.{i}.ln_1")
        for matrix, (d_out, d_in) in a.matrices.items():
            if matrix.startswith("mlp") and f"blocks.{i}.ln_2.weight" not in shapes:
                shapes |= norm(f"blocks.{i}.ln_2")
            shapes[f"blocks.{i}.{matrix}.weight"] = (d_out, d_in)
            if a.has_bias(matrix):
                shapes[f"blocks.{i}.{matrix}.bias"] = (d_out,)
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
    return shapes


def size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers arrays of these shapes hold together."""
    return sum(math.prod(shape) for shape in shapes.values())


# --- the models the lecture names ------------------------------------------------------------------------------------


def _gpt(name: str, width: int, layers: int, heads: int, context: int = 1024) -> Architecture:
    """GPT-2's and GPT-3's shape: Radford et al. 2019, table 2; Brown et al. 2020, table 2.1."""
    return Architecture(name, 50257, width, layers, heads, 4 * width, context, positions=context)


def _roberta(name: str, width: int, layers: int, heads: int) -> Architecture:
    """Liu et al. 2019, "RoBERTa", in Hugging Face's RobertaModel: two rows of positions are reserved."""
    encoder: dict[str, Any] = dict(head="none", final_norm=False, token_types=1, embedding_norm=True, pooler=True)
    return Architecture(name, 50265, width, layers, heads, 4 * width, 512, positions=514, family="roberta", **encoder)


def _llama(name: str, width: int, layers: int, heads: int, mlp_width: int, **other: Any) -> Architecture:
    """Touvron et al. 2023, "Llama 2", and its relatives: rotary positions, RMSNorm, a gated MLP, no biases."""
    plain = dict(qkv_bias=False, o_bias=False, mlp_bias=False, norm_bias=False, gated=True)
    sizes = {"vocab_size": 32000, "context": 4096, "head": "untied", "family": name.split("-")[0]}
    other = {**sizes, **plain, **other}
    return Architecture(name, width=width, layers=layers, heads=heads, mlp_width=mlp_width, **other)


def from_gpt_config(config: GPTConfig, name: str = "GPT") -> Architecture:
    """The architecture of our own `minilora.GPT` with this configuration (float32)."""
    c, b, context = config.n_embd, config.bias, config.block_size
    biases: dict[str, Any] = dict(qkv_bias=b, o_bias=b, mlp_bias=b, norm_bias=b)
    return Architecture(
        name, config.vocab_size, c, config.n_layer, config.n_head, 4 * c, context, positions=context, bits=32, **biases
    )


_DEBERTA: dict[str, Any] = dict(
    head="none",
    final_norm=False,
    embedding_norm=True,
    relative_positions=512,
    conv_kernel=3,
    family="deberta-v2",
)  # He et al. 2021, "DeBERTa", in Hugging Face's DebertaV2Model; 256 buckets of distances to each side

MODELS: dict[str, Architecture] = {
    model.name: model
    for model in (
        from_gpt_config(GPTConfig(96, 128, 4, 4, 128), "base"),  # the model that comes with the package
        _gpt("gpt2", 768, 12, 12),
        _gpt("gpt2-medium", 1024, 24, 16),
        _gpt("gpt2-large", 1280, 36, 20),
        _gpt("gpt2-xl", 1600, 48, 25),
        _gpt("gpt3-175b", 12288, 96, 96, context=2048),
        _roberta("roberta-base", 768, 12, 12),
        _roberta("roberta-large", 1024, 24, 16),
        Architecture("deberta-v2-xxlarge", 128100, 1536, 48, 24, 6144, 512, **_DEBERTA),
        _llama("llama-2-7b", 4096, 32, 32, 11008),
        _llama("llama-2-13b", 5120, 40, 40, 13824),
        _llama("llama-2-70b", 8192, 80, 64, 28672, kv_heads=8),
        _llama("gemma-2b", 2048, 18, 8, 16384, kv_heads=1, head_dim=256, vocab_size=256000, context=8192, head="tied"),
        _llama("gemma-7b", 3072, 28, 16, 24576, head_dim=256, vocab_size=256000, context=8192, head="tied"),
        _llama("mistral-7b", 4096, 32, 32, 14336, kv_heads=8, context=32768),
    )
}


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
    if isinstance(name, Mapping) or str(name).endswith(".json"):
        return from_hugging_face(name)
    if str(name).endswith(".npz"):
        return from_file(name)
    if not isinstance(name, str) or name not in MODELS:
        close = [known for known in MODELS if set(known) >= set(str(name).lower()) - set("0123456789")]
        known = unknown("model", str(name), list(MODELS), close)
        raise ValueError(f"{known}; or give the path of a Hugging Face config.json or of a minilora file")
    return MODELS[name]
