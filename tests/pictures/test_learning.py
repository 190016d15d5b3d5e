"""LoRA against full fine-tuning: the titles say what the records say."""

import pytest


@pytest.fixture
def swap(records):
    """A change of rows: LoRA's numbers for full fine-tuning's and the other way round."""
    table = {row["method"]: row for row in records("methods")["rows"][:2]}

    def change(number, row):
        row[number] = table["full" if row["method"] == "lora" else "lora"][number]

    return lambda number: lambda row: change(number, row)


def test_loss_curves_compare_the_ends(title, wide, swap):
    assert title("loss-curves") == "Full fine-tuning ends below LoRA on each text; LoRA trains 10 % of the parameters"
    assert title("loss-curves", swap("loss")).startswith("LoRA ends below full fine-tuning on each text")
    assert title("loss-curves", wide).startswith("No clear difference between LoRA and full fine-tuning on each text")
    mixed = lambda row: row.update(loss=1.0) if (row["corpus"], row["method"]) == ("code", "lora") else None
    assert "On new full fine-tuning ends below LoRA; on code LoRA ends below" in title("loss-curves", mixed)
    one = lambda row: row.update(seeds=1)
    assert title("loss-curves", one).endswith("(one seed: spread unknown)")


def test_costs_are_ratios(title):
    assert title("costs") == "LoRA: 10 % of the step time; 10 % of the memory; 10 % of the bytes to store"
    near = lambda row: row.update(step_seconds=0.101 if row["method"] == "lora" else 0.1, memory_bytes_spread=1e6)
    assert (
        title("costs", near) == "LoRA: 10 % of the bytes to store; no clear difference in the step time and the memory"
    )


def test_costs_say_what_equally_many_steps_do_not_make_equal(figure_of, swap):
    """From 2.0 to 1.2 in steps 5 to 10, full passes LoRA's 1.5 at 8.1; the costs themselves are of a step."""
    label = figure_of("costs").get_label()
    assert "where LoRA ends after 10 steps, full fine-tuning is after 8." in label
    near = lambda row: row.update(curve={"step": [0, 5, 10], "loss": [[3.0, 1.4, 1.2]]}) if row["loss"] == 1.2 else None
    assert "LoRA ends after 10 steps, full fine-tuning is after 5." in figure_of("costs", near).get_label()
    assert "where full fine-tuning ends after 10 steps, LoRA is" in figure_of("costs", swap("loss")).get_label()
