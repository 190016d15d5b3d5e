"""`ml.check`: exercises that check themselves."""

import numpy as np
import pytest

import minilora as ml
from minilora.course.exercises import CHECKS, exercise, same


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilora.course.exercises.CHECKS", dict(CHECKS))
    exercise("99.1")(lambda answer: same(answer(3.0), 1.5, "half of x"))


def test_right_wrong_and_untouched(halves: None, capsys: pytest.CaptureFixture) -> None:
    assert ml.check("99.1", lambda x: x / 2)
    assert not ml.check("99.1", lambda x: x)
    assert not ml.check("99.1", ...)
    assert not ml.check("99.1", lambda x: 1 / 0)
    told = capsys.readouterr().out.splitlines()
    assert told[:3] == ["✓ 99.1", "✗ 99.1: got 3, and that is not right; half of x", "✗ 99.1: not answered yet"]
    assert "ZeroDivisionError" in told[3]


def test_an_exercise_that_is_not_there(halves: None) -> None:
    for name in ("99.7", "5", "", "none.1"):
        with pytest.raises(ValueError, match="check: no exercise"):
            ml.check(name, 1)


@pytest.mark.parametrize(
    "answer", [np.zeros((2, 3)), [[1.0, 2.0]], [[np.nan, 0.0], [0.0, 1.0]], "text", np.eye(2) + 1e-3]
)
def test_what_is_not_the_same(answer: object) -> None:
    assert same(answer, np.eye(2)) is not None


def test_what_is_the_same() -> None:
    assert same(ml.Tensor(np.eye(2)), np.eye(2)) is None and same(np.float32(0.1), 0.1) is None
