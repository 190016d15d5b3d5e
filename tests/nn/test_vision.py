"""The vision transformer: patches, the three gradient checks, adapters, attention maps, files, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

import minilora as ml
from minilora.nn.vision import OURS, ViT, ViTConfig, load_vision, save_vision

SMALL = ViTConfig(image_size=6, patch_size=2, channels=1, n_layer=2, n_head=2, n_embd=8, labels=3)
TINY = dataclasses.replace(SMALL, image_size=4, n_layer=1, n_embd=4)
COLOURS = dataclasses.replace(SMALL, channels=3, mlp_width=10, activation="gelu_tanh", qkv_bias=False)


def spread(config=SMALL, dtype="float64"):
    """A model with every parameter away from where it starts."""
    model, rng = ViT(config).astype(dtype), np.random.default_rng(5)
    for p in model.parameters():
        p.data = p.data + rng.normal(0, 0.3, p.shape).astype(dtype)
    return model


def pictures(config=SMALL, n=4, rng=0):
    rng = np.random.default_rng(rng)
    shape = (config.image_size,) * 2 if config.channels == 1 else (config.channels, *[config.image_size] * 2)
    return rng.random((n, *shape)), rng.integers(0, config.labels, n)


@pytest.mark.parametrize("config", [SMALL, COLOURS, ViTConfig()])
def test_sizes(config):
    model = ViT(config)
    images, _ = pictures(config, 2)
    assert model.count() == config.count and model(images).shape == (2, config.labels)
    assert {p.dtype for p in model.parameters()} == {np.dtype("float32")}


def test_patches_are_read_row_after_row():
    model = ViT(COLOURS).astype("float64")
    images, _ = pictures(COLOURS, 1)
    cut = model.patches(model.read(images)).data
    assert cut.shape == (1, 9, 12)
    np.testing.assert_array_equal(cut[0, 5], images[0, :, 2:4, 4:6].reshape(-1))  # the second row's third


def test_a_moved_patch_changes_the_scores_and_its_own_attention():
    model = spread()
    images, _ = pictures()
    other = images.copy()
    other[:, :2, :2], other[:, 4:, 4:] = images[:, 4:, 4:], images[:, :2, :2]
    assert np.abs(model(images).data - model(other).data).max() > 1e-3  # places count


@pytest.mark.slow
@pytest.mark.parametrize("method", ["central", "complex-step", "directional"])
@pytest.mark.parametrize(
    "config", [TINY, dataclasses.replace(TINY, channels=3, activation="gelu_tanh", qkv_bias=False)]
)
def test_gradients_of_the_whole_model(method, config):
    model, (images, labels) = spread(config), pictures(config, 2)
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules=("q_proj", "up_proj"), init="gaussian"))
    for p in model.parameters():
        p.requires_grad, p.data = True, p.data + 0.01
    names, parameters = zip(*model.named_parameters(), strict=True)
    report = ml.gradcheck(lambda *_: model.loss(images, labels), parameters, method=method, names=names)
    assert report.passed, str(report)
    for row in report.inputs:
        if not row.name.endswith("k_proj.bias"):  # it adds q . b to every score of a row, which softmax does not see
            assert row.relative <= (1e-11 if method == "complex-step" else 1e-6), str(report)


def test_the_gradient_of_a_picture():
    model, (images, labels) = spread(), pictures()
    x = ml.Tensor(images, requires_grad=True)
    (found,) = ml.grad(model.loss(x, labels), [x])
    v, h = np.random.default_rng(1).normal(size=images.shape), 1e-6
    numeric = (model.loss(images + h * v, labels).item() - model.loss(images - h * v, labels).item()) / (2 * h)
    assert (found * v).sum() == pytest.approx(numeric, rel=1e-5)


def test_attention_maps_are_what_attention_does():
    model, (images, _) = spread(), pictures()
    maps = model.attention_maps(images)
    assert maps.shape == (4, 2, 2, 10, 10)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-12)
    x, block = model.embed(images), model.blocks[0]
    inside = block.ln_1(x)
    v = ml.ops.split_heads(block.attn.v_proj(inside), 2).data
    mixed = ml.ops.join_heads(ml.Tensor(maps[:, 0] @ v))
    own = block.attn(inside, None, None, 0, model.place(x))
    np.testing.assert_allclose(block.attn.o_proj(mixed).data, own.data, rtol=1e-9)


def test_predict_takes_any_number_of_pictures():
    model, (images, _) = spread(), pictures(n=600)
    assert (model.predict(images) == model(images).data.argmax(axis=1)).all()


def test_training_lowers_the_loss_and_a_label_of_minus_100_does_not_count():
    model, (images, labels) = spread(dtype="float32"), pictures(n=7)
    optimizer = ml.AdamW(model.parameters(), lr=1e-2)
    losses = [ml.train_step(model, optimizer, images, labels) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    some = np.where(np.arange(7) < 4, labels, -100)
    assert model.loss(images, some).item() == pytest.approx(model.loss(images[:4], labels[:4]).item(), rel=1e-5)
    for pieces in (1, 3):
        taken = ml.train_step(model, ml.SGD(model.parameters(), lr=0.0), images, some, pieces=pieces)
        assert taken == pytest.approx(model.loss(images[:4], labels[:4]).item(), rel=1e-5)


METHODS = [
    ml.LoRAConfig(rank=2, target_modules="*"),
    ml.LoRAConfig(rank=2, target_modules=("blocks.1.*q_proj", "up_proj"), modules_to_save=("classifier",)),
    ml.DoRAConfig(rank=2),
    ml.VeRAConfig(rank=2),
    ml.IA3Config(),
    ml.BitFitConfig(),
    ml.LastBlocksConfig(1),
]


@pytest.mark.parametrize("config", METHODS, ids=lambda c: type(c).__name__)
def test_adapters(config, tmp_path):
    model, (images, labels) = spread(dtype="float32"), pictures()
    before = model(images).data
    ml.add_adapter(model, config)
    np.testing.assert_allclose(model(images).data, before, atol=1e-5)
    optimizer = ml.AdamW(model.parameters(trainable=True), lr=1e-2)
    losses = [ml.train_step(model, optimizer, images, labels) for _ in range(5)]
    assert losses[-1] < losses[0]
    after = model(images).data
    path = ml.save_adapter(model, tmp_path / "adapter.npz")
    np.testing.assert_array_equal(ml.load_adapter(spread(dtype="float32"), path)(images).data, after)
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(images).data, before)
    if not isinstance(config, ml.BitFitConfig | ml.LastBlocksConfig):
        ml.merge_lora(model)
        np.testing.assert_allclose(model(images).data, after, atol=1e-5)
        ml.unmerge_lora(model)
        np.testing.assert_array_equal(model(images).data, after)
    ml.remove_lora(model)
    np.testing.assert_array_equal(model(images).data, before)


def test_another_head_for_other_labels(tmp_path):
    model, (images, _) = spread(dtype="float32"), pictures()
    names = ["a", "b", "c", "d", "e"]
    ml.add_classifier(model, names)
    assert model.labels == tuple(names) and model(images).shape == (4, 5) and not model(images).data.any()
    assert model.config.labels == 5
    ml.add_lora(model, ml.LoRAConfig(rank=2, modules_to_save=("classifier",)))
    ml.train_step(model, ml.AdamW(model.parameters(trainable=True), lr=1e-2), images, np.array([0, 1, 2, 4]))
    path = ml.save_adapter(model, tmp_path / "a.npz")
    again = ml.load_adapter(spread(dtype="float32"), path)
    assert again.labels == tuple(names)
    np.testing.assert_array_equal(again(images).data, model(images).data)
    with pytest.raises(ValueError, match=r"^add_classifier: the model has an adapter"):
        ml.add_classifier(model, ["x", "y"])
    assert model.labels == tuple(names)


def test_a_head_for_as_many_labels_that_have_no_names_gets_them():
    model, (images, _) = spread(), pictures()
    before = model(images).data
    assert ml.add_classifier(model, ("x", "y", "z")).labels == ("x", "y", "z")
    np.testing.assert_array_equal(model(images).data, before)
    assert ml.add_classifier(model, ("p", "q", "r")).labels == ("p", "q", "r")
    assert not model(images).data.any()  # they were other labels


# Files


def test_a_file_holds_the_model(tmp_path):
    model, (images, _) = spread(COLOURS, "float32"), pictures(COLOURS)
    model.labels = ("a", "b", "c")
    again = load_vision(save_vision(model, tmp_path / "my.npz"))
    assert again.labels == model.labels and again.config == model.config
    np.testing.assert_array_equal(again(images).data, model(images).data)
    half = load_vision(save_vision(model, tmp_path / "half.npz", "float16"))
    assert 0 < np.abs(half(images).data - model(images).data).max() < 0.02


def test_files_that_are_none(tmp_path):
    model, path = spread(dtype="float32"), tmp_path / "my.npz"
    save_vision(model, path)
    with pytest.raises(ValueError, match=r"holds 'vision model', expected 'model'"):
        ml.load_model(path)
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cut.npz is no complete minilora file"):
        load_vision(tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError, match=r"absent.npz"):
        load_vision(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match=r"holds 'model', expected 'vision model'"):
        load_vision(ml.save_model(ml.GPT(ml.GPTConfig(9, 8, 1, 2, 4)), tmp_path / "gpt.npz"))
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    for change, words in [
        ({"config": {"n_layer": 10**6}}, "its configuration asks for"),
        ({"config": {"n_layer": 3}}, "its configuration asks for"),
        ({"config": {"patch_size": 4}}, "ViTConfig: image_size = 6 is not divisible by patch_size = 4"),
        ({"config": {"depth": 4}}, "got depth=4"),
        ({"labels": ["a"]}, "it has 1 names for 3 labels"),
    ]:
        header = json.loads(str(arrays["header"]))
        header["config"] |= change.get("config", {})
        header |= {key: value for key, value in change.items() if key != "config"}
        np.savez(tmp_path / "wrong.npz", **arrays | {"header": np.array(json.dumps(header))})
        with pytest.raises(ValueError, match=r"wrong.npz: ") as error:
            load_vision(tmp_path / "wrong.npz")
        assert words in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_saved(tmp_path):
    model = ml.add_lora(spread(dtype="float32"), ml.LoRAConfig(rank=1))
    for wrong, words in [
        (model, "the model has an adapter"),
        (ml.quantize_model(spread(dtype="float32"), "int8"), "the model is quantised"),
    ]:
        with pytest.raises(ValueError, match=f"^save_vision: {words}"):
            save_vision(wrong, tmp_path / "x.npz")
    large = spread(dtype="float32")
    large.class_token.data[0] = 1e6
    with pytest.raises(ValueError, match=r"^save_vision: class_token: "):
        save_vision(large, tmp_path / "x.npz", "float16")
    with pytest.raises(ValueError, match=r"^save_vision: 'fonts' comes with minilora"):
        save_vision(spread(), "fonts")
    assert not (tmp_path / "x.npz").exists() and set(OURS) == {"characters", "fonts"}


# What is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 7}, "image_size = 7 is not divisible by patch_size = 2"),
        ({"n_head": 3}, "n_embd = 8 is not divisible by n_head = 3"),
        ({"labels": 0}, "labels = 0, expected a positive integer"),
        ({"channels": -1}, "channels = -1, expected a positive integer"),
        ({"n_layer": 2.0}, "n_layer = 2.0, expected"),
        ({"image_size": True}, "image_size = True, expected"),
        ({"activation": "tanh"}, "activation = 'tanh', expected gelu_tanh"),
        ({"qkv_bias": 1}, "qkv_bias = 1, expected True or False"),
        ({"norm_eps": 0}, "norm_eps = 0, expected a small number above 0"),
        ({"mlp_width": 0}, "mlp_width = 0, expected a positive integer"),
    ],
)
def test_configurations_that_make_no_sense(change, words):
    with pytest.raises((ValueError, TypeError)) as error:
        dataclasses.replace(SMALL, **change)
    assert str(error.value).startswith("ViTConfig: ") and words in str(error.value)


def test_odd_pictures_are_refused():
    model, colours = spread(), spread(COLOURS)
    images, labels = pictures()
    for given, words in [
        (images[:, :5], r"images have shape \(4, 5, 6\), expected \(B, 6, 6\)"),
        (np.zeros((4, 28, 28)), r"images have shape \(4, 28, 28\), expected \(B, 6, 6\)"),
        (images[0], r"images have shape \(6, 6\), expected \(B, 6, 6\); for one picture: image\[None\]"),
        (np.zeros((4, 6, 6, 3)), r"\(4, 6, 6, 3\), expected \(B, 6, 6\); images.mean\(axis=-1\) makes colours grey"),
        (images[:0], r"images have shape \(0, 6, 6\), expected"),
        ((images * 255).astype("uint8"), r"images of uint8, expected floats, such as images / 255"),
        (images > 0.5, "images of bool, expected floats"),
        (np.where(images > 0.9, np.nan, images), "images hold NaN or infinity"),
        ("a picture", "images = 'a picture', expected an array"),
        (None, "images = None, expected an array"),
    ]:
        for call in (model, model.predict, model.attention_maps, lambda x: model.loss(x, labels)):
            with pytest.raises((ValueError, TypeError), match=r"^ViT: .*" + words.removeprefix("ViT: ")) as error:
                call(given)
            assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"\(4, 6, 6\), expected \(B, 3, 6, 6\)"):
        colours(images)
    with pytest.raises(ValueError, match=r"\(2, 1, 6, 6\), expected \(B, 3, 6, 6\)"):
        colours(np.zeros((2, 1, 6, 6)))
    assert model(images[:, None]).shape == (4, 3)  # grey, with its one channel


def test_odd_labels_are_refused():
    model, (images, labels) = spread(), pictures()
    for given, words in [
        (labels[:3], r"labels are \(3,\) of int64, expected 4 integers, one for each picture"),
        (labels[:, None], r"labels are \(4, 1\) of int64, expected 4 integers"),
        (labels.astype(float), r"labels are \(4,\) of float64, expected 4 integers"),
        (np.array([0, 1, 2, 3]), "labels run from 0 to 3, expected 0 to 2"),
        (np.array([0, -1, 2, 2]), "labels run from -1 to 2, expected 0 to 2"),
        (["a", "b", "c", "a"], "labels = .*expected an array of numbers"),
    ]:
        with pytest.raises((ValueError, TypeError), match=r"^ViT\.loss: .*" + words):
            model.loss(images, given)


def test_what_is_for_texts_says_so(tmp_path):
    model = ViT(SMALL)
    with pytest.raises(TypeError, match=r"^evaluate: model is a ViT, which reads no text; ml\.train_step"):
        ml.evaluate(model, "python-docs")
    with pytest.raises(TypeError, match=r"^save_model: got ViT.*expected a GPT: .*; ml\.save_vision\(model, path\)"):
        ml.save_model(model, tmp_path / "x.npz")


def test_another_config_is_refused():
    with pytest.raises(TypeError, match=r"^ViT: got GPTConfig\(.*expected a ViTConfig"):
        ViT(ml.GPTConfig(9, 8, 1, 2, 4))
    with pytest.raises(TypeError, match=r"^ViTConfig: got hidden_size=8, .*write n_embd="):
        ViTConfig(hidden_size=8)
