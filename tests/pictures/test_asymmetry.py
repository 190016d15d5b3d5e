"""Are A and B alike: the title says what the records say, for each text, at both ranks."""


def test_asymmetry_tells_who_wins_alone_and_who_begins(title, figure_of, wide):
    assert title("asymmetry") == "Alone, B beats A on each text; A random is the better start on each text"
    swap = {"A": "B", "B": "A", "A, r=16": "B, r=16", "B, r=16": "A, r=16"}
    other = lambda row: row.update(kind=swap.get(row["kind"], row["kind"]))
    assert title("asymmetry", other).startswith("Alone, A beats B on each text")
    wide_title = title("asymmetry", wide)
    assert wide_title.startswith(
        "Alone, no clear difference between B and A on each text; no clear difference by which"
    )
    narrow = lambda row: row.update(loss=1.8) if row["kind"] == "A, r=16" and row["corpus"] == "code" else None
    assert "B beats A on new, B beats A at r = 8 only on code" in title("asymmetry", narrow)
    cross = lambda row: row.update(loss=1.5) if row["kind"] == "A, r=16" else None
    assert "B and A change places with the rank" in title("asymmetry", cross)
    late = lambda row: row.update(loss=1.5) if row["kind"] == "A and B, B random" else None
    assert "B random is the better start" in title("asymmetry", late)


def test_what_one_text_alone_shows_is_said_of_that_text(title):
    """One text was looked at before, and the title spoke of A and B."""
    alike = lambda row: row.update(loss=1.8) if row["corpus"] == "code" else None
    assert title("asymmetry", alike) == "Alone, B beats A on new only; A random is the better start on new only"


def test_one_factor_is_compared_at_as_many_parameters(figure_of):
    said = lambda change: figure_of("asymmetry", change).get_label()
    assert "B alone at r = 16 is not clearly different from both at r = 8 on each text" in said(None)
    worse = lambda row: row.update(loss=1.9) if row["kind"] == "B, r=16" else None
    assert "B alone at r = 16 is worse than both at r = 8 on each text" in said(worse)
    better = lambda row: row.update(loss=1.7) if row["kind"] == "B, r=16" else None
    assert "B alone at r = 16 is better than both at r = 8 on each text" in said(better)
