"""Our methods beside PEFT's: the title follows from the two orders, and the columns are these orders."""

import itertools

import pytest

from minilora.analysis.peft_comparison import EXPERIMENTS, best

SHARED = ["full", "lora-qv", "rslora", "dora", "prompt", "prefix"]  # of the records made by hand
BY_PEFT = sorted(SHARED, key=lambda name: -best(name).right)


def losses(order, spread=0.01):
    """A change of the rows: losses that put the shared methods in this order, the best first."""
    return lambda row: (
        row.update(loss=1 + order.index(row["method"]), loss_spread=spread) if row["method"] in order else 0
    )


def test_the_title_follows_from_the_orders(title, figure_of):
    head = "Here and on PEFT's model of 3 billion, 6 methods: "
    assert title("comparison", losses(BY_PEFT)) == head + "the orders agree on each text"
    assert title("comparison", losses(BY_PEFT[::-1])) == head + "the orders are opposed on each text"
    mixed = [BY_PEFT[i] for i in (2, 0, 4, 1, 5, 3)]
    assert title("comparison", losses(mixed)) == head + "no clear agreement on each text"
    turned = lambda row: losses(BY_PEFT[::-1] if row["corpus"] == "code" else BY_PEFT)(row)
    assert title("comparison", turned) == head + "on new the orders agree; on code the orders are opposed"


def test_the_label_counts_the_pairs_that_both_tables_tell_apart(figure_of):
    label = figure_of("comparison", losses(BY_PEFT)).get_label()
    assert "On new Kendall's tau is 1.00 (exact p 0.0028); of 15 pairs both tables tell " in label
    counted = int(label.split("both tables tell ")[1].split()[0])
    far = [abs(best(a).right - best(b).right) > 51 for a, b in itertools.combinations(SHARED, 2)]
    assert counted == sum(far) and f" {counted} apart, {counted} of them in the same order." in label
    blurred = figure_of("comparison", losses(BY_PEFT, spread=9.0)).get_label()
    assert "both tables tell 0 apart, 0 of them in the same order." in blurred
    assert "prefix has 15 % at the first (200 random tokens, rate 1e-3) and 40 % at another" in label


def test_the_columns_are_the_orders_with_their_numbers(figure_of):
    axes = figure_of("comparison", losses(BY_PEFT[::-1])).axes[0]
    said = [(text.get_position()[1], text.get_text()) for text in axes.texts if text.get_position()[1] >= 0]
    column = lambda keep: [words for _, words in sorted((at, words) for at, words in said if keep(words))]
    assert column(lambda words: words.endswith("%")) == [f"{100 * best(name).accuracy:.0f} %" for name in BY_PEFT]
    left = [f"{name}  {1 + place:.2f}" for place, name in enumerate(BY_PEFT[::-1])]
    assert column(lambda words: not words.endswith("%") and not words[0].isdigit()) == left
    lines = {line.get_ydata()[1]: list(line.get_ydata()) for line in axes.lines}
    assert lines == {place: [5 - place, place, 5 - place] for place in range(6)}


def test_records_that_share_too_few_methods(figure_of):
    alone = lambda row: row.update(method=f"my {row['method']}") if row["method"] not in SHARED[:2] else None
    with pytest.raises(ValueError, match="share 2 methods with PEFT's; 3 have an order"):
        figure_of("comparison", alone)
    assert set(SHARED) < set(EXPERIMENTS)
