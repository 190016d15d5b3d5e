"""`ml.holds`: a lecture's claims about results."""

import numpy as np
import pytest

import minilora as ml


def test_a_claim_that_holds_gets_a_tick(capsys: pytest.CaptureFixture) -> None:
    assert ml.holds("LoRA ends\n  below the base.", np.float64(1) < 2) is True
    assert capsys.readouterr().out == "✓ LoRA ends below the base\n"


def test_a_claim_that_fails_asks_why_and_stops_only_the_tests(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINILORA_CLAIMS", raising=False)
    assert ml.holds("1 is 2", 1 == 2) is False
    assert capsys.readouterr().out == "✗ does not hold here: 1 is 2. Why?\n"
    monkeypatch.setenv("MINILORA_CLAIMS", "strict")
    with pytest.raises(AssertionError, match="does not hold: 1 is 2"):
        ml.holds("1 is 2", 1 == 2)


def test_a_condition_is_one_truth_value() -> None:
    for wrong in (np.array([True, False]), 1, "yes", None):
        with pytest.raises(TypeError, match="holds: condition"):
            ml.holds("many", wrong)
