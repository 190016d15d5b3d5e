"""What Hugging Face's files and GGUF files call our modules: one table, read in both directions.

A line is a module: our name, then its name in each family's column; those of a block are repeated for every block. Our
modules that have one name there are one matrix there, q over k over v or gate over up, in the table's order: "fused".
A weight and a bias keep their last names, `weight` and `bias`.

>>> from minilora.nn.architectures import find
>>> module_names(find("gpt2"))["blocks.3.attn.k_proj"]
Place(module='transformer.h.3.attn.c_attn', rows=slice(768, 1536, None), transposed=True)
"""

from typing import NamedTuple

from ..nn.architectures import Architecture, parameters

TABLE = """
ours           gpt2         llama                     bert                              distilbert                  gguf
wte            wte          embed_tokens              embeddings.word_embeddings        =                     token_embd
wpe            wpe          -                         embeddings.position_embeddings    =                  position_embd
token_types    -            -                         embeddings.token_type_embeddings  -                    token_types
ln_embedding   -            -                         embeddings.LayerNorm              =                token_embd_norm
ln_1           ln_1         input_layernorm           attention.output.LayerNorm        sa_layer_norm          attn_norm
attn.q_proj    attn.c_attn  self_attn.q_proj          attention.self.query              attention.q_lin           attn_q
attn.k_proj    attn.c_attn  self_attn.k_proj          attention.self.key                attention.k_lin           attn_k
attn.v_proj    attn.c_attn  self_attn.v_proj          attention.self.value              attention.v_lin           attn_v
attn.q_norm    -            self_attn.q_norm          -                                 -                    attn_q_norm
attn.k_norm    -            self_attn.k_norm          -                                 -                    attn_k_norm
attn.o_proj    attn.c_proj  self_attn.o_proj          attention.output.dense            attention.out_lin    attn_output
ln_1_post      -            -                         -                                 -            post_attention_norm
ln_2           ln_2         post_attention_layernorm  output.LayerNorm                  output_layer_norm       ffn_norm
mlp.gate_proj  -            mlp.gate_proj             -                                 -                       ffn_gate
mlp.up_proj    mlp.c_fc     mlp.up_proj               intermediate.dense                ffn.lin1                  ffn_up
mlp.down_proj  mlp.c_proj   mlp.down_proj             output.dense                      ffn.lin2                ffn_down
ln_2_post      -            -                         -                                 -                  post_ffw_norm
ln_f           ln_f         norm                      -                                 -                    output_norm
pooler         -            -                         pooler.dense                      -                              -
head           lm_head      lm_head                   cls.predictions                   vocab_projector           output
head.dense     -            -                         cls.predictions.transform.dense   vocab_transform                -
head.norm      -            -                         cls.predictions.transform.LayerNorm  vocab_layer_norm            -
classifier     -            -                         classifier                        -                              -
classifier.dense  -         -                         classifier.dense                  pre_classifier                 -
classifier.out_proj  -      -                         classifier.out_proj               classifier                     -
"""
_BESIDE = ("head", "classifier")  # what stands beside the bare model in a file, not within it
TIED = {  # what a file may hold a second time: its name there -> the parameter of ours that it is
    "lm_head.weight": "wte.weight", "lm_head.decoder.weight": "wte.weight", "lm_head.decoder.bias": "head.bias",
    "cls.predictions.decoder.weight": "wte.weight", "cls.predictions.decoder.bias": "head.bias",
    "vocab_projector.weight": "wte.weight",
}  # fmt: skip


class _Family(NamedTuple):
    column: str
    prefix: str  # of the bare model's names, in the file of a model with a head
    blocks: str
    apart: dict[str, str] | None = None  # where it differs from its column
    apart_gguf: dict[str, str] | None = None


_QKV = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_LLAMA = _Family("llama", "model.", "layers.")
_FUSED_GGUF = dict.fromkeys(_QKV, "attn_qkv")
FAMILIES: dict[str, _Family] = {  # model_type -> where its names are
    "gpt2": _Family("gpt2", "transformer.", "h.", apart_gguf=_FUSED_GGUF),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _LLAMA),
    "phi3": _LLAMA._replace(
        apart=dict.fromkeys(_QKV, "self_attn.qkv_proj") | dict.fromkeys(_GATE_UP, "mlp.gate_up_proj"),
        apart_gguf=_FUSED_GGUF | dict.fromkeys(_GATE_UP, "ffn_up"),
    ),
    "gemma3_text": _LLAMA._replace(
        apart={
            "ln_1_post": "post_attention_layernorm",
            "ln_2": "pre_feedforward_layernorm",
            "ln_2_post": "post_feedforward_layernorm",
        }
    ),
    "bert": _Family("bert", "bert.", "encoder.layer."),
    "roberta": _Family(
        "bert",
        "roberta.",
        "encoder.layer.",
        apart={"head": "lm_head", "head.dense": "lm_head.dense", "head.norm": "lm_head.layer_norm"},
    ),
    "distilbert": _Family("distilbert", "distilbert.", "transformer.layer."),
}


class Place(NamedTuple):
    """Where a module of ours stands in a file.

    module: its path there; rows: which of that matrix's rows are ours, in the layout (d_out, d_in), None for all;
    transposed: whether the file holds it as (d_in, d_out), as GPT-2's Conv1D does.
    """

    module: str
    rows: slice | None = None
    transposed: bool = False


def _columns() -> dict[str, dict[str, str]]:
    """{column: {our name: the name there}}; "=" is the column to the left."""
    heading, *lines = (line.split() for line in TABLE.strip().splitlines())
    columns: dict[str, dict[str, str]] = {name: {} for name in heading[1:]}
    for ours, *theirs in lines:
        for place, (column, name) in enumerate(zip(heading[1:], theirs, strict=True)):
            if name != "-":
                columns[column][ours] = theirs[place - 1] if name == "=" else name
    return columns


COLUMNS = _columns()


def family_of(architecture: Architecture) -> _Family:
    """The names of an architecture's family. Raises ValueError for one whose files are not known."""
    if architecture.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(
            f"{architecture.name}: files of the family {architecture.family!r} are not known; of {known} are"
        )
    return FAMILIES[architecture.family]


def module_names(architecture: Architecture) -> dict[str, Place]:
    """{our module's path: its place in a Hugging Face file}, of every module that has parameters."""
    family = family_of(architecture)
    names = COLUMNS[family.column] | (family.apart or {})
    outside = {name: "" if name.startswith(_BESIDE) else family.prefix for name in names}
    return _places(architecture, names, outside, family.prefix + family.blocks, family.column == "gpt2")


def gguf_names(architecture: Architecture) -> dict[str, Place]:
    """{our module's path: its place in a GGUF file}, of every module that has parameters."""
    names = COLUMNS["gguf"] | (family_of(architecture).apart_gguf or {})
    return _places(architecture, names, dict.fromkeys(names, ""), "blk.", False)


def _places(
    a: Architecture, names: dict[str, str], prefixes: dict[str, str], blocks: str, conv: bool
) -> dict[str, Place]:
    sizes: dict[str, int] = {}  # our module -> its rows
    for name, shape in parameters(a).items():
        sizes.setdefault(name.rpartition(".")[0], shape[0])
    places: dict[str, Place] = {}
    for path in sizes:
        if path.startswith("blocks."):
            _, i, inside = path.split(".", 2)
            places[path] = Place(f"{blocks}{i}.{names[inside]}", None, conv and inside.startswith(("attn.", "mlp.")))
        else:
            places[path] = Place(prefixes[path] + names[path])
    together: dict[str, list[str]] = {}  # their module -> ours that are in it
    for path, place in places.items():
        together.setdefault(place.module, []).append(path)
    for paths in together.values():
        start = 0
        for path in paths if len(paths) > 1 else ():
            places[path] = places[path]._replace(rows=slice(start, start + sizes[path]))
            start += sizes[path]
    return places
