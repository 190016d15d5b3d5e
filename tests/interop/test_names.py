"""names.py: every parameter has one place in a file, and what shares a matrix there fills it without a gap."""

import dataclasses

import pytest

from minilora.interop.names import FAMILIES, Place, gguf_names, module_names
from minilora.nn.architectures import Architecture, find, parameters

SIZES: dict = dict(
    vocab_size=11, width=8, layers=2, heads=2, mlp_width=12, context=16, kv_heads=1, gated=True, head="untied"
)


def small(family):
    """An architecture of a family with the parts that its names depend on."""
    encoder = family in ("bert", "roberta", "distilbert")
    gated = family != "gpt2" and not encoder
    parts: dict = dict(gated=gated, family=family, kv_heads=1 if gated else None)
    if encoder:
        pooler = family != "distilbert"
        parts |= dict(head="none", final_norm=False, embedding_norm=True, token_types=2 * pooler, pooler=pooler)
    return Architecture("small", **(SIZES | parts | dict(positions=0 if gated else 16)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("names", [module_names, gguf_names])
def test_every_module_has_a_place_of_its_own(family, names):
    if names is gguf_names and family in ("bert", "roberta", "distilbert"):
        pytest.skip("encoders are not read from GGUF")
    a = small(family)
    places = names(a)
    rows = {name.rpartition(".")[0]: shape[0] for name, shape in parameters(a).items()}
    assert places.keys() == rows.keys()
    filled: dict[str, int] = {}
    for path, place in places.items():
        start = filled.get(place.module, 0)
        assert (place.rows or slice(0, rows[path])) == slice(start, start + rows[path])
        filled[place.module] = start + rows[path]
    alone = [place.module for place in places.values() if place.rows is None]
    assert len({*alone}) == len(alone) and not {*alone} & {p.module for p in places.values() if p.rows}


def test_gpt2_fuses_and_transposes_q_k_and_v():
    places = module_names(small("gpt2"))
    assert places["blocks.1.attn.v_proj"] == Place("transformer.h.1.attn.c_attn", slice(16, 24), True)
    assert places["blocks.1.mlp.down_proj"] == Place("transformer.h.1.mlp.c_proj", None, True)
    assert places["blocks.0.ln_2"] == Place("transformer.h.0.ln_2") and places["head"] == Place("lm_head")
    assert gguf_names(small("gpt2"))["blocks.1.attn.k_proj"] == Place("blk.1.attn_qkv", slice(8, 16))


def test_phi3_fuses_what_grouped_queries_make_of_unequal_height():
    places = module_names(small("phi3"))
    assert places["blocks.0.attn.k_proj"] == Place("model.layers.0.self_attn.qkv_proj", slice(8, 12))
    assert places["blocks.0.attn.v_proj"] == Place("model.layers.0.self_attn.qkv_proj", slice(12, 16))
    assert places["blocks.0.mlp.up_proj"] == Place("model.layers.0.mlp.gate_up_proj", slice(12, 24))
    assert gguf_names(small("phi3"))["blocks.0.mlp.up_proj"] == Place("blk.0.ffn_up", slice(12, 24))


def test_a_family_whose_files_are_not_known_is_refused():
    with pytest.raises(ValueError, match=r"small: files of the family 't5' are not known; of gpt2, llama, "):
        module_names(dataclasses.replace(find("gpt2"), name="small", family="t5"))


def test_families_come_from_configurations_and_from_the_table():
    assert find({"model_type": "qwen2"}).family == "qwen2"
    assert [find(name).family for name in ("gemma-2b", "base", "roberta-base")] == ["gemma", "gpt2", "roberta"]
