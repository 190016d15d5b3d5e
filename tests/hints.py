"""What the check of an exercise says of an answer: one line, with a tick, or with a cross and a hint at the cause."""

import re

import pytest

import minilora as ml


def told(capsys: pytest.CaptureFixture, name: str, answer: object) -> str:
    """The line that a check prints, which begins with what it returns."""
    right = ml.check(name, answer)
    said = capsys.readouterr().out
    assert said.startswith(f"✓ {name}\n" if right else f"✗ {name}: ") and said.count("\n") == 1
    return said


def assert_hint(capsys: pytest.CaptureFixture, name: str, answer: object, hint: str) -> None:
    """A wrong answer is told so, with a hint, which is a regular expression."""
    said = told(capsys, name, answer)
    assert said.startswith("✗") and re.search(hint, said), said


def assert_right(name: str, answer: object) -> None:
    """An answer is accepted, and the untouched stub is not."""
    assert ml.check(name, answer) and not ml.check(name, ...)
