"""How a step grows: which points are measured, which stand on one line, and the powers that are fitted to them."""

import sys

import numpy as np
import pytest

from minilora.bench import benchmark, curves, rows, scaling
from minilora.commands.main import main
from minilora.studies import turns

POWERS = {"length": 1.5, "batch": 1.0, "width": 2.0, "depth": 0.5}


def grown(of=rows.GROWTH, unit="s", theirs=1.25):
    """A row for each point, whose amount is a product of powers of its sizes."""
    found = []
    for method in ("lora", "full"):
        for at in scaling.points():
            amount = 1e-3 * np.prod([float(n) ** POWERS[what] for what, n in at.items()])
            numbers = turns.ratio(np.array([amount]), np.array([theirs * amount]))
            found.append(rows.row(of[method], scaling.workload(at, method).size, rows.EAGER, unit, numbers, details=at))
    return found


def a_record():
    found = grown() + grown(rows.GROWTH_OF_MEMORY, "bytes")
    found += scaling.exponents(found)
    return {"machine": benchmark.machine(), "rows": [r.record() for r in found], "left_out": {}, "profile": []}


def test_one_thing_grows_at_a_time_and_no_point_is_measured_twice():
    points = scaling.points()
    assert len(points) == len({tuple(at.values()) for at in points})
    assert all(sum(n != scaling.BASE[what] for what, n in at.items()) <= 1 for at in points)
    load = scaling.workload({**scaling.BASE, "width": 64}, "full")
    assert load.size == "width 64" and load.data[0].shape == (1, 256)
    assert (load.config.n_embd, load.config.n_head, load.config.n_layer) == (64, 2, 4)
    assert scaling.workload(scaling.BASE, "lora").size == "length 256"
    load = scaling.workload({**scaling.BASE, "batch": 4, "length": 256}, "lora")
    assert load.size == "batch 4" and load.data[0].shape == (4, 256)


def test_the_exponents_are_the_powers():
    found = {(r.what, r.size): r for r in scaling.exponents(grown())}
    for method in rows.TRAINING:
        for grows, power in POWERS.items():
            words = "length ≥ 512" if grows == "length" else grows
            r = found[rows.GROWTH[method] + rows.EXPONENT, words]
            assert r.ours == pytest.approx(power) and r.theirs == pytest.approx(power) and r.ratio is None


def test_lengths_are_fitted_where_attention_is_computed_again_and_have_a_bar():
    found = grown(rows.GROWTH_OF_MEMORY, "bytes")
    for r in found:  # what is short grows in another way
        if r.details["length"] < 512:
            object.__setattr__(r, "ours", 1.0)
    of = {r.size: r for r in scaling.exponents(found) if r.what == rows.GROWTH_OF_MEMORY["lora"] + rows.EXPONENT}
    assert of["length ≥ 512"].ours == pytest.approx(1.5)
    assert of["length ≥ 512"].bar == 1.15 and of["length ≥ 512"].reached is False


def test_every_bar_of_what_grows_is_of_a_point_that_is_measured():
    there = {(r.what, r.size) for r in (*grown(), *grown(rows.GROWTH_OF_MEMORY, "bytes"))}
    there |= {(r.what, r.size) for r in scaling.exponents(grown(rows.GROWTH_OF_MEMORY, "bytes"))}
    kinds = {*rows.GROWTH.values(), *rows.GROWTH_OF_MEMORY.values()}
    bars = [(what, size) for what, size, _ in rows.BARS if what.removesuffix(rows.EXPONENT) in kinds]
    assert len(bars) == 4 and set(bars) <= there


def test_each_point_is_measured_in_time_and_memory_then_the_exponents(monkeypatch):
    row = lambda load, at, turns, of=rows.GROWTH: rows.row(
        of[load.method], load.size, "", "s", {"ours": 1.0, "theirs": 2.0}, details=at
    )
    monkeypatch.setattr(scaling, "GROWING", {"length": (256, 512, 1024), "depth": (1, 4)})
    monkeypatch.setattr(scaling, "time_of", row)
    monkeypatch.setattr(scaling, "memory_of", lambda *args: row(*args, of=rows.GROWTH_OF_MEMORY))
    *jobs, (last, exponents) = list(scaling.scaling_jobs(3))
    assert len(jobs) == 2 * (4 + 3) and last == "exponents"  # full fine-tuning along the lengths
    for _, job in jobs:
        assert len(job()) == 1
    found = exponents()
    assert len(found) == 2 * (2 + 1) and all(abs(r.ours) + abs(r.theirs) < 1e-12 for r in found)


def test_the_command_without_pytorch_says_what_is_left_out(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(scaling, "GROWING", {"depth": (1,)})
    assert main(["bench", "--parts", "scaling", "--repeats", "1"]) == 0
    assert "PyTorch is not installed" in capsys.readouterr().out


@pytest.mark.slow
def test_the_figure_says_what_a_long_text_takes_and_has_every_point():
    picture = curves.growth(a_record())
    title = picture.get_suptitle().replace("\n", " ")
    told = "At T = 2,048 LoRA takes 0.80 of PyTorch's time and 0.80 of its memory; memory grows as T^1.50"
    assert title == told and picture.get_suptitle().count("\n") < 2
    for axes, numbers in zip(picture.axes[:4], scaling.GROWING.values(), strict=True):
        assert [len(line.get_xdata()) for line in axes.lines] == [len(numbers)] * 4  # two methods, two sides


@pytest.mark.slow
def test_the_command_draws_what_it_measured(monkeypatch, tmp_path, capsys):
    def fake(of, unit):
        measured = {(r.size, r.what): r for r in reversed(grown(of, unit))}  # of equal sizes the first
        return lambda load, at, turns: measured[load.size, of[load.method]]

    monkeypatch.setattr(scaling, "time_of", fake(rows.GROWTH, "s"))
    monkeypatch.setattr(scaling, "memory_of", fake(rows.GROWTH_OF_MEMORY, "bytes"))
    files = ["--output", str(tmp_path / "grows.json"), "--figure", str(tmp_path / "grows")]
    assert main(["bench", "--parts", "scaling", "--peers", "torch", *files]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"grows.json", "grows.png", "grows.svg"}
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "length 2,048" in out and "length ≥ 512" in out


def test_a_record_of_nothing_that_grows_has_no_figure():
    with pytest.raises(ValueError, match="no step that grows"):
        curves.growth({"rows": []})
