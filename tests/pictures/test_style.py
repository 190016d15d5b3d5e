"""The figures: what they say is what the numbers say, large enough to read, the same bytes from the same numbers."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from minilora.pictures import style, training

STEPS = [0, 10, 20]
CURVES = {"LoRA": {"step": STEPS, "loss": [4.0, 2.0, 1.5]}, "all weights": {"step": STEPS, "loss": [4.0, 1.9, 1.0]}}
TRAINED = {"LoRA": 73_728, "all weights": 822_016}


def update(rng, r=4, n=32):
    return rng.standard_normal((n, r)), rng.standard_normal((r, n))


def draw_all():
    rng = np.random.default_rng(0)
    B, A = update(rng)
    values = lambda M: np.linalg.svd(M.astype(np.float32), compute_uv=False)
    spectra = {"LoRA": [values(B @ A)] * 2, "all weights": [values(rng.standard_normal((32, 32))) for _ in range(2)]}
    return {
        "loss": training.loss_curves(CURVES, 4.0, TRAINED),
        "spectra": training.spectra(spectra),
        "matrices": training.matrices(rng.standard_normal((32, 32)), B, A, 2.0, "q_proj"),
    }


def words(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for turn in ("a", "b"):
        for name, figure in draw_all().items():
            paths = style.save(figure, tmp_path / turn / name)
            assert [p.name for p in paths] == [f"{name}.png", f"{name}.svg"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert (tmp_path / "a" / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_users_own_style_neither_shows_nor_changes(tmp_path):
    first = style.save(draw_all()["loss"], tmp_path / "first")[1].read_bytes()
    with matplotlib.rc_context({"font.size": 5, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        assert style.save(draw_all()["loss"], tmp_path / "second")[1].read_bytes() == first
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["loss", "spectra", "matrices"])
def test_letters_are_at_least_14_points_and_inside_the_picture(name):
    figure = draw_all()[name]
    figure.canvas.draw()
    assert tuple(figure.get_size_inches()) == (8, 5)
    frame = figure.bbox
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            assert text.get_fontsize() >= 14, text
            box = text.get_window_extent()
            ticks = [label for axes in figure.axes for label in axes.get_xticklabels() + axes.get_yticklabels()]
            if text not in ticks:
                assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, text


def test_the_titles_state_what_the_numbers_say():
    loss, spectra, matrices = (words(figure) for figure in draw_all().values())
    assert "LoRA: 83 % of the gain with 9 % of the parameters" in loss  # (4 - 1.5) / (4 - 1), 73,728 / 822,016
    assert "LoRA: 1.50\n73,728 trained" in loss and "base model 4.00" in loss
    assert "LoRA: rank 4" in spectra
    assert any("with LoRA" in text and "with all weights, of 32" in text for text in spectra)
    assert "LoRA trains 256 numbers in place of 1,024" in matrices
    assert "ΔW = 2 · B A\n32 × 32\nrank 4" in matrices


def test_the_number_of_directions_in_the_title():
    flat, steep = np.array([1.0] * 10), np.array([10.0] + [0.1] * 9)
    title = words(training.spectra({"flat": [flat], "steep": [steep]}))
    assert "90 % of the change takes 9 directions with flat,\n1 with steep, of 10" in title


def test_lines_hold_the_data():
    axes = training.loss_curves(CURVES, 4.0, TRAINED).axes[0]
    lines = {to_hex(line.get_color()).upper(): line for line in axes.lines if len(line.get_xdata()) == 3}
    assert list(lines[style.BLUE].get_ydata()) == CURVES["LoRA"]["loss"]
    assert list(lines[style.VERMILLION].get_ydata()) == CURVES["all weights"]["loss"]


def test_heat_maps_are_to_scale_and_delta_is_s_b_a():
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((24, 2)), rng.standard_normal((2, 12))
    figure = training.matrices(rng.standard_normal((24, 12)), B, A, 3.0, "up_proj")
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert np.allclose(shown[2], 3 * B @ A) and np.array_equal(shown[1], B) and np.array_equal(shown[3], A)
    inches = [axes.get_position().size * figure.get_size_inches() for axes in figure.axes]
    sides = [size / array.shape[::-1] for size, array in zip(inches, shown, strict=True)]
    assert np.allclose(sides, sides[0][0])  # every entry is a square of the same size
    left, product, above = (axes.get_position() for axes in figure.axes[1:])
    assert (left.y0, left.y1) == (product.y0, product.y1) and (above.x0, above.x1) == (product.x0, product.x1)
    assert left.x1 < product.x0 and above.y0 > product.y1  # an entry: the row of B beside it, the column of A over it
    with pytest.raises(ValueError, match=r"\(24, 2\).*do not fit W \(12, 24\)"):
        training.matrices(np.zeros((12, 24)), B, A, 1.0, "x")


def test_the_example_by_hand_shows_all_its_numbers():
    W, b = np.array([[1, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]], float), np.array([1, 0, 0, -1.0])
    A, B = np.array([[1, 0, -1, 2.0]]), np.array([[1], [0], [2], [-1.0]])
    x = np.array([[1, 2, 0, 1], [0, 1, 1, 1.0]])
    figure = training.by_hand(x, W, b, A, B, 2.0)
    shown = [" ".join(text.get_text() for text in axes.texts) for axes in figure.axes]
    assert shown[1:4] == ["3 1", "1 0 −1 2", "6 0 12 −6 2 0 4 −2"]
    assert shown[5] == "2 3 3 0 3 2 1 1" and shown[-1] == "8 3 15 −6 5 2 5 −1"
    assert training.matrices(W, B, A, 2.0, "W").axes[2].texts[0].get_text() == "2"
    with pytest.raises(ValueError, match=r"by_hand: x \(2, 4\), .* of 20 columns"):
        training.by_hand(x, W, b, A, B[:3], 2.0)


def test_labels_are_kept_apart_and_in_order():
    placed = style.apart([1.0, 1.1, 5.0], 0.5)
    assert placed[1] - placed[0] == pytest.approx(0.5) and placed[0] < 1 < placed[1] and placed[2] == 5
    assert style.apart([2.0, 1.0], 0.5) == [2.0, 1.0]


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        style.save(draw_all()["loss"], tmp_path / "file" / "loss")


@pytest.mark.slow
def test_pyplot_is_never_touched():
    code = "import sys; from minilora.pictures import training; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
