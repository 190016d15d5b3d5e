"""How much text: the titles say what the records say, and little text is judged beside the untouched base."""

from matplotlib.text import Text


def test_batches_tell_what_becomes_of_the_gap(title, figure_of, wide):
    assert title("batches") == (
        "From batches of 1 to 64, LoRA's gap to full grows at r=8, does not clearly change at r=64"
    )
    assert title("batches", wide).endswith("LoRA's gap to full does not clearly change at either rank")
    less = lambda row: row.update(gap=0.3 - row["gap"]) if row["method"] == "LoRA r=8" else None
    assert "gap to full shrinks at r=8" in title("batches", less)
    peak = lambda row: row.update(gap=0.9) if row["method"] == "LoRA r=64" and row["steps"] == 16 else None
    assert "does not" not in title("batches", peak) and "grows, then shrinks at r=64" in title("batches", peak)
    trough = lambda row: row.update(gap=-0.9) if row["method"] != "full" and row["steps"] == 16 else None
    assert title("batches", trough).endswith("shrinks, then grows at either rank")
    label = figure_of("batches").get_label()
    assert "the gap is for LoRA r=8 +0.10 and +0.30 nats and for LoRA r=64 +0.10 and +0.10 nats" in label
    assert "In as few steps (2) of 8 windows it is +0.10 for LoRA r=8, clearly less than with 64 and +0.10" in label
    fewer = lambda row: row.update(gap=0.3) if row["steps"] == 2 and row["batch_size"] == 8 else None
    assert "+0.30 for LoRA r=8, not clearly other than with 64" in figure_of("batches", fewer).get_label()


def test_little_text_is_no_victory_where_not_training_is_as_good(title, figure_of, wide):
    """What was said before, "LoRA wins up to 8,000 characters", was of two runs that were both worse than the base."""
    assert title("data") == (
        "Stopped in time, LoRA r=1 beats full at 2k and 8k, loses to full at 32k; LoRA r=8 loses to full at 32k"
    )
    label = figure_of("data").get_label()
    assert "At 2k only LoRA r=1 clearly beats the untouched base." in label
    assert "flatter by up to 0.02 nats" in label and "at 2k is 1.10 nats worse" in label
    same = lambda row: row.update(gap=0.0)
    assert title("data", same) == "Stopped in time, LoRA does not clearly differ from full, at either rank"
    assert title("data", wide) == title("data", same)
    assert "At 2k nothing clearly beats the untouched base; at 8k nothing" in figure_of("data", wide).get_label()
    worse = lambda row: row.update(last=9.0) if row["method"] == "full" else None  # what runs to their end come to
    assert title("data", worse) == title("data")
    well = lambda row: row.update(gain=1.0)
    assert "Every method clearly beats the untouched base at every amount" in figure_of("data", well).get_label()


def test_the_base_is_a_line_in_both_panels(figure_of):
    figure = figure_of("data", lambda row: row.update(base=5.5))
    for axes in figure.axes:
        assert any(list(line.get_ydata()) == [5.5, 5.5] for line in axes.lines) and axes.get_ylim()[1] > 5.5
    assert [text.get_text() for text in figure.findobj(Text)].count("base") == 1
