"""The benchmark measures what it says, beside a peer where there is one. How fast anything is, no test asks."""

import json
import sys

import pytest

from minilora.analysis import bench
from minilora.cli import main


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(bench.SIZES, "tiny", (7, 8, 16, 2, 1, 2))
    monkeypatch.setattr(bench, "product_rate", lambda: 1e9)


@pytest.mark.parametrize("method", bench.METHODS)
def test_without_the_peer_it_times_our_step(method, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch raises ImportError
    record = bench.bench("tiny", method, repeats=2)
    assert record["step_seconds"] > 0 and record["ratio"] is None
    assert "pip install 'minilora[peers]'" in bench.table([record])


def test_the_limit_is_operations_over_rate(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    record = bench.bench("tiny", "full", repeats=2)
    tokens, width, context, vocabulary = 2 * 8, 16, 8, 7
    products = 2 * tokens * (12 * width**2 + vocabulary * width)  # linear layers and head, forward
    attention = 2 * 2 * tokens * context * width  # q k^T and p v
    needed = record["step_seconds"] * 1e9 / record["limit_ratio"]
    assert needed == pytest.approx(3 * (products + attention), rel=0.02)


def test_the_rate_is_one_of_a_real_product():
    assert 1e8 < bench.product_rate(256, repeats=2) < 1e15


def test_the_command(tiny, capsys):
    assert main(["bench", "--sizes", "tiny", "--repeats", "2", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [(r["size"], r["method"]) for r in records] == [("tiny", "lora"), ("tiny", "full")]
    assert main(["bench", "--sizes", "tiny", "--repeats", "2"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    assert main(["bench", "--sizes", "tinny"]) == 2
    assert "'tinny'" in capsys.readouterr().err
