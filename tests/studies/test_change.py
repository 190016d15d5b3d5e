"""Rank that is used and 16 bits: what the rows hold can be computed otherwise."""

import numpy as np
import pytest

from minilora.analysis import rank, rounding
from minilora.studies import change


def test_chance_has_the_shapes_and_the_rank():
    shapes, rng = [(24, 16), (16, 24)], np.random.default_rng(0)
    deltas = [rng.normal(size=shape) for shape in shapes]
    products = change.at_random("lora", 3, deltas, rng)
    assert [p.shape for p in products] == shapes and all(np.linalg.matrix_rank(p) == 3 for p in products)
    whole = change.at_random("full", 16, deltas, rng)
    assert [np.linalg.norm(m) for m in whole] == pytest.approx([np.linalg.norm(d) for d in deltas])
    assert change.means(deltas)["stable_rank"] == pytest.approx(np.mean([rank.stable_rank(d) for d in deltas]))


@pytest.mark.parametrize("size", [1e-1, 1e-3])
def test_a_merge_keeps_of_the_gain_what_arrives_of_a_change_that_the_loss_is_linear_in(size):
    """With a loss of 5 - <W, Delta W>: what is kept of the gain is `along`, and all of it with the sum in float32."""
    rng = np.random.default_rng(7)
    held = {name: rounding.rounded(rng.normal(size=(32, 24)), "bfloat16") for name in "ab"}
    deltas = {name: size * rng.normal(size=(32, 24)) for name in held}
    loss = lambda held, added: 5 - sum(float(np.vdot(added[name], deltas[name])) for name in added)
    rows = {row["way"]: row for row in change.merged(held, deltas, "bfloat16", 0, loss)}
    for row in rows.values():
        assert row["gain"] / row["gain_exact"] == pytest.approx(row["along"])
        assert row["ratio"] == pytest.approx(size, rel=0.1)
    near, drawn = rows["nearest"], rows["at random"]
    assert near["gone"] == pytest.approx(rounding.predicted(near["ratio"], "bfloat16")["gone"], abs=0.03)
    assert near["gone"] == pytest.approx(near["gone_noise"], abs=0.05)
    assert drawn["along"] == pytest.approx(1, abs=0.15) and drawn["error"] > near["error"]
    assert (near["along"] < 0.7) == (size < 0.01)
