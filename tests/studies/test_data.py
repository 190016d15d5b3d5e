"""How much text: where a run is stopped, by what, and on which piece of the text it was trained."""

from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.studies.data import stopped
from minilora.studies.runs import BLOCK, QUICK, Runs, Spec, blocks


def test_a_run_is_stopped_where_what_is_chosen_on_is_least_and_told_of_by_the_other():
    curve = {"step": [0, 5, 10, 15], "choice": [3.0, 2.5, 2.6, 4.0], "loss": [3.1, 2.7, 2.6, 4.2]}
    end = stopped({"curve": curve})
    assert end.pop("gain") == pytest.approx(0.4)
    assert end == {"step": 5, "loss": 2.7, "last": 4.2, "seen": 2.6, "base": 3.1}


def test_a_run_that_only_gets_worse_is_the_untouched_base():
    end = stopped({"curve": {"step": [0, 5], "choice": [3.0, 3.1], "loss": [3.2, 2.9]}})
    assert (end["step"], end["loss"], end["gain"], end["seen"]) == (0, 3.2, 0, 2.9)


@pytest.mark.parametrize("size", [100, 2000, 2100])
def test_little_text_is_of_blocks_from_all_over_the_text(size):
    """One piece of the names would be of one script, and what is seen of little text would be seen of another text."""
    text = np.arange(100 * BLOCK)
    drawn = [blocks(text, size, seed) for seed in range(20)]
    many = -(-size // BLOCK)
    for tokens in drawn:
        assert len(tokens) == size == len(np.unique(tokens)) and (np.diff(tokens) > 0).all()
        assert (tokens[::BLOCK] * many // len(text) == np.arange(many)).all()  # one in each part
        assert (np.diff(tokens) > 1).sum() <= many - 1
    assert len({tuple(tokens[::BLOCK]) for tokens in drawn}) > 15 and np.array_equal(blocks(text, size, 3), drawn[3])


def test_as_much_text_as_there_is_is_the_text():
    text = np.arange(10 * BLOCK + 7)
    assert np.array_equal(blocks(text, len(text), 3), text) and np.array_equal(blocks(text, 10**6, 3), text)
    assert all(len(blocks(text, size, 0)) == size for size in range(1, len(text) + 1, 61))


@pytest.mark.slow
def test_choosing_changes_nothing_that_is_told(tmp_path):
    runs = Runs(tmp_path, replace(QUICK, windows=2), progress=False)
    spec = {"steps": 2, "batch_size": 2, "characters": 2000, "looks": 1}
    told, both = (runs.record(Spec(**spec, choice=choice)) for choice in (False, True))
    assert "choice" not in told["curve"] and len(both["curve"]["choice"]) == 2
    assert both["curve"] == {**both["curve"], "step": told["curve"]["step"], "loss": told["curve"]["loss"]}
    assert both["curve"]["choice"] != both["curve"]["loss"]
    base = ml.evaluate(ml.load_model("base"), "unicode-names", 2)
    assert both["curve"]["loss"][0] == round(base, 5)
