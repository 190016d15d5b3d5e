"""Pictures with labels or masks: what a folder gives, the held-out part, and what is refused with the file's name."""

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image

import minilora as ml
from minilora.training.images import image_folder, load_digits, scene_folder
from minilora.training.segmentation import iou, train_segmenter


def picture(path, size=(4, 4), mode="L", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], *{"L": (), "RGB": (3,), "RGBA": (4,)}.get(mode, ()))
    array = np.random.default_rng(seed).integers(0, 256, shape).astype("uint8")
    Image.fromarray(array).convert(mode).save(path)
    return array


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["cat/b.png", "cat/a.png", "ant/x.png", "ant/y.png", "ant/z.png"]):
        picture(tmp_path / "animals" / name, seed=i)
    (tmp_path / "animals" / ".hidden").write_text("")
    return tmp_path / "animals"


def test_a_folder_a_label(folder):
    found = image_folder(folder)
    assert found.names == ("ant", "cat") and found.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.images.shape == (5, 4, 4) and found.images.dtype == np.float32
    expected = np.asarray(Image.open(folder / "cat" / "a.png"), np.float32) / 255
    np.testing.assert_array_equal(found.images[3], expected)
    assert len(image_folder(str(folder), size=4, mode="grey")) == 5
    assert image_folder(folder, mode="rgb").images.shape == (5, 3, 4, 4)


def test_colours(tmp_path):
    array = picture(tmp_path / "x" / "a.png", mode="RGB")
    found = image_folder(tmp_path)
    np.testing.assert_allclose(found.images[0], np.moveaxis(array, -1, 0) / 255, rtol=1e-6)
    grey = image_folder(tmp_path, mode="grey").images[0]
    np.testing.assert_allclose(grey, array @ [0.299, 0.587, 0.114] / 255, atol=0.005)


def test_a_model_takes_them(folder):
    found = image_folder(folder)
    model = ml.add_classifier(ml.ViT(ml.ViTConfig(image_size=4, n_layer=1, n_embd=8, labels=2)), found.names)
    assert np.isfinite(ml.train_step(model, ml.AdamW(model.parameters(), lr=1e-3), found.images, found.labels))


def test_the_held_out_part(folder):
    found = image_folder(folder)
    for share in (0.01, 0.2, 0.5, 0.99):
        train, held_out = found.split(share)
        assert len(train) + len(held_out) == 5
        assert set(train.labels) == set(held_out.labels) == {0, 1}
    first, again, other = (found.split(0.5, rng=seed)[1].images for seed in (0, 0, 3))
    assert (first == again).all() and (first.shape != other.shape or (first != other).any())
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"^split: share = .*, expected a number between 0 and 1"):
            found.split(share)
    with pytest.raises(ValueError, match=r"^split: there is one picture of 'cat', expected at least two"):
        found[[0, 1, 2, 3]].split()


def other_size(folder):
    picture(folder / "cat" / "wide.png", (5, 4))
    return "wide.png: 5 x 4 pixels, expected 4 x 4"


def other_mode(folder):
    picture(folder / "cat" / "red.png", mode="RGB")
    return "red.png: mode RGB, the first picture's is L; mode='grey' or 'rgb'"


def transparent(folder):
    picture(folder / "cat" / "clear.png", mode="RGBA")
    return "clear.png: mode RGBA, expected grey or RGB of 8 bits, opaque"


def deep(folder):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "cat" / "deep.png")
    return "deep.png: mode I;16, expected grey or RGB of 8 bits"


def moving(folder):
    frames = [Image.fromarray(np.full((4, 4), i * 90, np.uint8)) for i in range(3)]
    frames[0].save(folder / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    return "moving.gif: 3 pictures in one"


def damaged(folder):
    path = folder / "cat" / "a.png"
    path.write_bytes(path.read_bytes()[:50])
    return "a.png: not a picture that can be read"


def text(folder):
    (folder / "cat" / "b.png").write_text("no picture")
    return "b.png: not a picture that can be read"


def another_file(folder):
    (folder / "ant" / "notes.txt").write_text("")
    return "notes.txt is no picture"


def beside(folder):
    picture(folder / "lost.png")
    return "lost.png is in no label's folder"


def empty_label(folder):
    (folder / "bee").mkdir()
    return "bee is empty, expected pictures of 'bee'"


@pytest.mark.parametrize(
    "change", [other_size, other_mode, transparent, deep, moving, damaged, text, another_file, beside, empty_label]
)
def test_what_is_refused(folder, change):
    words = change(folder)
    with pytest.raises(ValueError) as error:
        image_folder(folder)
    assert str(error.value).startswith("image_folder: ") and words in str(error.value) and "\n" not in str(error.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"^image_folder: .* is empty, expected a folder for each label"):
        image_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^image_folder: there is no folder 'nowhere'"):
        image_folder("nowhere")
    with pytest.raises(ValueError, match=r"^image_folder: mode = 'cmyk', expected 'grey', 'rgb' or None"):
        image_folder(tmp_path, mode="cmyk")
    with pytest.raises(ValueError, match=r"^image_folder: size = 0, expected 1 or more"):
        image_folder(tmp_path, size=0)


def mask(path, inside, values=(0, 255), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(inside, *values[::-1]).astype(np.uint8)).convert(mode).save(path)


@pytest.fixture
def walls(tmp_path):
    """Two pictures with masks; whose files are of two forms, and of two pairs of values."""
    for seed, (name, values) in enumerate({"b.bmp": (0, 255), "a.png": (0, 1)}.items()):
        picture(tmp_path / "walls" / "images" / name, seed=seed)
        inside = np.zeros((4, 4), bool)
        inside[seed, 1:3] = True
        mask(tmp_path / "walls" / "masks" / f"{name[0]}.png", inside, values)
    return tmp_path / "walls"


def test_a_folder_of_pictures_with_masks(walls):
    scenes = scene_folder(walls, rng=2)
    assert scenes.masks.sum() == 4 and scenes.masks[0, 1, 1:3].all() and scenes.masks[1, 0, 1:3].all()  # a, then b
    expected = np.asarray(Image.open(walls / "images" / "a.png"), np.float32) / 255
    np.testing.assert_array_equal(scenes.images[0], expected)
    np.testing.assert_array_equal(scenes.boxes, [[1, 1, 2, 1], [1, 0, 2, 0]])
    np.testing.assert_array_equal(scenes.points, scene_folder(str(walls), 4, "grey", rng=2).points)
    small = ml.SegmenterConfig(size=4, patch=2, width=4, layers=1, decoder_layers=1, heads=1, features=2, window=3)
    assert np.isfinite(train_segmenter(ml.Segmenter(small), scenes, 2)).all()
    with pytest.raises(ValueError, match=r"^SegmenterConfig: size = 4 is not divisible by patch = 3"):
        ml.SegmenterConfig(size=4, patch=3, width=4, heads=1)
    with pytest.raises(ValueError, match=r"^iou: images have shape \(2, 4, 4\), expected \(B, 48, 48\)"):
        iou(ml.Segmenter(), scenes)


@pytest.mark.parametrize("mode", ["1", "P", "RGB"])
def test_masks_in_other_forms(walls, mode):
    """Of one bit, of a palette, and grey that is written as colours."""
    expected = scene_folder(walls).masks
    inside = np.asarray(Image.open(walls / "masks" / "b.png")) > 0
    if mode == "P":
        drawn = Image.fromarray(inside.astype(np.uint8), "P")
        drawn.putpalette([200, 0, 0, 0, 0, 9])  # outside is the brighter one: the numbers count, not the colours
        drawn.save(walls / "masks" / "b.png")
    else:
        mask(walls / "masks" / "b.png", inside, mode=mode)
    np.testing.assert_array_equal(scene_folder(walls).masks, expected)


def test_photographs_are_made_grey_where_that_is_said(walls):
    array = picture(walls / "images" / "a.png", mode="RGB")
    picture(walls / "images" / "b.bmp", mode="RGB")
    with pytest.raises(ValueError, match=r"^scene_folder: .*a.png: mode RGB; mode='grey' makes all grey$"):
        scene_folder(walls)
    found = scene_folder(walls, mode="grey").images[0]
    np.testing.assert_allclose(found, array @ [0.299, 0.587, 0.114] / 255, atol=0.005)


def no_mask(walls):
    (walls / "masks" / "a.png").unlink()
    return "a.png has no mask: there is no masks/a.png"


def no_picture(walls):
    mask(walls / "masks" / "c.png", np.eye(4))
    return "c.png has no picture: there is no images/c.png"


def two_of_one_name(walls):
    picture(walls / "images" / "a.jpg")
    return "a.jpg and a.png are of one name: whose is its mask?"


def wider_mask(walls):
    mask(walls / "masks" / "b.png", np.ones((4, 5)))
    return "b.png: 5 x 4 pixels, its picture has 4 x 4"


def higher_picture(walls):
    picture(walls / "images" / "b.bmp", (4, 5))
    return "b.bmp: 4 x 5 pixels, expected 4 x 4; make all of one size first"


def coloured_picture(walls):
    picture(walls / "images" / "b.bmp", mode="RGB")
    return "b.bmp: mode RGB, the first picture's is L; mode='grey' makes them alike"


def blurred(walls):
    (walls / "masks" / "b.png").unlink()
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(walls / "masks" / "b.jpg", quality=100)
    return "and 12 more, expected two values, 0 outside and 255 inside; JPEG blurs masks, PNG keeps them"


def no_outside(walls):
    mask(walls / "masks" / "b.png", np.eye(4), (7, 255))
    return "b.png: it holds 7, 255, expected two values, 0 outside and 255 inside"


def coloured_mask(walls):
    picture(walls / "masks" / "b.png", mode="RGB")
    return "b.png: it is coloured, expected two values"


def transparent_mask(walls):
    picture(walls / "masks" / "b.png", mode="RGBA")
    return "b.png: mode RGBA, expected grey or RGB"


def nothing_inside(walls):
    mask(walls / "masks" / "b.png", np.zeros((4, 4)))
    return "b.png: no pixel is inside: there is nothing to point at"


def damaged_mask(walls):
    (walls / "masks" / "b.png").write_bytes((walls / "masks" / "b.png").read_bytes()[:40])
    return "b.png: not a picture that can be read"


def a_table(walls):
    (walls / "images" / "list.csv").write_text("")
    return "list.csv is no picture"


def nothing_there(walls):
    for name in ("a.png", "b.bmp"):
        (walls / "images" / name).unlink()
    return "images is empty, expected pictures of 'images'"


WRONG = [no_mask, no_picture, two_of_one_name, wider_mask, higher_picture, coloured_picture, blurred, no_outside]
WRONG += [coloured_mask, transparent_mask, nothing_inside, damaged_mask, a_table, nothing_there]


@pytest.mark.parametrize("change", WRONG)
def test_masks_that_do_not_fit(walls, change):
    words = change(walls)
    with pytest.raises(ValueError) as error:
        scene_folder(walls)
    assert str(error.value).startswith("scene_folder: ") and words in str(error.value) and "\n" not in str(error.value)


def test_folders_without_pictures_and_masks(tmp_path):
    words = r"^scene_folder: there is no folder '.*images'; expected mine/images/NAME.png and mine/masks/NAME.png"
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError, match=words):
        scene_folder(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match=r"^scene_folder: there is no folder 'nowhere'"):
        scene_folder("nowhere")
    with pytest.raises(ValueError, match=r"^scene_folder: mode = 'rgb', expected 'grey' or None"):
        scene_folder(tmp_path, mode="rgb")


@pytest.mark.skipif(
    not importlib.util.find_spec("sklearn"), reason="needs scikit-learn: pip install 'minilora[images]'"
)
def test_digits():
    digits = load_digits(16)
    assert digits.images.shape == (1797, 16, 16) and set(digits.labels) == {*range(10)}
    assert digits.images.min() == 0 and digits.images.max() == 1
    np.testing.assert_array_equal(digits.images[:, ::2, 1::2], load_digits().images)


def test_digits_where_there_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'^load_digits: scikit-learn .* pip install "minilora\[images\]"$'):
        load_digits()
    with pytest.raises(ValueError, match=r"^load_digits: size = 20, expected a multiple of 8"):
        load_digits(20)
