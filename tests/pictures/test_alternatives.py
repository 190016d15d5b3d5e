"""LoRA among its alternatives: the titles and the numbers in the pictures say what the records say."""

import pytest

from minilora.pictures.alternatives import _course, thousands


def only(name, /, **changes):
    """A change of the rows of one method."""
    return lambda row: row.update(changes) if row["method"] == name else None


# --- alternatives ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


def test_a_title_of_alternatives_has_two_lines_at_most(figure_of, records):
    """Long names and ties would make three: then they are counted, and bold letters say who they are."""
    longer = {"new": "unicode-names", "code": "python-code"}

    def change(row):
        row.update(corpus=longer[row["corpus"]])
        if row["corpus"] == "python-code" and row["method"] in ("houlsby", "pfeiffer"):
            row.update(loss=1.71)

    figure = figure_of("alternatives", change)
    words = figure.get_suptitle()
    assert words.count("\n") < 2 and all(len(line) <= 52 for line in words.split("\n"))
    said = "With at most 180 parameters: on names lora-all is clearly best; on code no clear best, 3 of 12 tie"
    assert " ".join(words.split()) == said
    assert [t.get_text() for t in figure.axes[1].texts if t.get_fontweight() == "bold"] == ["1.70", "1.71", "1.71"]


def test_alternatives_say_that_what_is_forgotten_is_not_matched(figure_of):
    """The rate was chosen by the new text alone: the rise of the old loss is a span, and no method is praised."""
    label = figure_of("alternatives").get_label()
    assert "rate was chosen by this loss alone" in label and "rises by +0.05 to +0.80) is not matched" in label
    assert "forgets less" not in label and "forget less" not in label
    assert "+9.80" in figure_of("alternatives", only("full", old_loss=11.0)).get_label()


def test_many_rows_of_alternatives_have_smaller_letters(figure_of):
    sizes = {tick.get_fontsize() for tick in figure_of("alternatives").axes[0].get_yticklabels()}
    more = {"bitfit": "ia3"}
    colours = figure_of("alternatives", lambda row: row.update(method=more.get(row["method"], row["method"])))
    names = [tick.get_text() for tick in colours.axes[0].get_yticklabels()]
    assert sizes == {14} and any(name.startswith("ia3  ") for name in names)


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
