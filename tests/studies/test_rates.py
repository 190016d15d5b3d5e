"""The study of learning rates: its sweeps close in on the best rate, and its records are read as they are meant."""

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from minilora.studies import rates
from minilora.studies.runs import FULL, QUICK, Spec
from minilora.studies.studies import load_records

COMMITTED = Path(__file__).parents[2] / "figures" / "data"


class Parabolas:
    """Stands in for `Runs`: the loss is a parabola of log(rate), lowest at `best` and a little off for each seed."""

    def __init__(self, best, scale=FULL, noise=0.02):
        self.best, self.scale, self.noise, self.trained = best, scale, noise, set()

    def loss(self, spec):
        return 1 + (np.log(spec.lr / self.best) + self.noise * (spec.seed - 1)) ** 2

    def records(self, specs):
        self.trained |= {(spec.lr, spec.seed) for spec in specs}
        curve = lambda spec: {"step": [0, 100], "loss": [3.0, self.loss(spec)]}
        return [{"spec": asdict(s), "loss": self.loss(s), "old_loss": 1.0, "curve": curve(s)} for s in specs]


@pytest.mark.parametrize("best", [1e-2, 1.4e-3, 0.11])
def test_a_sweep_ends_with_a_rate_on_each_side_of_the_best_at_every_seed(best):
    runs = Parabolas(best)
    rows = rates._sweep(runs, Spec(rank=4), "alpha")
    lrs, losses = [row["lr"] for row in rows], [row["loss"] for row in rows]
    lowest = int(np.argmin(losses))
    around = lrs[lowest - 1 : lowest + 2]
    assert len(around) == 3 and all(b / a == pytest.approx(1.5, rel=0.01) for a, b in pairwise(around))
    assert abs(np.log(lrs[lowest] / best)) < np.log(1.5) / 2 + 0.01 and 0.01 in lrs  # the rate it began with, too
    assert all(row["seeds"] == 3 and row["rank"] == 4 and row["kind"] == "alpha" for row in rows)
    assert {lr for lr, seed in runs.trained if seed == 2} == set(lrs)
    assert len(runs.trained) <= 3 * 4 + 7  # what lies on the way is looked at with one seed
    assert rates.best_rates(rows) == pytest.approx(best * np.exp([0.02, 0, -0.02]), rel=1e-3)


def test_with_one_seed_the_scales_own_rates_are_enough():
    rows = rates._sweep(Parabolas(4e-3, QUICK), Spec(), "full")
    assert [row["lr"] for row in rows] == list(QUICK.learning_rates) and rows[0]["seeds"] == 1


def made(best, rank=8, kind="alpha", lrs=tuple(1e-2 * 1.5**k for k in range(-3, 4)), bend=1.0):
    """A sweep of parabolas, one best rate for each seed."""
    ends = lambda lr: [[3.0, 1 + bend * np.log(lr / each) ** 2] for each in best]
    rows = [{"kind": kind, "rank": rank, "lr": lr, "step": [0, 9], "curves": ends(lr)} for lr in lrs]
    return [{**row, "loss": float(np.mean(row["curves"], axis=0)[-1]), "loss_spread": 0.0} for row in rows]


def test_the_best_rate_is_the_lowest_point_of_each_seeds_parabola():
    assert rates.best_rates(made((8e-3, 1e-2, 1.3e-2))) == pytest.approx([8e-3, 1e-2, 1.3e-2])
    edge = made((1.0, 1.0))  # beyond the sweep: the best rate of the grid, no extrapolation
    assert rates.best_rates(edge) == pytest.approx([edge[-1]["lr"]] * 2)
    assert rates.best_rates(made((1e-2,), lrs=(3e-3, 1e-2))) == pytest.approx([1e-2])  # two points, no parabola
    assert rates.best_rates(made((1e-2,), bend=-1.0)) in (
        pytest.approx([1e-2 * 1.5**3]),
        pytest.approx([1e-2 / 1.5**3]),
    )
    astray = made((1e-2,))
    astray[-1]["curves"] = [[3.0, float("nan")]]
    assert rates.best_rates(astray) == pytest.approx([1e-2])


def test_ratio_slope_and_the_loss_at_a_rate():
    rows = made((1e-3, 2e-3), kind="full", lrs=tuple(1e-3 * 1.5**k for k in range(-2, 4)))
    rows += [row for r in (1, 8, 64) for row in made((8e-3 * (r / 8) ** -0.25, 8e-3 * (r / 8) ** -0.125), r)]
    assert rates.times_full(rows, "alpha", 8) == pytest.approx([8, 4])
    assert rates.slopes(rows, "alpha") == pytest.approx([-0.25, -0.125])
    assert rates.ranks_of(rows, "alpha") == [1, 8, 64]
    ends = {row["lr"]: [curve[-1] for curve in row["curves"]] for row in rates.sweep(rows, "alpha", 64)}
    assert rates.at(rows, "alpha", 64, 1e-2) == pytest.approx(ends[1e-2])
    assert rates.at(rows, "alpha", 64) == pytest.approx(min(ends.values(), key=sum))
    with pytest.raises(ValueError, match="alpha was looked at with rank 8 alone"):
        rates.slopes([row for row in rows if row["rank"] == 8], "alpha")
    with pytest.raises(ValueError, match="no row with kind = 'beta'"):
        rates.sweep(rows, "beta")
    with pytest.raises(ValueError, match="alpha, rank 8: a rate or its curves are out of shape"):
        rates.sweep([{**row, "lr": -1.0} for row in rows], "alpha", 8)


def test_the_two_conventions_agree_at_rank_8_and_are_what_they_are_called():
    scale = {
        name: [replace(Spec(rank=r), **follow(r)) for r in (1, 8, 64)] for name, follow in rates.CONVENTIONS.items()
    }
    s = {kind: [spec.alpha / spec.rank for spec in many] for kind, many in scale.items()}
    assert s["alpha"] == [16, 2, 0.25] and s["alpha/r"] == [2, 2, 2]
    assert s["rsLoRA"] == pytest.approx([32**0.5, 2, 0.5**0.5])  # as r^-1/2
    assert len({many[1].key for many in scale.values()}) == 1  # one run, kept once


def test_the_committed_records_are_of_a_fine_grid_and_three_seeds():
    records = load_records("rates", COMMITTED)
    assert json.loads((COMMITTED / "rates.json").read_text())["scale"]["seeds"] == [0, 1, 2]
    for corpus in sorted({row["corpus"] for row in records["rows"]}):
        rows = [row for row in records["rows"] if row["corpus"] == corpus]
        assert all(row["seeds"] == 3 and len(row["curves"]) == 3 for row in rows)
        for kind, rank in sorted({(row["kind"], row["rank"]) for row in rows}):
            found = rates.sweep(rows, kind, rank)
            lowest = int(np.argmin([row["loss"] for row in found]))
            assert 0 < lowest < len(found) - 1, f"the best rate of {kind}, rank {rank} stands at the end of its sweep"
            near = [row["lr"] for row in found[lowest - 1 : lowest + 2]]
            assert all(b / a < 1.52 for a, b in pairwise(near))
    names = [row for row in records["rows"] if row["corpus"] == "unicode-names"]
    assert all(rates.ranks_of(names, kind) == list(FULL.ranks) for kind in ("alpha", "alpha/r"))


def test_no_page_gives_the_advice_that_the_records_refute():
    """Lecture 5 said "keep alpha / r fixed", and a picture "about 3 times", one step of a grid of factor three."""
    root = COMMITTED.parents[1]
    refuted = (
        "keep $\\\\alpha/r$ fixed",
        "keep alpha/r fixed",
        "keep α/r fixed",
        "rate about 3 times",
        "about threefold",
    )
    for page in (path for kind in ("*.md", "notebooks/*.*", "figures/*.txt") for path in root.glob(kind)):
        words = " ".join(page.read_text(encoding="utf-8").split()).lower()
        assert not [said for said in refuted if said in words], page.name
