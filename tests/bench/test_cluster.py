"""Runs on two workers beside one: who is timed, that all are made; without Dask they are left out in one line."""

import sys
from dataclasses import replace

import pytest

from minilora.bench import benchmark, cluster, report, rows
from minilora.studies import grid


@pytest.mark.parametrize("package", ["distributed", "joblib"])
def test_without_dask_it_is_left_out_in_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    record = benchmark.bench(["tiny"], ["cluster"], [], turns=1)
    assert record["rows"] == []
    assert record["left_out"] == {"runs on a cluster": "Dask is not installed: pip install 'minilora[cluster]'"}


def test_two_stand_beside_one_whoever_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "on_dask", lambda n: ({1: 2.0, 2: 3.0}[n], {1: 30.0, 2: 18.0}[n]))
    monkeypatch.setattr(cluster, "on_processes", lambda n: {1: 20.0, 2: 15.0}[n])
    record = benchmark.bench(["tiny"], ["cluster"], [], turns=9)
    told = [(r["what"], r["size"], r["ours"], r["theirs"], r["ratio"], r["bar"], r["turns"]) for r in record["rows"]]
    assert told == [
        (rows.SIDE_BY_SIDE, "2 workers", 18.0, 30.0, 0.6, 0.6, 3),
        (rows.SIDE_BY_SIDE, "2 processes", 15.0, 20.0, 0.75, None, 3),
        (rows.TO_START, "2 workers", 3.0, 2.0, 1.5, None, 3),
    ]
    assert max(map(len, report.table(record).splitlines())) <= 80


def test_runs_that_are_not_all_made_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("joblib")
    monkeypatch.setattr(grid, "make_runs", lambda *args, **options: 23)
    with pytest.raises(ArithmeticError, match="bench: 23 runs of 24 were made"):
        cluster.on_processes(1)


@pytest.mark.slow
def test_workers_and_processes_make_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "RUNS", 2)
    few = replace(cluster.SCALE, steps=1, windows=1, batch_size=2, learning_rates=cluster.RATES[:2])
    monkeypatch.setattr(cluster, "SCALE", few)
    assert len(set(cluster.RATES)) == 24
    record = benchmark.bench(["tiny"], ["cluster"], [], turns=1)
    assert len(record["rows"]) == 3 and all(r["ours"] > 0 < r["theirs"] for r in record["rows"])
