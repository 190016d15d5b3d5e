"""Intruders: counted where as much was learned, and shrunk beside all of Delta W. The titles follow the records."""

import pytest

from minilora.pictures.figures import make
from minilora.studies import studies


def tuned(**kinds):
    """A change of records: other numbers of intruders, by kind."""
    return lambda row: row.update(intruders=kinds.get(row["kind"], 1.0)) if row["part"] == "none" else None


def test_the_title_counts_at_equal_loss_and_says_the_contrary_of_contrary_records(title, figure_of):
    assert (
        title("intruders") == "At equal loss on the new text LoRA has more intruders than full fine-tuning on each text"
    )
    fewer = "LoRA has fewer intruders than full fine-tuning on each text"
    assert title("intruders", tuned(lora=1.0, full=4.0)).endswith(fewer)
    assert "no clear difference in intruders" in title("intruders", tuned(lora=1.0, full=1.0))
    assert "new, at 1.71: LoRA 3.9, full fine-tuning 0.97" in figure_of("intruders").get_label()


def test_a_rate_at_which_lora_has_more_is_no_answer(title):
    """At its best rate LoRA has more intruders, but where it learned as much as full fine-tuning it has as many: the
    title of old ("LoRA brings in more intruders", at one rate for each) was drawn from the former alone."""

    def as_many_as_learned(row):
        if row["part"] == "none" and row["kind"] in ("lora", "full"):
            level = 1 if row["kind"] == "lora" and row["lr"] == 1e-2 else 0  # the best rate of LoRA: far more
            row.update(loss={1e-3: 2.1, 3e-3: 1.8, 1e-2: 1.6 if row["kind"] == "full" else 1.79}[row["lr"]])
            row.update(intruders=10.0 * level + 1.0)

    words = title("intruders", as_many_as_learned)
    assert "no clear difference in intruders" in words and "more" not in words


def test_methods_that_never_learned_as_much_are_not_compared(title):
    apart = lambda row: row.update(loss=row["loss"] + 3) if row["kind"] == "full" else None
    assert "nothing can be compared" in title("intruders", apart)


def weaker(part, old):
    """A change of records: what the old text's loss becomes by a quarter of a part."""
    return lambda row: row.update(old_loss=old) if (row["part"], row["factor"]) == (part, 0.75) else None


def test_shrinking_them_is_set_beside_shrinking_all_of_the_change(title, figure_of):
    less = "saves less of the old text than shrinking all of ΔW on each text"
    assert title("intruders-shrunk") == f"At equal new loss, shrinking intruders {less}"
    assert "saves more of the old text than" in title("intruders-shrunk", weaker("intruders", 2.0))
    assert "no better or worse" in title("intruders-shrunk", weaker("intruders", 2.2))
    assert "does not bring the old text back" in title("intruders-shrunk", weaker("intruders", 3.4))
    assert "more in 0, less in 8, and are not clearly apart in 0" in figure_of("intruders-shrunk").get_label()


def test_where_the_new_text_gains_the_best_weaker_change_is_to_be_beaten(title):
    """Without a quarter of its intruders the model is better at the new text as well: no weaker change comes there."""
    gains = lambda row: row.update(loss=1.0) if (row["part"], row["factor"]) == ("intruders", 0.75) else None
    assert "saves more of the old text" in title("intruders-shrunk", gains)


def test_records_without_an_intruder_are_refused_in_one_line(records, tmp_path):
    rows = [row for row in records("intruders")["rows"] if row["part"] == "none"]
    studies.write_json(tmp_path / "intruders.json", {**records("intruders"), "rows": rows})
    with pytest.raises(ValueError, match=r"intruders\.json: figures: the records have no row with part = 'intruders'"):
        make("intruders-shrunk", tmp_path)
