"""Intruders counted where as much was learned, and shrunk: the parts that a study shrinks, and what its rows say."""

import numpy as np
import pytest

from minilora.analysis import rank
from minilora.studies import intruders
from minilora.studies.intruders import at_equal_loss, at_loss, beside_change, learned, piece


def model(loss, old=0.0, seed=0, **more):
    return {"kind": "lora", "part": "none", "factor": 1.0, "seed": seed, "loss": loss, "old_loss": old, **more}


def test_a_number_is_read_off_between_two_models_and_never_beyond_the_last():
    path = [model(1.0, 5.0), model(2.0, 3.0), model(4.0, 2.0)]
    assert at_loss(path, 1.5, "old_loss") == 4.0 and at_loss(path, 3.0, "old_loss") == 2.5
    assert at_loss(path, 4.0, "old_loss") == 2.0
    assert at_loss(path, 0.9, "old_loss") is None and at_loss(path, 4.1, "old_loss") is None
    back = [model(2.0, 5.0), model(1.0, 4.0), model(3.0, 1.0)]  # a weaker change is better first, then worse
    assert at_loss(back, 2.0, "old_loss") == 2.5  # the last place where the loss is 2, not the first


def test_a_kinds_path_ends_at_its_best_rate():
    rows = [model(loss, lr=lr) for lr, loss in ((1e-3, 2.0), (3e-3, 1.5), (1e-2, 1.8))]
    assert [row["lr"] for row in learned(rows, "lora")[0]] == [3e-3, 1e-3]


def test_equal_loss_is_the_lowest_that_all_come_to():
    rows = []
    for kind, losses in (("lora", (2.4, 1.8)), ("full", (2.0, 1.6))):
        for seed in (0, 1):
            rows += [
                {**model(loss + 0.02 * seed, seed=seed), "kind": kind, "lr": lr, "intruders": lr + seed}
                for lr, loss in enumerate(losses)
            ]
    found = at_equal_loss(rows, "intruders")
    assert [pair["lora"]["at"] for pair in found] == pytest.approx([1.82, 1.865, 1.91])
    full = [(2.0 - 1.82) / 0.4, (2.02 - 1.82) / 0.4 + 1]  # seed by seed
    assert found[0]["full"]["intruders"] == pytest.approx(np.mean(full))
    assert found[0]["full"]["intruders_spread"] == pytest.approx((full[1] - full[0]) / 2)
    assert (
        at_equal_loss([{**row, "loss": row["loss"] + 5 * (row["kind"] == "full")} for row in rows], "intruders") == []
    )


def test_a_part_is_set_beside_all_of_the_change_at_the_same_new_loss():
    rows = []
    for seed in (0, 1):
        rows += [model(1.0, 3.0, seed), {**model(1.5, 2.0 + seed, seed), "part": "intruders", "factor": 0.5}]
        rows += [{**model(1 + x, 3 - 2 * x, seed), "part": "change", "factor": 1 - x} for x in (0.25, 0.5, 0.75)]
    part, change = beside_change(rows, 0.5)
    assert (part["saved"], part["saved_spread"]) == (0.5, 0.5)
    assert (change["saved"], change["saved_spread"]) == (1.0, 0.0)
    louder = [{**row, "old_loss": row["old_loss"] + 7 * row["seed"]} for row in rows]  # each seed beside its own model
    assert beside_change(louder, 0.5) == (part, change)
    far = [{**row, "loss": 9.0} if row["part"] == "intruders" else row for row in rows]
    assert beside_change(far, 0.5) is None
    assert beside_change([row for row in rows if (row["part"], row["seed"]) != ("intruders", 1)], 0.5) is None


def test_the_parts_that_are_shrunk():
    rng = np.random.default_rng(0)
    before = rng.normal(size=(24, 16))
    after = before + 8 * rng.normal(size=(24, 2)) @ rng.normal(size=(2, 16))
    found = rank.intruder_dimensions(before, after, 10)
    u, s, vt = np.linalg.svd(after, full_matrices=False)
    parts = {part: piece(part, before, after, found) for part in intruders.FACTORS}
    np.testing.assert_allclose(parts["change"], after - before)
    np.testing.assert_allclose(u[:, found].T @ parts["rest"], 0, atol=1e-9)  # nothing where the intruders are
    inside = u[:, found] @ (u[:, found].T @ (after - before))
    np.testing.assert_allclose(parts["rest"] + inside, after - before, atol=1e-9)
    first = [i for i in range(16) if i not in found][: len(found)]
    np.testing.assert_allclose(parts["others"], (u[:, first] * s[first]) @ vt[first], atol=1e-9)
    for part in ("intruders", "others"):
        kept = np.abs(np.diag(u.T @ parts[part] @ vt.T)) > 1e-9  # which directions
        assert kept.sum() == len(found) and (part == "intruders") == bool(kept[found].all())
