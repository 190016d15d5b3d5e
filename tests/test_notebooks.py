"""The lectures: what stands in the committed notebooks, and what a new kernel makes of them.

Each check below takes a notebook (the parsed JSON) and returns a list of complaints. Every check is proved by a fault
planted in a small notebook that is otherwise right, then put to every lecture.
"""

import ast
import base64
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lectures import FOLDER, LECTURES, REAL, Complaints, Notebook, cells, parsed, run, told

LARGEST = 1.2 * 2**20  # bytes
PICTURES = ("image/png", "image/svg+xml")


# --- outputs ---------------------------------------------------------------------------------------------------------


def run_in_order(notebook: Notebook) -> Complaints:
    """Executed once, top to bottom: the counts are 1, 2, ... n."""
    counts = [cell["execution_count"] for _, cell, _ in cells(notebook, "code")]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"executed in the order {counts}"]


def has_outputs(notebook: Notebook) -> Complaints:
    """A cell that prints, or shows a picture, has an output; none is an error or a warning."""
    found = []
    for i, cell, source in cells(notebook, "code"):
        names = {ast.unparse(call.func) for call in _calls(parsed(source).body)}
        if names & {"print", "plt.show", "display"} and not cell["outputs"]:
            found.append(f"cell {i} prints or draws, and has no output")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"cell {i} shows an error: {output['ename']}")
            if output.get("name") == "stderr":
                found.append(f"cell {i} shows a warning: {told(output)[:80]!r}")
    return found


def _calls(body: list[ast.stmt]) -> Iterator[ast.Call]:
    """The calls that stand as statements of their own, also inside loops and conditions, but not inside functions."""
    for statement in body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            yield statement.value
        elif isinstance(statement, ast.For | ast.With | ast.If):
            yield from _calls(statement.body)


def asserts_stand(notebook: Notebook) -> Complaints:
    """No assertion is caught, and no cell is allowed to fail: then a run without error means that all of them held."""
    found = []
    for i, cell, source in cells(notebook, "code"):
        if "raises-exception" in cell["metadata"].get("tags", []):
            found.append(f"cell {i} is allowed to raise")
        for node in ast.walk(parsed(source)):
            if isinstance(node, ast.Try) and any(isinstance(n, ast.Assert) for s in node.body for n in ast.walk(s)):
                found.append(f"cell {i} asserts inside try")
    if not any(isinstance(node, ast.Assert) for _, _, s in cells(notebook, "code") for node in ast.walk(parsed(s))):
        found.append("nothing is asserted")
    return found


def ends_in_nbclient(notebook: Notebook) -> Complaints:
    """No Output widget (interact makes one): now and then nbclient waits for ever at one (its issue 312)."""
    calls = re.compile(r"\b(interact|interactive|interactive_output|Output)\(")
    return [
        f"cell {i} uses {calls.search(source)[1]}; let a slider set the value of a widgets.Image"  # type: ignore[index]
        for i, _, source in cells(notebook, "code")
        if "widgets" in source and calls.search(source)
    ]


# --- shape of a lecture ----------------------------------------------------------------------------------------------


def opens(notebook: Notebook) -> Complaints:
    """The first cell: the title, how long it takes, and at least three things that the reader will be able to do."""
    first = "".join(notebook["cells"][0]["source"])
    wanted = {
        "a title '# Lecture N. ...'": r"\A# Lecture \d+[a-c]?\. \S",
        "its length in minutes": r"\b\d+ minutes",
        "'After this lecture you can' and a list": r"After this lecture you can\W*\n(\s*- .+(\n  .+)*\n?){3,}",
    }
    return [f"the first cell lacks {what}" for what, pattern in wanted.items() if not re.search(pattern, first)]


def closes(notebook: Notebook) -> Complaints:
    """Exercises, three at least, then sources, each with its year; nothing after them."""
    prose = "\n\n".join(text for _, _, text in cells(notebook, "markdown"))
    _, _, end = prose.rpartition("\n## Exercises")
    exercises, _, sources = end.partition("\n## Sources")
    items = re.findall(r"^- .+(?:\n  .+)*", sources, re.M)
    found = []
    if len(re.findall(r"^\d+\. ", exercises, re.M)) < 3:
        found.append("fewer than three exercises under '## Exercises'")
    if len(items) < 3 or "\n#" in sources:
        found.append("fewer than three sources under '## Sources' at the end")
    found += [f"a source without a year: {item[:60]}" for item in items if not re.search(r"\b(18|19|20)\d\d\b", item)]
    return found if notebook["cells"][-1]["cell_type"] == "markdown" else [*found, "the last cell is code"]


def teaches(notebook: Notebook) -> Complaints:
    """Mathematics, pictures, and questions to the class."""
    prose = "\n".join(text for _, _, text in cells(notebook, "markdown"))
    kinds = {kind for _, c, _ in cells(notebook, "code") for o in c["outputs"] for kind in o.get("data", {})}
    wanted = {"mathematics": "$$" in prose, "a question": "**Question" in prose, "a picture": kinds & set(PICTURES)}
    return [f"no {what.removeprefix('a ')} in it" for what, there in wanted.items() if not there]


# What is no statement of this lecture: code, formulas and links; numbers of sections; what a source found.
NOT_PROSE = re.compile(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|arXiv \S+", re.S)
LABEL = re.compile(r"(?i)(sections?|equations?|eq\.|tables?|figures?|appendix|python) [A-Z]?[\d.]+( and [\d.]+)?")
QUOTED = re.compile(r"\bpapers?\b|\b(19|20)\d\d\b")


def numbers_computed(notebook: Notebook) -> Complaints:
    """A number with decimals or thousands in the prose stands in the code, or in an output, of a cell near it."""
    found = []
    for i, _, text in cells(notebook, "markdown")[1:]:
        near = [c for c in notebook["cells"][max(0, i - 4) : i + 5] if c["cell_type"] == "code"]
        known = _numbers("\n".join("".join(c["source"]) + "\n" + "\n".join(map(told, c["outputs"])) for c in near))
        for written in _stated(text):
            value, digits = float(written.replace(",", "")), len(written.partition(".")[2])
            if not any(round(scale * x, digits) == value for x in known for scale in (1, 100)):
                found.append(f"cell {i} says {written}, which no cell near it computes")
        if "## Exercises" in text:
            break
    return found


def _stated(text: str) -> Iterator[str]:
    prose = LABEL.sub(" ", NOT_PROSE.sub(" ", text.partition("## Exercises")[0]))
    for sentence in re.split(r"(?<=[.?!])\s", prose):
        if not QUOTED.search(sentence):
            yield from re.findall(r"(?<![\w.,/-])(\d{1,3}(?:,\d{3})+|\d+\.\d+)(?![\w/]|\.\d)", sentence)


def _numbers(text: str) -> set[float]:
    plain = re.sub(r"(?<=\d)[,_](?=\d{3})", "", text)
    return {float(x) for x in re.findall(r"\d+\.?\d*(?:e[+-]?\d+)?", plain)}


def sentences_are_whole(notebook: Notebook) -> Complaints:
    """Bold ends in its paragraph, prose does not begin after a space, and what is told is not left to the next cell."""
    found = []
    for i, _, text in cells(notebook, "markdown"):
        prose = NOT_PROSE.sub("code", text)
        for paragraph in re.split(r"\n\s*\n", prose):
            if paragraph.count("**") % 2:
                found.append(f"cell {i}: a ** without its partner, of a torn sentence: {paragraph.strip()[-60:]!r}")
        found += [
            f"cell {i}: a piece of a sentence: {line!r}" for line in re.findall(r"^ (?=[^\W\d])\S.*", prose, re.M)
        ]
        if re.search(r"next cell\s+says", prose):
            found.append(f"cell {i} leaves to the next cell what it should say")
    return found


# --- mathematics that JupyterLab and GitHub both render --------------------------------------------------------------

MISSING = re.compile(  # refused or not loaded by GitHub's MathJax
    r"\\(newcommand|renewcommand|def|let|operatorname|DeclareMathOperator|label|ref|eqref|tag|require|href|class|cssId|"
    r"style|unicode|mathtip|textcolor|bm|symbf|toggle)(?![a-zA-Z])"
)
ENVIRONMENTS = {"aligned", "array", "bmatrix", "cases", "gathered", "matrix", "pmatrix", "split", "vmatrix"}


def mathematics_renders(notebook: Notebook) -> Complaints:
    """Every $ has its partner, $$ shares its lines with no words, braces close, no macro is used that GitHub lacks."""
    return [f"cell {i}: {c}" for i, _, text in cells(notebook, "markdown") for c in _mathematics(text)]


def _mathematics(text: str) -> Iterator[str]:
    text = re.sub(r"```.*?```|`[^`\n]*`", "code", text, flags=re.S)
    pieces = re.split(r"^\$\$(.*?)\$\$$", text, flags=re.M | re.S)  # prose, formula, prose, ...
    formulas = pieces[1::2]
    for prose in pieces[::2]:
        if "$$" in prose:
            yield "a $$ without its partner, or with other words on its lines"
            return
        for paragraph in re.split(r"\n\s*\n", prose):
            if paragraph.count("$") % 2:
                yield f"a $ without its partner: {paragraph.strip()[:60]!r}"
            inline = re.findall(r"(.?)\$([^$]*)\$(.?)", paragraph, re.S)
            for before, formula, after in inline:
                if formula != formula.strip() or re.match(r"\w", before) or re.match(r"\w", after):
                    yield f"GitHub wants no space inside ${formula}$ and no letter beside it"
                if "\n" in formula or "\\\\" in formula:
                    yield f"${formula}$ breaks a line"
                formulas.append(formula)
    for formula in formulas:
        yield from _formula(formula)


def _formula(formula: str) -> Iterator[str]:
    for macro in MISSING.finditer(formula):
        yield f"{macro.group()} is not rendered on GitHub"
    begun, ended = re.findall(r"\\begin\{(\w+\*?)\}", formula), re.findall(r"\\end\{(\w+\*?)\}", formula)
    if sorted(begun) != sorted(ended) or not set(begun) <= ENVIRONMENTS:
        yield f"environments {begun} and {ended}, allowed are {sorted(ENVIRONMENTS)}"
    bare = re.sub(r"\\[{}]", "", formula)
    if bare.count("{") != bare.count("}"):
        yield f"braces do not close: {formula.strip()[:60]}"
    if len(re.findall(r"\\left(?![a-z])", formula)) != len(re.findall(r"\\right(?![a-z])", formula)):
        yield f"\\left without \\right: {formula.strip()[:60]}"
    if re.search(r"<[a-zA-Z/]", formula):
        yield f"'<' before a letter reads as HTML: {formula.strip()[:60]}; put a space between"
    if not formula.strip():
        yield "an empty formula"


# --- the file --------------------------------------------------------------------------------------------------------


def clean_file(notebook: Notebook) -> Complaints:
    """Unique cell ids, the plain kernel, no timings, no machine's paths, and a size that opens at once."""
    ids = [cell.get("id") for cell in notebook["cells"]]
    found = [] if None not in ids and len(set(ids)) == len(ids) else ["cell ids are missing or stand twice"]
    if notebook["metadata"]["kernelspec"]["name"] != "python3":
        found.append(f"kernel {notebook['metadata']['kernelspec']['name']!r}, expected 'python3'")
    found += [f"cell {i} keeps its timings" for i, c in enumerate(notebook["cells"]) if "execution" in c["metadata"]]
    paths = (
        r"(?<![\w.:/])/(home|root|tmp|work|opt|usr|var|mnt|Users|private)/\w|[A-Z]:\\\\?\w|site-packages|ipykernel_\d"
    )
    found += [f"a machine's path: {t[:80]!r}" for t in _texts(notebook) if re.search(paths, t)]
    size = len(json.dumps(notebook))
    return found if size <= LARGEST else [*found, f"{size:,} bytes, at most {LARGEST:,.0f}"]


def _texts(value: object, key: str = "") -> Iterator[str]:
    """Every text of a notebook but its pictures, whose letters mean nothing."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str) and key not in PICTURES:
        yield value


def links_lead_somewhere(notebook: Notebook) -> Complaints:
    """Every relative link leads to a file or folder of the repository."""
    prose = "\n".join(text for _, _, text in cells(notebook, "markdown"))
    return _broken(prose)


def _broken(markdown: str) -> Complaints:
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", markdown)
    return [f"a link to {target}, which is not there" for target in targets if not (FOLDER / target).exists()]


CHECKS: list[Callable[[Notebook], Complaints]] = [
    run_in_order, has_outputs, asserts_stand, ends_in_nbclient, opens, closes, teaches, numbers_computed,
    sentences_are_whole, mathematics_renders, clean_file, links_lead_somewhere,
]  # fmt: skip

# --- each check finds its fault --------------------------------------------------------------------------------------


def markdown(text: str, name: str) -> dict:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def code(source: str, count: int, *outputs: dict) -> dict:
    cell = {"cell_type": "code", "id": f"code{count}", "metadata": {}, "source": source}
    return {**cell, "execution_count": count, "outputs": list(outputs)}


def lecture() -> Notebook:
    """A lecture with nothing wrong in it."""
    said = {"output_type": "stream", "name": "stdout", "text": "0.25\n"}
    drawn = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "/".join(["", "tmp", "x"])}}
    first = (
        "# Lecture 1. Halves\n\n*60 minutes.*\n\nAfter this lecture you can\n\n- halve;\n- halve\n  again;\n- stop.\n"
    )
    middle = "Half of a half is 0.25, or 25.0 %, as `x` says.\n\n$$\nx^2 \\le y\n$$\n\n**Question.** Is $x < y$?\n"
    last = "## Exercises\n\n1. One.\n2. Two.\n3. Three.\n\n## Sources\n\n- A (1901).\n- B (1902),\n  C.\n- D 2003.\n"
    body = [code("x = 0.5\nprint(x * x)\nassert x > 0", 1, said), code("plt.show()", 2, drawn)]
    return {
        "cells": [markdown(first, "a"), markdown(middle, "b"), *body, markdown(last, "c")],
        "metadata": {"kernelspec": {"name": "python3"}},
    }


def change(place: int, old: str, new: str) -> Callable[[Notebook], None]:
    """Replace words in a cell, which must be there."""

    def apply(notebook: Notebook) -> None:
        cell = notebook["cells"][place]
        assert old in cell["source"]
        cell["source"] = cell["source"].replace(old, new)

    return apply


def put(place: int, key: str, value: object) -> Callable[[Notebook], None]:
    """Set an entry of a cell."""
    return lambda notebook: notebook["cells"][place].__setitem__(key, value)


ERROR = {"output_type": "error", "ename": "AssertionError", "evalue": "", "traceback": []}
WARNING = {"output_type": "stream", "name": "stderr", "text": "warning: x\n"}
PATH = {"output_type": "stream", "name": "stdout", "text": "read " + "/".join(["", "home", "me", "x"])}

FAULTS = [
    (run_in_order, put(2, "execution_count", 7)),
    (run_in_order, put(3, "execution_count", None)),
    (has_outputs, put(2, "outputs", [])),
    (has_outputs, lambda notebook: notebook["cells"].insert(4, code("if True:\n    print(1)", 3))),
    (has_outputs, put(3, "outputs", [])),
    (has_outputs, put(2, "outputs", [ERROR])),
    (has_outputs, put(2, "outputs", [WARNING])),
    (asserts_stand, change(2, "assert x > 0", "")),
    (asserts_stand, change(2, "assert x > 0", "try:\n    assert x > 0\nexcept AssertionError:\n    pass")),
    (asserts_stand, put(2, "metadata", {"tags": ["raises-exception"]})),
    (ends_in_nbclient, change(3, "plt.show()", "widgets.interact(plt.show)")),
    (opens, change(0, "60 minutes", "an hour")),
    (opens, change(0, "- stop.\n", "")),
    (closes, change(4, "3. Three.\n", "")),
    (closes, change(4, "(1902)", "")),
    (closes, change(4, "## Sources", "## Thanks")),
    (closes, lambda notebook: notebook["cells"].append(code("x", 3))),
    (teaches, change(1, "**Question.**", "So:")),
    (teaches, put(3, "outputs", [])),
    (numbers_computed, change(1, "0.25", "0.26")),
    (numbers_computed, change(1, "25.0 %", "1,025")),
    (sentences_are_whole, change(1, "**Question.** Is", "Question.** Is")),
    (sentences_are_whole, change(1, "**Question.** Is", "- One.\n which it is\n\n**Question.** Is")),
    (sentences_are_whole, change(1, "as `x` says", "or 26 %: the next cell\nsays")),
    (mathematics_renders, change(1, "$x < y$", "$x < y")),
    (mathematics_renders, change(1, "$x < y$", "$x <y$")),
    (mathematics_renders, change(1, "$x < y$", "$ x < y $")),
    (mathematics_renders, change(1, "$x < y$", "$x < \\operatorname{rank} y$")),
    (mathematics_renders, change(1, "$x < y$", "$x < {y$")),
    (mathematics_renders, change(1, "\n$$\n\n", "\n$$ so\n\n")),
    (mathematics_renders, change(1, "x^2 \\le y", "\\begin{align} x \\end{align}")),
    (mathematics_renders, change(1, "x^2 \\le y", "\\left( x")),
    (clean_file, put(3, "id", "a")),
    (clean_file, put(3, "metadata", {"execution": {"iopub.status.busy": "2020"}})),
    (clean_file, put(2, "outputs", [PATH])),
    (clean_file, put(2, "outputs", [{**PATH, "text": "x" * 1_300_000}])),
    (links_lead_somewhere, change(1, "half", "[half](nowhere.ipynb)")),
]  # fmt: skip


@pytest.mark.parametrize(("check", "fault"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_is_found(check: Callable, fault: Callable) -> None:
    right = lecture()
    assert [complaint for check in CHECKS for complaint in check(right)] == []
    wrong = copy.deepcopy(right)
    fault(wrong)
    assert check(wrong)


# --- the lectures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_what_is_committed(path: Path, check: Callable) -> None:
    assert check(json.loads(path.read_text(encoding="utf-8"))) == []


def test_the_syllabus_names_every_lecture_and_its_length() -> None:
    syllabus = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(LECTURES) >= 10 and _broken(syllabus) == []
    for path in LECTURES:
        number = path.name.partition("_")[0].lstrip("0")
        first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
        title, minutes = (
            re.search(rf"# Lecture {number}\. (.+)", "".join(first)),
            re.search(r"(\d+) minutes", "".join(first)),
        )
        row = next(line for line in syllabus.split("\n") if f"({path.name})" in line)
        assert row.startswith(f"| {number} |") and title and minutes
        assert title.group(1).strip() in row and f"| {minutes.group(1)} |" in row


def test_the_pictures_in_the_readme_are_the_lectures_own() -> None:
    shown = re.findall(
        r"figures/(lecture-(\d+[a-c]?)-\w+\.png)", (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    )
    assert len(shown) == 2
    for name, number in shown:
        (path,) = FOLDER.glob(f"{number.zfill(2 + number[-1].isalpha())}_*.ipynb")
        outputs = [
            o for _, cell, _ in cells(json.loads(path.read_text(encoding="utf-8")), "code") for o in cell["outputs"]
        ]
        drawn = [base64.b64decode("".join(o["data"]["image/png"])) for o in outputs if "image/png" in o.get("data", {})]
        assert (FOLDER.parent / "figures" / name).read_bytes() in drawn, (
            f"{name} is no picture of {path.name}: copy it anew"
        )


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in LECTURES if path != REAL], ids=lambda path: path.stem)
def test_runs_in_a_new_kernel(path: Path) -> None:
    """No cell fails, so every assertion holds; the same cells give the same kinds of output; nothing is left behind."""
    assert _other_kinds(*run(path)) == []


@pytest.mark.slow
def test_without_its_model_the_lecture_on_a_real_one_runs_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path))
    _, fresh = run(REAL)
    needing = [cell for _, cell, source in cells(fresh, "code") if "\nif ready():" in f"\n{source}"]
    assert len(needing) >= 10 and all("minilora fetch smollm2-135m" in told(cell["outputs"][0]) for cell in needing)
    drawn = [kind for cell in fresh["cells"] for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert drawn.count("image/png") >= 3  # what is drawn from records is there all the same


@pytest.mark.model
def test_the_lecture_on_a_real_model_runs_in_a_new_kernel(smollm2: Path) -> None:
    assert _other_kinds(*run(REAL)) == []


def _other_kinds(committed: Notebook, fresh: Notebook) -> Complaints:
    """The cells that show other kinds of output than the committed ones."""
    pairs = [(was, now) for was, now in zip(committed["cells"], fresh["cells"], strict=True) if "outputs" in was]
    return [f"{was['id']}: {_kinds(was)}, now {_kinds(now)}" for was, now in pairs if _kinds(was) != _kinds(now)]


def _kinds(cell: dict) -> set[str]:
    """The kinds of output of a cell: 'stdout', 'image/png', ..."""
    return {kind for output in cell["outputs"] for kind in output.get("data", [output.get("name", "error")])}
