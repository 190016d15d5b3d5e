"""Learning from rewards beside learning from examples: the title and the label say what the records say."""

import numpy as np
import pytest


def only(way, /, **changes):
    """A change of the rows of one way."""
    return lambda row: row.update(changes) if row["way"] == way else None


def share(row, value):
    """A row whose seeds end at this share."""
    row["reward"] = value
    row["curve"]["reward"] = [[*row["curve"]["reward"][0][:-1], value + s] for s in (-0.01, 0, 0.01)]


def test_how_few_are_enough_follows_from_the_records(title, wide):
    assert title("rewards") == "200 parameters are enough to learn from rewards, 1k from examples"
    turned = lambda row: row.update(way={"rewards": "examples", "examples": "rewards"}[row["way"]])
    assert title("rewards", turned) == "1k parameters are enough to learn from rewards, 200 from examples"
    alike = lambda row: share(row, {20: 0.1, 200: 0.9, 1000: 0.9, 10_000: 0.9}[row["trainable"]])
    assert title("rewards", alike) == "200 parameters are enough, from rewards and from examples"
    all_of_them = lambda row: share(row, row["trainable"] / 11_000)
    assert title("rewards", all_of_them) == "10k parameters are enough, from rewards and from examples"


def test_what_teaches_nothing_is_said(title, wide):
    idle = lambda row: share(row, 0.045) if row["way"] == "rewards" else None
    assert (
        title("rewards", idle) == "1k parameters are enough to learn from examples; rewards teach nothing that is clear"
    )
    assert title("rewards", wide) == "Rewards and examples teach nothing that is clear"


def test_nine_tenths_of_the_best_gain_are_enough(title):
    """0.04 + 0.9 * 0.91 = 0.859, which a range over the seeds has to reach."""
    near = lambda row: share(row, 0.85) if (row["way"], row["trainable"]) == ("rewards", 20) else None
    assert title("rewards", near).startswith("20 parameters are enough to learn from rewards")
    short = lambda row: share(row, 0.84) if (row["way"], row["trainable"]) == ("rewards", 20) else None
    assert title("rewards", short).startswith("200 parameters are enough to learn from rewards")


def test_the_label_sets_the_ways_beside_each_other_at_each_size(figure_of, wide):
    label = figure_of("rewards").get_label()
    assert "At the same size: rewards come further with 20, 200, 1k and 10k parameters." in label
    assert "no clear difference with 20, 200, 1k and 10k parameters" in figure_of("rewards", wide).get_label()
    few = lambda row: share(row, 0.1) if (row["way"], row["trainable"]) == ("rewards", 20) else None
    label = figure_of("rewards", few).get_label()
    assert "rewards come further with 200, 1k and 10k; no clear difference with 20 parameters." in label
    assert "goes from 1.10 to 2.00 with rewards and 1.20 with examples" in label and "'WE WITH WE'" in label


def test_seeds_that_end_far_apart_are_told(figure_of):
    def lost(row):
        if row["trainable"] == 1000 and row["way"] == "rewards":
            row.update(reward=0.6, reward_spread=0.45)
            row["curve"]["reward"] = [[*row["curve"]["reward"][0][:-1], value] for value in (0.9, 0.9, 0.0)]

    assert "seeds" not in figure_of("rewards").get_label().partition("Enough")[2]
    assert "With 1k parameters the seeds of rewards end between 0 % and 90 %" in figure_of("rewards", lost).get_label()


def test_the_picture_holds_the_seeds(figure_of):
    left, right = figure_of("rewards").axes
    for container, shares in zip(left.containers, ((60, 90, 95, 95), (10, 20, 80, 85)), strict=True):
        line, _, [bars] = container.lines
        assert line.get_xdata().tolist() == [20, 200, 1000, 10_000]
        np.testing.assert_allclose(line.get_ydata(), shares)
        ends = [[segment[0][1], segment[1][1]] for segment in bars.get_segments()]
        np.testing.assert_allclose(ends, [[s - 1, s + 1] for s in shares])
    assert [text.get_text() for text in right.texts] == ["rewards", "examples"]
    assert right.get_title(loc="left") == "LoRA of rank 1"


def test_records_without_rank_one(figure_of):
    with pytest.raises(ValueError, match="no row with size = 'r=1'"):
        figure_of("rewards", lambda row: row.update(size="r=4") if row["size"] == "r=1" else None)
