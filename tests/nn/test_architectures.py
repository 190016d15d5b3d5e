"""Architectures: totals by hand, Hugging Face's config.json, and what is refused. Beside transformers: tests/peers."""

import json
from dataclasses import replace

import pytest

from minilora.nn.architectures import DEEPEST, MODELS, Architecture, find, from_hugging_face, parameters, size
from minilora.nn.config_json import FAMILIES
from minilora.nn.gpt import GPT, GPTConfig

DEBERTA = {"model_type": "deberta-v2", "relative_attention": True, "share_att_key": True, "norm_rel_ebd": "layer_norm"}


def total(config):
    return size(parameters(from_hugging_face(config)))


# --- totals, matrix by matrix, from the papers' sizes ----------------------------------------------------------------


def llama(vocab, c, layers, f, heads, kv_heads, dim, untied=True, qkv_bias=False):
    """q and o are C x HD, k and v C x KD, three matrices of the MLP C x F, two norms a block and one at the end."""
    biases = (heads + 2 * kv_heads) * dim if qkv_bias else 0
    block = 2 * c * heads * dim + 2 * c * kv_heads * dim + biases + 3 * c * f + 2 * c
    return vocab * c * (1 + untied) + layers * block + c


def bert(c, layers, vocab=30522, positions=512, types=2, pooler=True):
    """Word, position and type tables with a norm; 12 C^2 a block with its 13 C of biases and norms; the pooler."""
    tables = (vocab + positions + types) * c + 2 * c
    block = 4 * (c * c + c) + (4 * c * c + 4 * c) + (4 * c * c + c) + 2 * 2 * c
    return tables + layers * block + pooler * (c * c + c)


def roberta(c, layers):
    """BERT with another vocabulary, two positions that are reserved, and one type."""
    return bert(c, layers, 50265, 514, 1)


def gpt(c, layers, context):
    """12 C^2 + 13 C a block, the tied table of tokens, that of positions, and a norm at the end."""
    return (50257 + context) * c + layers * (12 * c * c + 13 * c) + 2 * c


def vit(c, layers, side):
    """A matrix for patches of 3 colours, a class token, positions; 12 C^2 + 13 C a block; a norm; the head."""
    around = (3 * side**2 + 1) * c + c + (1 + (224 // side) ** 2) * c + 2 * c
    return around + layers * (12 * c * c + 13 * c) + 1000 * c + 1000


BY_HAND = {
    "base": 96 * 128 + 128 * 128 + 4 * (12 * 128**2 + 13 * 128) + 2 * 128,
    "gpt2": gpt(768, 12, 1024),
    "gpt2-medium": gpt(1024, 24, 1024),
    "gpt2-large": gpt(1280, 36, 1024),
    "gpt2-xl": gpt(1600, 48, 1024),
    "gpt3-175b": gpt(12288, 96, 2048),
    "bert-base": bert(768, 12),
    "distilbert-base": bert(768, 6, types=0, pooler=False),
    "roberta-base": roberta(768, 12),
    "roberta-large": roberta(1024, 24),
    # the table and its norm, 512 relative positions and a norm, a convolution of width 3 with its bias and norm
    "deberta-v2-xxlarge": 128100 * 1536 + 2 * 1536 + 48 * (12 * 1536**2 + 13 * 1536)
    + 512 * 1536 + 2 * 1536 + 3 * 1536**2 + 1536 + 2 * 1536,
    "llama-2-7b": llama(32000, 4096, 32, 11008, 32, 32, 128),
    "llama-2-13b": llama(32000, 5120, 40, 13824, 40, 40, 128),
    "llama-2-70b": llama(32000, 8192, 80, 28672, 64, 8, 128),
    "gemma-2b": llama(256000, 2048, 18, 16384, 8, 1, 256, untied=False),
    "gemma-7b": llama(256000, 3072, 28, 24576, 16, 16, 256, untied=False),
    "mistral-7b": llama(32000, 4096, 32, 14336, 32, 8, 128),
    "llama-3-8b": llama(128256, 4096, 32, 14336, 32, 8, 128),
    "llama-3.2-1b": llama(128256, 2048, 16, 8192, 32, 8, 64, untied=False),
    "smollm2-135m": llama(49152, 576, 30, 1536, 9, 3, 64, untied=False),
    "phi-3-mini": llama(32064, 3072, 32, 8192, 32, 32, 96),
    "qwen2-0.5b": llama(151936, 896, 24, 4864, 14, 2, 64, untied=False, qkv_bias=True),
    # a norm on the heads of q and one on those of k a block; in Gemma 3, two norms after attention and MLP as well
    "qwen3-0.6b": llama(151936, 1024, 28, 3072, 16, 8, 128, untied=False) + 28 * 2 * 128,
    "gemma-3-1b": llama(262144, 1152, 26, 6912, 4, 1, 256, untied=False) + 26 * (2 * 256 + 2 * 1152),
    "vit-b/16": vit(768, 12, 16), "vit-l/16": vit(1024, 24, 16), "vit-h/14": vit(1280, 32, 14),
}  # fmt: skip
PUBLISHED = {  # as the model cards and transformers' num_parameters say
    "base": 822_016, "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200, "gpt3-175b": 174_604_259_328, "roberta-base": 124_645_632, "roberta-large": 355_359_744,
    "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192,
    "gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896, "mistral-7b": 7_241_732_096, "bert-base": 109_482_240,
    "distilbert-base": 66_362_880, "llama-3-8b": 8_030_261_248, "llama-3.2-1b": 1_235_814_400,
    "smollm2-135m": 134_515_008, "phi-3-mini": 3_821_079_552, "qwen2-0.5b": 494_032_768, "qwen3-0.6b": 596_049_920,
    "gemma-3-1b": 999_885_952, "vit-b/16": 86_567_656, "vit-l/16": 304_326_632, "vit-h/14": 632_045_800,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_named_models_total(name):
    found = size(parameters(find(name)))
    assert found == BY_HAND[name] == PUBLISHED.get(name, found)


def test_every_named_models_context_and_precision():
    contexts = {name: model.context for name, model in MODELS.items()}
    gpts = {name: 1024 for name in MODELS if name.startswith("gpt2")}
    llamas = {name: 4096 for name in MODELS if name.startswith("llama-2")}
    assert contexts == gpts | llamas | {
        "base": 128, "gpt3-175b": 2048, "roberta-base": 512, "roberta-large": 512, "deberta-v2-xxlarge": 512,
        "gemma-2b": 8192, "gemma-7b": 8192, "mistral-7b": 32768, "bert-base": 512, "distilbert-base": 512,
        "llama-3-8b": 8192, "llama-3.2-1b": 131072, "smollm2-135m": 8192, "phi-3-mini": 4096, "qwen2-0.5b": 131072,
        "qwen3-0.6b": 40960, "gemma-3-1b": 32768, "vit-b/16": 197, "vit-l/16": 197, "vit-h/14": 257,
    }  # fmt: skip
    assert {name for name, model in MODELS.items() if model.bits == 32} == {"base"}
    assert all(model.bits in (16, 32) for model in MODELS.values())
    ours = find(GPTConfig(9, 8, 2, 2, 4))
    assert (ours.name, ours.bits, ours.context) == ("GPT", 32, 8) and find(ours) is ours
    assert find(GPT(GPTConfig(9, 8, 2, 2, 4))) == ours


def test_qwen2s_total():
    """Qwen2 7B and 0.5B (Yang et al. 2024, table 1): biases on q, k and v only; the small one's head is tied."""
    big = dict(vocab_size=152064, hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4)
    by_hand = llama(152064, 3584, 28, 18944, 28, 4, 128, qkv_bias=True)
    assert total({"model_type": "qwen2", **big, "intermediate_size": 18944}) == by_hand == 7_615_616_512
    small = dict(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2)
    by_hand = llama(151936, 896, 24, 4864, 14, 2, 64, untied=False, qkv_bias=True)
    config = {"model_type": "qwen2", **small, "intermediate_size": 4864, "tie_word_embeddings": True}
    assert total(config) == by_hand == 494_032_768


def test_names_and_shapes_of_every_part():
    """One block with everything there is: nothing is missing, twice, or in another's place."""
    parts = dict(
        positions=9, token_types=2, relative_positions=6, conv_kernel=3, pooler=True, gated=True, kv_heads=2, head_dim=5
    )
    shapes = parameters(Architecture("all", 11, 8, 1, 4, 7, 9, head="untied", embedding_norm=True, **parts))
    norms = [f"{n}.{p}" for n in ("ln_embedding", "blocks.0.ln_1", "blocks.0.ln_2", "ln_relative", "ln_conv", "ln_f")
             for p in ("weight", "bias")]  # fmt: skip
    attention = {"q_proj": (20, 8), "k_proj": (10, 8), "v_proj": (10, 8), "o_proj": (8, 20)}
    mlp = {"gate_proj": (7, 8), "up_proj": (7, 8), "down_proj": (8, 7)}
    linears = {f"blocks.0.attn.{n}": s for n, s in attention.items()} | {f"blocks.0.mlp.{n}": s for n, s in mlp.items()}
    assert shapes == {
        **{"wte.weight": (11, 8), "wpe.weight": (9, 8), "token_types.weight": (2, 8), "head.weight": (11, 8)},
        **{f"{name}.weight": shape for name, shape in linears.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linears.items()},
        **{name: (8,) for name in norms},
        **{"relative.weight": (6, 8), "conv.weight": (8, 8, 3), "conv.bias": (8,)},
        **{"pooler.weight": (8, 8), "pooler.bias": (8,)},
    }
    order = list(shapes)  # that of the forward pass
    assert order.index("blocks.0.attn.o_proj.weight") < order.index("blocks.0.ln_2.weight")
    assert order.index("blocks.0.ln_2.weight") < order.index("blocks.0.mlp.gate_proj.weight")


@pytest.mark.parametrize("bias", ["qkv_bias", "o_bias", "mlp_bias", "norm_bias"])
def test_each_bias_is_left_out_alone(bias):
    with_all = parameters(Architecture("x", 11, 8, 1, 4, 7, 9))
    without = parameters(Architecture("x", 11, 8, 1, 4, 7, 9, **{bias: False}))
    owners = {
        "qkv_bias": ("q_proj", "k_proj", "v_proj"),
        "o_bias": ("o_proj",),
        "mlp_bias": ("up_proj", "down_proj"),
        "norm_bias": ("ln_1", "ln_2", "ln_f"),
    }
    gone = {name.split(".")[-2] for name in with_all.keys() - without.keys()}
    assert gone == set(owners[bias]) and all(name.endswith(".bias") for name in with_all.keys() - without.keys())


# --- config.json -----------------------------------------------------------------------------------------------------


def test_fields_left_out_have_the_familys_defaults():
    """The totals that transformers 5.24 builds from the model_type alone."""
    totals = {
        "bert": 109_482_240, "gemma": 8_537_680_896, "gpt2": 124_439_808, "llama": 6_738_415_616,
        "mistral": 7_241_732_096, "qwen2": 12_049_846_272, "roberta": 124_644_864,
    }  # fmt: skip
    for family, expected in totals.items():
        assert total({"model_type": family}) == expected, family
    assert total(DEBERTA) == 879_083_520
    assert from_hugging_face(DEBERTA).token_types == 0 == from_hugging_face(DEBERTA).conv_kernel
    for left_out in ("relative_attention", "share_att_key", "norm_rel_ebd"):  # the base DeBERTa has none of the three
        with pytest.raises(ValueError, match=f"{left_out} = (False|'none') is not known for deberta-v2"):
            from_hugging_face({k: v for k, v in DEBERTA.items() if k != left_out})
    assert from_hugging_face({"model_type": "gemma"}).kv_heads == 16
    contexts = {family: from_hugging_face({"model_type": family}).context for family in totals}
    assert contexts == {
        "bert": 512, "gemma": 8192, "gpt2": 1024, "llama": 2048, "mistral": 131072, "qwen2": 32768, "roberta": 510,
    }  # fmt: skip


def test_mistral_without_key_value_heads_has_eight_of_them():
    """Its default is not the number of heads, as Llama's is: 698,372,096, where 748,703,744 was printed once."""
    assert total({"model_type": "mistral", "num_hidden_layers": 2}) == 698_372_096
    assert total({"model_type": "mistral", "num_hidden_layers": 2, "num_key_value_heads": 32}) == 748_703_744
    config = dict(hidden_size=1024, num_hidden_layers=16, num_attention_heads=32, intermediate_size=4096)
    assert from_hugging_face({"model_type": "mistral", **config}).kv_heads == 8
    assert from_hugging_face({"model_type": "llama", **config}).kv_heads == 32
    assert from_hugging_face({"model_type": "mistral", **config, "num_key_value_heads": None}).kv_heads == 32
    assert total({"model_type": "mistral", **config}) == llama(32000, 1024, 16, 4096, 32, 8, 32)


def test_deberta_reads_its_relative_positions():
    """Buckets where there are any, else the farthest distance, else the longest text."""
    rows = lambda **fields: from_hugging_face({**DEBERTA, **fields}).relative_positions
    assert (rows(), rows(max_relative_positions=7), rows(position_buckets=5, max_relative_positions=7)) == (
        1024,
        14,
        10,
    )
    assert (rows(position_buckets=1), rows(max_relative_positions=1)) == (2, 2)
    assert rows(position_buckets=0, max_relative_positions=0, max_position_embeddings=9) == 18
    found = from_hugging_face({**DEBERTA, "conv_kernel_size": 3, "type_vocab_size": 2, "position_biased_input": False})
    assert (found.conv_kernel, found.token_types, found.positions, found.pooler) == (3, 2, 0, False)
    assert from_hugging_face({**DEBERTA, "norm_rel_ebd": "X | Layer_Norm"}).positions == 512


def test_gpt2_is_read_under_both_of_its_names():
    own = {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16, "vocab_size": 9}
    common = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 16}
    read = from_hugging_face(own)
    assert read == from_hugging_face({"model_type": "gpt2", **common, "vocab_size": 9})
    assert (read.width, read.layers, read.heads, read.mlp_width, read.positions, read.context) == (24, 2, 3, 96, 16, 16)
    assert from_hugging_face({**own, "n_inner": 5, "tie_word_embeddings": False}) == Architecture(
        "gpt2", 9, 24, 2, 3, 5, 16, positions=16, head="untied"
    )


def test_encoders_have_their_own_parts():
    bert = from_hugging_face({"model_type": "bert", "max_position_embeddings": 20, "type_vocab_size": 0})
    assert (bert.positions, bert.context, bert.token_types, bert.pooler, bert.final_norm) == (20, 20, 0, True, False)
    shifted = from_hugging_face({"model_type": "roberta", "pad_token_id": 4})
    assert (shifted.positions, shifted.context, shifted.embedding_norm, shifted.head) == (512, 507, True, "none")
    decoder = from_hugging_face({"model_type": "bert", "is_decoder": True})
    assert decoder == replace(from_hugging_face({"model_type": "bert"}), causal=True)


def test_fields_that_say_what_is_counted_anyway_are_read_over():
    said = {"add_cross_attention": False, "position_embedding_type": "absolute", "pruned_heads": {}, "conv_groups": 1}
    said |= {"per_layer_config": {}, "attention_head_size": 64, "embedding_size": 768, "hidden_dropout_prob": 0.1}
    biases = {"attention_bias": True, "mlp_bias": True, "head_dim": 64, "num_key_value_heads": 12}
    assert from_hugging_face({"model_type": "bert", **said, **biases}) == from_hugging_face({"model_type": "bert"})
    assert from_hugging_face({"model_type": "gpt2", **said, **biases}) == from_hugging_face({"model_type": "gpt2"})
    null = dict.fromkeys(("add_cross_attention", "pruned_heads", "per_layer_config", "attention_bias", "head_dim"))
    assert from_hugging_face({"model_type": "bert", **null}) == from_hugging_face({"model_type": "bert"})
    qwen2 = {"model_type": "qwen2", "attention_bias": True, "mlp_bias": False}
    assert from_hugging_face(qwen2) == from_hugging_face({"model_type": "qwen2"})


REFUSED = [  # (family, fields, what the line says)
    *((family, {"add_cross_attention": True, "is_decoder": True}, "add_cross_attention = True") for family in FAMILIES),
    *((family, {"attention_bias": False}, "attention_bias = False") for family in ("bert", "gpt2", "qwen2")),
    *((family, {"mlp_bias": True}, "mlp_bias = True") for family in ("mistral", "gemma", "qwen2")),
    *((family, {"per_layer_config": {"0": {}}}, "per_layer_config = ") for family in FAMILIES),
    *((family, {"embedding_size": 128}, "embedding_size = 128") for family in FAMILIES),
    *((family, {"attention_head_size": 7}, "attention_head_size = 7") for family in ("bert", "deberta-v2", "gpt2")),
    *((family, {"head_dim": 7}, "head_dim = 7") for family in ("bert", "gpt2")),
    *((family, {"num_key_value_heads": 2}, "num_key_value_heads = 2") for family in ("bert", "gpt2", "roberta")),
    ("mistral", {"attention_bias": True}, "attention_bias = True is not known for mistral, expected False"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
    ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("deberta-v2", {"conv_groups": 2, "conv_kernel_size": 3}, "conv_groups = 2"),
    ("deberta-v2", {"share_att_key": False}, "share_att_key = False is not known for deberta-v2, expected True"),
    ("deberta-v2", {"relative_attention": None}, "relative_attention = False"),
    ("deberta-v2", {"norm_rel_ebd": "no_layer_norm"}, "norm_rel_ebd = 'no_layer_norm'"),
    ("deberta-v2", {"norm_rel_ebd": None}, "norm_rel_ebd = None"),
    ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings = 2, expected an integer, 3 or more"),
    ("roberta", {"pad_token_id": None}, "pad_token_id = None"),
    ("llama", {"head_dim": 64.5}, "head_dim = 64.5, expected a positive integer"),
    ("bert", {"type_vocab_size": -2}, "type_vocab_size = -2, expected an integer, 0 or more"),
    ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes', expected true or false"),
    ("llama", {"attention_bias": 1}, "attention_bias = 1, expected true or false"),
    ("bert", {"head_dim": 64.0}, "head_dim = 64.0 is not known for bert, expected 64"),
    ("roberta", {"pad_token_id": -1}, "pad_token_id = -1, expected an integer, 0 or more"),
    ("deberta-v2", {"conv_kernel_size": -1}, "conv_kernel_size = -1, expected an integer, 0 or more"),
    ("gpt2", {"n_inner": 0}, "n_inner = 0, expected a positive integer"),
    ("gpt2", {"n_layer": 10**9}, "layers = 1000000000, expected at most 2,000"),
    ("gpt2", {"vocab_size": 10**30}, "expected a positive integer below 2^63"),
    ("gemma", {"num_key_value_heads": 3}, "16 heads do not divide into 3"),
    ("llama", {"hidden_size": 100, "num_attention_heads": 3}, "width 100 is not divisible by 3 heads; give head_dim"),
]  # fmt: skip


@pytest.mark.parametrize("family, fields, words", REFUSED, ids=[f"{f} {w}" for f, _, w in REFUSED])
def test_what_is_not_understood_is_refused_by_name_in_one_line(family, fields, words):
    config = {**(DEBERTA if family == "deberta-v2" else {"model_type": family}), **fields}
    with pytest.raises(ValueError) as error:
        from_hugging_face(config)
    assert words in str(error.value) and "\n" not in str(error.value)


SIZED = {
    "gpt2": ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "hidden_size", "num_hidden_layers"),
    **{family: ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                "max_position_embeddings") for family in FAMILIES if family not in ("gpt2", "distilbert")},
    "distilbert": ("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "hidden_size", "num_hidden_layers"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [None, True, "12", 12.0, -12, 0, [12], {"a": 1}, float("nan"), "x" * 10**5])
def test_every_size_is_a_whole_number(family, value):
    for field in SIZED[family]:
        config = {**(DEBERTA if family == "deberta-v2" else {"model_type": family}), field: value}
        with pytest.raises(ValueError, match=f"{field} = .*expected a(n|) .*integer") as error:
            from_hugging_face(config)
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("value", [None, True, "12", 12.0, -12, 0, 2**63])
@pytest.mark.parametrize("field", ["vocab_size", "width", "layers", "heads", "mlp_width", "context"])
def test_an_architectures_sizes_are_whole_numbers(field, value):
    sizes = dict(vocab_size=9, width=8, layers=1, heads=2, mlp_width=7, context=5)
    with pytest.raises(ValueError, match=f"x: {field} = .*expected a positive integer"):
        Architecture("x", **{**sizes, field: value})
    assert Architecture("x", **sizes).dim == 4


BAD_PARTS = {
    "kv_heads": (0, -1, 1.0, True), "head_dim": (0, 2.5), "positions": (-1, None, 1.0), "token_types": (-2, "2"),
    "relative_positions": (-1, None), "conv_kernel": (-3, 3.0), "bits": (0, "32"), "gated": (1, None),
    "qkv_bias": (0, "yes"), "o_bias": (None,), "mlp_bias": (1,), "norm_bias": (0.0,), "final_norm": (1,),
    "embedding_norm": ("",), "pooler": (1,), "head": ("loose", None, True), "norm": ("batch", None),
    "norm_eps": (-1, "x"), "norm_offset": (1,), "activation": ("tanh", None, 3), "rope_base": (-1.0, None),
    "rope_fraction": ("1", 0.0, 1.5), "rope_scaling": ("yarn", None), "rope_factor": (float("inf"), float("nan")),
    "rope_original": (-1, 8.5), "window": (-1, None, 2.0), "full_layers": ((-1,), (1.5,), ("1",), None),
    "qk_norm": (1,), "query_scale": (None,), "scaled_embedding": (0,), "post_norms": (None,), "norm_first": (1,),
    "causal": ("no",), "pad_id": (-1, 1.5), "rope_local_base": (-2.0,),
}  # fmt: skip


@pytest.mark.parametrize("field", BAD_PARTS)
def test_an_architectures_parts_are_of_their_kind(field):
    for value in BAD_PARTS[field]:
        with pytest.raises(ValueError, match=f"x: {field} = "):
            Architecture("x", 9, 8, 1, 2, 7, 5, **{field: value})


def test_parts_that_do_not_fit_each_other():
    with pytest.raises(ValueError, match=r"x: rope_fraction = 1.0 and rope_factor = 0.0, expected above 0"):
        Architecture("x", 9, 8, 1, 2, 7, 5, rope_factor=0.0)
    for wrong in (dict(rope_low=4.0), dict(rope_original=0)):
        with pytest.raises(ValueError, match=r"x: rope_low = .*expected low < high, and the context before"):
            Architecture("x", 9, 8, 1, 2, 7, 5, rope_scaling="llama3", **{"rope_original": 8, **wrong})
    listed = Architecture("x", 9, 8, 3, 2, 7, 5, window=2, full_layers=[1])  # as JSON has it
    assert hash(listed) and [listed.slides(i) for i in range(3)] == [True, False, True]


def test_no_more_layers_than_can_be_listed():
    assert Architecture("x", 9, 8, DEEPEST, 2, 7, 5).layers == 2000
    with pytest.raises(ValueError, match="x: layers = 2001, expected at most 2,000"):
        Architecture("x", 9, 8, DEEPEST + 1, 2, 7, 5)


@pytest.mark.parametrize(
    "other", ["mixtral", "mllama", "gemma2", "qwen3_moe", "qwen", "deberta", "ministral", "bart", "gpt"]
)
def test_another_family_is_not_taken_for_a_slip(other):
    with pytest.raises(ValueError, match=f"unknown model_type '{other}'; there are bert"):
        from_hugging_face({"model_type": other})


@pytest.mark.parametrize(
    "slip, meant", [("lama", "llama"), ("GPT-2", "gpt2"), ("mistrall", "mistral"), ("gema", "gemma")]
)
def test_a_slip_is_told_what_it_is_near_to(slip, meant):
    with pytest.raises(ValueError, match=f"unknown model_type '{slip}' .did you mean '{meant}'"):
        from_hugging_face({"model_type": slip})


@pytest.mark.parametrize("family", [None, 3, ["llama"], {"llama": 1}, "x" * 10**5, "a\nb"])
def test_a_model_type_that_is_none(family):
    with pytest.raises(ValueError, match="unknown model_type") as error:
        from_hugging_face({"model_type": family})
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "name, close",
    [("mixtral-8x7b", None), ("gpt2-medum", "gpt2-medium"), ("gpt5", "gpt2"), ("lama-2-7b", "llama-2-7b")],
)
def test_a_models_name_that_is_not_known(name, close):
    with pytest.raises(ValueError, match=f"unknown model '{name}'") as error:
        find(name)
    assert (
        (f"did you mean '{close}'" in str(error.value)) == (close is not None) == ("did you mean" in str(error.value))
    )
    assert str(error.value).endswith("or give the path of a Hugging Face config.json or of a minilora file")


DAMAGED = {
    "200,000 brackets": "[" * 200_000,
    "200,000 objects": '{"a":' * 200_000,
    "nothing": "",
    "half": '{"model_type": "gpt2", ',
    "a list": "[1]",
    "a number": "7",
    "too many digits": '{"model_type": "gpt2", "n_embd": ' + "9" * 10_000 + "}",
    "infinite": '{"model_type": "gpt2", "n_embd": Infinity}',
    "not UTF-8": b"\xff\xfe\x00",
    "a mark at its start": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line(case, tmp_path):
    path, text = tmp_path / "config.json", DAMAGED[case]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        find(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_file_is_called_by_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "_name_or_path": "x"}))
    assert find(folder / "config.json").name == find(str(folder / "config.json")).name == "some-model"
    assert from_hugging_face(folder / "config.json", "mine").name == "mine"
    monkeypatch.chdir(folder)
    assert find("config.json").name == "config"  # a bare name has no folder
    named = lambda value: from_hugging_face({"model_type": "llama", "_name_or_path": value}).name
    assert [named(value) for value in ("x/y", "", None, 3, ["a"], "a\nb")] == ["x/y"] + 5 * ["llama"]
    assert from_hugging_face({"model_type": "llama"}, "mine").name == "mine"
    with pytest.raises(FileNotFoundError):
        find(tmp_path / "config.json")
