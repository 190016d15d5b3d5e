"""The study's figures: large letters inside the picture, equal records give equal bytes, bad records are refused."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from minilora.pictures import figures
from minilora.pictures.choices import rank_choice
from minilora.pictures.figures import CAPTIONS, FIGURES, caption, draw, make
from minilora.pictures.style import METADATA, lecture_style, new_figure
from minilora.studies import runs, studies

ROOT = Path(__file__).parents[2]


def test_every_study_is_drawn_and_every_figure_has_a_caption(folder):
    at_hand = {path.stem for path in folder.iterdir()}
    assert {study for needed, _ in FIGURES.values() for study in needed} == at_hand == set(studies.STUDIES)
    assert set(CAPTIONS) == set(FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_letters_are_large_and_inside_the_picture(name, figure_of):
    figure = figure_of(name)
    figure.set_dpi(50)  # letters are measured in points: fewer pixels are quicker and change nothing
    figure.canvas.draw()
    assert tuple(figure.get_size_inches()) == (8, 5)
    ticks = [text for axes in figure.axes for text in axes.get_xticklabels() + axes.get_yticklabels()]
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and text not in ticks:
            assert text.get_fontsize() >= 14, text
            box, frame = text.get_window_extent(), figure.bbox
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, text
    assert all(text.get_fontsize() >= 14 for text in ticks)
    assert figure.get_label() and caption(name, figure).startswith(CAPTIONS[name])


def _labels_beyond_the_ends(figure):
    """Labels of ticks that lie beyond the ends of their axis, which nobody sees."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low - 1e-9 * (high - low) <= tick.get_loc() <= high + 1e-9 * (high - low):
                yield from (tick.label1, tick.label2)


def faults(figure):
    """What a class would complain of: a title of three lines, words over words, words outside the picture."""
    figure.set_dpi(50)  # letters are measured in points: fewer pixels are quicker and change nothing
    figure.canvas.draw()
    titles = [figure._suptitle, *(axes.title for axes in figure.axes), *(axes._left_title for axes in figure.axes)]
    found = [f"three lines: {t.get_text()}" for t in titles if t and t.get_text().count("\n") > 1]
    beyond = set(_labels_beyond_the_ends(figure))
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible() and t not in beyond]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    for place, (words, box) in enumerate(boxes):
        frame = figure.bbox.padded(0.5)
        if not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1):
            found.append(f"outside: {words!r}")
        for other, its in boxes[:place]:
            common = Bbox.intersection(box, its)
            if common is not None and common.width > 1 and common.height > 2:  # their boxes have an edge of nothing
                found.append(f"{words!r} over {other!r}")
    return found + [f"a line through {words!r}" for words in _struck_through(figure)]


def _struck_through(figure):
    """Words of a panel that a level across it, such as the base's loss, runs through."""
    for axes in figure.axes:
        levels = [
            line.get_ydata()[0]
            for line in axes.lines
            if line.is_dashed() and line.get_transform() == axes.get_yaxis_transform(which="grid")
        ]
        heights = [axes.transData.transform((0, level))[1] for level in levels]
        for text in (text for text in axes.texts if text.get_text().strip() and text.get_bbox_patch() is None):
            box = text.get_window_extent()
            if any(box.y0 + 2 < height < box.y1 - 2 for height in heights):
                yield text.get_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_from_the_committed_records_no_words_touch_and_no_title_has_three_lines(name):
    assert faults(make(name)) == []
    for study in FIGURES[name][0] if name in ("data", "similarity", "sizes", "truncation", "rates") else ():
        for text in {row.get("corpus") for row in studies.load_records(study)["rows"]} - {None}:
            assert faults(make(name, corpus=text)) == [], text


def test_the_readme_tells_what_its_pictures_show_in_the_words_of_their_captions():
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = re.findall(r"!\[([^\]]*)\]\(figures/([\w-]+)\.png\)", readme)
    assert len(shown) >= 15
    for words, name in shown:
        assert len(words.split()) >= 10 and not words.endswith("?"), f"{name}: {words!r} does not say what is shown"
        if name in CAPTIONS:
            told = [word for word in re.findall(r"\w{4,}", words) if word.lower() in CAPTIONS[name].lower()]
            assert len(told) >= 4, f"{name}: {words!r} is not what its caption says"


def test_each_fault_of_words_is_found():
    figure = new_figure()
    axes = figure.add_subplot()
    assert faults(figure) == []
    axes.text(0.5, 0.5, "some words")
    axes.text(0.51, 0.51, "others")
    axes.text(0.1, 0.8, "through")
    axes.axhline(0.81, linestyle="--")
    figure.text(0.98, 0.2, "outside")
    figure.suptitle("one\ntwo\nthree")
    found = " ".join(faults(figure))
    assert "'others' over 'some words'" in found and "outside: 'outside'" in found and "three lines: one" in found
    assert "a line through 'through'" in found


@pytest.mark.parametrize("name", ["matrices", "ranks", "starts", "sizes", "truncation"])
def test_an_error_bar_is_what_its_caption_calls_the_spread(name, folder, figure_of):
    """Mean and spread to each side: of losses 0, 0 and 3 that is -0.5 to 2.5, and not from the least to the most."""
    figure = figure_of(name)
    assert "half the distance from the least seed to the most, drawn to each side of the mean" in caption(name, figure)
    rows = json.loads((folder / f"{name}.json").read_text("utf-8"))["rows"]
    told = {(row["loss"] - row["loss_spread"], row["loss"] + row["loss_spread"]) for row in rows if row["loss_spread"]}
    drawn = set()
    for lines in (found for axes in figure.axes for found in axes.collections if isinstance(found, LineCollection)):
        across = 0 if name == "matrices" else 1  # whose bars lie
        drawn |= {tuple(sorted(np.round(part[:, across], 9))) for part in lines.get_segments() if len(part) == 2}
    assert drawn and drawn & {tuple(np.round(ends, 9)) for ends in told}
    summary = runs.summarise([{"loss": 0.0}, {"loss": 0.0}, {"loss": 3.0}], "loss")
    assert (summary["loss"] - summary["loss_spread"], summary["loss"] + summary["loss_spread"]) == (-0.5, 2.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_drawn_twice_a_figure_has_the_same_bytes(name, figure_of):
    """As SVG, in which all that is drawn stands, pictures too: the PNG's bytes follow from it."""
    first, second = io.BytesIO(), io.BytesIO()
    for drawn in (first, second):
        with lecture_style():
            figure_of(name).savefig(drawn, format="svg", metadata=METADATA["svg"])
    assert first.getvalue() == second.getvalue()


@pytest.mark.slow
def test_without_names_all_are_drawn_in_their_order_and_again_with_the_same_bytes(folder, tmp_path, monkeypatch):
    few = {name: FIGURES[name] for name in ("lora-layer", "similarity", "truncation")}
    monkeypatch.setattr(figures, "FIGURES", few)
    first, second = (draw(data_folder=folder, output_folder=tmp_path / turn) for turn in "ab")
    assert [p.name for p in first] == [f"{name}.{kind}" for name in few for kind in ("png", "svg", "txt")]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.slow
def test_a_figure_is_drawn_from_the_records_alone_and_has_the_same_bytes_in_another_process(folder, tmp_path):
    here = draw(["loss-curves"], folder, tmp_path / "here")
    code = (
        "import sys; from minilora.pictures.figures import draw; draw(['loss-curves'], sys.argv[1], sys.argv[2]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "there")], check=True)
    for path in here:
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name


def test_unknown_figures_and_missing_records(tmp_path, folder):
    with pytest.raises(ValueError, match="no figure 'lost'; there are lora-layer, lora-tape, loss-curves"):
        draw(["lost"], folder, tmp_path / "out")
    (folder / "ranks.json").unlink()
    with pytest.raises(FileNotFoundError, match="`minilora study ranks` makes them"):
        draw(["matrices", "ranks"], folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing is drawn by halves


def test_records_cut_short_or_of_another_kind(tmp_path, folder):
    path = folder / "ranks.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        draw("ranks", folder, tmp_path / "out")
    path.write_text(json.dumps({**json.loads(whole), "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        draw("ranks", folder, tmp_path / "out")
    path.write_text((folder / "data.json").read_text())
    with pytest.raises(ValueError, match="got the records of 'data', expected those of the study 'ranks'"):
        draw("ranks", folder, tmp_path / "out")


def test_a_figure_of_one_text_shows_that_text_alone(folder, tmp_path):
    records = json.loads((folder / "data.json").read_text())
    texts = [{**row, "corpus": "unicode-names"} for row in records["rows"]]
    up = lambda row: {k: v + 7 for k, v in row.items() if isinstance(v, float) and not k.endswith(("_spread", "lr"))}
    texts += [{**row, "corpus": "python-code", **up(row)} for row in records["rows"]]
    (tmp_path / "data.json").write_text(json.dumps({**records, "rows": texts}))
    shown = {corpus: make("data", tmp_path, corpus) for corpus in ("unicode-names", "python-code")}
    low, high = (figure.axes[0].get_ylim() for figure in shown.values())
    assert high[0] > low[1]  # each picture holds its own losses only
    for (corpus, figure), (other, its) in zip(shown.items(), reversed(shown.items()), strict=True):
        told = " ".join(its.get_suptitle().split())  # what is concluded on the other text is told, too
        assert figure.get_label().endswith(f"The new text is {corpus}. On {other}: {told}.")
    with pytest.raises(ValueError, match="hold nothing of 'python-docs'; there are unicode-names, python-code"):
        make("data", tmp_path, "python-docs")


def test_records_that_lack_something(figure_of):
    with pytest.raises(ValueError, match=r"row 0 .* 'ranks' has no 'loss_spread'.*study ranks --force"):
        figure_of("ranks", lambda row: row.pop("loss_spread"))
    with pytest.raises(ValueError, match="loss is nan in row 0"):
        figure_of("ranks", lambda row: row.update(loss=float("nan")))
    with pytest.raises(ValueError, match="no row with corpus = 'new', method = 'full'"):
        figure_of("loss-curves", lambda row: row.update(method="lora"))
    with pytest.raises(ValueError, match="have no rows"):
        rank_choice({"study": "ranks", "rows": []})
    with pytest.raises(ValueError, match="got the records of 'list'"):
        rank_choice([])
    with pytest.raises(ValueError, match="no learning rate of 'alpha', rank 8, gave a finite loss"):
        figure_of("rates", lambda row: row.update(loss=float("inf")))


@pytest.mark.slow
@pytest.mark.parametrize("study", sorted({study for needed, _ in FIGURES.values() for study in needed}))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_records_are_one_line_that_names_the_file(study, data, folder, tmp_path):
    """A field gone, of another kind, or out of range, anywhere in a row: drawn all the same, or refused."""
    records = json.loads((folder / f"{study}.json").read_text())
    row = data.draw(st.sampled_from(records["rows"]))
    field = data.draw(st.sampled_from(sorted(row)))
    if data.draw(st.booleans()):
        del row[field]
    else:
        row[field] = data.draw(st.sampled_from([None, "x", -1, [], {}, [[]], 1e300, float("nan"), True]))
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / f"{study}.json").write_text(json.dumps(records))
    for name in (name for name, (needed, _) in FIGURES.items() if study in needed):
        try:
            make(name, tmp_path)
        except ValueError as error:
            assert f"{study}.json" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("text", ["", "[", "[]", "[" * 100_000, '"x"', '{"rows": 3}', '{"format": 3, "rows": ["x"]}'])
def test_what_is_no_record_is_one_line(text, tmp_path):
    (tmp_path / "ranks.json").write_text(text)
    with pytest.raises(ValueError, match=r"ranks\.json .*make it anew with --force$"):
        studies.load_records("ranks", tmp_path)
