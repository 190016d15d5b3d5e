"""DiT: patches, what the condition does, every gradient in three ways, adapters on it, files, and what is refused."""

import numpy as np
import pytest

import minilora as ml
from minilora.nn.diffusion import DiT, DiTConfig, ada_norm, load_diffusion, save_diffusion
from minilora.nn.layers import as_patches, as_pictures
from minilora.nn.storage import load_arrays

TINY = DiTConfig(image_size=4, patch_size=2, classes=3, n_layer=1, n_head=2, n_embd=4)
SMALL = DiTConfig(image_size=8, patch_size=4, classes=5, n_layer=2, n_head=2, n_embd=8)


def spread(config=SMALL):
    """In float64, every parameter away from where it starts: at zero, much of it."""
    model, rng = DiT(config).astype("float64"), np.random.default_rng(5)
    for p in model.parameters():
        p.data = p.data + rng.normal(0, 0.3, p.shape)
    return model


def pictures(config=SMALL, count=3):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, config.image_size, config.image_size)), np.array([1, 500, 1000][:count]), [0, 2, 1]


@pytest.mark.parametrize("config", [TINY, SMALL, DiTConfig()])
def test_its_parameters_are_those_that_are_counted(config):
    assert DiT(config).count() == config.count


def test_patches_are_squares_in_reading_order_and_come_back():
    images = np.arange(128.0).reshape(2, 8, 8)
    patches = as_patches(ml.Tensor(images), SMALL.patch_size)
    assert patches.shape == (2, 4, 16)
    np.testing.assert_array_equal(patches.data[1, 1].reshape(4, 4), images[1, :4, 4:])
    np.testing.assert_array_equal(as_pictures(patches, SMALL.image_size, SMALL.patch_size).data, images)


def test_it_starts_with_blocks_that_change_nothing():
    model, (images, times, classes) = DiT(SMALL), pictures()
    assert not model(images, times, classes).data.any()  # the head starts at zero
    x, c = ml.Tensor(np.ones((3, 4, 8), "float32")), ml.Tensor(np.ones((3, 8), "float32"))
    np.testing.assert_array_equal(model.blocks[0](x, c).data, x.data)


def test_a_norm_of_its_own_for_each_picture():
    x, rng = np.random.default_rng(0).normal(size=(2, 3, 4)), np.random.default_rng(1)
    shift, scale = rng.normal(size=(2, 2, 1, 4))
    y = ada_norm(ml.Tensor(x), ml.Tensor(shift), ml.Tensor(scale)).data
    n = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, (1 + scale) * n + shift, rtol=1e-12)


def test_time_class_and_every_patch_count_and_other_pictures_do_not():
    model, (images, times, classes) = spread(), pictures()
    before = model(images, times, classes).data
    np.testing.assert_allclose(model(images[1:2], times[1], [2]).data, before[1:2], rtol=1e-10)
    np.testing.assert_array_equal(model(images, 500).data, model(images, [500] * 3, [model.none] * 3).data)
    assert np.abs(model(images, times + 1, classes).data - before).max() > 1e-6
    assert np.abs(model(images, times, [1, 2, 1]).data - before)[0].max() > 1e-3
    images[:, -1, -1] += 1
    assert np.abs(model(images, times, classes).data - before)[:, :4, :4].max() > 1e-3


def test_a_time_is_cosines_and_sines_from_quick_to_slow():
    """Of width 4 the frequencies are 1 and 1/100; an MLP that passes a wave through shows it."""
    model = DiT(TINY).astype("float64")
    model.time_mlp[0].weight.data[...], model.time_mlp[1].weight.data[...] = np.eye(4) * 50, np.eye(4) / 50
    waves = np.array([np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)])
    np.testing.assert_allclose(model.time(np.array([3]))[0].data, np.maximum(waves, 0), atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("method", ["central", "complex-step", "directional"])
def test_every_gradient_of_the_whole_model(method, lora):
    model, (images, times, classes) = spread(TINY), pictures(TINY)
    if lora:
        ml.add_lora(model, ml.LoRAConfig(rank=1, target_modules=("blocks.0.*", "patch_proj")))
        for p in model.parameters(trainable=True):
            p.data += 0.2  # B starts at zero, and then A has no gradient to check
    noise = np.random.default_rng(2).normal(size=images.shape)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    report = ml.gradcheck(lambda *_: model.loss(images, times, classes, noise), parameters, method=method, names=names)
    assert report.passed, str(report)


def test_the_gradient_of_the_pictures():
    model, (images, times, classes) = spread(TINY), pictures(TINY)
    report = ml.gradcheck(lambda x: model.loss(x, times, classes, np.ones(x.shape)), [images])
    assert report.passed, str(report)


def test_lora_by_blocks_is_merged_saved_and_loaded(tmp_path):
    model, (images, times, classes) = spread(), pictures()
    before = model(images, times, classes).data
    config = ml.LoRAConfig(rank=2, target_modules=("blocks.1.*",))
    ml.add_lora(model, config)
    np.testing.assert_array_equal(model(images, times, classes).data, before)
    assert len(ml.delta_weights(model)) == 7 and all(name.startswith("blocks.1.") for name in ml.delta_weights(model))
    for p in model.parameters(trainable=True):
        p.data += 0.1
    adapted = model(images, times, classes).data
    assert np.abs(adapted - before).max() > 1e-3
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(images, times, classes).data, before)
    path = ml.save_adapter(model, tmp_path / "style.npz")
    other = ml.load_adapter(spread(), path)
    np.testing.assert_allclose(other(images, times, classes).data, adapted, rtol=1e-6)
    ml.merge_lora(model)
    np.testing.assert_allclose(model(images, times, classes).data, adapted, rtol=1e-9)


def test_a_file_gives_the_model_back(tmp_path):
    model, (images, times, classes) = spread().astype("float32"), pictures()
    path = save_diffusion(model, tmp_path / "model.npz", record={"seed": 3})
    again = load_diffusion(path)
    assert again.config == SMALL and load_arrays(path, None)[1]["seed"] == 3
    np.testing.assert_array_equal(again(images, times, classes).data, model(images, times, classes).data)
    half = load_diffusion(save_diffusion(model, tmp_path / "half.npz", "float16"))
    np.testing.assert_allclose(half.head.weight.data, model.head.weight.data, rtol=1e-3)


def test_files_that_are_none(tmp_path):
    ml.save_model(ml.GPT(ml.GPTConfig(5, 4, 1, 2, 4)), tmp_path / "gpt.npz")
    with pytest.raises(ValueError, match=r"gpt.npz holds 'model', expected 'diffusion model'"):
        load_diffusion(tmp_path / "gpt.npz")
    with pytest.raises(ValueError, match="no complete minilora file"):
        (tmp_path / "cut.npz").write_bytes(save_diffusion(DiT(TINY), tmp_path / "all.npz").read_bytes()[:900])
        load_diffusion(tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent.npz"):
        load_diffusion(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="save_diffusion: the model has an adapter; save_adapter"):
        save_diffusion(ml.add_lora(DiT(TINY), ml.LoRAConfig(rank=1)), tmp_path / "no.npz")
    with pytest.raises(ValueError, match="save_diffusion: the model is quantised; save the float model"):
        save_diffusion(ml.quantize_model(DiT(SMALL), "int8"), tmp_path / "no.npz")
    with pytest.raises(ValueError, match=r"save_diffusion: blocks.0 has an adapter of its own"):
        part = DiT(SMALL)
        ml.add_lora(part.blocks[0], ml.LoRAConfig(rank=1))
        save_diffusion(part, tmp_path / "no.npz")
    with pytest.raises(ValueError, match="'letters' is the model that comes with minilora"):
        save_diffusion(DiT(TINY), "letters")
    with pytest.raises(ValueError, match=r"save_diffusion: head.weight: entry \(0, 0\) is .*too large for float16"):
        model = DiT(TINY)
        model.head.weight.data[0, 0] = 1e6
        save_diffusion(model, tmp_path / "no.npz", "float16")
    assert not (tmp_path / "no.npz").exists()


IMAGES = np.zeros((2, 8, 8))


@pytest.mark.parametrize(
    "given, words",
    [
        ((IMAGES[:, :7], 3), r"images \(2, 7, 8\) of float64, expected numbers \(B, 8, 8\): grey, and of this size"),
        ((IMAGES[..., None], 3), r"images \(2, 8, 8, 1\)"),
        ((IMAGES[0], 3), r"images \(8, 8\)"),
        (("a.png", 3), "images = 'a.png', expected an array of numbers"),
        ((IMAGES, [1, 2, 3]), r"times = \[1, 2, 3\], expected a number, or 2: one a picture"),
        ((IMAGES, None), "times = None, expected a number"),
        ((IMAGES, 1, [0, 6]), "classes from 0 to 6, expected 0 to 4, or 5 for none"),
        ((IMAGES, 1, [-1, 0]), "classes from -1 to 0"),
        ((IMAGES, 1, [0]), r"classes = \[0\], expected 2 integers: one a picture"),
        ((IMAGES, 1, [0.5, 1.0]), "classes = .*expected 2 integers"),
        ((IMAGES, 1, "ab"), "classes = .*expected 2 integers"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(given, words):
    with pytest.raises((ValueError, TypeError), match=f"^DiT: {words}") as error:
        DiT(SMALL)(*given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"image_size": 10}, "image_size = 10 is not divisible by patch_size = 4"),
        ({"n_head": 5}, "n_embd = 64 is not divisible by n_head = 5"),
        ({"n_embd": 9, "n_head": 3}, "n_embd = 9, expected an even one"),
        ({"classes": 0}, "classes = 0, expected a positive integer"),
        ({"n_layer": 1.5}, "n_layer = 1.5, expected a positive integer"),
        ({"hidden_size": 96}, "hidden_size=96, and there is no such setting; write n_embd="),
    ],
)
def test_sizes_that_do_not_fit(settings, words):
    with pytest.raises((ValueError, TypeError), match=f"DiTConfig: .*{words}"):
        DiTConfig(**settings)


def test_a_loss_wants_targets_of_the_pictures_shape():
    with pytest.raises(ValueError, match=r"DiT: targets \(8, 8\), expected \(2, 8, 8\), as the images have it"):
        DiT(SMALL).loss(IMAGES, 1, [0, 1], IMAGES[0])
    assert DiT(SMALL)(IMAGES[:0], 1, np.zeros(0, int)).shape == (0, 8, 8)
