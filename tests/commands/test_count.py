"""`minilora count`: what it computes is tested in tests/analysis."""

import json

import pytest

from minilora.commands.main import main


def test_count_prints_the_objects_keys(capsys):
    assert main(["count", "gpt3-175b", "--method", "lora", "--rank", "4", "--targets", "q_proj,v_proj", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record) == [
        "model", "method", "rank", "target_modules", "total_parameters", "trainable_parameters", "trainable_fraction",
        "checkpoint_bytes", "training_memory_bytes",
    ]  # fmt: skip
    assert record["trainable_parameters"] == 96 * 2 * 4 * (12288 + 12288)  # layers x (q, v) x r x (d_in + d_out)


@pytest.mark.parametrize(
    "words", [[], ["--compare"], ["--paper"], ["gpt2", "--method", "houlsby", "--bottleneck", "8"]]
)
def test_count_prints_tables_of_80_columns(words, capsys):
    assert main(["count", *words]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) > 10 and max(map(len, out.splitlines())) <= 80


def test_count_compares_every_method(capsys):
    from minilora.analysis.counting import METHODS

    assert main(["count", "gpt2", "--compare", "--json"]) == 0
    assert [record["method"] for record in json.loads(capsys.readouterr().out)] == list(METHODS)
