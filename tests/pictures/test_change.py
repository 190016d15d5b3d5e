"""How much of the rank is used, and what 16 bits keep: the titles follow the records."""


def of(kind, **numbers):
    """A change of records: numbers of one kind."""
    return lambda row: row.update(numbers) if row["kind"] == kind else None


def test_rank_use_stands_beside_chance(title, figure_of):
    assert title("rank-use").startswith("Of r = 16 LoRA uses 8 by effective rank and 4 by stable rank, ")
    fewer = of("lora, random", effective_rank=14.0, stable_rank=7.0)
    assert title("rank-use", fewer).endswith("fewer than chance: 14 and 7")
    more = of("lora, random", effective_rank=2.0, stable_rank=2.0)
    assert title("rank-use", more).endswith("more than chance: 2 and 2")
    assert "not clearly apart from chance" in title("rank-use")  # in one number it is, in the other not


def test_the_lesson_tells_whether_the_share_of_r_falls(figure_of):
    assert "no clear difference in the share of r that is used" in figure_of("rank-use").get_label()
    label = figure_of("rank-use", of("lora", effective_rank=1.0)).get_label()
    assert "effective rank is 25 % of r at r = 4, 6 % at r = 16" in label
    assert "grows like r to the power 0.5" in figure_of("rank-use").get_label()


def test_sixteen_bits_finds_where_half_is_lost_and_what_the_least_change_keeps(title):
    words = "Where ΔW is 1 % of W, bfloat16 loses half of its entries; at 0.1 % it keeps 20 % of the gain"
    assert title("sixteen-bits") == words
    assert title("sixteen-bits", lambda row: row.update(gone=0.1)).startswith("Bfloat16 keeps half of ΔW's entries")
    better = lambda row: row.update(gain=row["gain_exact"])
    assert title("sixteen-bits", better).endswith("at 0.1 % it keeps 100 % of the gain")
