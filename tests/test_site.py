"""The parts that the site is built of, and the sheet of notation. The whole site is built and checked by `.ci/run`."""

import ast
import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

import equations
import lecture_pages
import links
import pytest
import source_pages
import words as site_words

import minilora as ml
from minilora.adapters import lora
from minilora.nn import architectures

ROOT = Path(__file__).parent.parent


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
        cell(
            "markdown",
            "good",
            "# A title\n\nWords and $x^2$.\n\n"
            "<details><summary>Answer</summary>\n\nFolded.\n\n</details>\n\n$$\n\\frac{a}{b}\n$$\n",
            "slide",
        ),
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
    assert re.search(r"<details><summary>Answer</summary>\s*<p>Folded\.</p>\s*</details>", page)


def test_without_a_browser_one_line_says_what_to_install(monkeypatch):
    import browser

    monkeypatch.setenv("PATH", "")
    with pytest.raises(browser.NoBrowser, match="apt-get install chromium"):
        browser.find()


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "formula"),
    [
        ("y = x W^T + s (x A^T) B^T", r"y = x W ^{\top} + s ( x A ^{\top} ) B ^{\top}"),
        ("y_no = sum_i x_ni W_oi,", r"y_{no} = \sum_{i} x_{ni} W_{oi}"),
        ("sum_{j != i} R_j / (n - 1)", r"\sum_{j \ne  i} R_{j} / ( n - 1 )"),
        ("A0 = sqrt(S_r / s) d_out^(1/4)", r"A_{0} = \sqrt{S_{r} / s} d_{\mathrm{out}} ^{ 1 / 4 }"),
        ("m <- b1 m + (A A^T)^-1", r"m \leftarrow b_{1} m + ( A A ^{\top} ) ^{-1}"),
        ("the update has rank r = 8", None),
        ("G = c V_1..r^T", None),
        ("y = x # no formula", None),
    ],
)
def test_a_line_of_a_docstring_becomes_latex_or_stays(line, formula):
    assert equations.latex(line) == formula


@pytest.mark.slow
def test_every_formula_of_the_package_closes_what_it_opens():
    seen = []
    for path in ROOT.glob("minilora/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            words = re.sub(r"`[^`]*`|```.*?```", "", site_words.docstring(node), flags=re.S)
            seen += re.findall(r"(?<!\\)\$([^$]+)(?<!\\)\$", words)
    assert len(seen) > 80 and [formula for formula in seen if formula.count("{") != formula.count("}")] == []


def test_a_docstring_becomes_markdown():
    text = "A * B_i, `x_i` and <b>.\n\n    y = x W^T        W frozen\n\n    {1: 2}\n\n>>> f(1)\n2\n"
    made = site_words.from_docstring(text)
    assert made.startswith("A \\* B\\_i, `x_i` and \\<b\\>.\n") and made.endswith("```pycon\n>>> f(1)\n2\n```")
    assert "```text\ny = x W^T        W frozen\n\n{1: 2}\n```" in made  # not every line of the block is an equation
    assert "$y = x W ^{\\top}$ &emsp; W frozen" in site_words.from_docstring(text.replace("    {1: 2}\n", ""))


@pytest.mark.parametrize(
    ("words", "led"),
    [
        ("[a](../minilora/nn/gpt.py)", "[a](../source/nn/gpt.md)"),
        ("[a](../minilora/nn) [b](README.md#x)", "[a](../source/nn/index.md) [b](../syllabus.md#x)"),
        ("[a](05_lora.ipynb), [b](https://x.y)", "[a](05_lora.ipynb), [b](https://x.y)"),
        ("![a](../figures/rates.png)", "![a](../pictures/rates.png)"),
        ("[a](../tests/test_site.py)", "a"),
        ("[`a`](../LICENSE)\n```\n[a](b.md)\n```\n", "`a`\n```\n[a](b.md)\n```\n"),
    ],
)
def test_a_link_in_a_lecture_is_led_within_the_site(words, led):
    keep = lambda path: f"pictures/{Path(path).name}"
    assert site_words.linked(words, "notebooks/01_x.ipynb", "lectures/01_x", keep) == led


def test_the_annotated_source_loses_no_line_of_code():
    for name in ("adapters/lora.py", "autograd/tape.py", "nn/module.py", "__init__.py"):
        path = source_pages.PACKAGE / name
        text = path.read_text("utf-8")
        page = source_pages.annotated(path)
        blocks = re.findall(r"``````python\n(.*?)``````", page, re.S)
        shown = {line.strip() for block in blocks for line in block.split("\n")}
        words = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                words |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        code = {line.strip() for i, line in enumerate(text.split("\n"), 1) if i not in words}
        assert code - shown <= {""}, name
    assert "The gradients of a loss L" in source_pages.annotated(source_pages.PACKAGE / "adapters/lora.py")


# --- lectures --------------------------------------------------------------------------------------------------------

QUIZ = """## Quiz

1. How many?
   - a) 1
   - b) 2

   <details><summary>Answer</summary>

   b: one and one.

   </details>
2. Why?

<details><summary>Answer</summary>So.</details>
"""


def test_every_picture_of_a_lecture_has_words():
    for path in lecture_pages.lectures():
        notebook = lecture_pages.with_alt_texts(json.loads(path.read_text("utf-8")))
        for code in notebook["cells"]:
            for output in code.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    words = output["metadata"]["image/png"]["alt"]
                    assert len(words.split()) > 4 and code["metadata"]["mystnb"]["image"]["alt"] == words


def test_a_committed_figure_has_its_caption_and_another_picture_the_words_that_lead_to_it():
    shows = [{"output_type": "display_data", "metadata": {}, "data": {"image/png": "eA=="}}]
    cells = [
        cell("markdown", "a", "# Lecture 1. Halves", "slide"),
        cell("markdown", "b", "## 2. Rates (20 minutes)\n\nFirst. What $x$ costs, by [hand](x.md):", "slide"),
        cell("markdown", "n", "Ask: why?", "notes"),
        cell("code", "c", "figures.make('rates')", "slide", outputs=shows),
        cell("code", "d", "plt.show()", "slide", outputs=shows),
        cell("code", "e", "print(1)", "slide"),
    ]
    told = lecture_pages.alt_texts({"cells": cells})
    assert told[3].startswith("Validation loss against the learning rate") and "\n" not in told[3]
    assert told[4] == "Picture in “2. Rates”: What x costs, by hand" and list(told) == [3, 4]


def test_every_committed_figure_has_words():
    names = [path.stem for path in sorted((ROOT / "figures").glob("*.png"))]
    assert [name for name in names if len(lecture_pages.caption(name)) < 20] == []


def test_a_quiz_is_printed_as_questions_and_then_answers():
    cells = [cell("markdown", "q", QUIZ, "slide"), cell("markdown", "e", "## Exercises\n\n1. One.", "skip")]
    questions, answers = lecture_pages.quiz({"cells": cells})
    assert answers == "1. b: one and one.\n2. So." and "details" not in questions and "One." not in questions
    assert lecture_pages.quiz({"cells": cells[1:]}) == ("", "")


# --- the built site --------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_site_is_found(tmp_path):
    right = '<html><h2 id="there">A</h2><a href="b.html#x">b</a><img src="p.png" alt="A picture"></html>'
    (tmp_path / "p.png").write_bytes(b"")
    (tmp_path / "b.html").write_text('<p id="x"><a href="a.html#there">a</a> <a href="https://x.y">out</a></p>')
    for wrong, said in [
        (right, None),
        (right.replace("b.html", "c.html"), "a link to c.html#x, which is not there"),
        (right.replace("#x", "#y"), "no such anchor"),
        (right.replace("p.png", "q.png"), "a link to q.png"),
        (right.replace(' alt="A picture"', ""), "without alt text"),
        (right.replace("A picture", " "), "without alt text"),
        (right + '<script src="https://x.y/z.js"></script>', "from the network"),
    ]:
        (tmp_path / "a.html").write_text(wrong)
        found = links.complaints(tmp_path)
        assert [line for line in found if said not in line] == [] and bool(found) == bool(said) if said else found == []


# --- the sheet of notation -------------------------------------------------------------------------------------------


def rows_of(page: str) -> list[dict[str, str]]:
    """The rows of a page's tables, by the names of their columns."""
    found, head = [], []
    for line in page.split("\n"):
        entries = [entry.strip() for entry in line.strip("|").split("|")] if line.startswith("|") else []
        if not entries:
            head = []
        elif not head:
            head = entries
        elif set(line) - set("|- "):
            assert len(entries) == len(head), line
            found.append(dict(zip(head, entries, strict=True)))
    return found


def means_something(name: str) -> bool:
    """A name of the notation's column of code: C.field, f, f(argument), or a module of an adapted model."""
    model = ml.add_lora(ml.GPT(ml.GPTConfig(5, 4, 1, 1, 8)), ml.LoRAConfig(rank=2))
    modules = {part for path, _ in model.named_parameters() for part in path.split(".")}
    head, _, rest = re.fullmatch(r"(\w+)([.(]?)(.*?)\)?", name).groups()
    places = (ml, ml.ops, ml.analysis.rank, architectures, lora)
    owner = next((getattr(place, head) for place in places if hasattr(place, head)), None)
    if owner is None:
        return name in modules
    plain = inspect.unwrap(owner)
    return not rest or rest in inspect.signature(plain).parameters or hasattr(plain, rest) or rest in modules


def test_every_name_on_the_sheet_of_notation_exists():
    rows = rows_of((ROOT / "notebooks" / "notation.md").read_text("utf-8"))
    names = {name for row in rows for name in re.findall(r"`([^`]+)`", row["code"])}
    assert len(rows) > 35 and len(names) > 30
    assert [name for name in sorted(names) if not means_something(name)] == []
    assert not means_something("LoRAConfig.width") and not means_something("lora_forward(Z)")
