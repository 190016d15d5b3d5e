"""Runs side by side: the same records, bit for bit, and no finished run is lost with a worker."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from minilora.commands.main import main
from minilora.studies import grid
from minilora.studies import runs as runs_module
from minilora.studies.costs_of_steps import measure_steps
from minilora.studies.runs import QUICK, Runs, Spec
from minilora.studies.studies import STUDIES, run_study

pytest.importorskip("joblib")
TINY = replace(QUICK, name="tiny", steps=2, batch_size=2, windows=2)


def kept(cache: Path) -> dict[str, int]:
    """When each finished run was written."""
    return {path.name: path.stat().st_mtime_ns for path in (cache / TINY.name).glob("*.json")}


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    names = ["ranks", "starts"]
    made = grid.make_runs(names, TINY, tmp_path / "many", jobs=2, progress=False)
    there = kept(tmp_path / "many")
    assert len(there) == made > 3
    for cache in ("many", "one"):
        for name in names:
            run_study(name, TINY, tmp_path / f"records-{cache}", tmp_path / cache, progress=False)
    assert kept(tmp_path / "many") == there, "a run was left for the study, or made twice"
    assert set(there) == set(kept(tmp_path / "one"))
    for name in names:
        many, one = ((tmp_path / f"records-{cache}" / f"{name}.json").read_bytes() for cache in ("many", "one"))
        assert many == one


def test_a_plan_knows_what_rests_on_no_result_and_waits_for_what_does(tmp_path: Path) -> None:
    runs, names = Runs(tmp_path, TINY, progress=False), ["ranks", "starts"]
    wanted = grid._plan(names, runs)
    rates = sorted(spec.lr for _, spec in wanted.values())
    assert rates == sorted(TINY.learning_rates) and names == ["ranks", "starts"]  # shared, and no rank as yet
    assert not kept(tmp_path)


def test_a_study_that_asks_for_nothing_more_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "none", lambda runs: [{"row": 1}])
    assert grid.make_runs(["none", "latency"], TINY, tmp_path, jobs=2, progress=False) == 0


def test_a_plan_measures_no_times(tmp_path: Path) -> None:
    runs = Runs(tmp_path, TINY, progress=False)
    runs.wanted = {}
    with pytest.raises(LookupError, match="a plan measures nothing"):
        measure_steps(runs, {}, 1)


@pytest.mark.slow
def test_this_process_makes_them_too_and_reads_a_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [Spec(steps=1, batch_size=2, seed=seed) for seed in range(3)]
    monkeypatch.setitem(STUDIES, "many", lambda runs: runs.records(specs))
    monkeypatch.setattr(grid, "_read", {})
    read, plans, plan, load = [], [], grid._plan, runs_module.load_corpus
    monkeypatch.setattr(runs_module, "load_corpus", lambda name: read.append(name) or load(name))
    monkeypatch.setattr(grid, "_plan", lambda *args: plans.append(args) or (plan(*args) if len(plans) < 4 else {}))
    assert grid.make_runs(["many"], TINY, tmp_path, progress=False) == len(kept(tmp_path)) == 3 and len(plans) == 2
    assert sorted(read) == ["python-docs", "unicode-names"]


@pytest.mark.slow
def test_a_killed_worker_loses_no_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    specs = [Spec(steps=2, batch_size=2, seed=seed) for seed in range(8)]
    monkeypatch.setitem(STUDIES, "many", lambda runs: runs.records(specs))
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    finished: dict[str, int] = {}

    def kill() -> None:  # once some are finished
        while len(kept(tmp_path)) < 3:
            time.sleep(0.05)
        finished.update(kept(tmp_path))
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

    with cluster:
        killer = threading.Thread(target=kill)
        killer.start()
        made = grid.make_runs(["many"], TINY, tmp_path, 1, "dask", cluster.scheduler_address, progress=False)
        killer.join()
    there = kept(tmp_path)
    assert len(there) == 8 and made <= 8
    assert {name: there[name] for name in finished} == finished, "a finished run was made again"


@pytest.mark.slow
def test_a_cluster_of_one_worker_makes_the_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    specs = [Spec(steps=1, batch_size=2, seed=seed) for seed in range(2)]
    monkeypatch.setitem(STUDIES, "many", lambda runs: runs.records(specs))
    monkeypatch.setattr(Runs, "_train", lambda *_: pytest.fail("it was made in this process"))
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        made = grid.make_runs(["many"], TINY, tmp_path, 1, "dask", cluster.scheduler_address, progress=False)
    assert made == len(kept(tmp_path)) == 2


@pytest.mark.slow
def test_a_cluster_of_no_worker_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(grid, "PATIENCE", 1)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        place = cluster.scheduler_address
        with pytest.raises(ValueError, match=f"Dask scheduler at .{place}. has no worker; dask worker {place} starts"):
            grid.make_runs(["ranks"], TINY, tmp_path, 1, "dask", place, progress=False)


def test_a_backend_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="study: backend = 'dusk'; there are loky, dask"):
        grid.make_runs(["ranks"], TINY, tmp_path, 2, "dusk")


@pytest.mark.slow
def test_processes_that_die_are_replaced_and_said_when_all_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [Spec(steps=2, batch_size=2, seed=seed) for seed in range(3)]
    monkeypatch.setitem(STUDIES, "many", lambda runs: runs.records(specs))
    monkeypatch.setattr(grid, "make_one", _die)
    with pytest.raises(RuntimeError, match="workers die before they finish one run"):
        grid.make_runs(["many"], TINY, tmp_path, jobs=2, progress=False)


def _die(runs: Runs, spec: Spec) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return spec.key


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"this worker does not see .*nowhere.*--cache takes a folder that all"):
        grid.make_one(Runs(tmp_path / "nowhere", TINY, progress=False), Spec())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--jobs", "0"], "--jobs"),
        (["--backend", "dusk"], "did you mean 'dask'"),
        (["--scheduler", "tcp://127.0.0.1:1"], "is of --backend dask"),
        (["--backend", "dask", "--scheduler", "tcp://127.0.0.1:1", "--jobs", "2"], "all its workers take runs"),
    ],
)
def test_options_that_do_not_fit(words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["study", "ranks", "--quick", *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(grid, "PATIENCE", 1)
    with pytest.raises(ValueError, match=r"no Dask scheduler at 'tcp://127\.0\.0\.1:1'"):
        grid.make_runs(["ranks"], TINY, tmp_path, 1, "dask", "tcp://127.0.0.1:1", progress=False)
