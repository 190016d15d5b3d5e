"""What IA3, VeRA and MiSS share: their targets, a quantised base, several at once, and what is refused."""

import numpy as np
import pytest
from adapters.variants import TARGETS, TOKENS, base, shake

import minilora as ml
from minilora.adapters.state import check

CONFIGS = {"ia3": ml.IA3Config(), "vera": ml.VeRAConfig(5), "miss": ml.MiSSConfig(3), "lora-fa": ml.LoRAFAConfig(2)}
each = pytest.mark.parametrize("kind", CONFIGS)
ADDED_UP = ("vera", "miss", "lora-fa")


def logits(model):
    return model(TOKENS).data


@each
@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_on_a_quantised_base(kind, bits, tmp_path):
    make = lambda: ml.quantize_model(ml.GPT(ml.GPTConfig(11, 6, 1, 2, 64)).astype("float64"), bits)
    model, plain = make(), logits(make())
    ml.add_adapter(model, CONFIGS[kind])
    np.testing.assert_array_equal(logits(model), plain)
    moved = logits(shake(model))
    ml.merge_adapter(model)
    np.testing.assert_allclose(logits(model), moved, rtol=0, atol=1e-5)
    ml.unmerge_adapter(model)
    np.testing.assert_array_equal(logits(model), moved)
    check(model)
    path = ml.save_adapter(model, tmp_path / "a.npz")
    np.testing.assert_array_equal(logits(ml.load_adapter(make(), path)), moved)
    with ml.adapter_disabled(model):
        np.testing.assert_array_equal(logits(model), plain)
    assert not ml.requantize(model).parameters(trainable=True)


def test_updates_are_added_up_merged_and_mixed_in_a_batch():
    """VeRA, MiSS and LoRA-FA are Delta W's of low rank like LoRA's; IA3 is none."""
    model, alone = base(), {}
    for i, (kind, config) in enumerate(CONFIGS.items()):
        shake(ml.add_adapter(model, config, name=kind), i)
    for kind in ADDED_UP:
        ml.set_adapter(model, kind)
        alone[kind] = logits(model), ml.delta_weights(model)
    ml.set_adapter(model, ADDED_UP)
    total, deltas = logits(model), ml.delta_weights(model)
    for path, delta in deltas.items():
        np.testing.assert_allclose(delta, sum(alone[kind][1][path] for kind in ADDED_UP), rtol=0, atol=1e-13)
    ml.merge_adapter(model)
    np.testing.assert_allclose(logits(model), total, rtol=0, atol=1e-12)
    ml.unmerge_adapter(model)
    with ml.rows_use(model, list(ADDED_UP)):
        for i, kind in enumerate(ADDED_UP):
            np.testing.assert_allclose(logits(model)[i], alone[kind][0][i], rtol=0, atol=1e-12)
    ml.combine_adapters(model, dict.fromkeys(ADDED_UP, 1.0), how="svd", rank=8)
    np.testing.assert_allclose(logits(model), total, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="IA3Linear and VeRALinear cannot be added up"):
        ml.set_adapter(model, ["ia3", "vera"])
    with pytest.raises(ValueError, match=r"adapter 'ia3' is ia3, expected LoRA: what it does to .*is no s B A"):
        ml.rows_use(model, ["ia3", None, None]).__enter__()
    check(model)


@each
def test_targets_exclusions_and_what_is_trained_beside(kind):
    kind_of = type(CONFIGS[kind])
    more = {"rank": 2} if kind != "ia3" else {}
    beside = kind_of(**more, target_modules="*", exclude_modules=("blocks.0.*", "k_proj"), modules_to_save="ln_f")
    model = ml.add_adapter(base(), beside)
    paths = [path for path in model.adapters["default"].modules if path.endswith("_proj")]
    assert len(paths) == 5 and not any("blocks.0." in path or "k_proj" in path for path in paths)
    assert "ln_f.weight" in [name for name, p in model.named_parameters() if p.requires_grad]
    moved = logits(shake(model))
    ml.merge_adapter(model)
    np.testing.assert_allclose(logits(model), moved, rtol=1e-12, atol=1e-12)
    for settings, words in (
        (dict(target_modules="x_proj"), "'x_proj' matches nothing; there are q_proj"),
        (dict(target_modules="q_proj", exclude_modules="attn.q_proj"), "attn.q_proj leaves no target"),
        (dict(modules_to_save=("blocks.0.attn.v_proj",)), "is a target and, by modules_to_save, trained in full"),
        (dict(target_modules=()), f"{kind_of.__name__}: target_modules is empty"),
        (dict(target_modules=(3,)), f"{kind_of.__name__}: target_modules = .*expected names"),
        (dict(exclude_modules=None), f"{kind_of.__name__}: exclude_modules = None"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            ml.add_adapter(base(), kind_of(**more, **settings))
    with pytest.raises(ValueError, match="there is no linear layer inside this LayerNorm"):
        ml.add_adapter(base().ln_f, kind_of(**more))


@pytest.mark.parametrize("kind", ["vera", "miss"])
def test_dropout_is_on_the_input_of_what_is_added(kind):
    """The base's own x W^T drops nothing; without a generator nothing is dropped."""
    model = shake(ml.add_adapter(base(), type(CONFIGS[kind])(4, dropout=0.5)))
    assert model.drops_out()
    layer, x = model.blocks[0].attn.q_proj, np.random.default_rng(1).normal(size=(5, 8))
    kept = ml.ops.dropout(x, 0.5, np.random.default_rng(2)).data
    dropped = layer(ml.Tensor(x), np.random.default_rng(2)).data
    plain = x @ layer.weight.data.T + layer.bias.data
    np.testing.assert_allclose(dropped, plain + kept @ layer.delta().T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(layer(ml.Tensor(x)).data, plain + x @ layer.delta().T, rtol=0, atol=1e-12)
    for odd in (1, -0.1, "a", None):
        with pytest.raises((ValueError, TypeError), match=r"Config: dropout = .*"):
            type(CONFIGS[kind])(dropout=odd)


@each
def test_one_layer_in_two_places_is_adapted_once(kind):
    """A model whose second block calls the first one's q_proj."""
    model = base()
    model.blocks[1].attn.v_proj = model.blocks[0].attn.v_proj
    plain = logits(model)
    shake(ml.add_adapter(model, CONFIGS[kind]))
    assert model.blocks[1].attn.v_proj is model.blocks[0].attn.v_proj is not None
    moved = logits(model)
    ml.merge_adapter(model)
    np.testing.assert_allclose(logits(model), moved, rtol=1e-12, atol=1e-12)
    ml.unmerge_adapter(model)
    np.testing.assert_array_equal(logits(ml.remove_adapter(model)), plain)


def test_a_rank_is_a_positive_integer():
    for kind in (ml.VeRAConfig, ml.MiSSConfig):
        for odd in (0, -1, 2.5, None, "3", True):
            with pytest.raises((ValueError, TypeError), match=rf"{kind.__name__}: rank = "):
                kind(odd)
        with pytest.raises(TypeError, match="there is no such setting; write rank="):
            kind(r=3)
    assert TARGETS.shape == TOKENS.shape
