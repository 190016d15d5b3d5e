"""The segmenter: what it is made of, gradients of the whole, adapters on it, its file, and what is refused."""

import dataclasses

import numpy as np
import pytest

import minilora as ml
from minilora.nn.layers import as_patches, as_pictures
from minilora.nn.segmenter import BASE, Segmenter, SegmenterConfig, as_images, as_masks, load_segmenter, save_segmenter
from minilora.nn.storage import save_arrays
from minilora.training.scenes import draw_scenes

SMALL = SegmenterConfig(
    size=8, patch=4, width=8, layers=2, decoder_layers=1, heads=2, features=3, window=3, frequencies=2
)
RNG = np.random.default_rng(0)
IMAGES, MASKS = RNG.random((2, 8, 8)), RNG.random((2, 8, 8)) > 0.5
PROMPTS = np.array([[2, 5, 2, 5], [1, 2, 6, 7]])  # a point and a box


def spread(config=SMALL, dtype="float64"):
    """A segmenter with every parameter away from where it starts."""
    model, rng = Segmenter(config).astype(dtype), np.random.default_rng(5)
    for p in model.parameters():
        p.data = (p.data + rng.normal(0, 0.2, p.shape)).astype(dtype)
    return model


def test_a_pixel_is_where_it_belongs():
    """What the parts do in the patches' order comes out in the picture's: seen through the window's own pixel."""
    model = Segmenter(SMALL).astype("float64")
    windows = model._windows(IMAGES)  # (B, N p^2, w^2)
    np.testing.assert_array_equal(as_pictures(ml.Tensor(windows[..., 4:5]), 8, 4).data, IMAGES)
    left = as_pictures(ml.Tensor(windows[..., 3:4]), 8, 4).data
    np.testing.assert_array_equal(left[:, :, 1:], IMAGES[:, :, :-1])
    np.testing.assert_array_equal(left[:, :, 0], IMAGES[:, :, 0])  # beyond the edge, the edge's
    np.testing.assert_array_equal(as_patches(IMAGES, 4)[:, 1], IMAGES[:, :4, 4:].reshape(2, 16))


def test_what_is_seen_at_a_prompt_is_around_it():
    """Around a point, or a box's middle; beyond the edge, the edge's."""
    model, rows = Segmenter(SMALL), np.arange(64.0).reshape(1, 8, 8)
    at = lambda *prompt: model._window_at(rows, np.array([prompt])).reshape(3, 3)
    np.testing.assert_array_equal(at(2, 5, 2, 5), rows[0, 4:7, 1:4])  # x = 2, y = 5
    np.testing.assert_array_equal(at(1, 2, 5, 4), rows[0, 2:5, 2:5])
    np.testing.assert_array_equal(at(0, 7, 0, 7), [[48, 48, 49], [56, 56, 57], [56, 56, 57]])


def test_points_and_boxes_are_told_apart_and_a_point_is_a_box_without_extent():
    model = spread()
    by_point = model(IMAGES, PROMPTS[:, :2]).data
    np.testing.assert_array_equal(by_point, model(IMAGES, np.tile(PROMPTS[:, :2], 2)).data)
    both = model(IMAGES, PROMPTS).data
    np.testing.assert_allclose(both[0], by_point[0], rtol=1e-12)
    assert np.abs(both[1] - by_point[1]).max() > 1e-3
    other = model(IMAGES, PROMPTS[:, :2] + 1).data
    assert (np.abs(other - by_point).max(axis=(1, 2)) > 1e-4).all()  # the place counts
    np.testing.assert_array_equal(model.segment(IMAGES[0], point=(2, 5)), by_point[0] > 0)
    np.testing.assert_array_equal(model.segment(IMAGES[1], box=(1, 2, 6, 7)), both[1] > 0)


def test_what_is_encoded_once_serves_every_prompt():
    model = spread()
    tokens = model.encode(IMAGES)
    assert tokens.shape == (2, 4, 8)
    np.testing.assert_array_equal(model.decode(tokens, IMAGES, PROMPTS).data, model(IMAGES, PROMPTS).data)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param("central", marks=pytest.mark.slow),
        pytest.param("complex-step", marks=pytest.mark.slow),
        "directional",
    ],
)
def test_gradients_in_three_ways(method):
    """Of a parameter of each part, from the patches to the mask."""
    names = ["patch_proj.weight", "place_proj.weight", "blocks.1.attn.q_proj.weight", "kinds.weight"]
    names += ["decoder.0.mlp.up_proj.bias", "window_up.weight", "mask_proj.bias"]
    names = names if method == "directional" else names[3:4] + names[5:]  # the others ask for every entry
    model = spread()

    def loss(*values):
        for name, value in zip(names, values, strict=True):
            owner, _, last = name.rpartition(".")
            setattr(model.get_module(owner), last, value)
        return model.loss(IMAGES, PROMPTS, MASKS)

    report = ml.gradcheck(loss, [dict(model.named_parameters())[name].data for name in names], method)
    assert report.passed, str(report)


def test_every_parameter_is_reached():
    model = spread()
    gradients = ml.grad(model.loss(IMAGES, PROMPTS, MASKS), model.parameters())
    assert all(np.abs(g).max() > 0 for g in gradients)


ADAPTERS = [
    ml.LoRAConfig(rank=2, target_modules=("*",)),
    ml.LoRAConfig(rank=2, target_modules=("blocks.1.*q_proj", "decoder.*.mlp.*", "window_up")),
    ml.DoRAConfig(rank=2, target_modules=("q_proj", "v_proj")),
    ml.LastBlocksConfig(1),
    ml.BitFitConfig(),
    ml.FullConfig(),
]


@pytest.mark.parametrize("config", ADAPTERS, ids=lambda config: config.kind)
def test_adapters_start_at_the_base_learn_and_are_merged_and_saved(config, tmp_path):
    model = spread()
    before = model(IMAGES, PROMPTS).data
    ml.add_adapter(model, config)
    np.testing.assert_allclose(model(IMAGES, PROMPTS).data, before, rtol=1e-12)
    trained = model.parameters(trainable=True)
    optimizer, losses = ml.AdamW(trained, lr=1e-2), []
    for _ in range(3):
        loss = model.loss(IMAGES, PROMPTS, MASKS)
        losses.append(loss.item())
        optimizer.step(ml.grad(loss, trained))
    assert losses[-1] < losses[0]
    after = model(IMAGES, PROMPTS).data
    ml.save_adapter(model, tmp_path / "own.npz")
    ml.merge_lora(model)
    np.testing.assert_allclose(model(IMAGES, PROMPTS).data, after, rtol=1e-9, atol=1e-12)
    again = ml.load_adapter(spread(), tmp_path / "own.npz")
    np.testing.assert_allclose(again(IMAGES, PROMPTS).data, after, rtol=1e-6, atol=1e-9)


def test_a_file_holds_it(tmp_path):
    model = spread(dtype="float32")
    again = load_segmenter(save_segmenter(model, tmp_path / "whole.npz"))
    assert again.config == SMALL
    np.testing.assert_array_equal(again(IMAGES, PROMPTS).data, model(IMAGES, PROMPTS).data)
    half = load_segmenter(save_segmenter(model, tmp_path / "half.npz", "float16"))
    assert half.ln_f.weight.dtype == "float32"
    np.testing.assert_allclose(half(IMAGES, PROMPTS).data, model(IMAGES, PROMPTS).data, atol=2e-2)


@pytest.mark.slow
def test_the_shipped_one_is_small_and_finds_shapes_that_are_pointed_at():
    """Below 2 MB; four fifths of what it finds or should find is both; of what it was not taught, little."""
    model = load_segmenter()
    assert model.config == SegmenterConfig() and BASE.stat().st_size <= 2e6
    found = {}
    for kind in ("shapes", "plates", "characters"):
        scenes = draw_scenes(kind, 64, rng=4)
        found[kind] = np.mean([mask_of(model, scenes, i) for i in range(64)])
    assert found["shapes"] > 0.75 and found["plates"] < 0.4 and found["characters"] < 0.4


def mask_of(model, scenes, i):
    """Intersection over union of one scene, asked by its point."""
    found, meant = model.segment(scenes.images[i], point=scenes.points[i]), scenes.masks[i]
    return (found & meant).sum() / (found | meant).sum()


@pytest.mark.slow
def test_files_that_are_none_are_refused(tmp_path):
    model, path = spread(), tmp_path / "odd.npz"
    with pytest.raises(TypeError, match=r"save_segmenter: got .*, expected a Segmenter"):
        save_segmenter(ml.GPT(ml.GPTConfig(9, 8, 1, 2, 4)), path)
    with pytest.raises(TypeError, match=r"expected a GPT: .*; ml\.save_segmenter\(model, path\)"):
        ml.save_model(spread(), path)
    with pytest.raises(ValueError, match=r"count: unknown model 'Segmenter"):  # not those of a model of texts
        ml.analysis.counting.count(spread())
    with pytest.raises(ValueError, match=r"save_segmenter: 'base' comes with minilora"):
        save_segmenter(spread(), "base")
    with pytest.raises(ValueError, match=r"save_segmenter: the model is quantised"):
        save_segmenter(ml.quantize_model(spread(), block=16), path)
    with pytest.raises(ValueError, match=r"save_segmenter: the model has an adapter; save_adapter\(model, path\)"):
        save_segmenter(ml.add_lora(spread(), ml.LoRAConfig(2)), path)
    assert not path.exists()
    state = model.state_dict()
    for header, message in [
        ({"kind": "model"}, "holds 'model', expected 'segmenter'"),
        ({"kind": "segmenter"}, "the header has no 'config'"),
        ({"kind": "segmenter", "config": {"size": 9}}, "size = 9 is not divisible by patch = 8"),
        ({"kind": "segmenter", "config": {"depth": 9}}, "depth"),
        ({"kind": "segmenter", "config": dataclasses.asdict(SMALL) | {"width": 10**6}}, "asks for more than it holds"),
        ({"kind": "segmenter", "config": dataclasses.asdict(SMALL) | {"layers": 10**6}}, "asks for more than it holds"),
        (
            {"kind": "segmenter", "config": dataclasses.asdict(SMALL) | {"decoder_layers": 10**6}},
            "asks for more than it holds",
        ),
        ({"kind": "segmenter", "config": dataclasses.asdict(SMALL) | {"layers": 3}}, "missing blocks.2.ln_1.weight"),
    ]:
        save_arrays(path, state, header)
        with pytest.raises(ValueError, match=message) as told:
            load_segmenter(path)
        assert str(path) in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(FileNotFoundError):
        load_segmenter(tmp_path / "none.npz")


MODEL = spread()
ONE = IMAGES[0]
WRONG = [
    (lambda: MODEL(IMAGES[:, :4, :4], PROMPTS), r"^Segmenter: images have shape \(2, 4, 4\), expected \(B, 8, 8\), gr"),
    (lambda: MODEL(IMAGES[:, :4], PROMPTS), r"images have shape \(2, 4, 8\), expected \(B, 8, 8\)"),
    (lambda: MODEL(ONE, PROMPTS), r"images have shape \(8, 8\), .*; for one picture: image\[None\]"),
    (lambda: MODEL(np.zeros((2, 8, 8, 3)), PROMPTS), r"\(2, 8, 8, 3\), .*looks like colours: images\[..., :3\].mean"),
    (lambda: MODEL(IMAGES[:0], PROMPTS[:0]), r"images have shape \(0, 8, 8\): there is nothing to see"),
    (lambda: MODEL(IMAGES * 255, PROMPTS), r"Segmenter: pixels run from .* to 25\d.*, expected 0 to 1; divide by 255"),
    (lambda: MODEL((IMAGES * 255).astype("uint8"), PROMPTS), r"pixels run from \d+ to 25\d, .*; divide by 255"),
    (lambda: MODEL(IMAGES - 1, PROMPTS), r"pixels run from -"),
    (lambda: MODEL(IMAGES * np.nan, PROMPTS), r"pixels run from nan to nan, expected 0 to 1$"),
    (lambda: MODEL(IMAGES * 1j, PROMPTS), r"images have dtype complex128, expected plain numbers"),
    (lambda: MODEL("a picture", PROMPTS), r"Segmenter: images have dtype <U9, expected plain numbers"),
    (lambda: MODEL([[1, 2], [3]], PROMPTS), r"Segmenter: images have .*, which is no array"),
    (lambda: MODEL(np.ma.masked_array(IMAGES), PROMPTS), r"Segmenter: images have a mask of its own, expected plain"),
    (lambda: MODEL(IMAGES, PROMPTS[:1]), r"prompts have shape \(1, 4\), expected points \(2, 2\) or boxes \(2, 4\)"),
    (lambda: MODEL(IMAGES, PROMPTS[:, :3]), r"prompts have shape \(2, 3\), expected points"),
    (lambda: MODEL(IMAGES, None), r"Segmenter: prompts have dtype object, expected plain numbers"),
    (lambda: MODEL(IMAGES, PROMPTS + 1), r"box \(2, 3, 7, 8\) is outside the picture, whose pixels are 0 to 7"),
    (lambda: MODEL(IMAGES, PROMPTS * np.nan), r"is outside the picture"),
    (lambda: MODEL(IMAGES, PROMPTS[:, ::-1]), r"box \(7, 6, 2, 1\) has its corners in another order than \(x0, y0"),
    (lambda: MODEL.loss(IMAGES, PROMPTS, MASKS[:1]), r"loss: masks have shape \(1, 8, 8\), the images \(2, 8"),
    (lambda: MODEL.loss(IMAGES, PROMPTS, MASKS * 255), r"masks hold other numbers than 0 and 1, .*; masks > 127 makes"),
    (lambda: MODEL.loss(IMAGES, PROMPTS, IMAGES), r"masks hold other numbers than 0 and 1, expected True inside$"),
    (lambda: MODEL.loss(IMAGES, PROMPTS, None), r"Segmenter.loss: masks have dtype object, expected plain"),
    (lambda: MODEL.segment(ONE), r"^segment: point = None, box = None, expected one of the two"),
    (lambda: MODEL.segment(ONE, (1, 2), (1, 2, 3, 4)), r"segment: point = \(1, 2\), box = .*, expected one of the two"),
    (lambda: MODEL.segment(ONE, point=3), r"segment: point = 3, expected \(x, y\), numbers of pixels"),
    (lambda: MODEL.segment(ONE, point=(1, "2")), r"segment: point = \(1, '2'\), expected \(x, y\)"),
    (lambda: MODEL.segment(ONE, box=(1, 2)), r"segment: box = \(1, 2\), expected \(x0, y0, x1, y1\)"),
    (lambda: MODEL.segment(ONE, point=(8, 0)), r"segment: point \(8, 0\) is outside the picture, .* 0 to 7"),
    (lambda: MODEL.segment(IMAGES, point=(1, 2)), r"segment: image has shape \(2, 8, 8\), expected \(8, 8\), grey"),
    (lambda: MODEL.segment(np.zeros((8, 8, 3)), point=(1, 2)), r"image has shape \(8, 8, 3\), expected \(8, 8\)"),
    (lambda: MODEL.segment(ONE[:4, :4], point=(1, 2)), r"segment: image has shape \(4, 4\), expected \(8, 8\)"),
    (lambda: MODEL.segment(ONE * 255, point=(1, 2)), r"segment: pixels run from .*; divide by 255"),
    (lambda: SegmenterConfig(width=6, heads=4), r"SegmenterConfig: width = 6 is not divisible by heads = 4"),
    (lambda: SegmenterConfig(window=4), r"SegmenterConfig: window = 4, expected an odd number"),
    (lambda: SegmenterConfig(layers=0), r"SegmenterConfig: layers = 0, expected a positive integer"),
    (lambda: SegmenterConfig(size="48"), r"SegmenterConfig: size = '48', expected a"),
    (lambda: Segmenter({"size": 48}), r"Segmenter: config = .*, expected a SegmenterConfig"),
    (lambda: as_images("scenes_of", ONE[None, None]), r"^scenes_of: images have shape \(1, 1, 8, 8\), exp"),
    (lambda: as_masks("scenes_of", MASKS, (2, 9, 9)), r"^scenes_of: masks have shape \(2, 8, 8\), the images \(2, 9"),
]  # fmt: skip


@pytest.mark.parametrize("call, message", WRONG)
def test_what_does_not_fit_is_said_in_one_line(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as told:
        call()
    assert "\n" not in str(told.value)
