"""The instructor's edition: its solutions run, and the lectures' checks accept them and reject what is not answered.

`notebooks/instructor/05_lora.md` holds the solutions of `notebooks/05_lora.ipynb`, a section `## Exercise 1` each. Its
Python blocks run in order in one namespace; where an exercise checks itself, a block ends in
`assert ml.check("5.2", answer)`. That every exercise has its section is seen to in `test_lectures.py`.
"""

import importlib
import json
import re
from pathlib import Path

import pytest
from lectures import FOLDER, LECTURES, cells

import minilora as ml
from minilora.course.exercises import CHECKS

CALL = re.compile(r"\bcheck\(\s*[\"'](\w+\.\w+)[\"']")


def blocks(text: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def checks_of(path: Path) -> list[str]:
    """The checks that belong to a lecture: 5.1, 5.2 ... of 05_lora.ipynb."""
    number = path.name.partition("_")[0]
    try:
        importlib.import_module(f"minilora.course.lecture_{number}")
    except ModuleNotFoundError:
        return []
    return [name for name in CHECKS if name.startswith(f"{number.lstrip('0')}.")]


def solved(text: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Run a page's blocks in order -> the exercises whose check accepted an answer."""
    right, original = set(), ml.check

    def check(name: str, answer: object) -> bool:
        if accepted := original(name, answer):
            right.add(name)
        return accepted

    monkeypatch.setattr(ml, "check", check)
    namespace: dict[str, object] = {"__name__": "solutions"}
    for number, block in enumerate(blocks(text), 1):
        exec(compile(block, f"block {number}", "exec"), namespace)
    return right


@pytest.mark.slow
@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_every_solution_runs_and_is_accepted(path: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = (FOLDER / "instructor" / f"{path.stem}.md").read_text("utf-8")
    assert solved(text, monkeypatch) >= set(checks_of(path)) != set()
    assert list(tmp_path.iterdir()) == [], "a solution left files behind"


@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_what_is_not_answered_is_not_right(path: Path, capsys) -> None:
    for name in checks_of(path):
        assert ml.check(name, ...) is False and "not answered yet" in capsys.readouterr().out


@pytest.mark.parametrize("path", LECTURES, ids=lambda path: path.stem)
def test_the_lecture_names_its_checks_and_no_others(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    texts = [text for kind in ("markdown", "code") for _, _, text in cells(notebook, kind)]
    named = {name for text in texts for name in CALL.findall(text)}
    assert named == set(checks_of(path))
    exercises = re.findall(r"^(\d+)\. ", "\n".join(texts).rpartition("\n## Exercises")[2].partition("\n## ")[0], re.M)
    assert {name.partition(".")[2] for name in named} <= set(exercises)


def test_a_solution_that_is_wrong_is_an_error(monkeypatch) -> None:
    monkeypatch.setitem(CHECKS, "99.1", lambda answer: None if answer == 4 else "no")
    page = 'Words.\n\n```python\nimport minilora as ml\ny = 2\n```\n\n```python\nassert ml.check("99.1", y * 2)\n```\n'
    assert solved(page, monkeypatch) == {"99.1"}
    with pytest.raises(AssertionError):
        solved(page.replace("y = 2", "y = 3"), monkeypatch)
    with pytest.raises(NameError):
        solved(page.replace("y = 2", "z = 2"), monkeypatch)
