"""Every way to begin: the table of `adapters/initialise.py`, each held to what all of them promise."""

import numpy as np
import pytest
from adapters.variants import TARGETS, TOKENS, base, shake

import minilora as ml
from minilora.adapters.initialise import STARTS
from minilora.adapters.lora import lora_layers

every_start = pytest.mark.parametrize("name", STARTS)


def config(name, **changes):
    return ml.LoRAConfig(**{"rank": 3, "alpha": 6, "target_modules": "*", "init": name, **changes})


def check_promises(name):
    """A model that begins so begins at the base model, learns both factors, merges, and comes back from its file."""
    model = ml.add_lora(base(), config(name))
    logits = base()(TOKENS).data
    np.testing.assert_array_equal(model(TOKENS).data, logits)
    shake(model)
    gradients = ml.grad(model.loss(TOKENS, TARGETS), model.parameters(trainable=True))
    assert all(np.abs(g).max() > 0 for g in gradients)
    moved = model(TOKENS).data
    for path, delta in ml.delta_weights(model).items():
        corrected = STARTS[name](np.eye(8), 3, 2.0, np.random.default_rng(0))[2]
        assert np.linalg.matrix_rank(delta) <= (6 if corrected else 3), path
    ml.merge_lora(model)
    np.testing.assert_allclose(model(TOKENS).data, moved, rtol=0, atol=1e-12)
    return moved


@every_start
@pytest.mark.parametrize("shape", [(8, 8), (32, 8), (8, 32)])
@pytest.mark.parametrize("r", [1, 3, 8])
def test_it_gives_two_factors_and_says_whether_the_base_is_corrected(name, shape, r):
    W = np.random.default_rng(0).normal(size=shape)
    kept = W.copy()
    A, B, corrected = STARTS[name](W, r, 2.0, np.random.default_rng(1))
    assert A.shape == (r, shape[1]) and B.shape == (shape[0], r) and A.any()
    assert corrected == bool(B.any())  # what B starts with would change the output
    assert np.array_equal(W, kept)


@every_start
def test_every_start_keeps_the_promises_of_lora(name):
    check_promises(name)


@every_start
def test_a_seed_gives_the_same_start_and_a_file_the_same_model(name, tmp_path):
    one, two = (ml.add_lora(base(), config(name), rng=3) for _ in "ab")
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)
    ml.save_adapter(shake(one), tmp_path / "a.npz")
    loaded = ml.load_adapter(base(), tmp_path / "a.npz")
    np.testing.assert_allclose(loaded(TOKENS).data, one(TOKENS).data, rtol=0, atol=1e-12)


def test_a_new_way_to_begin_is_one_function(monkeypatch):
    def orthogonal(W, r, s, rng):
        return np.linalg.qr(rng.normal(size=(W.shape[1], r)))[0].T, np.zeros((W.shape[0], r)), False

    monkeypatch.setitem(STARTS, "orthogonal", orthogonal)
    monkeypatch.setattr(ml.LoRAConfig, "inits", tuple(STARTS))
    for layer in lora_layers(ml.add_lora(base(), config("orthogonal"))).values():
        np.testing.assert_allclose(layer.lora_A.data @ layer.lora_A.data.T, np.eye(3), atol=1e-12)
    check_promises("orthogonal")
