"""IA3: what is stretched, in front of a layer and behind it."""

import numpy as np
import pytest
from adapters.variants import TOKENS, base, shake

import minilora as ml
from minilora.adapters.ia3 import IA3


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_formula(bias):
    model = shake(ml.add_adapter(base(bias=bias), ml.IA3Config()))
    rng, x, h = np.random.default_rng(0), *(np.random.default_rng(i).normal(size=(5, n)) for i, n in ((1, 8), (2, 32)))
    key, down = model.blocks[0].attn.k_proj, model.blocks[1].mlp.down_proj
    assert key.ia3_l.shape == (8,) and down.ia3_l.shape == (32,) and rng is not None
    b = [layer.bias.data if bias else 0 for layer in (key, down)]
    np.testing.assert_allclose(key(ml.Tensor(x)).data, key.ia3_l.data * (x @ key.weight.data.T + b[0]), atol=1e-13)
    np.testing.assert_allclose(down(ml.Tensor(h)).data, (down.ia3_l.data * h) @ down.weight.data.T + b[1], atol=1e-13)


def test_the_papers_three_vectors_a_block_and_no_others():
    model = ml.add_adapter(base(), ml.IA3Config())
    held = {path: m.feedforward for path, m in model.named_modules() if isinstance(m, IA3)}
    assert held == {f"blocks.{i}.{name}": name == "mlp.down_proj" for i in range(2)
                    for name in ("attn.k_proj", "attn.v_proj", "mlp.down_proj")}  # fmt: skip
    assert all((p.data == 1).all() for p in model.parameters(trainable=True))
    assert ml.analysis.counting.count("gpt2", "ia3").trainable_parameters == 12 * (768 + 768 + 3072)
    t0 = ml.analysis.counting.count("gpt2", "ia3", target_modules=("q_proj", "up_proj"), feedforward_modules="up_proj")
    assert t0.trainable_parameters == 12 * (768 + 768) and t0.target_modules == ["q_proj", "up_proj"]


def test_a_zero_switches_a_unit_off_and_merging_is_exact():
    model = ml.add_adapter(base(), ml.IA3Config())
    for p in model.parameters(trainable=True):
        p.data[...] = np.arange(p.size) % 2  # every other one
    outputs = model(TOKENS).data
    ml.merge_adapter(model)
    down = model.blocks[0].mlp.down_proj.weight.data
    assert not down[:, ::2].any() and down[:, 1::2].any() and not model.blocks[0].attn.k_proj.bias.data[::2].any()
    np.testing.assert_allclose(model(TOKENS).data, outputs, rtol=0, atol=1e-13)


def test_feedforward_modules_may_be_none_or_no_targets_and_must_mean_something():
    behind = ml.add_adapter(base(), ml.IA3Config("up_proj", ()))
    assert behind.blocks[0].mlp.up_proj.ia3_l.shape == (32,)
    assert not ml.add_adapter(base(), ml.IA3Config("v_proj")).blocks[0].attn.v_proj.feedforward
    with pytest.raises(ValueError, match="feedforward_modules: 'fc' matches nothing; there are q_proj"):
        ml.add_adapter(base(), ml.IA3Config(feedforward_modules="fc"))
    with pytest.raises(ValueError, match="IA3Config: feedforward_modules = 3"):
        ml.IA3Config(feedforward_modules=3)
    with pytest.raises(ValueError, match="ia3: wte is an embedding table, and ia3 is for linear layers"):
        ml.analysis.counting.count("gpt2", "ia3", target_modules=("wte",))
