"""The table of all methods: every number of the records stands in its column, in lines that a terminal holds."""

import pytest

from minilora.pictures.method_table import FOOT, HEAD, methods_table


def test_each_method_has_a_line_for_each_text(records):
    made = records("methods")
    blocks = [block.splitlines() for block in methods_table(made).split("\n\n")]
    assert [block[0].split(":")[0] for block in blocks] == ["new", "code"]
    for block in blocks:
        assert block[1] == HEAD
        assert [line.split()[0] for line in block[3:]] == [row["method"] for row in made["rows"][: len(block) - 3]]
        assert {line.split()[-1] for line in block[3:]} == {"yes", "no"}
        assert max(map(len, block)) <= 80
    assert len(blocks[0]) == len(blocks[1]) == 3 + len(made["rows"]) // 2


def test_the_numbers_of_a_line(records):
    row = {"trainable": 16384, "loss": 1.2345, "loss_spread": 0.0125, "old_loss": 3.5, "old_before": 1.25}
    row |= {"memory_bytes": 5 * 2**19, "step_ratio": 0.5, "stored_bytes": 65536.0, "token_ratio": 1.125}
    line = methods_table(records("methods", lambda r: r.update(row, mergeable=False))).splitlines()[3]
    assert line.replace("±", " ").split() == [
        "lora", "16,384", "1.234", "0.013", "+2.250", "2.5", "0.50", "65,536", "1.12", "no",
    ]  # fmt: skip


def test_large_numbers_stay_in_their_columns(records):
    full = {"trainable": 822_016, "stored_bytes": 3_288_064.0, "memory_bytes": 1e9, "old_loss": 11.2}
    lines = methods_table(records("methods", lambda row: row.update(full))).splitlines()
    assert max(map(len, lines)) <= 80 and len(set(map(len, lines[3:6]))) == 1
    assert all(len(line.replace("±", " ").split()) == 10 for line in lines[3:19])


def test_records_of_another_study_or_an_older_one_are_refused(records):
    with pytest.raises(ValueError, match="expected those of the study 'methods'"):
        methods_table(records("ranks"))
    with pytest.raises(ValueError, match="row 0 of the records of 'methods' has no 'step_ratio'; make them anew"):
        methods_table(records("methods", lambda row: row.pop("step_ratio")))


def test_the_words_under_it_fit_a_terminal():
    assert max(map(len, FOOT.splitlines())) <= 80
