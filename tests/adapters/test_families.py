"""Every method on every family: a table of the two, and what each promises whatever the model is made of."""

import contextlib
import dataclasses

import numpy as np
import pytest
from adapters.test_adapter import EXAMPLES, shake
from nn.test_transformer import FAMILIES, drawn

import minilora as ml
from minilora.adapters.adapter import METHODS
from minilora.adapters.state import adapter_parameters
from minilora.analysis import methods
from minilora.analysis.counting import count
from minilora.nn.architectures import from_hugging_face

TOKENS, TARGETS = (np.random.default_rng(i).integers(13, size=(3, 6)) for i in range(2))
BIASED = ("gpt2", "qwen2-0.5b")
METHODS_HERE = EXAMPLES | {
    "rslora everywhere": ml.LoRAConfig(2, 3, target_modules="*", rank_stabilized=True, modules_to_save=("ln_f",)),
    "pissa": ml.LoRAConfig(2, 3, target_modules=("o_proj", "down_proj"), init="pissa"),
    "table and head": ml.LoRAConfig(2, 3, target_modules=("wte", "q_proj"), ensure_weight_tying=True),
    "prefix by a network": ml.PrefixConfig(tokens=2, hidden=3),
    "prefix of tokens": ml.PrefixConfig(tokens=2, init="vocabulary"),
    "dora everywhere": ml.DoRAConfig(2, 3, target_modules="*", exact_norm=True),
    "vera everywhere": ml.VeRAConfig(4, target_modules="*", modules_to_save=("ln_f",)),
}
every = pytest.mark.parametrize("name", FAMILIES)


def logits(model):
    return model(TOKENS).data


def put(name, kind, shaken=True):
    config = METHODS_HERE[kind]
    if kind == "table and head" and drawn(name).head is not None:
        config = dataclasses.replace(config, target_modules=("wte", "head", "q_proj"))
    model = ml.add_adapter(drawn(name), config)
    return shake(model) if shaken else model


@pytest.mark.slow
@every
@pytest.mark.parametrize("kind", METHODS_HERE)
def test_a_method_on_a_family(name, kind, tmp_path):
    if kind == "bitfit" and name not in BIASED:
        with pytest.raises(ValueError, match="no biases to train"):
            put(name, kind)
        return
    model, plain = put(name, kind, shaken=False), logits(drawn(name))
    config = model.adapters["default"].configs[0]
    if "front" not in model.adapters["default"].modules:
        np.testing.assert_array_equal(logits(model), plain)
    # counted
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(methods.Options) if hasattr(config, f.name)}
    planned = methods.plan(model.architecture, config.kind, **options)
    held = {path: p.shape for path, p in adapter_parameters(model).items() if not path.endswith(("_A0", "_B0"))}
    if kind != "prefix by a network":
        assert held == planned.trainable | planned.frozen
        options = {option: value for option, value in options.items() if option != "target_modules"} | (
            {"target_modules": tuple(config.target_modules)} if "target_modules" in options else {}
        )
        assert count(model.architecture, config.kind, **options).trainable_parameters == model.count(trainable=True)
    if kind == "rslora everywhere":
        assert count(ml.save_adapter(model, tmp_path / "counted.npz")).trainable_parameters == model.count(
            trainable=True
        )
    # trained
    before = {path: p.data.copy() for path, p in adapter_parameters(model).items()}
    optimizer = ml.AdamW(model.named_parameters(), lr=0.01)
    losses = [ml.train_step(model, optimizer, TOKENS, TARGETS) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert all((p.data != before[path]).any() for path, p in adapter_parameters(model).items() if p.requires_grad)
    parameters = adapter_parameters(shake(model))
    trained = [p for p in parameters.values() if p.requires_grad]
    assert ml.gradcheck(lambda *_: model.loss(TOKENS, TARGETS), trained, "directional").passed
    # with a cache and without
    outputs = logits(model)
    texts = [model.generate(TOKENS, 2, temperature=0, use_cache=cached) for cached in (True, False)]
    np.testing.assert_array_equal(*texts)
    # saved and loaded
    ml.load_adapter(other := drawn(name), ml.save_adapter(model, tmp_path / "adapter.npz"))
    np.testing.assert_allclose(logits(other), outputs, rtol=0, atol=1e-13)
    if config.kind in ("lora", "dora", "lora-fa", "ia3", "prompt", "prefix"):
        pytest.importorskip("safetensors", reason="needs safetensors: pip install 'minilora[models]'")
        ml.load_adapter(other := drawn(name), ml.save_adapter(model, tmp_path / "peft", format="peft"))
        np.testing.assert_allclose(logits(other), outputs, rtol=0, atol=1e-11)
    # merged, unmerged and taken out
    with ml.adapter_disabled(model):
        np.testing.assert_array_equal(logits(model), plain)
    if planned.mergeable or kind == "table and head":
        ml.merge_adapter(model)
        np.testing.assert_allclose(logits(model), outputs, rtol=1e-9, atol=1e-10)
        ml.unmerge_adapter(model)
        np.testing.assert_array_equal(logits(model), outputs)
    else:
        with pytest.raises(ValueError, match=r"merge_adapter: .* no weight of the base"):
            ml.merge_adapter(model)
    ml.remove_adapter(model)
    np.testing.assert_array_equal(logits(model), plain)


def test_every_method_is_in_the_table():
    assert {config.kind for config in METHODS_HERE.values()} == METHODS.keys()


@every
def test_rows_of_a_batch_sums_and_combinations(name):
    model = drawn(name)
    plain, alone = logits(model), {}
    for i, targets in enumerate((("q_proj", "down_proj", "wte"), ("v_proj", "o_proj", "q_proj"))):
        config = ml.LoRAConfig(2 + i, 3, target_modules=targets, ensure_weight_tying=False)
        with pytest.warns(UserWarning) if "wte" in targets and model.head is None else contextlib.nullcontext():
            shake(ml.add_lora(model, config, name=str(i)), rng=i)
        alone[str(i)] = logits(model)
    with ml.rows_use(model, ["1", None, "0"]):
        rows = logits(model)
    for i, expected in enumerate((alone["1"], plain, alone["0"])):
        np.testing.assert_allclose(rows[i], expected[i], rtol=0, atol=1e-12)
    ml.set_adapter(model, ["0", "1"])
    together = logits(model)
    ml.set_adapter(model, None)
    np.testing.assert_array_equal(logits(model), plain)
    assert np.abs(together - plain).max() > 1e-3


@pytest.mark.slow
@every
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_lora_on_few_bits(name, kind, tmp_path):
    model = ml.quantize_model(drawn(name, "float32"), kind, block=8)
    plain = logits(model)
    ml.add_lora(model, ml.LoRAConfig(2, 3, target_modules=("q_proj", "v_proj", "down_proj")))
    np.testing.assert_array_equal(logits(model), plain)
    optimizer = ml.AdamW(model.parameters(trainable=True), lr=0.01)
    losses = [ml.train_step(model, optimizer, TOKENS, TARGETS) for _ in range(3)]
    assert losses[-1] < losses[0]
    outputs, path = logits(model), ml.save_adapter(model, tmp_path / "adapter.npz")
    other = ml.load_adapter(ml.quantize_model(drawn(name, "float32"), kind, block=8), path)
    np.testing.assert_array_equal(logits(other), outputs)
    ml.merge_adapter(model)
    np.testing.assert_allclose(logits(model), outputs, rtol=0, atol=1e-4)
    ml.unmerge_adapter(model)
    np.testing.assert_array_equal(logits(model), outputs)


@every
def test_virtual_tokens_and_padding(name):
    """A padded row says what it says alone: the virtual tokens count, wherever its padding stands.

    Not where a window ends: it is as long in keys, as in transformers, and padding between counts among them.
    """
    for kind in ("prompt", "prefix"):
        model = put(name, kind)
        for real in [slice(0, 4)] + [slice(2, 6)] * (not model.architecture.window):
            mask = np.zeros_like(TOKENS)
            mask[0, real] = mask[1:] = 1
            padded, alone = model(TOKENS, mask=mask).data, model(TOKENS[:1, real]).data
            np.testing.assert_allclose(padded[:1, real], alone, rtol=0, atol=1e-12)
            np.testing.assert_allclose(padded[1:], model(TOKENS[1:]).data, rtol=0, atol=1e-12)


@every
def test_a_head_for_labels_is_counted_and_comes_along(name, tmp_path):
    model = ml.add_classifier(drawn(name), ("a", "b", "c"))
    total = model.count()
    ml.add_lora(model, ml.LoRAConfig(2, modules_to_save=("classifier",)))
    numbers = count(model, rank=2, modules_to_save=("classifier",))
    assert numbers.trainable_parameters == model.count(trainable=True)
    assert numbers.total_parameters == total + model.count(trainable=True) - 3 * model.width
    shake(model)
    outputs = model.scores(TOKENS).data
    written = {form: ml.save_adapter(model, tmp_path / form, format=form) for form in ("minilora", "peft")}
    assert count(written["minilora"].rename(tmp_path / "a.npz")).trainable_parameters == model.count(trainable=True)
    for path in (tmp_path / "a.npz", written["peft"]):
        other = ml.load_adapter(ml.add_classifier(drawn(name), ("a", "b", "c")), path)
        np.testing.assert_allclose(other.scores(TOKENS).data, outputs, rtol=0, atol=1e-12)


SMALL = {
    "bert": dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=9),
    "roberta": dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=9),
    "distilbert": dict(dim=8, n_layers=2, n_heads=2, hidden_dim=9),
}


def encoder(family, head):
    a = from_hugging_face({"model_type": family, **SMALL[family], "vocab_size": 13, "max_position_embeddings": 20})
    pooler = family == "bert" and head == "labels"
    model = ml.Transformer(dataclasses.replace(a, head=head, labels=3 * (head == "labels"), pooler=pooler))
    rng = np.random.default_rng(1)
    for p in model.astype("float64").parameters():
        p.data[...] = rng.normal(0, 0.3, p.shape)
        p.changed()
    return model


ON_ENCODERS = METHODS_HERE | {
    "prompt and a head": ml.PromptConfig(tokens=2, modules_to_save=("classifier",)),
    "prefix and a head": ml.PrefixConfig(tokens=2, modules_to_save=("classifier",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("head", ["masked", "labels"])
@pytest.mark.parametrize("kind", ON_ENCODERS)
def test_a_method_on_an_encoder(family, head, kind, tmp_path):
    config = ON_ENCODERS[kind]
    if kind in ("rslora everywhere", "vera everywhere"):
        config = dataclasses.replace(config, modules_to_save=("ln_2",))
    if kind.endswith("and a head") and head == "masked":
        config = dataclasses.replace(config, modules_to_save=("head.dense", "head.norm"))
    model = encoder(family, head)
    plain, targets = logits(model), TARGETS if head == "masked" else TARGETS[:, 0] % 3
    ml.add_adapter(model, config)
    virtual = config.kind in ("prompt", "prefix")
    if not virtual:
        np.testing.assert_array_equal(logits(model), plain)
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(methods.Options) if hasattr(config, f.name)}
    planned = methods.plan(model.architecture, config.kind, **options)
    frozen = ("_A0", "_B0", "lora_A") if kind == "lora-fa" else ("_A0", "_B0")
    held = {path: p.shape for path, p in adapter_parameters(model).items() if not path.endswith(frozen)}
    if kind != "prefix by a network":
        assert held == planned.trainable
        assert count(model, config.kind, **options).trainable_parameters == model.count(trainable=True)
    trained = [p for p in adapter_parameters(shake(model)).values() if p.requires_grad]
    assert ml.gradcheck(lambda *_: model.loss(TOKENS, targets), trained, "directional").passed
    outputs = logits(model)
    ml.load_adapter(other := encoder(family, head), ml.save_adapter(model, tmp_path / "adapter.npz"))
    np.testing.assert_allclose(logits(other), outputs, rtol=0, atol=1e-13)
    if kind == "table and head" and head == "masked":
        with pytest.raises(ValueError, match="wte is trained for the masked head, too"):
            ml.save_adapter(model, tmp_path / "peft", format="peft")
    elif config.kind in ("lora", "dora", "prompt", "prefix"):
        pytest.importorskip("safetensors", reason="needs safetensors: pip install 'minilora[models]'")
        ml.load_adapter(other := encoder(family, head), ml.save_adapter(model, tmp_path / "peft", format="peft"))
        np.testing.assert_allclose(logits(other), outputs, rtol=0, atol=1e-11)
    if planned.mergeable or kind == "table and head":
        ml.merge_adapter(model)
        np.testing.assert_allclose(logits(model), outputs, rtol=1e-9, atol=1e-10)
        ml.unmerge_adapter(model)
        np.testing.assert_array_equal(logits(model), outputs)
    elif virtual:
        with pytest.raises(ValueError, match=r"merge_adapter: .* no weight of the base"):
            ml.merge_adapter(model)
    ml.remove_adapter(model)
    np.testing.assert_array_equal(logits(model), plain)


@pytest.mark.parametrize("family", SMALL)
def test_what_an_encoder_has_no_room_for(family, tmp_path):
    model = encoder(family, "masked")
    for config in (ml.PromptConfig(20), ml.PrefixConfig(20)):
        with pytest.raises(ValueError, match="20 virtual tokens leave no room for a text in a context = "):
            ml.add_adapter(model, config)
    ml.add_adapter(model, ml.PromptConfig(2, modules_to_save="head"))
    with pytest.raises(ValueError, match=r"bias is trained, and PEFT has no module of it; format='minilora' keeps it"):
        ml.save_adapter(model, tmp_path, format="peft")
    ml.remove_adapter(model)
    with pytest.warns(UserWarning, match="wte is the last matrix of the masked head"):
        ml.add_lora(model, ml.LoRAConfig(2, target_modules="wte"))
    with pytest.raises(ValueError, match="merge_adapter: wte: wte is the last matrix of the masked head"):
        ml.merge_lora(model)
