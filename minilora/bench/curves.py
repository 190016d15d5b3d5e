"""How a step grows, as a figure: seconds above, peak memory below, against length, batch, width and depth."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..pictures.drawing import LOOKS, corner, heading, state
from ..pictures.style import BLUE, VERMILLION, lecture_style, new_figure, written_ticks
from .rows import EAGER, EXPONENT, GROWTH, GROWTH_OF_MEMORY
from .scaling import BASE, GROWING, line

SIZE = (13.0, 7.3)  # inches
MIB = 2**20
SIDES = {"ours": (BLUE, "o", "● ours"), "theirs": (VERMILLION, "s", "■ PyTorch")}
TOLD = "length 2,048"  # the point that the title tells of


def growth(record: Mapping[str, Any]) -> Figure:
    """A panel for each thing that grows, solid for LoRA and dashed for full fine-tuning, both axes in powers.

    Raises ValueError for a record without points.
    """
    rows = [r for r in record["rows"] if r["what"] in {*GROWTH.values(), *GROWTH_OF_MEMORY.values()}]
    if not rows:
        raise ValueError("bench: this record has no step that grows to draw: minilora bench --parts scaling")
    with lecture_style():
        figure = new_figure()
        figure.set_size_inches(SIZE)
        grid = figure.subplots(2, len(GROWING), sharex="col", sharey="row")
        for of, unit, axes_of in ((GROWTH, 1, grid[0]), (GROWTH_OF_MEMORY, MIB, grid[1])):
            for grows, axes in zip(GROWING, axes_of, strict=True):
                for method, what in of.items():
                    points = [
                        {**r["details"], "ours": r["ours"], "theirs": r["theirs"]} for r in rows if r["what"] == what
                    ]
                    _lines(axes, points, grows, method, unit)
        for grows, top, bottom in zip(GROWING, *grid, strict=True):
            heading(top, grows)
            _ticks(bottom, [r["details"][grows] for r in rows])
        grid[0][0].set_ylabel("seconds a step")
        grid[1][0].set_ylabel("peak memory (MiB)")
        corner(grid[0][-1], [(words, colour) for colour, _, words in SIDES.values()], y=1.2)
        return state(figure, sentence(record["rows"]), lesson(record))


def _lines(axes: Axes, points: Sequence[Mapping[str, Any]], grows: str, method: str, unit: float) -> None:
    n, *both = line(points, grows)
    if len(n) < 2:
        return  # it was not measured as this grows
    for (colour, marker, _), amounts in zip(SIDES.values(), both, strict=True):
        look = {"color": colour, "marker": marker, "linestyle": LOOKS[method]["linestyle"], "markersize": 8}
        axes.plot(n, [amount / unit for amount in amounts], linewidth=2.5, **look)
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(10))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _ticks(axes: Axes, numbers: Sequence[int]) -> None:
    """Four numbers at most stand beside one another."""
    there = sorted(set(numbers))
    written_ticks(axes, there[:: -(-len(there) // 4)])
    axes.tick_params(axis="x", labelsize=14)


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a long text takes, beside PyTorch, and how memory grows with it."""
    ratio = {r["what"]: r["ratio"] for r in rows if r["size"] == TOLD}
    words = {GROWTH["lora"]: "of PyTorch's time", GROWTH_OF_MEMORY["lora"]: "of its memory"}
    told = [f"{ratio[what]:.2f} {of}" for what, of in words.items() if what in ratio]
    said = [f"at T = 2,048 LoRA takes {' and '.join(told)}"] if told else []
    slopes = [r for r in rows if r["what"] == GROWTH_OF_MEMORY["lora"] + EXPONENT and "length" in r["size"]]
    said += [f"memory grows as T^{r['ours']:.2f}" for r in slopes]
    return "; ".join(said) or f"a step of minilora and one of {EAGER} as they grow"


def lesson(record: Mapping[str, Any]) -> str:
    """Where it was measured, and what stands still while one thing grows."""
    machine, still = record["machine"], ", ".join(f"{what} {n}" for what, n in BASE.items())
    return (
        f"What does not grow: {still}. Solid: LoRA of rank 8 on q and v; dashed: full fine-tuning. "
        f"Measured in one run on {machine['processor']}, {machine['threads']} threads."
    )
