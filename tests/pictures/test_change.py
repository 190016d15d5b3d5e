"""How much of the rank is used, and what 16 bits keep: the titles follow the records."""


def test_rank_use_tells_both_ranks_and_whether_the_share_falls(title, figure_of):
    assert title("rank-use").startswith("Of r = 16, LoRA uses 8.0 by effective rank and 4.0 by stable rank")
    assert "no clear difference from r = 4 in the share of r" in title("rank-use")
    flat = lambda row: row.update(effective_rank=1.0) if row["kind"] == "lora" else None
    assert title("rank-use", flat).endswith("; 6 % of r, at r = 4 25 %")
    assert "grows like r to the power 0.5" in figure_of("rank-use").get_label()


def test_sixteen_bits_finds_where_half_is_lost(title):
    assert (
        title("sixteen-bits")
        == "Half of ΔW's entries are lost where it is 1 % of W in bfloat16 and 0.1 % of W in float16"
    )
    assert title("sixteen-bits", lambda row: row.update(gone=0.1)) == "Half of ΔW arrives"
