"""The checks of lecture 9: the likely mistakes get their own hint."""

import pytest
from hints import told

from minilora.analysis import counting

EVERYWHERE = {"rank": 16, "target_modules": ("*_proj",), "batch": 1, "length": 1024, "engine": "flash"}


def test_memory_of_qlora(capsys: pytest.CaptureFixture) -> None:
    memory = [
        sum(counting.count("llama-2-13b", bits=b, **EVERYWHERE).training_memory_bytes.values()) for b in (4, None)
    ]
    assert "✓" in told(capsys, "9.1", memory[0] / 1e9)
    assert "10^9 bytes" in told(capsys, "9.1", memory[0]) and "bits=4" in told(capsys, "9.1", memory[1] / 1e9)
    assert "not right" in told(capsys, "9.1", memory[0] / 2**30)


def test_length_of_text(capsys: pytest.CaptureFixture) -> None:
    assert "larger already" in told(capsys, "9.2", 4000) and "are not larger" in told(capsys, "9.2", 100)


@pytest.mark.parametrize(
    ("intensity", "hint"),
    [
        (lambda S, D: 2 * S * D / (D + S * D + S), "2 bytes"),
        (lambda S, D: S, "2 S D operations"),
        (lambda S, D: 2 * D / 2, "2 S D operations"),
    ],
)
def test_roofline_of_attention(capsys: pytest.CaptureFixture, intensity: object, hint: str) -> None:
    assert hint in told(capsys, "9.3", intensity)


def test_what_is_read_beside_the_keys_may_be_left_out(capsys: pytest.CaptureFixture) -> None:
    assert "✓" in told(capsys, "9.3", lambda S, D: 1.0) and "✓" in told(capsys, "9.3", lambda S, D: S / (S + 1))


def test_llamas_names(capsys: pytest.CaptureFixture) -> None:
    assert "embed_tokens" in told(capsys, "9.4", lambda name: name)
    assert "ends in" in told(capsys, "9.4", lambda name: name.undefined)
