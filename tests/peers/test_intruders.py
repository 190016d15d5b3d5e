"""Intruders shrunk, against PEFT's reduce_intruder_dimension on the same weights; rounding, against PyTorch."""

import numpy as np
import pytest

from minilora.analysis import intruders, rank, rounding

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")

from peft.tuners.lora.intruders import reduce_intruder_dimension  # noqa: E402


@pytest.fixture
def peer():
    """Two linear layers of float64 with LoRA of rank 4, whose B is not zero: one loud, one too quiet for intruders."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.Linear(32, 16)).double()
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "1"])
    model = peft.get_peft_model(model, config)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn_like(p, dtype=torch.float64) * (0.3 if ".0." in name else 1e-3)
    return model


@pytest.mark.parametrize("factor", [0.0, 0.25, 0.75, 1.0])
def test_shrinking_is_pefts_before_it_cuts_to_the_rank_again(peer, factor):
    layers = [m for m in peer.modules() if isinstance(m, peft.tuners.lora.Linear)]
    told: list[str] = []
    reduce_intruder_dimension(peer, mitigation_lambda=factor, logging_sink=told.append)
    counts = []
    for layer in layers:
        W = layer.get_base_layer().weight.detach().numpy()
        delta = layer.get_delta_weight("default").detach().numpy()
        counts.append(len(rank.intruder_dimensions(W, W + delta)))
        ours = intruders.shrink_intruders(W, W + delta, factor) - W
        B, A = rank.best_approximation(ours, 4)
        theirs = layer.get_delta_weight("intruder_reduced").detach().numpy()
        np.testing.assert_allclose(B @ A, theirs, atol=1e-9)
    assert counts[0] > 0 == counts[1]
    assert f"Intruders: {counts[0]}" in told[0] and "No intruders" in told[1]


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_what_arrives_is_what_a_merge_in_pytorch_adds_and_rounds_once(kind):
    rng = np.random.default_rng(0)
    W, delta = rng.normal(size=(64, 48)), 0.005 * rng.normal(size=(64, 48))
    dtype = getattr(torch, kind)
    held = torch.tensor(W, dtype=torch.float32).to(dtype).double()
    merged = (held + torch.tensor(delta)).to(torch.float32).to(dtype).double()
    added = rounding.arrived(W.astype(np.float32), delta, kind)
    same = np.isclose(added, (merged - held).numpy(), rtol=0, atol=0)
    assert same.mean() > 0.999  # theirs rounds to float32 on the way: a tie now and then falls to the other side
