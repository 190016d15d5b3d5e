"""Vision transformers in Hugging Face's folders, without transformers: what comes back, and what is refused."""

import json
import shutil

import numpy as np
import pytest

import minilora as ml

pytest.importorskip("safetensors", reason="these tests need safetensors: pip install 'minilora[models]'")


@pytest.fixture
def folder(tmp_path):
    model = ml.ViT(ml.ViTConfig(image_size=8, patch_size=4, n_layer=1, n_head=2, n_embd=8, labels=3), rng=1)
    return ml.save_pretrained(model, tmp_path / "vit")


def changed(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


def test_a_folder_comes_back(folder):
    model, images = ml.load_pretrained(folder), np.random.default_rng(0).random((2, 8, 8)).astype("float32")
    assert model.labels == () and model.source == str(folder)
    np.testing.assert_array_equal(model(images).data, ml.ViT(model.config, rng=1)(images).data)
    wide = ml.load_pretrained(folder, "float64")
    assert {p.dtype for p in wide.parameters()} == {np.dtype("float64")}
    assert {p.dtype for p in model.parameters()} == {np.dtype("float32")}
    changed(folder, image_size=[8, 8], patch_size=[4, 4])
    np.testing.assert_array_equal(ml.load_pretrained(folder)(images).data, model(images).data)
    shutil.rmtree(folder)
    model(images)  # which holds its own numbers


def test_floats_of_16_bits_are_held_and_frozen(folder):
    images = np.random.default_rng(0).random((2, 8, 8)).astype("float32")
    half = ml.load_pretrained(folder, "float16")
    assert not half.parameters(trainable=True)
    assert np.abs(half(images).data - ml.load_pretrained(folder)(images).data).max() < 1e-2
    ml.add_lora(half, ml.LoRAConfig(rank=1, modules_to_save=()))
    ml.train_step(half, ml.AdamW(half.parameters(trainable=True), lr=1e-3), images, np.array([0, 1]))
    ml.remove_lora(half)
    with pytest.raises(ValueError, match=r"^save_pretrained: patch_proj is held in few bits"):
        ml.save_pretrained(half, folder.parent / "other")
    assert not (folder.parent / "other").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_size": 9}, "ViTConfig: image_size = 9 is not divisible by patch_size = 4"),
        ({"image_size": [8, 12]}, "image_size = [8, 12], expected"),
        ({"image_size": 16}, "vit.embeddings.position_embeddings has shape (1, 5, 8), expected (1, 17, 8)"),
        ({"num_channels": 3}, "projection.weight has shape (8, 1, 4, 4), expected (8, 3, 4, 4)"),
        ({"num_hidden_layers": 2}, "missing vit.encoder.layer.1.layernorm_before.weight"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1,000,000,000, and it holds"),
        ({"hidden_act": "tanh"}, "hidden_act = 'tanh' is not known"),
        ({"hidden_size": "8"}, "n_embd = '8', expected a positive integer"),
        ({"qkv_bias": False}, "unexpected vit.encoder.layer.0.attention.attention.query.bias"),
        ({"head_dim": 16}, "head_dim = 16 is not known for vit"),
        (
            {"architectures": ["ViTForMaskedImageModeling"]},
            "architectures = ['ViTForMaskedImageModeling'] is not known",
        ),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "id2label = "),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label = "),
        ({"id2label": {"0": "a", "1": "b"}}, "classifier.weight has shape (3, 8), expected (2, 8)"),
        ({"model_type": "vit_mae"}, "unknown model_type 'vit_mae'"),
    ],
)
def test_a_config_that_does_not_fit(folder, fields, words):
    with pytest.raises(ValueError) as error:
        ml.load_pretrained(changed(folder, **fields))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert str(folder) in str(error.value) or "vit" in str(error.value)


def test_damaged_files(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"model\.safetensors is no complete \.safetensors file"):
        ml.load_pretrained(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"vit has no model\.safetensors"):
        ml.load_pretrained(folder)


def test_what_is_not_written(tmp_path):
    model = ml.ViT(ml.ViTConfig(image_size=8, n_layer=1, n_embd=8))
    model.class_token.data[0] = np.nan
    with pytest.raises(ValueError, match=r"^save_pretrained: .*class_token"):
        ml.save_pretrained(model, tmp_path / "a")
    model = ml.add_lora(ml.ViT(ml.ViTConfig(image_size=8, n_layer=1, n_embd=8)), ml.LoRAConfig(rank=1))
    with pytest.raises(ValueError, match=r"^save_pretrained: the model has an adapter"):
        ml.save_pretrained(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
