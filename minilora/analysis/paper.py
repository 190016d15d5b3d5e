"""The trainable-parameter columns of the LoRA paper, computed, beside what the paper prints.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", tables 2, 3 and 4; ranks and widths from its
appendix D, for GPT-3's adapters from appendix F.2, table 15, and where noted from the code released with it. Where
formula and print differ, both are shown and the note says what is known about it. A dagger is the paper's: runs in the
setup of Houlsby et al. 2019. PreLayer's length on GPT-2 is not in the paper, which refers to Li & Liang 2021 for it:
they give 5 for E2E, and the column prints 0.1 % of the model, as their table does.
"""

from typing import Any

from ..nn.architectures import size
from .costs import training_memory
from .methods import plan

# (table, the paper's row, printed millions with their digits, model, method, options, note)
_ROWS: list[tuple[int, str, str, str, str, dict[str, Any], str]] = [
    (2, "RoB_base (FT)", "125.0", "roberta-base", "full", {}, "print: nominal size"),
    (2, "RoB_base (BitFit)", "0.1", "roberta-base", "bitfit", {}, ""),
    (2, "RoB_base (Adpt^D)", "0.3", "roberta-base", "pfeiffer", {"bottleneck": 16}, "width not given; 16 fits"),
    (2, "RoB_base (Adpt^D)", "0.9", "roberta-base", "pfeiffer", {"bottleneck": 48}, "width not given; 48 fits"),
    (2, "RoB_base (LoRA)", "0.3", "roberta-base", "lora", {"rank": 8}, ""),
    (2, "RoB_large (FT)", "355.0", "roberta-large", "full", {}, "print: nominal size"),
    (2, "RoB_large (LoRA)", "0.8", "roberta-large", "lora", {"rank": 8}, ""),
    (2, "RoB_large (Adpt^P)†", "3.0", "roberta-large", "pfeiffer", {"bottleneck": 64}, "3.0 if a million is 2^20"),
    (2, "RoB_large (Adpt^P)†", "0.8", "roberta-large", "pfeiffer", {"bottleneck": 16}, ""),
    (2, "RoB_large (Adpt^H)†", "6.0", "roberta-large", "houlsby", {"bottleneck": 64}, "6.0 if a million is 2^20"),
    (2, "RoB_large (Adpt^H)†", "0.8", "roberta-large", "houlsby", {"bottleneck": 8}, ""),
    (2, "RoB_large (LoRA)†", "0.8", "roberta-large", "lora", {"rank": 8}, ""),
    (2, "DeB_XXL (FT)", "1500.0", "deberta-v2-xxlarge", "full", {}, "print: nominal size"),
    (2, "DeB_XXL (LoRA)", "4.7", "deberta-v2-xxlarge", "lora", {"rank": 16}, "appendix D.2: r = 8; its code: 16"),
    (3, "GPT-2 M (FT)", "354.92", "gpt2-medium", "full", {}, "no cause given for the 0.10 more"),
    (3, "GPT-2 M (Adapter^L)", "0.37", "gpt2-medium", "pfeiffer", {"bottleneck": 6, "adapter_norm": True}, ""),
    (3, "GPT-2 M (Adapter^L)", "11.09", "gpt2-medium", "pfeiffer", {"bottleneck": 224, "adapter_norm": True}, ""),
    (3, "GPT-2 M (Adapter^H)", "11.09", "gpt2-medium", "houlsby", {"bottleneck": 112}, "no width gives the print"),
    (3, "GPT-2 M (FT^Top2)", "25.19", "gpt2-medium", "last-blocks", {"blocks": 2}, ""),
    (3, "GPT-2 M (PreLayer)", "0.35", "gpt2-medium", "prelayer", {"tokens": 14}, "length 5 gives 0.12; 14 is nearest"),
    (3, "GPT-2 M (LoRA)", "0.35", "gpt2-medium", "lora", {}, "formula: 0.39. print: 0.1 % of model"),
    (3, "GPT-2 L (FT)", "774.03", "gpt2-large", "full", {}, ""),
    (3, "GPT-2 L (Adapter^L)", "0.88", "gpt2-large", "pfeiffer", {"bottleneck": 8, "adapter_norm": True}, ""),
    (3, "GPT-2 L (Adapter^L)", "23.00", "gpt2-large", "pfeiffer", {"bottleneck": 248, "adapter_norm": True}, ""),
    (3, "GPT-2 L (PreLayer)", "0.77", "gpt2-large", "prelayer", {"tokens": 17}, "length 5 gives 0.23; 17 is nearest"),
    (3, "GPT-2 L (LoRA)", "0.77", "gpt2-large", "lora", {}, "formula: 0.74. print: 0.1 % of model"),
    (4, "GPT-3 (FT)", "175255.8", "gpt3-175b", "full", {}, "no cause given for the 0.4 % more"),
    (4, "GPT-3 (BitFit)", "14.2", "gpt3-175b", "bitfit", {}, "11 C a block; 12 C gives the print"),
    (4, "GPT-3 (PreEmbed)", "3.2", "gpt3-175b", "prompt", {"tokens": 256 + 8}, ""),
    (4, "GPT-3 (PreLayer)", "20.2", "gpt3-175b", "prelayer", {"tokens": 8 + 8}, "the paper's own formula is less"),
    (4, "GPT-3 (Adapter^H)", "7.1", "gpt3-175b", "houlsby", {"bottleneck": 1}, "r = 1 in table 15"),
    (4, "GPT-3 (Adapter^H)", "40.1", "gpt3-175b", "houlsby", {"bottleneck": 8}, "r = 8 in table 15"),
    (4, "GPT-3 (LoRA)", "4.7", "gpt3-175b", "lora", {"rank": 2, "target_modules": ("v_proj",)}, ""),
    (4, "GPT-3 (LoRA)", "37.7", "gpt3-175b", "lora", {"rank": 8}, ""),
]


def paper_rows(table: int | None = None) -> list[dict[str, Any]]:
    """The rows of table 2, 3 or 4, or of all.

    -> [{"table", "row", "model", "method", "options", "formula" (exact), "printed" (millions, the paper's digits),
    "agrees" (whether the formula rounds to what is printed), "note"}]
    """
    if table not in (None, 2, 3, 4):
        raise ValueError(f"paper_rows: table {table}, expected 2, 3 or 4")
    rows = []
    for number, row, printed, model, method, options, note in _ROWS:
        if table not in (None, number):
            continue
        if (
            method == "prelayer"
        ):  # section 5.1: |Theta| = L d_model (l_p + l_i), activations rather than keys and values
            a = plan(model, "full").architecture
            formula = a.layers * a.width * options["tokens"]
        else:
            formula = size(plan(model, method, **options).trainable)
        digits = len(printed.partition(".")[2])
        agrees = f"{formula / 1e6:.{digits}f}" == printed
        rows.append(
            {
                "table": number,
                "row": row,
                "model": model,
                "method": method,
                "options": options,
                "formula": formula,
                "printed": printed,
                "agrees": agrees,
                "note": note,
            }
        )
    return rows


def savings() -> list[dict[str, Any]]:
    """What section 4.2 claims for GPT-3 175B at r = 4 on q and v, computed.

    -> [{"what", "formula", "printed", "note"}], in decimal units as in the paper. Its 1.2 TB for full fine-tuning are
    6.9 bytes a parameter; the formula gives 8 with everything in 16 bits, and 16 in the usual mixed precision (see
    `costs.optimizer_bytes`).
    """
    full, lora = plan("gpt3-175b", "full"), plan("gpt3-175b", "lora", rank=4)
    whole, one = 2 * size(full.base), 2 * size(lora.trainable)
    states = lambda p, optimizer: sum(_without_activations(p, optimizer))
    rows = [
        ("checkpoint, full fine-tuning", _unit(whole), "350 GB", "16-bit"),
        ("checkpoint, LoRA", _unit(one), "35 MB", f"16-bit; {one / 2**20:.1f} MiB"),
        ("reduction of the checkpoint", f"{whole / one:,.0f} x", "10,000 x", ""),
        ("100 tasks, LoRA", _unit(whole + 100 * one), "354 GB", "one base, 100 adapters"),
        ("100 tasks, full fine-tuning", _unit(100 * whole), "35 TB", ""),
        ("memory, full, all in 16 bits", _unit(states(full, "adamw-16bit")), "1.2 TB", "8 bytes a parameter"),
        ("memory, full, mixed precision", _unit(states(full, "adamw")), "1.2 TB", "16 bytes a parameter"),
        ("memory, LoRA", _unit(states(lora, "adamw")), "350 GB", "without activations"),
    ]
    return [dict(zip(("what", "formula", "printed", "note"), row, strict=True)) for row in rows]


def _without_activations(chosen: Any, optimizer: str) -> list[int]:
    memory = training_memory(chosen, 1, 1, 16, optimizer)
    return [memory[part] for part in ("weights", "gradients", "optimizer_state")]


def _unit(size_in_bytes: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size_in_bytes >= scale:
            return f"{size_in_bytes / scale:,.1f} {unit}" if unit != "TB" else f"{size_in_bytes / scale:,.2f} TB"
    return f"{size_in_bytes:,.0f} bytes"


def paper_table() -> str:
    """Tables 2 to 4 and the savings as text of 80 columns: what `minilora count --paper` prints."""
    lines = ["Trainable parameters in millions: by formula, and as the paper prints them."]
    for number in (2, 3, 4):
        lines += ["", f"table {number:<14}{'formula':>11}{'printed':>9}"]
        for r in paper_rows(number):
            millions, mark = f"{r['formula'] / 1e6:,.2f}", " " if r["agrees"] else "*"
            lines.append(f"{r['row']:<20}{millions:>11}{r['printed']:>9} {mark} {r['note']}".rstrip())
    lines += ["", f"{'GPT-3 175B, r = 4 on q, v':<32}{'formula':>11}{'printed':>11}"]
    lines += [f"{r['what']:<32}{r['formula']:>11}{r['printed']:>11}   {r['note']}".rstrip() for r in savings()]
    return "\n".join([*lines, "", "* the formula does not round to the printed figure"])
