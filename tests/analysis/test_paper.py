"""The paper's tables: every row's formula written again from the sizes of its model, and what section 4.2 claims."""

import pytest

from minilora.analysis.paper import paper_rows, paper_table, savings

C = {"RoB_base": 768, "RoB_large": 1024, "DeB_XXL": 1536, "GPT-2 M": 1024, "GPT-2 L": 1280, "GPT-3": 12288}
L = {"RoB_base": 12, "RoB_large": 24, "DeB_XXL": 48, "GPT-2 M": 24, "GPT-2 L": 36, "GPT-3": 96}


def lora(model, rank, targets=2):
    """A and B of square matrices: r (d_in + d_out) each."""
    return L[model] * targets * rank * 2 * C[model]


def adapter(model, width, places=1, norm=False):
    """Down, up and their biases, and a norm of its own."""
    return L[model] * places * (2 * C[model] * width + width + C[model] + 2 * C[model] * norm)


BY_HAND = [  # (table, row, what is printed, the formula)
    (2, "RoB_base (FT)", "125.0", 124_645_632),
    (2, "RoB_base (BitFit)", "0.1", (2 + 12 * 11) * 768),  # the embeddings' norm and the pooler; 11 C a block
    (2, "RoB_base (Adpt^D)", "0.3", adapter("RoB_base", 16)),
    (2, "RoB_base (Adpt^D)", "0.9", adapter("RoB_base", 48)),
    (2, "RoB_base (LoRA)", "0.3", lora("RoB_base", 8)),
    (2, "RoB_large (FT)", "355.0", 355_359_744),
    (2, "RoB_large (LoRA)", "0.8", lora("RoB_large", 8)),
    (2, "RoB_large (Adpt^P)†", "3.0", adapter("RoB_large", 64)),
    (2, "RoB_large (Adpt^P)†", "0.8", adapter("RoB_large", 16)),
    (2, "RoB_large (Adpt^H)†", "6.0", adapter("RoB_large", 64, places=2)),
    (2, "RoB_large (Adpt^H)†", "0.8", adapter("RoB_large", 8, places=2)),
    (2, "RoB_large (LoRA)†", "0.8", lora("RoB_large", 8)),
    (2, "DeB_XXL (FT)", "1500.0", 1_564_549_632),
    (2, "DeB_XXL (LoRA)", "4.7", lora("DeB_XXL", 16)),
    (3, "GPT-2 M (FT)", "354.92", 354_823_168),
    (3, "GPT-2 M (Adapter^L)", "0.37", adapter("GPT-2 M", 6, norm=True)),
    (3, "GPT-2 M (Adapter^L)", "11.09", adapter("GPT-2 M", 224, norm=True)),
    (3, "GPT-2 M (Adapter^H)", "11.09", adapter("GPT-2 M", 112, places=2)),
    (3, "GPT-2 M (FT^Top2)", "25.19", 2 * (12 * 1024**2 + 13 * 1024)),
    (3, "GPT-2 M (PreLayer)", "0.35", 24 * 1024 * 14),
    (3, "GPT-2 M (LoRA)", "0.35", lora("GPT-2 M", 4)),
    (3, "GPT-2 L (FT)", "774.03", 774_030_080),
    (3, "GPT-2 L (Adapter^L)", "0.88", adapter("GPT-2 L", 8, norm=True)),
    (3, "GPT-2 L (Adapter^L)", "23.00", adapter("GPT-2 L", 248, norm=True)),
    (3, "GPT-2 L (PreLayer)", "0.77", 36 * 1280 * 17),
    (3, "GPT-2 L (LoRA)", "0.77", lora("GPT-2 L", 4)),
    (4, "GPT-3 (FT)", "175255.8", 174_604_259_328),
    (4, "GPT-3 (BitFit)", "14.2", 96 * 11 * 12288 + 12288),
    (4, "GPT-3 (PreEmbed)", "3.2", 264 * 12288),
    (4, "GPT-3 (PreLayer)", "20.2", 96 * 12288 * 16),
    (4, "GPT-3 (Adapter^H)", "7.1", adapter("GPT-3", 1, places=2)),
    (4, "GPT-3 (Adapter^H)", "40.1", adapter("GPT-3", 8, places=2)),
    (4, "GPT-3 (LoRA)", "4.7", lora("GPT-3", 2, targets=1)),
    (4, "GPT-3 (LoRA)", "37.7", lora("GPT-3", 8)),
]


def test_every_row_by_hand():
    assert [(r["table"], r["row"], r["printed"], r["formula"]) for r in paper_rows()] == BY_HAND
    for table in (2, 3, 4):
        assert paper_rows(table) == [r for r in paper_rows() if r["table"] == table]
    for row in paper_rows():  # it agrees where the millions round to what is printed
        assert row["agrees"] == (
            abs(row["formula"] / 1e6 - float(row["printed"])) <= 0.5 * 10 ** -len(row["printed"].split(".")[1])
        )


def test_the_notes_say_where_ranks_and_widths_are_from():
    """DeBERTa's printed count needs twice the rank that the appendix prints; GPT-3's widths are in table 15."""
    note = {(r["row"], r["printed"]): r["note"] for r in paper_rows()}
    assert round(lora("DeB_XXL", 8) / 1e6, 1) == 2.4 and round(lora("DeB_XXL", 16) / 1e6, 1) == 4.7
    assert "appendix D.2: r = 8" in note["DeB_XXL (LoRA)", "4.7"] and "code: 16" in note["DeB_XXL (LoRA)", "4.7"]
    for row, tokens in (("GPT-2 M (PreLayer)", 24 * 1024 * 5), ("GPT-2 L (PreLayer)", 36 * 1280 * 5)):
        assert any(f"length 5 gives {tokens / 1e6:.2f};" in words for (name, _), words in note.items() if name == row)
    table_15 = {1: "7.1", 4: "21.2", 8: "40.1", 16: "77.9", 64: "304.4"}  # its column of Adapter-H, all five
    assert all(f"{adapter('GPT-3', r, places=2) / 1e6:.1f}" == printed for r, printed in table_15.items())
    assert [note["GPT-3 (Adapter^H)", table_15[r]] for r in (1, 8)] == ["r = 1 in table 15", "r = 8 in table 15"]


def test_the_savings_by_hand():
    full, one = 174_604_259_328, 18_874_368  # r = 4 on q and v: 2 bytes each
    assert [(s["what"], s["formula"], s["printed"]) for s in savings()] == [
        ("checkpoint, full fine-tuning", f"{2 * full / 1e9:.1f} GB", "350 GB"),
        ("checkpoint, LoRA", f"{2 * one / 1e6:.1f} MB", "35 MB"),
        ("reduction of the checkpoint", f"{full / one:,.0f} x", "10,000 x"),
        ("100 tasks, LoRA", f"{(2 * full + 100 * 2 * one) / 1e9:.1f} GB", "354 GB"),
        ("100 tasks, full fine-tuning", f"{100 * 2 * full / 1e12:.2f} TB", "35 TB"),
        ("memory, full, all in 16 bits", f"{8 * full / 1e12:.2f} TB", "1.2 TB"),
        ("memory, full, mixed precision", f"{16 * full / 1e12:.2f} TB", "1.2 TB"),
        ("memory, LoRA", f"{(2 * (full + one) + 14 * one) / 1e9:.1f} GB", "350 GB"),
    ]
    assert savings()[1]["note"] == "16-bit; 36.0 MiB"


def test_the_tables_text():
    """A mark where formula and print differ, and a line of every row and claim."""
    lines = paper_table().splitlines()
    for row in paper_rows():
        line = next(
            line
            for line in lines
            if line.startswith(row["row"]) and f" {row['printed']} " in f"{line} " and row["note"] in line
        )
        assert (" * " in f"{line} ") == (not row["agrees"]) and f" {row['formula'] / 1e6:,.2f}" in line
    assert all(
        any(s["what"] in line and s["formula"] in line and s["printed"] in line for line in lines) for s in savings()
    )
    assert lines[-1] == "* the formula does not round to the printed figure"
    for odd in (1, 5):
        with pytest.raises(ValueError, match=f"paper_rows: table {odd}, expected 2, 3 or 4"):
            paper_rows(odd)
