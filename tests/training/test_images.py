"""Pictures with labels: what a folder gives, the held-out part, and what is refused with the file's name."""

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image

import minilora as ml
from minilora.training.images import image_folder, load_digits


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
