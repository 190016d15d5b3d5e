"""The benchmark's peer computes what we compute: the same losses, step after step."""

import pytest

from minilora.analysis import bench

pytest.importorskip("torch", reason="needs the extra 'peers'")


@pytest.mark.parametrize("method", bench.METHODS)
def test_both_sides_of_the_benchmark_train_alike(method, monkeypatch):
    monkeypatch.setitem(bench.SIZES, "tiny", (19, 16, 32, 4, 2, 3))
    record = bench.bench("tiny", method, repeats=5)
    assert record["peer"] == "PyTorch eager" and record["ratio"] > 0
    assert record["loss_difference"] < 1e-5
