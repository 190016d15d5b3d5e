"""A classifier learns other pictures: the title says who errs least, and who forgets, as the records have it."""


def test_images_tells_who_errs_least_and_who_forgets(title, figure_of, wide):
    assert title("images") == "LoRA errs least (6 %); at equal error LoRA forgets less than full"
    assert title("images", wide).startswith("No clear difference in error; ")
    two = lambda row: row.update(error=0.06) if row["method"] == "last block" else None
    assert "Last block and LoRA err least (6 %)" in title("images", two)
    swap = {"lora": "full", "full": "lora"}
    other = lambda row: row.update(method=swap.get(row["method"], row["method"]))
    assert title("images", other).endswith("Full errs least (6 %); at equal error LoRA forgets more than full")

    def alike(row):
        for at in row["matched"]:
            at["old"] = [0.1, 0.2, 0.3]

    assert title("images", alike).endswith("at equal error LoRA clearly forgets neither more nor less than full")
    assert "Where 30 % of Greek is wrong" in figure_of("images").get_label()


def test_one_seed_is_said(title):
    assert title("images", lambda row: row.update(seeds=1)).endswith("(one seed: spread unknown)")
