"""The settings of LoRA that carry PEFT's names, against PEFT: what is adapted, how strongly, what is trained beside."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.state import base_parameters

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")

from peers import test_peft  # noqa: E402  (the same small GPT, of PyTorch's layers)

CONFIG, TOKENS, TARGETS = test_peft.CONFIG, test_peft.TOKENS, test_peft.TARGETS
EVERYTHING = test_peft.TARGET_MODULES[1]
SETTINGS = {
    "exclusions": {"target_modules": EVERYTHING, "exclude_modules": ("q_proj", "blocks.1.attn.k_proj")},
    "a regular expression": {"target_modules": r".*\.(q|v|up)_proj"},
    "one that excludes": {"target_modules": EVERYTHING, "exclude_modules": r"blocks\.0\..*"},
    "ranks": {"target_modules": EVERYTHING, "rank_pattern": {"q_proj": 1, "blocks.1.mlp.up_proj": 7}},
    "alphas": {"target_modules": EVERYTHING, "alpha_pattern": {"v_proj": 9, "q_proj": 0.5}},
    "ranks, alphas and rsLoRA": {
        "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"blocks.0.attn.q_proj": 3}, "rank_stabilized": True,
    },
    "one layer": {"layers_to_transform": 1},
    "layers": {"layers_to_transform": [0, 1]},
    "biases of its own": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "modules in full": {"modules_to_save": ("ln_f", "wpe")},
}  # fmt: skip


class Inside(torch.nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, tokens):
        return self.inside(tokens)


def name_of(theirs):
    return test_peft.our_name(theirs.replace(".modules_to_save.default", "").replace(".inside.", "."))


def theirs(settings):
    """PEFT's words."""
    names = {"rank_stabilized": "use_rslora", "target_modules": "target_modules"}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    plain = {"target_modules": ["q_proj", "v_proj"], **{names.get(k, k): v for k, v in plain.items()}}
    return peft.LoraConfig(r=4, lora_alpha=6, **plain)


@pytest.fixture(params=SETTINGS)
def models(request, randomize):
    settings = SETTINGS[request.param]
    model = ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(4, 6, **settings)).astype("float64")
    randomize(model, np.random.default_rng(2))
    host = test_peft.TorchGPT(CONFIG)
    if "layers_to_transform" in settings:  # PEFT looks for a number behind two names
        host = Inside(host)
    peer = peft.get_peft_model(host, theirs(settings)).double()
    state, base = model.state_dict(), {name: p.data for name, p in base_parameters(model).items()}
    values = {}
    for name in peer.state_dict():
        ours = name_of(name)
        values[name] = base[ours.replace(".original_module", "")] if "original_module" in name else state.pop(ours)
    peer.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    assert not state, "PEFT adapts fewer layers than we do"
    return model, peer


def test_outputs_and_what_is_trained_and_its_gradients(models, relative_error):
    model, peer = models
    assert relative_error(test_peft.outputs(model), test_peft.outputs(peer)) <= 1e-10
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert model.count(trainable=True) == peer.get_nb_trainable_parameters()[0]
    gradients = ml.grad(model.loss(TOKENS, TARGETS), list(trained.values()))
    loss = torch.nn.functional.cross_entropy(test_peft.outputs(peer).flatten(0, 1), torch.tensor(TARGETS).flatten())
    loss.backward()
    expected = {name_of(name): p.grad for name, p in peer.named_parameters() if p.requires_grad}
    assert relative_error(dict(zip(trained, gradients, strict=True)), expected, 1e-4) <= 1e-10


def test_merged_weights(models, relative_error):
    model, peer = models
    ml.merge_lora(model)
    ours, merged = ml.remove_lora(model).state_dict(), peer.merge_and_unload()
    expected = {name_of(name.replace("inside.", "")): p for name, p in merged.state_dict().items()}
    assert relative_error(ours, {name: expected[name] for name in ours}) <= 1e-10
    assert relative_error(test_peft.outputs(model), test_peft.outputs(merged)) <= 1e-10


UP = ("q_proj", "up_proj")
KINDS = {
    "a": ({"r": 2, "lora_alpha": 3}, ml.LoRAConfig(2, 3)),
    "b": ({"r": 4, "lora_alpha": 2, "use_rslora": True}, ml.LoRAConfig(4, 2, rank_stabilized=True)),
    "c": ({"r": 3, "lora_alpha": 4, "use_dora": True}, ml.DoRAConfig(3, 4)),
    "d": ({"r": 1, "lora_alpha": 2, "target_modules": ["q_proj", "up_proj"]}, ml.LoRAConfig(1, 2, UP)),
}  # fmt: skip


@pytest.mark.parametrize("names", [("a", "b"), ("b", "d"), ("c", "a"), ("c", "b", "d", "a")], ids="+".join)
def test_several_at_once_are_their_sum(names, relative_error):
    """As with PEFT's set_adapter of a list: outputs, what is trained, gradients, merged weights.

    DoRA stands first: PEFT's stretches what was added before it, too, so that its result depends on the order.
    """
    model, peer = ml.GPT(CONFIG).astype("float64"), None
    rng = np.random.default_rng(4)
    for p in model.parameters():
        p.data[...] = rng.normal(0, 0.3, p.shape)
    for name in names:
        settings, config = KINDS[name]
        ml.add_lora(model, config, name=name)
        settings = peft.LoraConfig(**{"target_modules": ["q_proj", "v_proj"], **settings})
        if peer is None:
            peer = peft.get_peft_model(test_peft.TorchGPT(CONFIG), settings, adapter_name=name)
        else:
            peer.add_adapter(name, settings)
    peer = peer.double()
    own = {}
    for name in names:
        ml.set_adapter(model, name)
        for key, p in model.named_parameters():
            if p.requires_grad:
                p.data[...] = rng.normal(0, 0.5, p.shape) + ("magnitude" in key)
                own[key, name] = p
    base = {name: p.data for name, p in base_parameters(model).items()}

    def place(key):
        key = key.removeprefix("base_model.model.").replace(".base_layer", "")
        for name in names:
            if key.endswith(f".{name}.weight") and "lora_" in key:
                return key.removesuffix(f".{name}.weight").replace("lora_magnitude_vector", "magnitude"), name
        return key, None

    value = lambda key: own[place(key)].data if place(key)[1] else base[place(key)[0]]
    peer.load_state_dict({key: torch.tensor(value(key)) for key in peer.state_dict()})
    ml.set_adapter(model, list(names))
    peer.base_model.set_adapter(list(names))
    assert relative_error(test_peft.outputs(model), test_peft.outputs(peer)) <= 1e-10
    parameters = list(own.values())
    gradients = dict(zip(own, ml.grad(model.loss(TOKENS, TARGETS), parameters), strict=True))
    loss = torch.nn.functional.cross_entropy(test_peft.outputs(peer).flatten(0, 1), torch.tensor(TARGETS).flatten())
    loss.backward()
    expected = {place(key): p.grad for key, p in peer.named_parameters() if place(key)[1]}
    join = lambda found: {" ".join(key): g for key, g in found.items()}
    assert relative_error(join(gradients), join(expected), 1e-4) <= 1e-10
    if "c" in names:
        return  # PEFT merges one after the other, and DoRA's norm then sees what came before: not the sum it ran with
    ml.merge_adapter(model)
    merged = peer.merge_and_unload(adapter_names=list(names))
    assert relative_error(test_peft.outputs(model), test_peft.outputs(merged)) <= 1e-10


def test_adapters_on_a_base_of_16_bits_have_32(relative_error, randomize):
    model = randomize(ml.GPT(CONFIG), np.random.default_rng(2)).astype("float16")
    config = ml.LoRAConfig(4, 6)
    ml.add_lora(model, config)
    host = test_peft.TorchGPT(CONFIG).half()
    host.load_state_dict({name: torch.tensor(p.data) for name, p in base_parameters(model).items()})
    peer = peft.get_peft_model(host, test_peft.peft_config(config))
    ours = {str(p.dtype) for p in model.parameters(trainable=True)}
    assert ours == {"float32"} == {str(p.dtype).removeprefix("torch.") for p in peer.parameters() if p.requires_grad}
    rng = np.random.default_rng(3)
    for _, p in model.named_parameters():
        if p.requires_grad:
            p.data[...] = rng.normal(0, 0.3, p.shape)
    state = model.state_dict()
    peer.load_state_dict({name: torch.tensor(state[test_peft.our_name(name)]) for name in peer.state_dict()})
    layer = model.blocks[0].attn.q_proj
    x = rng.normal(0, 1, (5, CONFIG.n_embd)).astype("float16")
    (theirs,) = (m for n, m in peer.named_modules() if n.endswith("blocks.0.attn.q_proj"))
    y, expected = layer(ml.Tensor(x)), theirs(torch.tensor(x))
    assert y.dtype == np.float16 and expected.dtype == torch.float16
    assert relative_error(y.data.astype(float), expected.double()) <= 2e-3
    ml.merge_lora(model)
    merged = peer.merge_and_unload()
    difference = {n: np.abs(p.data.astype(float) - merged.state_dict()[n].double().numpy()).max()
                  for n, p in base_parameters(model).items()}  # fmt: skip
    assert max(difference.values()) <= 2e-3
    assert {p.dtype for p in base_parameters(model).values()} == {np.dtype("float16")}


def test_a_merge_of_what_is_not_finite_is_refused_by_both():
    config = ml.LoRAConfig(4, 6)
    model = ml.add_lora(ml.GPT(CONFIG), config)
    peer = peft.get_peft_model(test_peft.TorchGPT(CONFIG), test_peft.peft_config(config))
    model.blocks[0].attn.q_proj.lora_B.data[1, 2] = np.nan
    with torch.no_grad():
        peer.base_model.model.blocks[0].attn.q_proj.lora_B["default"].weight[1, 2] = np.nan
    with pytest.raises(ValueError, match="NaNs detected"):
        peer.merge_and_unload(safe_merge=True)
    with pytest.raises(ValueError, match=r"merge_adapter: blocks\.0\.attn\.q_proj\.weight.* entry \(1, 0\) is nan"):
        ml.merge_lora(model, safe=True)
