"""Records of the study, made by hand and tiny: three kinds of matrices, two texts, numbers that are easy to compare."""

import copy

import numpy as np
import pytest

from minilora.analysis import rank, studies
from minilora.analysis.study_figures import FIGURES

KINDS = ("attn.q_proj", "attn.v_proj", "mlp.up_proj")
CORPORA = ("new", "code")
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def mean(value, spread=0.01, number="loss"):
    return {number: value, f"{number}_spread": spread, "seeds": 3}


def methods():
    rows = []
    for corpus in CORPORA:
        for method, loss, old, trained in (("lora", 1.5, 1.4, 1000), ("full", 1.2, 2.0, 10_000)):
            curve = {"step": [0, 5, 10], "loss": [[3.0, 2.0, loss + s] for s in (-0.01, 0, 0.01)]}
            sizes = {"step_seconds": trained / 1e4, "memory_bytes": trained * 16.0, "stored_bytes": trained * 4.0}
            row = {"corpus": corpus, "method": method, "trainable": trained, "lr": 0.01, "curve": curve, "before": 3.0}
            row |= {"old_before": 1.2, **mean(loss), **mean(old, number="old_loss"), **sizes}
            rows.append(row | {"memory_bytes_spread": 0.0, "stored_bytes_spread": 0.0})
    return rows


def spectra():
    rng, rows = np.random.default_rng(0), []
    for method, r in (("lora", 4), ("full", 32)):
        for seed in (0, 1):
            for layer in (0, 1):
                for kind in KINDS:
                    decay = 0.5 ** np.arange(r)[:, None]
                    delta = rng.normal(size=(32, r)) @ (decay * rng.normal(size=(r, 32)))
                    s = rank.singular_values(delta)
                    s[r:] = 0
                    noise = rank.singular_values(rank.random_like(delta, seed))
                    row = {"method": method, "seed": seed, "name": f"blocks.{layer}.{kind}", "spectrum": s.tolist()}
                    row |= {"random": noise.tolist(), "energy_rank": rank.energy_rank(s)}
                    rows.append(row | {"intruders": 2 if method == "lora" else 0})
    return rows


def subspaces():
    rng, rows = np.random.default_rng(0), []
    for kind in KINDS * 2:
        row = {"name": f"blocks.0.{kind}", "delta": 2.0, "weight": 8.0, "random": 0.5, "delta_norm": 6.0}
        row |= {"weight_norm": 9.0, "amplification": 3.0}
        for side in ("lora_A", "lora_B"):
            a, b, c = (rng.normal(size=(8, 32)) for _ in range(3))
            a[0] += 20 * np.ones(32)
            b[0] += 20 * np.ones(32)
            row[f"{side}_ranks"] = row[f"{side}_seeds"] = rank.similarity_grid(a, b).tolist()
            row[f"{side}_random"] = rank.similarity_grid(a, c).tolist()
        rows.append(row)
    return rows


def truncation():
    cut = zip((0, 1, 2, 4, 8, 32), (3.0, 2.0, 1.6, 1.21, 1.2, 1.2), strict=True)
    lora = zip((1, 2, 4, 8), (2.2, 1.6, 1.4, 1.21), strict=True)
    named = (("truncated", cut), ("lora", lora))
    return [{"method": name, "rank": r, **mean(loss)} for name, many in named for r, loss in many]


def matrices():
    sets = {"q": 2.0, "v": 1.8, "all": 1.4}
    return [{"corpus": c, "targets": t, "rank": 4, **mean(loss)} for c in CORPORA for t, loss in sets.items()]


def rank_choice():
    losses = zip((1, 2, 4, 8), (2.0, 1.6, 1.41, 1.4), strict=True)
    return [{"corpus": c, "rank": r, **mean(loss)} for r, loss in losses for c in CORPORA]


def rates():
    best = {"full": 0, "r=8, alpha/r": 2, "r=2, alpha/r": 3, "r=32, alpha/r": 1}
    best |= {"r=2, alpha/sqrt(r)": 2, "r=32, alpha/sqrt(r)": 2}
    return [
        {"kind": kind, "lr": lr, **mean(1 + abs(i - place) / 3)}
        for kind, place in best.items()
        for i, lr in enumerate(RATES)
    ]


def starts():
    rows = []
    for start, a, b, first, loss in (("lora", 0, 2, 3, 1.5), ("both zero", 0, 0, 3, 3), ("both random", 3, 1, 4, 2)):
        row = {"start": start, "gradient_A": float(a), "gradient_B": float(b), "before": 3.0}
        rows.append({**row, **mean(float(first), 0.0, "first"), **mean(float(loss))})
    return rows


def data():
    losses = {"LoRA r=1": (2.0, 1.8, 1.7), "LoRA r=8": (1.8, 1.5, 1.4), "full": (1.8, 1.5, 1.2)}
    sizes = (2_000, 8_000, 32_000)
    return [
        {"method": m, "characters": n, **mean(loss)}
        for m, many in losses.items()
        for n, loss in zip(sizes, many, strict=True)
    ]


ROWS = {
    "methods": methods, "spectra": spectra, "subspaces": subspaces, "truncation": truncation, "matrices": matrices,
    "ranks": rank_choice, "rates": rates, "starts": starts, "data": data,
}  # fmt: skip


@pytest.fixture
def records():
    """records(study, change): the records of a study, with change(row) called on each row."""

    def make(study, change=None):
        rows = copy.deepcopy(ROWS[study]())
        for row in rows if change else ():
            change(row)
        return {"format": studies.FORMAT, "study": study, "question": "?", "scale": {"name": "test"}, "rows": rows}

    return make


@pytest.fixture
def folder(tmp_path, records):
    """A folder with the records of every study."""
    for study in ROWS:
        studies.write_json(tmp_path / "data" / f"{study}.json", records(study))
    return tmp_path / "data"


@pytest.fixture
def figure_of(records):
    """figure_of(name, change): a figure, drawn from changed records."""

    def make(name, change=None):
        needed, function = FIGURES[name]
        return function(*(records(study, change) for study in needed))

    return make


@pytest.fixture
def title(figure_of):
    """title(name, change): what that figure's title says, on one line."""
    return lambda name, change=None: figure_of(name, change).get_suptitle().replace("\n", " ")


@pytest.fixture
def wide():
    """A change of rows: so large a spread that nothing differs clearly."""
    return lambda row: row.update({key: 5.0 for key in row if key.endswith("_spread")})
