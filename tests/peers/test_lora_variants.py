"""DoRA, PiSSA and LoRA+ against PEFT, on the same weights."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.dora import DoRAConfig, DoRALinear
from minilora.adapters.lora import LoRALinear, lora_layers
from minilora.adapters.lora_plus import lora_plus

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")

from peers import test_peft  # noqa: E402  (the same small GPT, of PyTorch's layers)
from peft.optimizers import create_loraplus_optimizer  # noqa: E402

BARS, FLOORS, TARGET_MODULES = test_peft.BARS, test_peft.FLOORS, test_peft.TARGET_MODULES
CONFIG, TOKENS, TARGETS = test_peft.CONFIG, test_peft.TOKENS, test_peft.TARGETS
TorchGPT, peft_config = test_peft.TorchGPT, test_peft.peft_config
our_name, outputs = test_peft.our_name, test_peft.outputs

SCALES = pytest.mark.parametrize("rank_stabilized", [False, True], ids=["alpha/r", "alpha/sqrt(r)"])
PLACES = pytest.mark.parametrize("target_modules", TARGET_MODULES, ids=["attention", "everything"])


def over_settings(tests):
    """Every class of tests over ranks, both scalings, and few or all layers."""
    return SCALES(PLACES(pytest.mark.parametrize("rank", [1, 4, 16])(tests)))


def name_of(theirs):
    return our_name(theirs).replace("lora_magnitude_vector", "magnitude")


def loss_gradients(model, peer):
    """{name: gradient} of what each trains, under our names."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours = dict(zip(trained, ml.grad(model.loss(TOKENS, TARGETS), list(trained.values())), strict=True))
    torch.nn.functional.cross_entropy(outputs(peer).flatten(0, 1), torch.tensor(TARGETS).flatten()).backward()
    return ours, {name_of(name): p.grad for name, p in peer.named_parameters() if p.requires_grad}


def peft_layers(peer):
    return {our_name(n): m for n, m in peer.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}


def assert_merged_alike(model, peer, relative_error, bar):
    ml.merge_lora(model)
    merged = peer.merge_and_unload()
    assert relative_error(ml.remove_lora(model).state_dict(), merged.state_dict()) <= bar
    assert relative_error(outputs(model), outputs(merged)) <= bar


# DoRA


@over_settings
@pytest.mark.parametrize("dtype", BARS)
class TestDoRAAgainstPEFT:
    @pytest.fixture
    def models(self, dtype, rank, rank_stabilized, target_modules, randomize):
        config = DoRAConfig(rank, 4, target_modules, rank_stabilized=rank_stabilized)
        model = randomize(ml.add_lora(ml.GPT(CONFIG), config).astype(dtype), np.random.default_rng(2))
        theirs = peft_config(config)
        theirs.use_dora = True
        peer = peft.get_peft_model(TorchGPT(CONFIG), theirs).to(getattr(torch, dtype))
        state = model.state_dict()
        peer.load_state_dict({name: torch.tensor(state.pop(name_of(name))) for name in peer.state_dict()})
        assert not state, "PEFT adapts fewer layers than we do"
        return model, peer

    def test_outputs_and_gradients(self, models, dtype, relative_error):
        model, peer = models
        assert relative_error(outputs(model), outputs(peer)) <= BARS[dtype]
        assert model.count(trainable=True) == peer.get_nb_trainable_parameters()[0]
        assert relative_error(*loss_gradients(model, peer), FLOORS[dtype]) <= BARS[dtype]

    def test_merged_weights(self, models, dtype, relative_error):
        assert_merged_alike(*models, relative_error, BARS[dtype])


@pytest.fixture
def dora_layer():
    """dora_layer(**settings): one DoRA layer with drawn values, and x, in float64."""

    def make(**settings):
        rng = np.random.default_rng(0)
        base = ml.GPT(CONFIG).blocks[0].mlp.up_proj.astype("float64")
        layer = DoRALinear(base, DoRAConfig(3, 4, **settings), rng)
        for p in layer.parameters():
            p.data[...] = rng.normal(0, 0.5, p.shape)
        return layer, rng.normal(size=(7, CONFIG.n_embd))

    return make


def test_the_norm_differentiated_exactly_equals_pytorchs_derivative_of_the_formula(dora_layer, relative_error):
    layer, x = dora_layer(exact_norm=True)
    inputs = {"x": ml.Tensor(x, requires_grad=True), **dict(layer.named_parameters())}
    theirs = {name: torch.tensor(p.data, requires_grad=True) for name, p in inputs.items()}
    rows, W, b, A, B, m = (theirs[n] for n in ("x", "weight", "bias", "lora_A", "lora_B", "magnitude"))
    V = W + 4 / 3 * B @ A
    y = rows @ (m / V.norm(dim=1) * V.T) + b
    g = np.random.default_rng(1).normal(size=y.shape)
    y.backward(torch.tensor(g))
    out = layer(inputs["x"])
    assert relative_error(out.data, y) <= 1e-12
    ours = dict(zip(inputs, ml.grad(out, list(inputs.values()), cotangent=g), strict=True))
    assert relative_error(ours, {name: p.grad for name, p in theirs.items()}) <= 1e-12


def test_doras_dropout_is_pefts(dora_layer, relative_error):
    """The same mask in both: PEFT's dropout module is replaced by one that multiplies by what we draw."""
    layer, x = dora_layer(dropout=0.5)
    mask = torch.tensor(ml.ops.dropout(np.ones_like(x), 0.5, np.random.default_rng(3)).data)

    class Mask(torch.nn.Module):
        def forward(self, rows):
            return rows * mask

    d_out, d_in = layer.weight.shape
    host = torch.nn.Sequential()
    host.add_module("proj", torch.nn.Linear(d_in, d_out))
    config = peft.LoraConfig(r=3, lora_alpha=4, target_modules=["proj"], use_dora=True, lora_dropout=0.5)
    peer = peft.get_peft_model(host, config).double().train()
    state = {f"proj.{name}": value for name, value in layer.state_dict().items()}
    peer.load_state_dict({name: torch.tensor(state[name_of(name)]) for name in peer.state_dict()})
    (theirs,) = peft_layers(peer).values()
    theirs.lora_dropout["default"] = Mask()
    y = theirs(torch.tensor(x))
    out = layer(ml.Tensor(x), np.random.default_rng(3))
    assert relative_error(out.data, y) <= 1e-12
    trained = {f"proj.{name}": p for name, p in layer.named_parameters() if name not in ("weight", "bias")}
    g = np.random.default_rng(1).normal(size=y.shape)
    y.backward(torch.tensor(g))
    ours = dict(zip(trained, ml.grad(out, list(trained.values()), cotangent=g), strict=True))
    peers = {name_of(name): p.grad for name, p in peer.named_parameters() if p.requires_grad}
    assert relative_error(ours, peers) <= 1e-12


# PiSSA


@over_settings
class TestPiSSAAgainstPEFT:
    @pytest.fixture
    def started(self, rank, rank_stabilized, target_modules, randomize):
        """Both as they start, in float32, the only precision in which PEFT starts PiSSA.

        Singular values are set apart from each other: between two that are nearly equal, rounding chooses the vectors.
        """
        config = ml.LoRAConfig(rank, 4, target_modules, init="pissa", rank_stabilized=rank_stabilized)
        model = randomize(ml.GPT(CONFIG), np.random.default_rng(2))
        for name, p in model.named_parameters():
            if name.endswith("proj.weight"):
                U, S, Vt = np.linalg.svd(p.data, full_matrices=False)
                p.data[...] = U * 1.5 * 0.8 ** np.arange(len(S)) @ Vt
        host = TorchGPT(CONFIG)
        host.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()})
        theirs = peft_config(config)
        theirs.init_lora_weights = "pissa"
        return ml.add_lora(model, config), peft.get_peft_model(host, theirs)

    def test_the_start(self, started, relative_error):
        model, peer = started
        layers = peft_layers(peer)
        ours = lora_layers(model)
        assert ours.keys() == layers.keys()
        assert model.count(trainable=True) == peer.get_nb_trainable_parameters()[0]
        for path, layer in ours.items():
            theirs, s, W = layers[path], layer.config.scale, layer.weight.data
            residual = W - s * layer.lora_B.data @ layer.lora_A.data
            assert np.abs(residual - theirs.base_layer.weight.detach().numpy()).max() <= 1e-5 * np.abs(W).max()
            A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
            assert relative_error(layer.lora_A.data.T @ layer.lora_A.data, A.T @ A) <= 1e-5  # signs are free
            assert relative_error(layer.lora_B.data @ layer.lora_B.data.T, B @ B.T) <= 1e-5
        assert relative_error(outputs(model), outputs(peer)) <= BARS["float32"]

    @pytest.mark.parametrize("dtype", BARS)
    def test_outputs_gradients_and_merged_weights(self, started, dtype, relative_error):
        model, peer = started
        move_alike(model, peer, dtype)
        with ml.lora_disabled(model):
            assert relative_error(outputs(model), outputs(peer)) > 1e-2  # the adapter has something to say
        assert relative_error(outputs(model), outputs(peer)) <= BARS[dtype]
        assert relative_error(*loss_gradients(model, peer), FLOORS[dtype]) <= BARS[dtype]
        assert_merged_alike(model, peer, relative_error, BARS[dtype])


def move_alike(model, peer, dtype):
    """PEFT's A and B, whose singular vectors may have other signs, in both models; then moved by the same amounts."""
    model.astype(dtype)
    peer.to(getattr(torch, dtype))
    layers, rng = peft_layers(peer), np.random.default_rng(4)
    for path, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            A, B = (part["default"].weight.data for part in (layers[path].lora_A, layers[path].lora_B))
            W = torch.tensor(layer.weight.data)
            layers[path].base_layer.weight.data = W - layers[path].scaling["default"] * B @ A  # in this precision
            for start, p, value in ((layer.lora_A0, layer.lora_A, A), (layer.lora_B0, layer.lora_B, B)):
                start.data[...] = value.numpy()
                value += torch.tensor(rng.normal(0, 0.1, p.shape)).to(value.dtype)
                p.data[...] = value.numpy()


# LoRA+


@pytest.mark.parametrize("ratio", [1, 4.0, 16])
@pytest.mark.parametrize("maker", ["two groups", "peft"])
def test_twenty_steps_of_lora_plus(maker, ratio, relative_error):
    """The same gradients in both, at a learning rate that changes as under a schedule."""
    config = ml.LoRAConfig(4, 4)
    model = ml.add_lora(ml.GPT(CONFIG).astype("float64"), config)
    peer = peft.get_peft_model(TorchGPT(CONFIG), peft_config(config)).double()
    state = model.state_dict()
    peer.load_state_dict({name: torch.tensor(state[our_name(name)]) for name in peer.state_dict()})
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    theirs = {our_name(name): p for name, p in peer.named_parameters() if p.requires_grad}
    settings = dict(betas=(0.9, 0.99), eps=1e-8)
    if maker == "peft":
        made = dict(lr=1.0, loraplus_lr_ratio=ratio, loraplus_weight_decay=0.1)
        torch_optimizer = create_loraplus_optimizer(peer, torch.optim.AdamW, **made, **settings)
    else:
        groups = [
            {"params": [p for name, p in theirs.items() if name.endswith("lora_B") == fast], "lr": rate}
            for fast, rate in ((False, 1.0), (True, ratio))
        ]
        torch_optimizer = torch.optim.AdamW(groups, weight_decay=0.1, **settings)
    rates = [group["lr"] for group in torch_optimizer.param_groups]
    optimizer = ml.AdamW(lora_plus(model, ratio), weight_decay=0.1, **settings)
    for lr in np.random.default_rng(9).uniform(1e-3, 1e-2, 20):
        optimizer.lr = lr
        for group, rate in zip(torch_optimizer.param_groups, rates, strict=True):
            group["lr"] = lr * rate
        model.loss(TOKENS, TARGETS).backward()
        for name, p in trained.items():
            theirs[name].grad = torch.tensor(p.grad)
        optimizer.step()
        torch_optimizer.step()
        optimizer.zero_grad()
        assert relative_error({name: p.data for name, p in trained.items()}, theirs) <= 1e-12
