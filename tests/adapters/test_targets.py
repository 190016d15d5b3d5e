"""Which modules are meant, and what the settings of a pattern do to the layers."""

import dataclasses

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.lora import lora_layers
from minilora.adapters.targets import in_layers, match_targets, patterns

CONFIG = ml.GPTConfig(vocab_size=7, block_size=5, n_layer=3, n_head=2, n_embd=8)
NAMES = [f"blocks.{i}.{part}" for i in range(12) for part in ("attn.q_proj", "attn.v_proj", "mlp.up_proj")]
TOKENS = np.arange(4)[None]


def adapted(**settings):
    return ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(**{"rank": 2, **settings}))


@pytest.mark.parametrize(
    "wanted, count",
    [
        ("q_proj", 12),
        (("q_proj", "up_proj"), 24),
        ("*.attn.*", 24),
        ("blocks.1.*", 3),  # a shell pattern: block 1, not 10 and 11
        ("[qv]_proj", 24),  # a shell pattern, too
        (r".*\.(q|v)_proj", 24),
        (r"blocks\.1\d?\..*", 9),  # a regular expression: blocks 1, 10 and 11
        (r"blocks\.(0|3)\.attn\.q_proj", 2),
        (".*up_proj", 12),
        ("^blocks.0.*$", 3),
    ],
)
def test_names_patterns_and_regular_expressions(wanted, count):
    assert len(match_targets(patterns(wanted, "x"), NAMES)) == count


def test_all_linear_is_every_linear_layer():
    assert patterns("all-linear", "x") == patterns("All-Linear", "x") == ("*",)
    assert set(lora_layers(adapted(target_modules="all-linear"))) == set(lora_layers(adapted(target_modules="*")))


def test_a_regular_expression_must_match_a_whole_name():
    for wanted in (r"(q|v)_proj", r"blocks\.0", r"attn\.q_proj"):
        with pytest.raises(ValueError, match=r"target_modules: .* matches nothing; there are q_proj, v_proj"):
            match_targets(wanted, NAMES)


def test_exclusions_and_layers():
    of = lambda **settings: set(lora_layers(adapted(target_modules="*", **settings)))
    everything = of()
    assert of(exclude_modules="q_proj") == {n for n in everything if not n.endswith("q_proj")}
    assert of(exclude_modules=("blocks.0.*", "up_proj")) == {
        n for n in everything if not n.startswith("blocks.0.") and not n.endswith("up_proj")
    }
    assert of(exclude_modules=r".*\.(q|k|v|o)_proj") == {n for n in everything if ".mlp." in n}
    assert of(layers_to_transform=1) == of(layers_to_transform=[1]) == {n for n in everything if ".1." in n}
    assert of(layers_to_transform=(0, 2), exclude_modules="*.mlp.*") == {
        n for n in everything if ".attn." in n and ".1." not in n
    }


def test_ranks_and_alphas_by_pattern():
    model = adapted(
        rank_pattern={"blocks.0.attn.q_proj": 1, "q_proj": 3}, alpha_pattern={"blocks.2.*": 5}, rank_stabilized=True
    )
    for path, layer in lora_layers(model).items():
        rank = 1 if path == "blocks.0.attn.q_proj" else 3 if path.endswith("q_proj") else 2
        alpha = 5 if path.startswith("blocks.2.") else 16
        assert layer.lora_A.shape[0] == layer.lora_B.shape[1] == rank
        assert layer.config.scale == pytest.approx(alpha / rank**0.5, rel=1e-15)
    assert hash(model.adapters["default"].configs[0]) is not None


def test_they_come_back_from_a_file(tmp_path):
    config = ml.LoRAConfig(
        rank=2, target_modules=r".*\.(q|v|up)_proj", exclude_modules=("blocks.1.*",), layers_to_transform=(0, 1),
        rank_pattern={"q_proj": 1}, alpha_pattern={"v_proj": 2.5}, bias="all", modules_to_save=("ln_f", "wpe"),
    )  # fmt: skip
    model = ml.add_lora(ml.GPT(CONFIG), config)
    for p in model.parameters(trainable=True):
        p.data += np.random.default_rng(0).normal(0, 0.2, p.shape).astype("f4")
    loaded = ml.load_adapter(ml.GPT(CONFIG), ml.save_adapter(model, tmp_path / "a.npz"))
    assert loaded.adapters["default"].configs == (config,)
    np.testing.assert_array_equal(loaded(TOKENS).data, model(TOKENS).data)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_and_whole_modules_are_trained_beside_and_the_base_stays(bias):
    plain = ml.GPT(CONFIG)
    model = adapted(bias=bias, modules_to_save=("ln_f", "blocks.0.ln_1"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    whole = {f"{m}.{p}" for m in ("ln_f", "blocks.0.ln_1") for p in ("weight", "bias")}
    every = {name for name in plain.state_dict() if name.endswith(".bias")}
    lora = {f"blocks.{i}.attn.{k}_proj.bias" for i in range(3) for k in "qv"}
    assert trained == whole | (every if bias == "all" else lora)
    np.testing.assert_array_equal(model(TOKENS).data, plain(TOKENS).data)
    parameters = model.parameters(trainable=True)
    ml.SGD(parameters, lr=0.5).step(ml.grad(model.loss(TOKENS, TOKENS), parameters))
    ml.SGD(parameters, lr=0.5).step(ml.grad(model.loss(TOKENS, TOKENS), parameters))
    before = model(TOKENS).data
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(TOKENS).data, plain(TOKENS).data)
    ml.merge_lora(model)
    np.testing.assert_allclose(model(TOKENS).data, before, rtol=2e-5, atol=2e-6)
    ml.unmerge_lora(model)
    np.testing.assert_array_equal(model(TOKENS).data, before)
    ml.remove_lora(model)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, plain.state_dict()[name])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"exclude_modules": "qproj"}, "exclude_modules: 'qproj' matches nothing"),
        ({"exclude_modules": "*"}, r"exclude_modules: \* leaves no target"),
        ({"layers_to_transform": 3}, "layers_to_transform: no target is in layer 3; the targets' layers are 0, 1, 2"),
        ({"rank_pattern": {"up_proj": 1}}, "rank_pattern: 'up_proj' matches nothing; there are q_proj, v_proj"),
        ({"alpha_pattern": {"up_proj": 1}}, "alpha_pattern: 'up_proj' matches nothing"),
        ({"rank_pattern": {"q_proj": 9}}, r"rank 9 exceeds min\(d_in, d_out\) = 8 of blocks.0.attn.q_proj"),
        ({"modules_to_save": "ln_g"}, "modules_to_save: 'ln_g' matches nothing"),
        ({"modules_to_save": "attn"}, "blocks.0.attn.q_proj is a target and, by modules_to_save, trained in full"),
        ({"target_modules": r".*\.(x|y)"}, r"target_modules: .* matches nothing"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused_and_nothing_changes(settings, words):
    model = ml.GPT(CONFIG)
    with pytest.raises(ValueError, match=words):
        ml.add_lora(model, ml.LoRAConfig(**{"rank": 2, **settings}))
    assert not hasattr(model, "adapters")
    assert all(p.requires_grad for p in model.parameters())


def test_no_bias_to_train():
    model = ml.GPT(dataclasses.replace(CONFIG, bias=False))
    for bias in ("lora_only", "all"):
        with pytest.raises(ValueError, match=f"bias = '{bias}', and there is no bias to train"):
            ml.add_lora(model, ml.LoRAConfig(rank=2, bias=bias))


ODD = [None, True, 0, -1, 1.5, float("nan"), float("inf"), 1j, "x", "", b"q", (), [1], (None,), {}, {"q_proj": None},
       {1}, object(), np.array([1.0, 2.0]), lambda: 0, "(", ("q_proj", 3)]  # fmt: skip
SETTINGS = [f.name for f in dataclasses.fields(ml.DoRAConfig)]
FITTING = {  # what of the table is a right value
    "rank": (), "alpha": (1.5,), "dropout": (0,), "target_modules": ("x", ["x"]), "init": (), "bias": (),
    "rank_stabilized": (True,), "exclude_modules": ("x", (), [], ""), "layers_to_transform": (None, 0, -1, [1]),
    "rank_pattern": ({},), "alpha_pattern": ({},), "modules_to_save": ("x", (), []), "exact_norm": (True,),
    "ensure_weight_tying": (True,),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_an_odd_setting_is_refused_in_one_line_that_names_it(name):
    """Each setting with each of a table of odd values: right, or one line with the class and the setting in it."""
    for odd in ODD:
        for kind in (ml.LoRAConfig, ml.DoRAConfig)[name == "exact_norm" :]:
            try:
                config = kind(**{name: odd})
            except (ValueError, TypeError) as error:
                assert str(error).startswith(f"{kind.__name__}: {name}"), (odd, error)
                assert "\n" not in str(error)
            else:
                assert any(odd is right or (type(odd) is type(right) and odd == right) for right in FITTING[name]), odd
                assert config == dataclasses.replace(config)


def test_a_layer_that_no_target_has_is_told_which_there_are():
    """Names without a number, such as a head's, are in no layer."""
    names = ["head", "blocks.3.attn.q_proj", "blocks.10.attn.q_proj"]
    assert in_layers((3,), names, "layers") == names[1:2] and in_layers((10, 3), names, "layers") == names[1:]
    with pytest.raises(ValueError, match=r"layers: no target is in layer 0; the targets' layers are 3, 10$"):
        in_layers((0, 3), names, "layers")
    with pytest.raises(ValueError, match=r"the targets' layers are none with a number$"):
        in_layers((0,), names[:1], "layers")
    assert match_targets((r"blocks.3.*",), names) == names[1:2]
    with pytest.raises(ValueError, match="matches nothing"):
        match_targets((r"blocks\.3.*",), names)  # in a tuple it is a shell pattern
