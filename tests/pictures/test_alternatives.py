"""LoRA among its alternatives: the titles and the numbers in the pictures say what the records say."""

import numpy as np
import pytest
from matplotlib.text import Text

from minilora.pictures.alternatives import _course, thousands


def words_of(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def only(name, /, **changes):
    """A change of the rows of one method."""
    return lambda row: row.update(changes) if row["method"] == name else None


# --- alternatives ----------------------------------------------------------------------------------------------------


def test_alternatives_name_the_best_of_those_that_train_few_parameters(title, wide):
    assert title("alternatives") == "With at most 180 parameters: lora-all is clearly best on each text"
    assert "parameters: houlsby and lora-all are best on each" in title("alternatives", only("houlsby", loss=1.71))
    assert "parameters: no clear best, 12 of 12 tie on each text" in title("alternatives", wide)
    one = lambda row: row.update(loss=1.0) if (row["corpus"], row["method"]) == ("code", "dora") else None
    assert title("alternatives", one).endswith("on new lora-all is clearly best; on code dora is clearly best")
    assert title("alternatives", only("full", loss=0.1)) == title("alternatives")  # it trains too many to be meant


def test_alternatives_show_every_method_on_each_text(figure_of, records):
    figure, rows = figure_of("alternatives"), records("methods")["rows"]
    assert "Best of all full on each text" in figure.get_label()
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    by_loss = sorted(rows[:16], key=lambda row: row["loss"])
    assert names == [f"{row['method']}  {thousands(row['trainable'])}" for row in by_loss]
    for axes in figure.axes:
        dots = [(bar.lines[0].get_xdata()[0], bar.lines[0].get_ydata()[0]) for bar in axes.containers]
        assert dots == [(row["loss"], place) for place, row in enumerate(by_loss)]
        bold = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"]
        assert bold == ["1.70"]


def test_alternatives_without_the_method_that_sets_the_budget(figure_of):
    with pytest.raises(ValueError, match="no row with method = 'lora-qv'"):
        figure_of("alternatives", only("lora-qv", method="lora-q"))


def test_counts_in_few_letters():
    counts = (80, 999, 1536, 8000, 9949, 9951, 16_384, 822_016)
    assert [thousands(n) for n in counts] == ["80", "999", "1.5k", "8k", "9.9k", "10k", "16k", "822k"]


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_sizes_tell_the_course_of_each_method(title, figure_of, wide):
    assert title("sizes") == (
        "LoRA: still improving; adapters: no gain beyond 8k; prefix: worse beyond 8k; prompt: no clear change"
    )
    assert title("sizes", wide) == "LoRA, adapters, prefix and prompt: no clear change"
    assert "prefixes turn worse with more tokens; here they do, too" in figure_of("sizes").get_label()
    assert "here they do not" in figure_of("sizes", only("prefix", loss=2.2)).get_label()
    assert "leave 64 places to the text" in figure_of("sizes").get_label()


def test_what_the_text_loses_to_a_prefix_is_told_apart(figure_of):
    label = figure_of("sizes").get_label()
    assert "the base model's loss is 3.25, beside 3.00;" in label and "the prefix is: worse beyond 8k." in label
    short = lambda row: row.update(base_loss=3.0 if row["size"] < 64 else 4.0)  # the short text explains the rise
    label = figure_of("sizes", short).get_label()
    assert "here they do, too" in label and "the prefix is: still improving." in label


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((3, 2, 1), "still improving"),
        ((3, 1, 1), "no gain beyond 2k"),
        ((3, 1, 2), "worse beyond 2k"),
        ((1, 2, 3), "worse beyond 1k"),
        ((2, 3, 1), "up and down"),
        ((1, 2, 1), "up and down"),
        ((1, 1, 1), "no clear change"),
    ],
)
def test_a_course_in_words(losses, said):
    rows = [{"trainable": 1000 * (i + 1), "loss": loss, "loss_spread": 0.1} for i, loss in enumerate(losses)]
    assert _course(rows) == said


# --- bits ------------------------------------------------------------------------------------------------------------


def test_bits_tell_what_four_bits_cost_and_what_qlora_repairs(title, figure_of, wide):
    assert title("bits") == (
        "4.1-bit NF4 costs +0.020 nats, int2 +2.410; QLoRA on NF4 ends 0.005 above LoRA"
    )  # fmt: skip
    assert title("bits", wide).endswith("QLoRA on NF4 shows no clear difference from LoRA")
    label = figure_of("bits").get_label()
    assert "Merged and quantised again, NF4 costs +0.035 nats" in label
    assert "stays above LoRA on float32 with int2, int3, nf4 double and int4 double." in label
    label = figure_of("bits", wide).get_label()
    assert "NF4 costs nothing clear" in label and "QLoRA repairs all of them" in label


def test_a_huge_loss_is_written_and_does_not_squash_the_rest(figure_of):
    figure = figure_of("bits")
    [axes], words = figure.axes, words_of(figure)
    assert axes.get_ylim()[1] < 1.25
    assert [w for w in words if w.startswith("↑")] == ["↑ 3.50", "↑ 1.60", "↑ 3.20", "↑ 1.60", "↑ 1.50"]
    assert len(axes.containers) == 3 * 8 - 5  # a mark for every other loss
    near = figure_of(
        "bits", lambda row: row.update(loss_before=min(row["loss_before"], 1.12), again_loss=1.1, loss=1.1)
    )
    assert not [w for w in words_of(near) if w.startswith("↑")]  # nothing is cut off that can be shown
    bits = [float(tick.get_text().split()[0]) for tick in axes.get_xticklabels()]
    assert bits == sorted(bits) and bits[0] == 2.13 and bits[-1] == 32


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_tasks_tell_what_is_forgotten(title, figure_of, wide):
    assert title("tasks") == (
        "Trained in sequence the model forgets docs (+2.00) and code (+1.00), adapters nothing"
    )  # fmt: skip
    assert title("tasks", wide) == "Trained in sequence the model forgets nothing, adapters nothing"
    worse = lambda row: row.update(loss=9.0) if (row["stage"], row["text"]) == ("my-names", "my-docs") else None
    assert title("tasks", worse).endswith("adapters docs (+7.50)")
    assert "takes 300 microseconds" in figure_of("tasks").get_label()


def test_the_heat_maps_hold_a_row_for_each_stage(figure_of):
    sequential, adapters = (axes.images[0].get_array() for axes in figure_of("tasks").axes)
    assert np.array_equal(sequential, [[3, 3, 3], [1.5, 3, 3], [2.5, 1.5, 3], [3.5, 2.5, 1.5]])
    assert np.array_equal(adapters, [[3, 3, 3], [1.5, 3, 3], [1.5, 1.5, 3], [1.5, 1.5, 1.5]])


# --- latency ---------------------------------------------------------------------------------------------------------


def test_latency_compares_merged_and_unmerged(title, figure_of):
    near = lambda row: row.update(ratio=1.2) if (row["method"], row["model"]) == ("lora", "gpt2") else None
    assert title("latency", near) == "Merged LoRA takes the base model's time; unmerged 1.20 to 1.40 times"
    off = lambda row: row.update(ratio=1.06) if (row["method"], row["batch"]) == ("lora merged", 32) else None
    assert title("latency", off).startswith("Merged LoRA takes 1.01 to 1.06 times the base model's time")
    assert "within noise of the base model in 12 of 14 cases" in figure_of("latency", off).get_label()


def test_ratios_are_in_colour_where_they_are_not_noise(figure_of):
    only_lora = lambda row: row.update(ratio=1.5) if (row["method"], row["task"]) == ("lora", "forward") else None
    figure = figure_of("latency", only_lora)
    token, _, forward, _ = figure.axes  # one token: two models; forward: two models
    for axes, lora in ((token, 1.4), (forward, 1.5)):
        shown = 2 ** np.asarray(axes.images[0].get_array())
        assert shown.shape == (6, 4)
        assert np.allclose(shown, np.array([[lora, 1, 1.3, 1.2, 1, 0.9]]).T)  # 1.01 and 1.04 are within 0.05 of 1
    assert words_of(figure).count("1.04") == 14 and words_of(figure).count("1.50") == 7


def test_step_memory_tells_the_shares_and_stacks_the_parts(figure_of, title):
    assert title("step-memory") == "LoRA on q and v trains in 0.70 and 0.25 of full fine-tuning's memory"
    base = figure_of("step-memory").axes[0]
    heights = [bar.get_height() for bar in base.patches]
    assert heights[:4] == [1, 1, 2, 4] and [bar.get_y() for bar in base.patches[:4]] == [0, 1, 2, 4]
    assert [float(mark.get_ydata()[0]) for mark in base.lines] == pytest.approx([8, 5.6, 7.2])
