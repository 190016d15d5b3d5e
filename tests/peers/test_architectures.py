"""config.json against transformers: fields drawn, left out and odd, the models built on the meta device."""

import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minilora.interop.config_out import CLASSES, config_for
from minilora.interop.names import family_of, module_names
from minilora.nn import config_json
from minilora.nn.architectures import MODELS, from_hugging_face, parameters, size

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers: pip install 'minilora[peers]'")
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

ENCODERS = ("bert", "deberta-v2", "distilbert", "roberta")
OTHERWISE = {  # null there means other fields'
    *("num_key_value_heads", "head_dim", "layer_types", "rope_parameters", "original_max_position_embeddings"),
    "sliding_window",
}
DEBERTA = {"relative_attention": True, "share_att_key": True, "norm_rel_ebd": "layer_norm"}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """transformers tells of every odd token id."""
    transformers.logging.set_verbosity(logging.CRITICAL)


def theirs(config):
    """How many parameters the transformers model of this configuration has."""
    family = config["model_type"]
    with torch.device("meta"):
        auto = transformers.AutoModel if family in ENCODERS else transformers.AutoModelForCausalLM
        model = auto.from_config(CONFIG_MAPPING[family].from_dict(json.loads(json.dumps(config))))
    return sum(p.numel() for p in model.parameters())  # a tied head counts once


def ours(config):
    return size(parameters(from_hugging_face(config)))


@pytest.mark.parametrize("family", config_json.FAMILIES)
def test_what_is_left_out_has_the_familys_defaults(family):
    """All fields, and then each field alone, beside small sizes."""
    needed = DEBERTA if family == "deberta-v2" else {}
    assert ours({"model_type": family, **needed}) == theirs({"model_type": family, **needed})
    defaults = CONFIG_MAPPING[family]().to_dict()
    for field, value in config_json.DEFAULTS[family].items():
        if field in defaults and field not in OTHERWISE:
            assert value == defaults[field], field
    turned = defaults.get("rope_parameters") or {}
    turned = turned.get("full_attention", turned)  # of Gemma 3, which has two kinds of layers
    assert turned.get("rope_theta") == config_json.DEFAULTS[family].get("rope_theta")
    small = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=16, intermediate_size=12, vocab_size=31)
    for left_out in small:
        config = {"model_type": family, "pad_token_id": 0, **needed}
        config |= {k: v for k, v in small.items() if k != left_out}
        try:
            count = ours(config)
        except ValueError as error:
            assert "divide" in str(error) or "divisible" in str(error)  # 64 wide, with a default of 12 heads
        else:
            assert count == theirs(config), left_out


def test_mistral_without_key_value_heads_has_eight():
    small = dict(hidden_size=1024, num_hidden_layers=32, num_attention_heads=32, intermediate_size=4096)
    config = {"model_type": "mistral", **small}
    assert from_hugging_face(config).kv_heads == 8
    assert ours(config) == theirs(config) < ours({**config, "num_key_value_heads": 32})


MAYBE = {  # any family may be given any of these: they are acted on, without effect, or refused by name
    "add_cross_attention": st.sampled_from([False, True]),
    "is_decoder": st.booleans(),
    "attention_bias": st.booleans(),
    "mlp_bias": st.booleans(),
    "tie_word_embeddings": st.booleans(),
    "type_vocab_size": st.integers(0, 3),
    "max_position_embeddings": st.integers(3, 40),
    "max_relative_positions": st.integers(-1, 9),
    "position_buckets": st.integers(-1, 9),
    "position_biased_input": st.booleans(),
    "attention_head_size": st.integers(1, 8),
    "embedding_size": st.sampled_from([8, 12, 24]),
    "conv_kernel_size": st.sampled_from([0, 1, 3, 5]),
    "conv_groups": st.sampled_from([1, 2]),
    "head_dim": st.one_of(st.none(), st.integers(1, 10)),
    "num_key_value_heads": st.one_of(st.none(), st.integers(1, 6)),
    "n_inner": st.one_of(st.none(), st.integers(1, 50)),
    "n_embd": st.sampled_from([12, 24]),
    "n_positions": st.integers(1, 40),
    "pad_token_id": st.sampled_from([0, 1, 2]),
    "relative_attention": st.booleans(),
    "share_att_key": st.booleans(),
    "norm_rel_ebd": st.sampled_from(["none", "layer_norm", "Layer_Norm | x", "no_layer_norm"]),
    "pos_att_type": st.sampled_from([None, "p2c|c2p", ["c2p"]]),
    "position_embedding_type": st.sampled_from(["absolute", "relative_key"]),
    "pooler_hidden_size": st.integers(1, 9),
    "sliding_window": st.one_of(st.none(), st.integers(1, 9)),
    "use_sliding_window": st.booleans(),
    "use_bidirectional_attention": st.booleans(),
    "num_labels": st.integers(1, 5),
    "summary_use_proj": st.booleans(),
    "chunk_size_feed_forward": st.integers(0, 2),
    "pretraining_tp": st.integers(1, 2),
    "n_ctx": st.integers(1, 9),
    "num_experts": st.integers(1, 4),
    "ffn_dim": st.integers(1, 9),
}
SIZES = {
    "hidden_size": st.sampled_from([12, 24, 36]),
    "num_hidden_layers": st.integers(1, 3),
    "num_attention_heads": st.sampled_from([1, 2, 3, 4, 6, 12]),
    "intermediate_size": st.integers(1, 40),
    "vocab_size": st.integers(5, 40),
}


@st.composite
def configs(draw, family):
    config = {"model_type": family, **draw(st.fixed_dictionaries({}, optional=SIZES))}
    config["num_hidden_layers"] = draw(SIZES["num_hidden_layers"])
    if family == "deberta-v2" and draw(st.integers(0, 3)):
        config |= DEBERTA
    for field in draw(st.lists(st.sampled_from(sorted(MAYBE)), max_size=3, unique=True)):
        config[field] = draw(MAYBE[field])
    return config


@pytest.mark.parametrize("family", config_json.FAMILIES)
def test_drawn_fields_are_counted_as_transformers_builds_them_or_refused_by_name(family):
    """200 configurations a family: the same count, or one line that names a field of the file."""
    outcomes = {"counted": 0, "refused": 0}

    @settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(configs(family))
    def one(config):
        try:
            count = ours(config)
        except ValueError as error:
            fixed = {*config, *config_json.DEFAULTS[family], "divisible", "divide"}
            assert "\n" not in str(error) and any(field in str(error) for field in fixed)
            outcomes["refused"] += 1
            return
        try:
            expected = theirs(config)
        except Exception:  # transformers cannot build it: nothing to compare with
            return
        assert count == expected
        outcomes["counted"] += 1

    one()
    assert outcomes["counted"] >= 40, outcomes


@pytest.mark.parametrize("family", config_json.FAMILIES)
@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("value", [2.0, "2", True, -2, 0, [2], {}, 64.5])
def test_a_size_that_transformers_refuses_is_refused(family, field, value):
    """Theirs refuses most of them too; where it does not (0 blocks), it builds no model that could be adapted."""
    small = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    config = {"model_type": family, **(DEBERTA if family == "deberta-v2" else {}), **small, field: value}
    with pytest.raises(ValueError, match=field):
        from_hugging_face(config)


def test_no_other_family_gets_a_hint_that_misleads():
    """Of the model types of transformers only misspellings of ours would be given one: there are none."""
    others = [family for family in CONFIG_MAPPING if family not in config_json.FAMILIES]
    assert len(others) > 300 and "mixtral" in others
    for family in others:
        with pytest.raises(ValueError, match="unknown model_type") as error:
            from_hugging_face({"model_type": family})
        assert "did you mean" not in str(error.value)


# --- the named models ------------------------------------------------------------------------------------------------


def shapes_in_their_file(a):
    """{parameter's name there: its shape}, of ours: one below the other where they share a matrix."""
    names, shapes = module_names(a), {}
    for name, (d_out, *d_in) in parameters(a).items():
        path, _, kind = name.rpartition(".")
        there, turned = f"{names[path].module}.{kind}", names[path].transposed
        rows = shapes[there][-1 if turned else 0] if there in shapes else 0
        shapes[there] = (*d_in, rows + d_out) if turned else (rows + d_out, *d_in)
    return shapes


@pytest.mark.parametrize("name", [n for n, a in MODELS.items() if a.family in {f for f, _ in CLASSES.values()}])
def test_a_named_model_is_transformers_own_class_parameter_by_parameter(name):
    """Built on the meta device from our sizes, in full depth: the same names, the same shapes, and no other."""
    a = MODELS[name]
    config = config_for(a)
    with torch.device("meta"):
        built = getattr(transformers, config["architectures"][0])(CONFIG_MAPPING[a.family].from_dict(config))
    bare = "" if a.causal else family_of(a).prefix  # an encoder without a head has no prefix there
    ours = {name.removeprefix(bare): shape for name, shape in shapes_in_their_file(a).items()}
    assert ours == {name: tuple(p.shape) for name, p in built.named_parameters()}


# transformers' own defaults, typed by its authors after these models' published files
AS_BY_DEFAULT = {
    "gpt2": "gpt2", "bert-base": "bert", "distilbert-base": "distilbert", "llama-2-7b": "llama",
    "mistral-7b": "mistral", "gemma-7b": "gemma", "phi-3-mini": "phi3",
}  # fmt: skip


@pytest.mark.parametrize("name", AS_BY_DEFAULT)
def test_a_named_model_has_the_sizes_that_transformers_gives_its_family(name):
    there = from_hugging_face({"model_type": AS_BY_DEFAULT[name], **CONFIG_MAPPING[AS_BY_DEFAULT[name]]().to_dict()})
    assert parameters(there) == parameters(MODELS[name])
