"""Training a segmenter: a step is the whole batch's, what it measures, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.nn.segmenter import Segmenter, SegmenterConfig
from minilora.training import segmentation
from minilora.training.scenes import draw_scenes, scenes_of
from minilora.training.segmentation import (
    iou,
    pretrain_segmenter,
    segment_step,
    segmenter_steps,
    train_segmenter,
)

SMALL = SegmenterConfig(size=32, patch=8, width=8, layers=1, decoder_layers=1, heads=2, features=4, window=3)


@pytest.fixture
def scenes():
    return draw_scenes("shapes", 6, 32, rng=1)


@pytest.mark.slow
def test_a_step_is_the_whole_batchs_in_pieces_too(scenes):
    model = Segmenter(SMALL).astype("float64")
    expected = model.loss(scenes.images, scenes.boxes, scenes.masks)
    gradients = ml.grad(expected, model.parameters())
    for pieces in (1, 4):
        one = Segmenter(SMALL).astype("float64")
        given = scenes.images, scenes.boxes, scenes.masks
        loss = segment_step(one, ml.SGD(one.parameters(), lr=1.0), *given, pieces=pieces)
        assert loss == pytest.approx(expected.item(), rel=1e-12)
        for p, was, g in zip(one.parameters(), model.parameters(), gradients, strict=True):
            np.testing.assert_allclose(was.data - p.data, g, rtol=1e-7, atol=1e-12)


def test_what_diverges_is_said_and_changes_nothing(scenes):
    model = Segmenter(SMALL)
    model.window_up.weight.data[0, 0] = np.nan
    before = model.state_dict()
    with pytest.raises(FloatingPointError, match=r"training diverged at step 1: .* window_up.weight"):
        segment_step(model, ml.AdamW(model.parameters()), scenes.images, scenes.points, scenes.masks)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_clipping_takes_a_shorter_step(scenes):
    model = Segmenter(SMALL)
    before = model.mask_proj.bias.data.copy()
    given = scenes.images, scenes.points, scenes.masks
    segment_step(model, ml.SGD(model.parameters(), lr=1.0), *given, max_norm=1e-3)
    assert 0 < np.abs(model.mask_proj.bias.data - before).max() <= 1e-3


def test_intersection_over_union_by_hand():
    """A model whose mask is the left half, whatever it is asked."""
    masks = np.zeros((3, 32, 32), bool)
    masks[0, :, :16], masks[1, :, :8], masks[2, :8, :] = True, True, True
    scenes = scenes_of(np.zeros((3, 32, 32)), masks)
    model = Segmenter(SMALL)
    model.decode = lambda x, images, prompts, rng=None: ml.Tensor(
        np.tile(np.arange(32) < 16, (len(images), 32, 1)) - 0.5
    )
    for by in ("point", "box"):
        np.testing.assert_allclose(iou(model, scenes, by), [1, 0.5, 128 / (512 + 128)])


@pytest.mark.slow
def test_it_learns_and_the_same_seed_is_the_same_training(scenes):
    losses = [train_segmenter(Segmenter(SMALL), scenes, 20, 1e-2, rng=seed) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2] and len(losses[0]) == 20
    assert np.mean(losses[0][-5:]) < losses[0][0]
    looked = []
    for _, loss in segmenter_steps(model := Segmenter(SMALL), scenes, 20, 1e-2, rng=0):
        iou(model, scenes)
        looked.append(loss)
    assert looked == losses[0]


def test_mirrored_batches_are_those_scenes_in_a_mirror(scenes, monkeypatch):
    seen = []
    keep = lambda model, optimizer, images, prompts, masks, *rest: seen.append((images, prompts, masks)) or 0.0
    monkeypatch.setattr(segmentation, "segment_step", keep)
    train_segmenter(Segmenter(SMALL), scenes, 12, mirrored=True)
    turns = lambda array: [array, array[:, ::-1], array[::-1], array[::-1, ::-1]]
    which = []
    for images, prompts, masks in seen:
        for image, (x, y, _, _), mask in zip(images, prompts, masks, strict=True):
            row = next(i for i in range(6) if np.array_equal(np.sort(image, None), np.sort(scenes.images[i], None)))
            turn = next(t for t, one in enumerate(turns(scenes.images[row])) if np.array_equal(one, image))
            np.testing.assert_array_equal(mask, turns(scenes.masks[row])[turn])
            assert mask[int(y)].any() and mask[:, int(x)].any()
            which.append(turn)
    assert set(which) == {0, 1, 2, 3}
    with pytest.raises(TypeError, match=r"^train_segmenter: mirrored = 1, expected True or False"):
        train_segmenter(Segmenter(SMALL), scenes, 1, mirrored=1)


@pytest.mark.slow
def test_an_adapter_alone_is_trained(scenes):
    model = ml.add_lora(Segmenter(SMALL), ml.LoRAConfig(rank=2, target_modules=("*",)))
    frozen = {name: p.data.copy() for name, p in model.named_parameters() if not p.requires_grad}
    train_segmenter(model, scenes, 3)
    for name, p in model.named_parameters():
        assert (name in frozen) == (not p.requires_grad)
        if name in frozen:
            np.testing.assert_array_equal(p.data, frozen[name])
    assert any(np.abs(delta).max() > 0 for delta in ml.delta_weights(model).values())


def test_an_adapter_that_drops_out_does_so_in_training(scenes):
    losses = []
    for dropout in (0.0, 0.5):
        model = ml.add_lora(Segmenter(SMALL), ml.LoRAConfig(2, target_modules=("*",), dropout=dropout))
        losses.append(train_segmenter(model, scenes, 3))
    assert losses[0][0] == losses[1][0] and losses[0][2] != losses[1][2]  # B = 0 at first: nothing is dropped


@pytest.mark.slow
def test_the_base_is_made_of_shapes():
    steps = [(step, loss) for step, loss, _ in pretrain_segmenter(2, 16)]
    assert [step for step, _ in steps] == [0, 1] and all(np.isfinite(loss) for _, loss in steps)


WRONG = [
    (lambda s: segment_step(Segmenter(SMALL), None, s.images, s.points, s.masks), "segment_step: optimizer = None, "),
    (lambda s: segment_step(ml.load_model(), None, s.images, s.points, s.masks), "segment_step: model = .*a Segmenter"),
    (lambda s: train_segmenter(Segmenter(SMALL), s, 0), "train_segmenter: steps = 0, expected 1 or more"),
    (lambda s: train_segmenter(Segmenter(SMALL), s.images), "train_segmenter: scenes = .*, expected a Scenes"),
    (lambda s: train_segmenter(Segmenter(SMALL), s, lr=-1), "lr = -1"),
    (lambda s: train_segmenter(Segmenter(), s), r"images have shape \(6, 32, 32\), expected \(B, 48, 48\)"),
    (lambda s: iou(Segmenter(SMALL), s, "click"), "iou: by = 'click', expected 'point' or 'box'"),
    (lambda s: iou(Segmenter(SMALL), replace(s, masks=s.masks[:1])), r"^iou: masks have shape \(1, 32, 32\), the im"),
    (lambda s: iou(Segmenter(SMALL), replace(s, masks=s.masks & False)), r"^iou: mask 0 has no pixel inside"),
    (lambda s: iou(Segmenter(SMALL), replace(s, points=s.points[:2])), r"^iou: prompts have shape \(2, 2\), expected"),
    (lambda s: train_segmenter(Segmenter(SMALL), replace(s, masks=s.masks[:, :8])), "^train_segmenter: masks have sh"),
    (lambda s: train_segmenter(Segmenter(SMALL), replace(s, masks=s.masks * 255)), "than 0 and 1, .*masks > 127"),
    (lambda s: train_segmenter(Segmenter(SMALL), replace(s, masks=s.masks[[0, 0]])), "^train_segmenter: masks have sh"),
    (lambda s: iou(Segmenter(), s), r"images have shape \(6, 32, 32\), expected \(B, 48, 48\)"),
]  # fmt: skip


@pytest.mark.parametrize("call, message", WRONG)
def test_what_does_not_fit_is_said_in_one_line(call, message, scenes):
    with pytest.raises((ValueError, TypeError), match=message) as told:
        call(scenes)
    assert "\n" not in str(told.value)
