"""VeRA: one random pair for all layers, drawn from a seed, and two vectors a layer."""

import copy

import numpy as np
import pytest
from adapters.variants import TOKENS, base, shake

import minilora as ml
from minilora.adapters.lora import lora_layers
from minilora.adapters.vera import RandomPair


def test_a_layer_is_the_formula_with_its_part_of_the_pair():
    model = shake(ml.add_adapter(base(), ml.VeRAConfig(7, "*")))
    pair = model.blocks[0].attn.q_proj.pair
    assert pair.A.shape == (7, 32) and pair.B.shape == (32, 7)
    for path, layer in lora_layers(model).items():
        d_out, d_in = layer.weight.shape
        assert layer.pair is pair
        wanted = layer.vera_b.data[:, None] * pair.B[:d_out] @ (layer.vera_d.data[:, None] * pair.A[:, :d_in])
        np.testing.assert_allclose(layer.delta(), wanted, rtol=0, atol=1e-12, err_msg=path)
        x = np.random.default_rng(0).normal(size=(4, d_in))
        np.testing.assert_allclose(layer.update(ml.Tensor(x)).data, x @ wanted.T, rtol=0, atol=1e-12)


def test_the_pair_is_of_the_seed_alone_and_stays_the_same_for_good():
    """Files hold the seed: were these numbers to change, every file would mean another adapter."""
    pair = RandomPair(2, 3, 4, seed=5)
    np.testing.assert_allclose(pair.A[0], [-0.680975, 0.908105, -0.718388, 1.025383], atol=1e-6)
    np.testing.assert_allclose(pair.B[:, 1], RandomPair(2, 3, 4, seed=5).B[:, 1])
    assert pair.A.dtype == pair.B.dtype == np.float32 and (RandomPair(2, 3, 4, 6).A != pair.A).any()
    one, two = (ml.add_adapter(base(), ml.VeRAConfig(3, seed=2), rng=rng) for rng in (0, 1))
    np.testing.assert_array_equal(one.blocks[0].attn.q_proj.pair.A, two.blocks[0].attn.q_proj.pair.A)
    wide = RandomPair(50, 400, 300, 0)
    for drawn in (wide.A, wide.B):
        bound = np.sqrt(6 / drawn.shape[1])
        assert 0.98 * bound < np.abs(drawn).max() <= bound and abs(drawn.mean()) < 0.02 * bound


def test_a_file_has_no_pair_and_gives_it_back(tmp_path):
    model = shake(ml.add_adapter(base(), ml.VeRAConfig(500, seed=9)))
    path = ml.save_adapter(model, tmp_path / "a.npz")
    arrays = [name for name in np.load(path).files if name.startswith("blocks.")]
    assert sorted({name.rpartition(".")[2] for name in arrays}) == ["vera_b", "vera_d"]
    loaded = ml.load_adapter(base(), path)
    np.testing.assert_array_equal(loaded(TOKENS).data, model(TOKENS).data)
    twin = copy.deepcopy(model)
    pairs = {id(layer.pair) for layer in lora_layers(twin).values()}
    assert len(pairs) == 1 and model.blocks[0].attn.q_proj.pair not in pairs  # still one for all layers


def test_both_precisions_have_the_same_pair():
    model = shake(ml.add_adapter(base("float32"), ml.VeRAConfig(4)))
    outputs = model(TOKENS).data
    np.testing.assert_allclose(model.astype("float64")(TOKENS).data, outputs, rtol=0, atol=1e-5)
    assert model(TOKENS).dtype == np.float64


def test_only_v_moves_at_first_and_settings_are_checked():
    model = ml.add_adapter(base(), ml.VeRAConfig(4, d_initial=-0.3))
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = dict(zip(names, ml.grad(model.loss(TOKENS, TOKENS), list(names.values())), strict=True))
    assert all(g.any() == name.endswith("vera_b") for name, g in gradients.items())
    assert (model.blocks[0].attn.q_proj.vera_d.data == np.float64(np.float32(-0.3))).all()
    for settings, words in (
        (dict(seed=-1), "seed = -1, expected an integer from 0"), (dict(seed=2**32), "seed = 4294967296"),
        (dict(seed=0.5), "seed = 0.5"), (dict(d_initial=0), "d_initial = 0, expected a number that is not zero"),
        (dict(d_initial=float("nan")), "d_initial = nan"), (dict(d_initial="a"), "d_initial = 'a'"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=f"VeRAConfig: {words}"):
            ml.VeRAConfig(**settings)
    with pytest.raises(ValueError, match="vera: wte is an embedding table"):
        ml.analysis.counting.count("gpt2", "vera", target_modules=("wte",))
