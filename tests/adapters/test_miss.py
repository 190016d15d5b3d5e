"""MiSS: pieces of the input share one matrix."""

import numpy as np
import pytest
from adapters.variants import base, shake

import minilora as ml
from minilora.adapters.miss import pieces_added


@pytest.mark.parametrize("r", [1, 2, 3, 5, 8])
def test_pieces_are_added_the_last_one_filled_with_zeros(r):
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    wanted = np.stack([x[..., j::r].sum(axis=-1) for j in range(r)], axis=-1)  # (2, 3, r)
    np.testing.assert_allclose(pieces_added(ml.Tensor(x), r).data, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("r", [3, 8])
def test_a_layer_is_the_formula_and_its_rank_is_r_at_most(r):
    model = shake(ml.add_adapter(base(), ml.MiSSConfig(r, "*")))
    for d_in, layer in ((8, model.blocks[0].attn.q_proj), (32, model.blocks[0].mlp.down_proj)):
        D, delta = layer.miss_D.data, layer.delta()
        assert D.shape == (r, 8) and np.linalg.matrix_rank(delta) <= r
        np.testing.assert_array_equal(delta, np.stack([D[i % r] for i in range(d_in)], axis=1))  # D[i mod r, o]
        x = np.random.default_rng(0).normal(size=(4, d_in))
        np.testing.assert_allclose(layer.update(ml.Tensor(x)).data, x @ delta.T, rtol=0, atol=1e-12)
    assert repr(model.blocks[0].attn.q_proj).startswith(f"MiSSLinear(rank {r};")


def test_it_is_lora_with_a_fixed_a():
    """The same D in LoRA's words: A = [1 1 1 ...], B = D^T, s = 1."""
    miss = shake(ml.add_adapter(base(), ml.MiSSConfig(4)))
    lora = ml.add_lora(base(), ml.LoRAConfig(4, 4))
    for one, two in ((m.blocks[0].attn.v_proj, n.blocks[0].attn.v_proj) for m, n in [(miss, lora)]):
        two.lora_A.data[...], two.lora_B.data[...] = np.tile(np.eye(4), 2), one.miss_D.data.T
        np.testing.assert_allclose(one.delta(), two.delta(), rtol=0, atol=1e-14)


def test_a_piece_is_no_longer_than_the_input():
    with pytest.raises(ValueError, match=r"add_adapter: rank 9 exceeds d_in = 8 of blocks\.0\.attn\.q_proj"):
        ml.add_adapter(base(), ml.MiSSConfig(9))
    with pytest.raises(ValueError, match=r"miss: rank 9 exceeds d_in = 8 of blocks\.0\.attn\.q_proj"):
        ml.analysis.counting.count(base(), "miss", rank=9)
    assert ml.add_adapter(base(), ml.MiSSConfig(9, "down_proj")).count(trainable=True) == 2 * 9 * 8  # 32 inputs
