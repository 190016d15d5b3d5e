"""The site's builders: slides, and the browser that photographs them. The whole site is built by `.ci/run`."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).parent.parent / "notebooks" / "site"
sys.path.append(str(SITE))


def needing(*packages: str) -> None:
    """Skip where a package of the extra `docs` or a browser is missing."""
    import browser

    for name in packages:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'needs {name}: pip install -e ".[docs]"')
    try:
        browser.find()
    except browser.NoBrowser as error:
        pytest.skip(str(error))


def cell(kind: str, name: str, source: str, slide: str, **more: Any) -> dict[str, Any]:
    """A cell with its place in the slides."""
    outputs = {"outputs": [], "execution_count": 1} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "source": source, "metadata": {"slideshow": {"slide_type": slide}},
            **outputs, **more}  # fmt: skip


def written(folder: Path, *cells: dict[str, Any]) -> Path:
    """A notebook of these cells in a file."""
    path = folder / "01_test.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}), "utf-8")
    return path


@pytest.mark.slow
def test_a_slide_that_overflows_is_named_with_its_cell_and_by_how_much(tmp_path, capsys):
    needing("nbconvert", "websocket", "sphinx_revealjs", "jupyter_server_mathjax")
    import slides

    long_line = "x = " + " + ".join(["1"] * 40)
    output = {"output_type": "stream", "name": "stdout", "text": "line\n" * 40}
    path = written(
        tmp_path,
        cell("markdown", "good", "# A title\n\nWords and $x^2$.\n\n$$\n\\frac{a}{b}\n$$\n", "slide"),
        cell("markdown", "hidden", "line\n\n" * 40, "notes"),
        cell("code", "wide", long_line, "subslide"),
        cell("code", "tall", "print(1)", "slide", outputs=[output]),
        cell("markdown", "still-good", "line\n\n" * 8, "slide"),
        cell("markdown", "late", "line\n\n" * 20, "fragment"),
        cell("markdown", "left-out", "line\n\n" * 40, "skip"),
    )
    arguments = [str(path), "--output", str(tmp_path / "decks"), "--photograph", str(tmp_path / "pictures")]
    assert slides.main(arguments) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" (cells ")[0] for line in said[1:]] == [
        "01_test slide 1.2", "01_test slide 2.1", "01_test slide 3.1", "3 slides overflow",
    ]  # fmt: skip
    assert "cell wide wider than its box by" in said[1] and "cell tall too tall by" in said[2]
    assert "cell late too tall by" in said[3] and "still-good too" not in said[3]
    drawn = {picture.name: picture.stat().st_size for picture in (tmp_path / "pictures").iterdir()}
    assert sorted(drawn) == [f"01_test-{slide}.png" for slide in ("01.1", "01.2", "02.1", "03.1")]
    page = (tmp_path / "decks" / "01_test.slides.html").read_text("utf-8")
    assert not re.search(r"""(src|href)=["']https?:|@import +(url\()?["']?https?:""", page)  # a room without a network
    assert page.count("<aside") == 1


def test_without_a_browser_one_line_says_what_to_install(monkeypatch):
    import browser

    monkeypatch.setenv("PATH", "")
    with pytest.raises(browser.NoBrowser, match="apt-get install chromium"):
        browser.find()
