"""What a lecture owes the one who gives it tomorrow: parameters to change, minutes, short cells, slides and answers.

Each check takes a lecture and its instructor's file and returns a list of complaints. Every check is proved by a fault
planted in a small lecture that is otherwise right, then put to every lecture. `pytest -m settings` runs every lecture
under other parameters: no cell may raise.
"""

import ast
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lectures import (
    FOLDER,
    LECTURES,
    REAL,
    Complaints,
    Notebook,
    cells,
    is_tagged,
    parameters,
    parsed,
    run,
)  # fmt: skip

CELLS, LINES, SHORT = 45, 12, 45  # cells a lecture, lines a cell of code, minutes of the short path
SLIDES = {"slide", "subslide", "fragment", "skip", "notes"}
SECTION = re.compile(r"^## (\d+)\. (.+)$", re.M)


def slide_type(cell: dict) -> str | None:
    """What a cell is in the slides."""
    return cell["metadata"].get("slideshow", {}).get("slide_type")


def prose(notebook: Notebook) -> str:
    """All words of a lecture."""
    return "\n\n".join(text for _, _, text in cells(notebook, "markdown"))


# --- the checks ------------------------------------------------------------------------------------------------------


def parameters_come_first(notebook: Notebook, _: str) -> Complaints:
    """The first code cell is tagged `parameters`: values, one a line, each with a comment, each used below."""
    (_, first, source), *rest = cells(notebook, "code")
    if not is_tagged(first, "parameters"):
        return ["the first code cell is not tagged 'parameters'"]
    found = ["another cell is tagged 'parameters'" for _, cell, _ in rest if is_tagged(cell, "parameters")]
    for statement in parsed(source).body:
        if not isinstance(statement, ast.Assign) or not _is_plain(statement.value):
            found.append(f"line {statement.lineno} of the parameters is no plain assignment")
        elif "#" not in (line := source.split("\n")[statement.lineno - 1]):
            found.append(f"nothing says what else to try: {line}")
    used = {node.id for _, _, text in rest for node in ast.walk(parsed(text)) if isinstance(node, ast.Name)}
    return found or [f"{name} is not used" for name in parameters(notebook) if name not in used]


def _is_plain(value: ast.expr) -> bool:
    try:
        return ast.literal_eval(value) is not None
    except ValueError:
        return False


def _minutes(notebook: Notebook) -> dict[int, int]:
    """{section: its minutes}, 0 where its heading has none."""
    found = {}
    for number, title in SECTION.findall(prose(notebook)):
        told = re.search(r"\((\d+) minutes\)$", title)
        found[int(number)] = int(told[1]) if told else 0
    return found


def sections_have_minutes(notebook: Notebook, _: str) -> Complaints:
    """Every `## N. Title` ends with its minutes; they add up to the lecture's."""
    minutes = _minutes(notebook)
    whole = re.search(r"\b(\d+) minutes", "".join(notebook["cells"][0]["source"]))
    found = [f"section {number} does not end with '(N minutes)'" for number, n in minutes.items() if not n]
    if list(minutes) != list(range(1, len(minutes) + 1)):
        found.append(f"sections are numbered {list(minutes)}")
    if not whole or sum(minutes.values()) != int(whole[1]):
        found.append(f"the sections take {sum(minutes.values())} minutes, the lecture {whole and whole[1]}")
    return found


def has_a_short_path(notebook: Notebook, _: str) -> Complaints:
    """The first cell names the sections that are a lecture of 45 minutes."""
    line = re.search(r"\*In 45 minutes:\*(.*(?:\n.+)*)", "".join(notebook["cells"][0]["source"]))
    if not line:
        return ["the first cell lacks '*In 45 minutes:* sections ...'"]
    minutes, named = _minutes(notebook), set()
    for first, last in re.findall(r"(\d+)(?:\s*(?:to|-|–)\s*(\d+))?", line[1].split("(")[0]):
        named |= set(range(int(first), int(last or first) + 1))
    if not named and "all" in line[1]:
        named = set(minutes)
    if not named or not named <= set(minutes):
        return [f"the short path names the sections {sorted(named)}, there are {sorted(minutes)}"]
    took = sum(minutes[number] for number in named)
    return [] if 30 <= took <= SHORT else [f"the short path takes {took} minutes, not at most {SHORT} nor at least 30"]


def is_short(notebook: Notebook, _: str) -> Complaints:
    """At most 45 cells; at most 12 lines of code in each."""
    found = [f"{len(notebook['cells'])} cells, at most {CELLS}"] if len(notebook["cells"]) > CELLS else []
    for i, _cell, source in cells(notebook, "code"):
        if (lines := len(source.rstrip("\n").split("\n"))) > LINES:
            found.append(f"cell {i} has {lines} lines of code, at most {LINES}")
    return found


def has_a_quiz(notebook: Notebook, _: str) -> Complaints:
    """Just before the exercises: five questions, each with its answer folded; choices are a to d."""
    texts = [text for _, cell, text in cells(notebook, "markdown") if slide_type(cell) != "notes"]
    places = [i for i, text in enumerate(texts) if text.startswith("## Quiz")]
    if len(places) != 1:
        return [f"{len(places)} cells begin with '## Quiz'"]
    end = next((i for i, text in enumerate(texts) if text.startswith("## Exercises")), None)
    quiz = "\n\n".join(texts[places[0] : end])
    questions = re.split(r"^\**\d\.", quiz, flags=re.M)[1:]
    found = [] if end else ["the exercises do not follow the quiz"]
    if len(questions) != 5:
        found.append(f"the quiz has {len(questions)} questions, not five")
    for number, question in enumerate(questions, 1):
        answer = re.findall(r"<details>\s*<summary>Answer</summary>(.+?)</details>", question, re.S)
        if len(answer) != 1 or len(answer[0].split()) < 3:
            found.append(f"question {number} of the quiz lacks its folded answer")
        choices = re.findall(r"^\s*(?:[-*] )?\(?\**([a-f])[).]", question, re.M)
        if choices and choices != list("abcd"):
            found.append(f"question {number} of the quiz has the choices {choices}")
    return found


def makes_slides(notebook: Notebook, _: str) -> Complaints:
    """Every cell has its place in the slides; a section begins a slide and has notes: what to ask, what goes wrong."""
    found = [
        f"cell {i} has the slide type {slide_type(cell)!r}"
        for i, cell in enumerate(notebook["cells"])
        if slide_type(cell) not in SLIDES
    ]
    for title, section in _sections(notebook):
        notes = " ".join("".join(cell["source"]) for cell in section if slide_type(cell) == "notes").lower()
        if "ask" not in notes or "wrong" not in notes:
            found.append(f"section {title} has no notes with 'Ask: ...' and 'Goes wrong: ...'")
        if slide_type(section[0]) not in ("slide", "subslide"):
            found.append(f"section {title} does not begin a slide")
    code = [cell["id"] for _, cell, _ in cells(notebook, "code") if slide_type(cell) == "notes"]
    return found + [f"cell {name} is code and cannot be a note" for name in code]


def _sections(notebook: Notebook) -> Iterator[tuple[str, list[dict]]]:
    """(title, cells) of each numbered section."""
    title, section = "", []
    for cell in notebook["cells"]:
        heading = re.match(r"## (.+)", "".join(cell["source"])) if cell["cell_type"] == "markdown" else None
        if heading and title[:1].isdigit():
            yield title, section
        if heading:
            title, section = heading[1], []
        section.append(cell)
    if title[:1].isdigit():
        yield title, section


def everything_is_answered(notebook: Notebook, answers: str) -> Complaints:
    """Every exercise has its section in the instructor's file; every question an answer there or in the lecture."""
    text = prose(notebook)
    exercises = re.findall(r"^(\d+)\. ", text.rpartition("\n## Exercises")[2].partition("\n## Sources")[0], re.M)
    solved = re.findall(r"^## Exercise (\d+)\b", answers, re.M)
    found = [] if exercises == solved else [f"exercises {exercises}, solutions of {solved}"]
    for number, solution in re.findall(r"^## Exercise (\d+)\b.*\n((?:(?!^## ).*\n?)*)", answers, re.M):
        if len(solution.split()) < 5:
            found.append(f"the solution of exercise {number} is empty")
    asked = re.split(r"\*\*Question", text.partition("\n## Quiz")[0])[1:]
    unanswered = [q for q in asked if "<details>" not in re.split(r"^#+ |\*\*Question", q, flags=re.M)[0]]
    there = answers.partition("\n## Questions\n")[2].partition("\n## ")[0]
    given = len(re.findall(r"^(?:\d+\. |[-*] |\*\*|### )", there, re.M))
    if given < len(unanswered):
        found.append(f"{len(unanswered)} questions without an answer in the lecture, {given} answers in ## Questions")
    return found


def keeps_the_solutions_apart(notebook: Notebook, _: str) -> Complaints:
    """No lecture leads to the instructor's edition."""
    return ["leads to the instructor's edition"] if re.search(r"\]\([^)]*instructor/", prose(notebook)) else []


CHECKS: list[Callable[[Notebook, str], Complaints]] = [
    parameters_come_first, sections_have_minutes, has_a_short_path, is_short, has_a_quiz, makes_slides,
    everything_is_answered, keeps_the_solutions_apart,
]  # fmt: skip

# --- each check finds its fault --------------------------------------------------------------------------------------

QUESTION = "\n{}. How many?\n   - a) 1\n   - b) 2\n   - c) 3\n   - d) 4\n\n" + (
    "   <details><summary>Answer</summary>\n\n   b: one and one.\n\n   </details>\n"
)
ANSWERS = "# Lecture 1\n\n## Questions\n\n1. Because it is.\n\n" + "".join(
    f"## Exercise {n}\n\nIt is five words long.\n\n" for n in (1, 2, 3)
)


def lecture() -> Notebook:
    """A lecture with nothing wrong in it."""
    head = (
        "# Lecture 1. Halves\n\n*60 minutes.*\n\nAfter this lecture you can ...\n\n*In 45 minutes:* sections 1 and 3.\n"
    )
    notes = "Ask: why? Goes wrong: it does not run."
    question = "**Question.** Why?\n\n**Question.** How?\n\n<details><summary>Answer</summary>So.</details>\n"
    quiz = "## Quiz\n" + "".join(QUESTION.format(n) for n in range(1, 6))
    end = "## Exercises\n\n1. One.\n2. Two.\n3. Three.\n\n## Sources\n\n- A (1901).\n"
    rows = [
        ("slide", head), ("skip", 'CORPUS = "a"  # or "b"\nSTEPS = 4  # or 8'), ("skip", "print(CORPUS, STEPS)"),
        ("slide", "## 1. One (20 minutes)\n\n" + question), ("notes", notes),
        ("slide", "## 2. Two (20 minutes)\n"), ("notes", notes), ("subslide", "x = 1"),
        ("slide", "## 3. Three (20 minutes)\n"), ("notes", notes), ("slide", quiz), ("skip", end),
    ]  # fmt: skip
    found = []
    for i, (slide, source) in enumerate(rows):
        kind = "code" if i in (1, 2, 7) else "markdown"
        metadata = {"slideshow": {"slide_type": slide}, **({"tags": ["parameters"]} if i == 1 else {})}
        found.append({"cell_type": kind, "id": f"c{i}", "metadata": metadata, "source": source})
    return {"cells": found, "metadata": {}}


def change(place: int, old: str, new: str) -> Callable[[Notebook], None]:
    """Replace words in a cell, which must be there."""

    def apply(notebook: Notebook) -> None:
        cell = notebook["cells"][place]
        assert old in cell["source"]
        cell["source"] = cell["source"].replace(old, new, 1)

    return apply


def slide(place: int, kind: str | None) -> Callable[[Notebook], None]:
    """Give a cell another place in the slides."""
    return lambda notebook: notebook["cells"][place]["metadata"].__setitem__("slideshow", {"slide_type": kind})


FAULTS = [
    (parameters_come_first, lambda notebook: notebook["cells"][1]["metadata"].pop("tags")),
    (parameters_come_first, lambda notebook: notebook["cells"][2]["metadata"].update(tags=["parameters"])),
    (parameters_come_first, change(1, "STEPS = 4", "STEPS = 2 * 2")),
    (parameters_come_first, change(1, "STEPS = 4", "import os\nSTEPS = 4")),
    (parameters_come_first, change(1, "  # or 8", "")),
    (parameters_come_first, change(2, "CORPUS, ", "")),
    (sections_have_minutes, change(5, " (20 minutes)", "")),
    (sections_have_minutes, change(5, "20 minutes", "25 minutes")),
    (sections_have_minutes, change(8, "## 3.", "## 4.")),
    (has_a_short_path, change(0, "*In 45 minutes:*", "Shorter:")),
    (has_a_short_path, change(0, "1 and 3", "1 to 3")),
    (has_a_short_path, change(0, "1 and 3", "1")),
    (has_a_short_path, change(0, "1 and 3", "1 and 4")),
    (is_short, change(2, "print", "\n" * 12 + "print")),
    (is_short, lambda notebook: notebook["cells"].extend([notebook["cells"][-1]] * 34)),
    (has_a_quiz, change(10, "## Quiz", "## Questions")),
    (has_a_quiz, change(10, "\n5. How", "\nHow")),
    (has_a_quiz, change(10, "   - c) 3\n", "")),
    (has_a_quiz, change(10, "</details>", "")),
    (has_a_quiz, change(10, "b: one and one.", "b")),
    (makes_slides, slide(7, None)),
    (makes_slides, slide(7, "notes")),
    (makes_slides, slide(7, "page")),
    (makes_slides, slide(5, "fragment")),
    (makes_slides, change(6, "Ask", "Say")),
    (makes_slides, slide(9, "skip")),
    (everything_is_answered, change(11, "3. Three.\n", "3. Three.\n4. Four.\n")),
    (everything_is_answered, change(3, "<details>", "")),
    (keeps_the_solutions_apart, change(8, "Three", "[Three](instructor/01.md)")),
]


@pytest.mark.parametrize(("check", "fault"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_is_found(check: Callable, fault: Callable) -> None:
    right = lecture()
    assert [complaint for check in CHECKS for complaint in check(right, ANSWERS)] == []
    wrong = copy.deepcopy(right)
    fault(wrong)
    assert check(wrong, ANSWERS)


@pytest.mark.parametrize("old", ["## Exercise 2", "1. Because", "It is five words long."])
def test_a_fault_in_the_answers_is_found(old: str) -> None:
    assert old in ANSWERS and everything_is_answered(lecture(), ANSWERS.replace(old, "So", 1))


# --- the lectures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_what_is_committed(path: Path, check: Callable) -> None:
    answers = FOLDER / "instructor" / f"{path.stem}.md"
    notebook = json.loads(path.read_text("utf-8"))
    assert check(notebook, answers.read_text("utf-8") if answers.exists() else "") == []


def settings(notebook: Notebook, own_text: Path) -> dict[str, dict[str, object]]:
    """{what is tried: {parameter: value}}, of the parameters that a lecture has."""
    has = parameters(notebook)
    steps, seed = int(has.get("STEPS", 2)), int(has.get("SEED", 0))  # type: ignore[call-overload]
    other = "python-code" if has.get("CORPUS") != "python-code" else "unicode-names"
    tried: dict[str, dict[str, object]] = {
        "another text": {"CORPUS": other},
        "little": {"RANK": 1, "STEPS": steps // 2, "CORPUS": "python-docs"},
        "large": {"RANK": 64, "SEED": seed + 1},
        "long": {"RANK": 2, "STEPS": 2 * steps},
        "a text of one's own": {"CORPUS": str(own_text), "RANK": 16, "SEED": seed + 2},
    }
    return {name: {key: value for key, value in new.items() if key in has} for name, new in tried.items()}


WHICH = ["another text", "little", "large", "long", "a text of one's own"]


@pytest.mark.settings
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_no_cell_raises_under_other_settings(path: Path, which: str, monkeypatch, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("".join(page.read_text("utf-8") for page in sorted(FOLDER.glob("*.md"))), "utf-8")
    changed = settings(json.loads(path.read_text("utf-8")), text)[which]
    if not changed:
        pytest.skip("the lecture has no such parameter")
    if path == REAL:  # without its model, which takes minutes
        monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    _, fresh = run(path, changed)
    assert [o for _, cell, _ in cells(fresh, "code") for o in cell["outputs"] if o["output_type"] == "error"] == []


@pytest.mark.model
def test_the_lecture_on_a_real_model_runs_on_little(smollm2: Path) -> None:
    """Where the whole of it, in `tests/test_notebooks.py`, would take too long: no cell raises."""
    _, fresh = run(REAL, {"STEPS": 3, "QUESTIONS": 3, "RANK": 2})
    assert [o for _, cell, _ in cells(fresh, "code") for o in cell["outputs"] if o["output_type"] == "error"] == []
