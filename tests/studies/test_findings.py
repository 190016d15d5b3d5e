"""Findings: what is clearly different, and how it is told."""

from minilora.studies import findings


def mean(loss, spread):
    return {"loss": loss, "loss_spread": spread}


def test_different_is_what_lies_further_apart_than_both_spreads():
    assert findings.clearly(mean(1.0, 0.25), mean(2.0, 0.5)) == -1
    assert findings.clearly(mean(2.0, 0.25), mean(1.0, 0.5)) == 1
    assert findings.clearly(mean(1.0, 0.5), mean(2.0, 0.5)) == 0  # the ranges touch
    rows = [mean(2.0, 0.1), mean(1.0, 0.1), mean(1.15, 0.1)]
    assert findings.best_of(rows) == (rows[1], rows[1:])


def test_findings_in_words():
    assert findings.joined({"a": "x", "b": "x"}) == "x on each text" and findings.joined({"a": "x"}) == "x"
    assert findings.joined({"a": "x", "b": "y"}) == "on a x; on b y"
    assert [findings.percent(share) for share in (0, 0.004, 0.094, 1)] == ["0 %", "0.4 %", "9 %", "100 %"]
    assert findings.listed(["q"]) == "q" and findings.listed(["q", "k", "v"]) == "q, k and v"
    assert findings.seeds_note([{"seeds": 3}, {"seeds": 1}]) and not findings.seeds_note([{"seeds": 2}])


def test_rows_are_chosen_ordered_and_grouped():
    rows = [{"name": f"blocks.{i}.attn.{kind}_proj", "n": -i} for i in (0, 1) for kind in "qv"]
    assert findings.by_kind(rows) == {"q": rows[::2], "v": rows[1::2]}
    assert findings.ordered(rows, "n", name="blocks.1.attn.q_proj") == [rows[2]]
    assert [row["n"] for row in findings.ordered(rows, "n")] == [-1, -1, 0, 0]
    assert findings.each(rows, "n") == [0, -1]
