"""What moves before a class: sliders redraw from records, the animation has a frame for each step."""

import io

import numpy as np
import pytest
from matplotlib.text import Text

from minilora.pictures import classroom
from minilora.studies.studies import load_records


def words(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_a_slider_sets_the_picture_and_draws_each_choice_once():
    pytest.importorskip("ipywidgets")
    asked = []

    def draw(rank, rate):
        asked.append((rank, rate))
        figure = classroom.new_figure()
        figure.text(0.1, 0.1 * rank, str(rate))
        return figure

    row = classroom.sliders(draw, rank=[1, 2], rate=([0.1, 0.2], 0.2))
    rank, _, picture = row.children
    before = picture.value
    rank.value = 2
    assert bytes(picture.value).startswith(b"\x89PNG") and picture.value != before
    rank.value = 1
    assert picture.value == before and asked == [(1, 0.2), (2, 0.2)]
    assert row._repr_mimebundle_()["image/png"] == before  # what a page without widgets shows
    with pytest.raises(ValueError, match=r"sliders: rank = .*, expected values to choose from"):
        classroom.sliders(draw, rank=([1, 2], 3))


@pytest.mark.slow
def test_every_place_of_the_sliders_of_the_records_can_be_drawn(monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(classroom, "PIXELS", 20)  # fewer are quicker
    for row in (classroom.rates("python-code"), classroom.ranks("my-own.txt")):
        *sliders, picture = row.children
        for slider in sliders:
            for value in slider.options:
                slider.value = value
                assert bytes(picture.value).startswith(b"\x89PNG")


def test_the_pictures_say_what_the_records_say():
    rows = [row for row in load_records("rates")["rows"] if row["corpus"] == "unicode-names"]
    row = next(row for row in rows if row["kind"] == "alpha" and row["rank"] == 8)
    told = "\n".join(words(classroom.rate_picture(rows, 8, "α constant", row["lr"])))
    assert "r = 8, α constant: ΔW = 2 · B A" in told and f"rate {row['lr']:g}: loss {row['loss']:.2f}" in told
    assert "was not tried" in "\n".join(words(classroom.rate_picture(rows, 8, "α constant", 7.0)))
    assert "ΔW = 0.25 · B A" in "\n".join(words(classroom.rate_picture(rows, 64, "α constant", 0.01)))
    rows = [row for row in load_records("truncation")["rows"] if row["corpus"] == "unicode-names"]
    cut = next(row for row in rows if row["method"] == "truncated" and row["rank"] == 8)
    assert f"r = 8: full, cut to r {cut['loss']:.2f}, LoRA 1." in "\n".join(words(classroom.rank_picture(rows, 8)))


@pytest.mark.slow
def test_the_animation_has_a_frame_for_each_step():
    from PIL import Image

    spectra = [np.zeros(8), [np.geomspace(4, 1e-9, 8), np.geomspace(1, 1e-9, 8)], np.geomspace(2, 0.1, 8)]
    made = classroom.spectrum_animation(spectra, [0, 10, 20])
    assert Image.open(io.BytesIO(made.gif)).n_frames == 3 and len(made.gif) < 60_000
    assert 'alt="The spectrum of the change from step 0 to step 20"' in made._repr_html_()
    figure = classroom.spectrum_frames(spectra, [0, 10, 20])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "step 0:\nno change yet",
        "step 10:\n90 % in 1",
        "step 20:\n90 % in 3",
    ]
    assert figure.axes[1].lines[0].get_ydata()[0] == pytest.approx(2)  # the geometric mean of 4 and 1
    with pytest.raises(ValueError, match="spectrum_animation: 3 spectra and 2 steps"):
        classroom.spectrum_animation(spectra, [0, 10])


def test_a_convention_that_the_records_lack_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every lecture with the sliders fails as soon as the study asks for more than its records hold."""
    monkeypatch.setitem(classroom.WORDS, "another", "another")
    offered = classroom.rates().children[1].options
    assert "another" not in offered and "α constant" in offered
