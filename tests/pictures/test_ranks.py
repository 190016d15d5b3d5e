"""Rank and directions: the titles say what the records say."""

import numpy as np


def test_spectra_count_directions(title, records):
    rows = records("spectra")["rows"]
    needed = [round(np.mean([r["energy_rank"] for r in rows if r["method"] == m])) for m in ("lora", "full")]
    words = title("spectra")
    assert f"{needed[0]} of 32 directions with LoRA, {needed[1]} with full fine-tuning" in words
    flat = lambda row: row.update(spectrum=[1.0] * 32)
    assert "29 of 32 directions with LoRA, 29 with full fine-tuning" in title("spectra", flat)
    assert "hold 25 % of full fine-tuning's ΔW" in title("energy", flat)


def test_truncation_finds_the_rank_that_is_as_good_as_all(title):
    assert "cut to rank 4 is as good as whole; LoRA of rank 8 does as well" in title("truncation")
    worse = lambda row: row.update(loss=row["loss"] + 0.5) if row["rank"] in (1, 2, 4, 8) else None
    assert "is clearly worse after every cut; no LoRA up to rank 8" in title("truncation", worse)
    back = lambda row: row.update(loss=1.5) if (row["method"], row["rank"]) == ("truncated", 8) else None
    assert "worse after every cut" in title("truncation", back)  # rank 4 was good, but 8 is not


def test_similarity_compares_with_chance(title):
    assert "A's shared, φ = 0.9" in title("similarity") and "B's shared" in title("similarity")
    none = lambda row: row.update(lora_A_ranks=row["lora_A_random"])
    assert "A's shared no more than by chance" in title("similarity", none)
    assert "B's shared, φ" in title("similarity", none)


def test_amplification_compares_with_random_directions(title):
    assert "W has 4.0 times as much there as at random; ΔW is 3.0 times W there" in title("amplification")
    assert title("amplification", lambda row: row.update(delta=0.2)).startswith("W has no more in ΔW's directions")
