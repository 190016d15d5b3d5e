"""The tables and pictures of lecture 10: what their titles compute, and what they show."""

import pytest

import minilora as ml
from minilora.nn.architectures import Architecture
from minilora.pictures import lecture_10


def test_the_two_models_stand_beside_each_other() -> None:
    real = ml.Transformer(Architecture("real", 50, 8, 2, 2, 12, context=16, kv_heads=1, gated=True, norm="rms"), rng=0)
    rows = lecture_10.facts(ml.load_model("base"), real, "real").splitlines()
    assert rows[2].startswith("| parameters | 822,016 | ") and "| 4 × 128 | 2 × 8 |" in rows[3]


def test_a_training_says_from_where_to_where() -> None:
    figure = lecture_10.training({"step": [1, 2], "loss": [1.5, 0.5]}, 1.68, 0.23, 240)
    assert figure.get_label().startswith("240 questions take the loss on answers from 1.68 to 0.23")


def test_spectra_and_amplifications_come_from_the_records() -> None:
    row = {"method": "lora", "corpus": "unicode-names", "spectrum": [2.0, 1.2, 0.2, 0.1, 0.1, 0.1]}
    other = {**row, "corpus": "python-code"}
    figure = lecture_10.spectra({"rows": [row, other]}, [1.0, 0.9, 0.8, 0.3, 0.2, 0.1])
    assert figure.get_label().startswith("3 of 6 values of ΔW are over half the largest; 2 in lecture 6")


def test_what_is_lost_is_drawn_for_each_format_and_size() -> None:
    shares = {(kind, size): share for kind, share in (("float32", 0.0), ("float16", 0.1), ("bfloat16", 0.25))
              for size in (1.0, 0.01)}  # fmt: skip
    figure = lecture_10.lost({**shares, ("bfloat16", 0.01): 0.97})
    assert "In bfloat16 25% of ΔW's entries are lost; of ΔW × 0.01 97%" in figure.get_label()
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([0, 0, 10, 10, 25, 97])
