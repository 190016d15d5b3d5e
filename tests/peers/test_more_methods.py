"""IA3, VeRA, MiSS, LoRA-FA and LoRA-GA against PEFT, on the same weights: outputs, gradients, what is merged."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.lora import lora_layers
from minilora.adapters.lora_fa import corrected
from minilora.adapters.lora_ga import mean_gradients, steepest

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")

from peers import test_peft  # noqa: E402  (the same small GPT, of PyTorch's layers)
from peft.optimizers import create_lorafa_optimizer  # noqa: E402

BARS, FLOORS, CONFIG = test_peft.BARS, test_peft.FLOORS, test_peft.CONFIG
TOKENS, TARGETS, TorchGPT, outputs = test_peft.TOKENS, test_peft.TARGETS, test_peft.TorchGPT, test_peft.outputs
EVERYTHING = test_peft.TARGET_MODULES[1]
THEIRS = {"ia3_l": "ia3_l", "vera_lambda_d": "vera_d", "vera_lambda_b": "vera_b", "miss_block": "miss_D"}

CASES = {
    "ia3": (ml.IA3Config(), lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3 everywhere": (ml.IA3Config("*", ("up_proj", "o_proj")), lambda: peft.IA3Config(
        target_modules=list(EVERYTHING), feedforward_modules=["up_proj", "o_proj"])),
    "vera": (ml.VeRAConfig(6), lambda: peft.VeraConfig(r=6, target_modules=["q_proj", "v_proj"])),
    "vera everywhere": (ml.VeRAConfig(20, "*"), lambda: peft.VeraConfig(r=20, target_modules=list(EVERYTHING))),
    "miss": (ml.MiSSConfig(4), lambda: peft.MissConfig(r=4, target_modules=["q_proj", "v_proj"])),
    "miss, uneven": (ml.MiSSConfig(6, "*"), lambda: peft.MissConfig(r=6, target_modules=list(EVERYTHING))),
}  # fmt: skip


def our_name(name):
    name = name.removeprefix("base_model.model.").replace(".base_layer", "").removesuffix(".default")
    start, _, last = name.rpartition(".")
    return f"{start}.{THEIRS.get(last, last)}"


def pair(kind, dtype, randomize):
    """Our model and PEFT's with the same weights, and the same adapter; VeRA's pair is PEFT's, too."""
    config, theirs = CASES[kind]
    model = randomize(ml.add_adapter(ml.GPT(CONFIG), config).astype(dtype), np.random.default_rng(2))
    peer = peft.get_peft_model(TorchGPT(CONFIG), theirs()).to(getattr(torch, dtype))
    state = model.state_dict()
    if kind.startswith("vera"):
        for layer in lora_layers(model).values():
            layer.pair.A, layer.pair.B = (getattr(peer.base_model, f"vera_{m}")["default"].numpy() for m in "AB")
    with torch.no_grad():
        for name, p in peer.named_parameters():
            p.copy_(torch.tensor(state.pop(our_name(name))).reshape(p.shape))
    assert not state, "PEFT adapts fewer layers than we do"
    return model, peer


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("kind", CASES)
def test_outputs_gradients_and_merged_weights(kind, dtype, randomize, relative_error):
    model, peer = pair(kind, dtype, randomize)
    logits = outputs(peer)
    assert relative_error(outputs(model), logits) <= BARS[dtype]
    assert model.count(trainable=True) == peer.get_nb_trainable_parameters()[0]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours = dict(zip(trained, ml.grad(model.loss(TOKENS, TARGETS), list(trained.values())), strict=True))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(TARGETS).flatten()).backward()
    grads = {our_name(name): p.grad for name, p in peer.named_parameters() if p.requires_grad}
    theirs = {name: grads[name].reshape(ours[name].shape) for name in ours}
    assert relative_error(ours, theirs, FLOORS[dtype]) <= BARS[dtype]
    with ml.adapter_disabled(model), peer.disable_adapter():
        assert relative_error(outputs(model), outputs(peer)) <= BARS[dtype]
        assert relative_error(outputs(model), logits) > 1e-2  # the adapter had something to say
    ml.merge_adapter(model)
    merged = peer.merge_and_unload()
    assert relative_error(ml.remove_adapter(model).state_dict(), merged.state_dict()) <= BARS[dtype]
    assert relative_error(outputs(model), logits) <= BARS[dtype]


@pytest.mark.parametrize("dtype", BARS)
def test_the_start_of_each_is_pefts_start(dtype):
    """What is trained begins at PEFT's numbers: ones, 0.1 and zeros, zeros."""
    for kind, (config, theirs) in CASES.items():
        model = ml.add_adapter(ml.GPT(CONFIG).astype(dtype), config)
        peer = peft.get_peft_model(TorchGPT(CONFIG), theirs()).to(getattr(torch, dtype))
        start = {our_name(name): p.detach().numpy() for name, p in peer.named_parameters() if p.requires_grad}
        for name, p in model.named_parameters():
            if p.requires_grad:
                np.testing.assert_array_equal(p.data, start[name].reshape(p.shape), err_msg=f"{kind}: {name}")


def test_veras_pair_is_drawn_as_pefts_is():
    """Another stream, the same distribution: uniform to the same bounds, as wide as the widest layer."""
    model = ml.add_adapter(ml.GPT(CONFIG), ml.VeRAConfig(200, "*", seed=3))
    peer = peft.get_peft_model(TorchGPT(CONFIG), peft.VeraConfig(r=200, target_modules=list(EVERYTHING)))
    pair = next(iter(lora_layers(model).values())).pair
    for ours, theirs in ((pair.A, peer.base_model.vera_A["default"]), (pair.B, peer.base_model.vera_B["default"])):
        assert ours.shape == tuple(theirs.shape)
        bound = np.sqrt(6 / ours.shape[1])
        for drawn in (ours, theirs.numpy()):
            assert 0.99 * bound < np.abs(drawn).max() <= bound and abs(drawn.std() - bound / np.sqrt(3)) < 0.03 * bound


@pytest.fixture
def by_gradient(randomize):
    """Our LoRA-GA and PEFT's on one base and one batch, in float64; and PEFT's gradients of W."""
    config = ml.LoRAConfig(3, 6, EVERYTHING)
    base = randomize(ml.GPT(CONFIG).astype("float64"), np.random.default_rng(2))
    peer = TorchGPT(CONFIG).double()
    peer.load_state_dict({name: torch.tensor(value) for name, value in base.state_dict().items()})
    theirs = peft.LoraConfig(r=3, lora_alpha=6, target_modules=list(EVERYTHING), init_lora_weights="lora_ga",
                             lora_ga_config=peft.LoraGAConfig())  # fmt: skip

    def train_step():
        logits = peer(torch.tensor(TOKENS))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(TARGETS).flatten()).backward()

    peft.preprocess_loraga(peer, theirs, train_step)
    gradients = {name: m._peft_loraga_grad.numpy().copy() for name, m in peer.named_modules()
                 if hasattr(m, "_peft_loraga_grad")}  # fmt: skip
    ours = mean_gradients(base, config.chosen(base), [(TOKENS, TARGETS)])
    torch.manual_seed(0)
    return ml.add_lora_ga(base, config, [(TOKENS, TARGETS)]), peft.get_peft_model(peer, theirs), gradients, ours


def test_lora_gas_gradients_and_directions_are_pefts(by_gradient, relative_error):
    """PEFT stores the same singular vectors, up to sign, in float32 and by a randomised decomposition."""
    model, peer, theirs, ours = by_gradient
    assert relative_error(ours, theirs) <= 1e-10
    layers = {test_peft.our_name(n): m for n, m in peer.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    for name, layer in lora_layers(model).items():
        A, B = (half["default"].weight.detach().numpy() for half in (layers[name].lora_A, layers[name].lora_B))
        unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
        one, two = unit(layer.lora_A.data), unit(A)
        assert np.abs(np.abs((one * two).sum(axis=1)) - 1).max() < 1e-3, name
        one, two = unit(layer.lora_B.data.T), unit(B.T)
        assert np.abs(np.abs((one * two).sum(axis=1)) - 1).max() < 1e-3, name


def test_lora_ga_trains_and_merges_as_pefts_from_the_same_start(by_gradient, relative_error):
    """PEFT takes s B0 A0 out of W; we keep A0 and B0 beside a whole W. With its start, all that follows is the same."""
    model, peer, *_ = by_gradient
    layers = {test_peft.our_name(n): m for n, m in peer.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    rng = np.random.default_rng(5)
    for name, layer in lora_layers(model).items():
        for half in ("lora_A", "lora_B"):
            start = getattr(layers[name], half)["default"].weight
            getattr(layer, f"{half}0").data[...] = start.detach().numpy()
            moved = start.detach().numpy() + rng.normal(0, 0.1, start.shape)
            getattr(layer, half).data[...] = moved
            start.data.copy_(torch.tensor(moved))
    assert relative_error(outputs(model), outputs(peer)) <= 1e-6  # PEFT makes W - s B0 A0 in float32
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours = dict(zip(trained, ml.grad(model.loss(TOKENS, TARGETS), list(trained.values())), strict=True))
    torch.nn.functional.cross_entropy(outputs(peer).flatten(0, 1), torch.tensor(TARGETS).flatten()).backward()
    theirs = {test_peft.our_name(name): p.grad for name, p in peer.named_parameters() if p.requires_grad}
    assert relative_error(ours, theirs, 1e-4) <= 1e-5
    ml.merge_adapter(model)
    merged = peer.merge_and_unload()
    assert relative_error(ml.remove_adapter(model).state_dict(), merged.state_dict()) <= 1e-6


def test_lora_ga_steps_along_the_best_approximation_of_the_gradient():
    """Theorem 3.1: one step of gradient descent on A and B changes W along G cut to rank 2r."""
    G, s, r = np.random.default_rng(0).normal(size=(12, 9)), 2.0, 3
    A, B = steepest(G, r, 16.0)
    step = s * (s * (G @ A.T) @ A + B @ (s * B.T @ G))
    U, S, Vt = np.linalg.svd(G, full_matrices=False)
    best = (U[:, : 2 * r] * S[: 2 * r]) @ Vt[: 2 * r]
    np.testing.assert_allclose(step, s**2 * np.sqrt(12) / 16 * best, rtol=1e-12, atol=1e-12)


def test_lora_fa_is_lora_with_a_frozen_a_and_its_correction_is_pefts(randomize, relative_error):
    """PEFT's optimiser corrects dB, in bfloat16 where a processor has it; the first moment is a tenth of that."""
    model = randomize(ml.add_adapter(ml.GPT(CONFIG), ml.LoRAFAConfig(3, 6)).astype("float32"), np.random.default_rng(2))
    peer = peft.get_peft_model(TorchGPT(CONFIG), test_peft.peft_config(ml.LoRAConfig(3, 6)))
    state = model.state_dict()
    peer.load_state_dict({name: torch.tensor(state[test_peft.our_name(name)]) for name in peer.state_dict()})
    optimizer = create_lorafa_optimizer(peer, r=3, lora_alpha=6, lr=1e-3)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {
        test_peft.our_name(n) for n, p in peer.named_parameters() if p.requires_grad and "lora" in n
    }
    gradients = dict(zip(trained, ml.grad(model.loss(TOKENS, TARGETS), list(trained.values())), strict=True))
    torch.nn.functional.cross_entropy(outputs(peer).flatten(0, 1), torch.tensor(TARGETS).flatten()).backward()
    theirs = {test_peft.our_name(n): p.grad for n, p in peer.named_parameters() if "lora_B" in n}
    assert relative_error(gradients, theirs, FLOORS["float32"]) <= BARS["float32"]
    optimizer.step()
    moments = {test_peft.our_name(f"{name[:-4]}lora_B.default.weight"): held["exp_avg_B"]
               for name, held in optimizer.state.items() if name.endswith("lora")}  # fmt: skip
    layers = lora_layers(model)
    ours = {f"{n}.lora_B": 0.1 * corrected(gradients[f"{n}.lora_B"], m.lora_A.data, 2.0) for n, m in layers.items()}
    assert relative_error(ours, moments, 1e-2) <= 2e-2
