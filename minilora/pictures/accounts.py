"""Accounts of parameters and memory, drawn from formulas alone (`counting.count`): no model is built, none trained."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..analysis import counting
from ..analysis.exchange import NETWORKS, RATE, allreduce_seconds
from ..analysis.exchange import exchange as of_a_step
from .drawing import note, panels, state
from .style import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION, lecture_style, written_ticks

SHOWN = ("base", "gpt2", "roberta-large", "gpt2-xl", "gemma-7b", "llama-2-70b", "gpt3-175b")
METHODS: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("full", "full", {}, {"color": VERMILLION, "marker": "s"}),
    ("houlsby", "adapters", {}, {"color": ORANGE, "marker": "D"}),
    ("lora", "LoRA", {"rank": 4}, {"color": BLUE, "marker": "o"}),
    ("prompt", "prompt", {}, {"color": GREEN, "marker": "^"}),
)


def parameter_counts() -> Figure:
    """Trained parameters by model and method, on a log axis, from the architectures alone (`counting.count`)."""
    with lecture_style():
        figure, [axes] = panels()
        for method, words, options, look in METHODS:
            counts = [counting.count(model, method, **options).trainable_parameters for model in SHOWN]
            axes.plot(counts, range(len(SHOWN)), linestyle="", markersize=12, **look)
            ink = look["color"] if words != "adapters" else "#8A5F00"  # orange letters would be too light
            note(axes, words, (counts[-1], len(SHOWN) - 1), (0, 14), ha="center", color=ink, fontweight="bold")
        axes.set_yticks(range(len(SHOWN)), SHOWN)
        axes.set(xscale="log", xlabel="trained parameters", ylim=(-0.5, len(SHOWN) - 0.3))
        axes.xaxis.set_major_locator(FixedLocator([10.0**k for k in range(3, 13, 3)]))
        axes.xaxis.set_minor_locator(NullLocator())
        words_of = {3: "thousand", 6: "million", 9: "billion", 12: "trillion"}
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: words_of.get(round(np.log10(x)), "")))
        axes.grid(axis="both", color="#DDDDDD", linewidth=1)
        axes.set_axisbelow(True)
        lora, full = (counting.count(SHOWN[-1], m, rank=4).trainable_parameters for m in ("lora", "full"))
        sentence = f"LoRA trains {lora / 1e6:,.1f} million of {SHOWN[-1]}'s {full / 1e9:,.1f} billion parameters"
        lesson = f"That is one in {full / lora:,.0f}: the larger the model, the smaller the share."
        return state(figure, sentence, lesson)


def memory(model: str = "llama-2-7b", length: int = 512, rank: int = 8) -> Figure:
    """Memory of a training step by part: full fine-tuning, and LoRA on a base in 16, 8 and 4 bits."""
    options: dict[str, Any] = {"batch": 1, "length": length, "engine": "flash", "target_modules": ("*_proj",)}
    bars = [("full\n16 bits", counting.count(model, "full", **options))]
    for bits in (16, 8, 4):
        bars.append((f"LoRA\n{bits} bits", counting.count(model, "lora", rank, bits=bits, **options)))
    parts = (("weights", GREY, ""), ("gradients", ORANGE, "//"), ("optimizer_state", VERMILLION, "xx"),
             ("activations", SKY, ".."))  # fmt: skip
    with lecture_style():
        figure, [axes] = panels()
        sums = [sum(record.training_memory_bytes.values()) / 1e9 for _, record in bars]
        places = (0.0, 1.8, 2.7, 3.6)  # room for words beside the first bar
        for place, total, (_, record) in zip(places, sums, bars, strict=True):
            bottom = 0.0
            for part, colour, hatch in parts:
                height = record.training_memory_bytes[part] / 1e9
                axes.bar(place, height, 0.62, bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
                if place == 0 and height > 0.02 * sums[0]:
                    name = part.replace("optimizer_state", "optimiser state")
                    note(axes, f"{name} {height:,.1f}", (0.33, bottom + height / 2), (6, 0), va="center", fontsize=14)
                bottom += height
            note(axes, f"{total:,.1f} GB", (place, bottom), (0, 5), ha="center", fontweight="bold")
        axes.set_ylabel("memory (GB)")
        axes.set_xticks(places, [words for words, _ in bars])
        sentence = f"Fine-tuning {model}: {sums[0]:,.0f} GB; LoRA {sums[1]:,.0f} GB, on a 4-bit base {sums[3]:,.1f} GB"
        lesson = (
            f"LoRA of rank {rank} on all matrices; one text of {length} tokens; AdamW; attention as in FlashAttention."
        )
        return state(figure, sentence, lesson)


def exchange(model: str = "llama-2-7b", rank: int = 8) -> Figure:
    """How long nodes wait for each other's gradients over how long they compute, by their number and network."""
    nodes = [8 * 2**k for k in range(8)]  # 8 to 1,024
    ratios: dict[tuple[str, str], list[float]] = {}
    for method, step in (("full", of_a_step(model, "full")), ("lora", of_a_step(model, "lora", rank=rank))):
        for name, network in NETWORKS.items():
            seconds = [allreduce_seconds(step["bytes"], n, network) for n in nodes]
            ratios[method, name] = [s / step["compute"] for s in seconds]
    looks = {"full": (VERMILLION, "s", "full fine-tuning"), "lora": (BLUE, "o", f"LoRA, rank {rank}")}
    with lecture_style():
        figure, [axes] = panels()
        axes.axhline(1, color=GREY, linestyle=(0, (4, 3)))
        axes.text(8, 0.8, "waits as long as it computes", color=GREY, va="top")
        for (method, name), many in ratios.items():
            colour, marker, words = looks[method]
            axes.plot(nodes, many, marker=marker, color=colour)
            note(axes, name, (nodes[-1], many[-1]), (12, 0), va="center", color=colour)
            if name == "1 Gbit/s":
                place: dict[str, Any] = {"full": {"va": "bottom"}, "lora": {"va": "top"}}[method]
                shift = (0, 12 if method == "full" else -10)
                note(axes, words, (nodes[0], many[0]), shift, color=colour, fontweight="bold", **place)
        written_ticks(axes, nodes)
        low, high = (end(min(many) if end is min else max(many) for many in ratios.values()) for end in (min, max))
        axes.set(yscale="log", xlim=(7, 5000), ylim=(low / 3, 12 * high), xlabel="nodes, each with one text of its own",
                 ylabel="time of exchange\nover time of compute")  # fmt: skip
        full, lora = (ratios[method, "10 Gbit/s"][nodes.index(64)] for method in ("full", "lora"))
        waits = "on 64 nodes at 10 Gbit/s full fine-tuning waits"
        sentence = f"{waits} {full:,.2g} times as long as it computes, LoRA {lora:.2g} times"
        lesson = (
            f"{model}, gradients in 16 bits, added in a ring; a node computes {RATE:.0e} operations a second. Twice "
            "the texts a node halve each ratio."
        )
        return state(figure, sentence, lesson)
