"""`minilora adapter show` and `minilora adapter compare`."""

import argparse
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .options import command, option
from .outputs import output_file

PATH = option("path", None, "an adapter: a folder or a file", metavar="PATH")
BASE = option("--base", None, "the checkpoint it was trained on: a Hugging Face folder", metavar="CHECKPOINT")


def picture_file(text: str) -> Path:
    """An option that takes a picture to write, whose ending says its format."""
    path = output_file(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a file that ends in .png, .svg or .pdf")
    return path


FIGURE = option("--figure", None, "a picture to draw: .png, .svg or .pdf", type=picture_file, metavar="FILE")
JSON = option("--json", False, "print JSON in place of tables", action="store_true")
MOST = 40  # matrices that a table lists one by one


@command(PATH, BASE, FIGURE, JSON, example="minilora adapter show runs/adapter.npz --figure spectra.png")
def show(args: argparse.Namespace) -> int:
    """Say how large each update is, and how many directions it uses.

    Of each matrix that the adapter changes, of each kind and layer, and in all: the norm of the update and its largest
    singular value, the effective and the stable rank, and how many directions hold 90 and 99 % of its energy. With
    --base also how it compares with the weight that it is added to. The picture shows spectra by layer, and a map of
    norms by layer and kind.
    """
    from ..interop import updates, workbench

    adapter, base = updates.opened(args.path, args.base, "show")
    rows = workbench.measure(adapter, base, progress=True)
    if args.figure and not rows:
        raise ValueError(f"--figure: {adapter.path} is a {adapter.method} adapter, which has no spectra to draw")
    if args.figure:
        from ..pictures import adapters as pictures

        pictures.save_one(pictures.spectra(rows, title_of(adapter)), args.figure)
    if args.json:
        print(json.dumps(workbench.record(adapter, rows)))
    else:
        print(table(adapter, rows))
        if args.figure:
            print(f"picture           {args.figure}")
    return 0


def title_of(adapter: Any) -> str:
    """What a picture calls an adapter: the name of its file or folder."""
    return adapter.path.resolve().stem


def table(adapter: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    """Everything that `show` says, in 80 columns."""
    from ..interop import workbench

    lines = facts(adapter, rows)
    if not rows:
        lines += [f"  {labelled(row['name'], 50)} {by(row['shape']):>14} norm {row['frobenius_norm']:.3g}"
                  for row in workbench.tensors(adapter)[:MOST]]  # fmt: skip
        return "\n".join(lines)
    for part, heading in ((1, "by kind"), (0, "by layer")):
        if len(shares := workbench.shares(rows, part)) > 1:
            lines += ["", *grouped(rows, part, heading, shares)]
    lines += ["", *each(rows)]
    if "weight_norm" in rows[0]:
        lines += ["", *beside_base(rows)]
    return "\n".join([*lines, "", textwrap.fill(sentence(adapter, rows), 80)])


def facts(adapter: Any, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is told before the tables."""
    form = {"peft": "PEFT folder", "kohya": "single file (lora_down, lora_up)", "minilora": "minilora file"}
    base = adapter.config.get("base_model_name_or_path")
    lines = [
        f"adapter           {adapter.path}",
        f"form              {form[adapter.form]}, {adapter.method}{f', of {base}' if base else ''}",
    ]
    if rows:
        pairs = list(adapter.matrices.values())
        size = sum(math.prod(p.a.shape) + math.prod(p.b.shape) for p in pairs)
        span = ", ".join(f"{word} {span_of([getattr(p, what) for p in pairs])}"
                         for word, what in (("rank", "rank"), ("alpha", "alpha"), ("scale", "scale")))  # fmt: skip
        lines.append(f"matrices          {len(pairs)}: {span}; {size:,} numbers")
    else:
        a = "an" if adapter.method[0] in "aeio" else "a"  # an ia3, an oft
        lines.append(f"no s B A          {a} {adapter.method} adapter is not a product of two thin matrices; it holds")
    if rows and adapter.others:
        names = ", ".join(list(adapter.others)[:3])
        more = f" and {len(adapter.others) - 3} more" if len(adapter.others) > 3 else ""
        lines.append(f"beside them       {names}{more}")
    needs = f"{adapter.needs}; --base gives it" if adapter.needs and rows and "weight_norm" not in rows[0] else ""
    lines += [f"note              {note}" for note in (*adapter.notes, needs) if note]
    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}  # names stay whole
    return [lines[0], *(textwrap.fill(line, 80, subsequent_indent=" " * 18, **whole) for line in lines[1:])]


def span_of(values: Sequence[float]) -> str:
    """One number where all are alike, else from the least to the largest."""
    low, high = min(values), max(values)
    return f"{low:.4g}" if math.isclose(low, high) else f"{low:.4g} to {high:.4g}"


def by(shape: Sequence[int]) -> str:
    """(2304, 768) -> 2304x768"""
    return "x".join(map(str, shape))


HEAD = f"{'':<26} {'shape':>11} {'r':>3} {'norm':>8} {'largest':>8} {'eff.':>5} {'stab.':>5} {'90%':>3} {'99%':>3}"


def each(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a matrix; of more than a page, those of the largest norms."""
    start, some = len(common_start([row["name"] for row in rows])), rows
    if len(rows) > MOST:
        some = sorted(rows, key=lambda row: -row["frobenius_norm"])[:10]
    lines = [HEAD if some is rows else HEAD.replace(" " * 15, "the largest 10 ", 1)]
    for row in some:
        norm, largest = row["frobenius_norm"], row["spectral_norm"]
        lines.append(
            f"{labelled(row['name'][start:], 26)} {by(row['shape']):>11} {row['rank']:>3} {norm:>8.3g} {largest:>8.3g} "
            f"{row['effective_rank']:>5.1f} {row['stable_rank']:>5.1f} {row['rank_90']:>3} {row['rank_99']:>3}"
        )
    return lines + ([f"... and {len(rows) - len(some)} more; --json has all"] if some is not rows else [])


def common_start(names: Sequence[str]) -> str:
    """What all names begin with, up to a dot; up to an underscore where names have no dots."""
    low, high = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), 0)
    return low[: low.rfind("." if "." in low else "_", 0, same) + 1]


def labelled(name: str, width: int) -> str:
    """A name in a column of this width; a longer one has a line of its own, for its end alone may be another's, too."""
    return f"{name:<{width}}" if len(name) <= width else f"{name}\n{'':<{width}}"


def grouped(rows: Sequence[Mapping[str, Any]], part: int, heading: str, shares: Mapping[str, float]) -> list[str]:
    """A line a kind or layer: how many matrices, their norm and share of the energy, the mean of their ranks."""
    from ..interop.updates import layer_and_kind

    lines = [f"{heading:<38} {'matrices':>8} {'norm':>8} {'share':>6} {'eff.':>5} {'stab.':>5} {'99%':>4}"]
    for name, share in shares.items():
        own = [row for row in rows if (layer_and_kind(row["name"])[part] or "other") == name]
        mean = [sum(row[key] for row in own) / len(own) for key in ("effective_rank", "stable_rank", "rank_99")]
        norm = math.sqrt(sum(row["frobenius_norm"] ** 2 for row in own))
        lines.append(f"{labelled(name, 38)} {len(own):>8} {norm:>8.3g} {share:>6.1%} "
                     f"{mean[0]:>5.1f} {mean[1]:>5.1f} {mean[2]:>4.1f}")  # fmt: skip
    return lines


def beside_base(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a matrix: the update beside the weight."""
    told = lambda row: f"{cells(row, weight_norm=8, relative_norm=8, amplification=13)} {row['intruders']:>9}"
    head = f"{'beside the base':<38} {'weight':>8} {'ratio':>8} {'amplification':>13} {'intruders':>9}"
    return [head, *by_matrix(rows, 38, told)]


def cells(row: Mapping[str, Any], **widths: int) -> str:
    """Numbers of a row in columns of these widths; a dash where there is none."""
    return " ".join(f"{'-' if row[key] is None else format(row[key], '.3g'):>{width}}" for key, width in widths.items())


def by_matrix(rows: Sequence[Mapping[str, Any]], width: int, told: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """A line a matrix, its name in a column of this width and what is told of it; and how many were left out."""
    start = len(common_start([row["name"] for row in rows])) if rows else 0
    lines = [f"{labelled(row['name'][start:], width)} {told(row)}" for row in rows[:MOST]]
    return lines + ([f"... and {len(rows) - MOST} more; --json has all"] if len(rows) > MOST else [])


def sentence(adapter: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    """What the numbers say, in words."""
    from ..interop.workbench import enough

    r, k = max(pair.rank for pair in adapter.matrices.values()), enough(rows)
    said = f"rank {r} holds what rank {k} would: 99 % of the energy of Delta W"
    if k > r:  # of DoRA, and of PiSSA, with their base
        said = f"A and B have rank {r}, and Delta W more: rank {k} would hold 99 % of its energy"
    elif k == r:
        said = (
            f"rank {r} is used: rank {r - 1} would hold less than 99 % of the energy"
            if r > 1
            else "rank 1 is all of it"
        )
    if idle := [row["name"] for row in rows if not row["frobenius_norm"]]:
        said += f"; {len(idle)} of {len(rows)} matrices are not changed at all, {idle[0]} for one"
    return said[0].upper() + said[1:]


@command(
    option("first", None, "an adapter", metavar="A"),
    option("second", None, "another one of the same base", metavar="B"),
    BASE, FIGURE, JSON,
    example="minilora adapter compare runs/docs.npz runs/names.npz",
)  # fmt: skip
def compare(args: argparse.Namespace) -> int:
    """Say how alike two adapters are.

    Of each matrix that both change: the cosine of the two updates, the ratio of their norms (B's over A's), and what of
    the subspaces of their A's and of their B's they share: the paper's phi, from 0 to 1.
    """
    from ..interop import workbench

    found = workbench.compare(args.first, args.second, args.base, progress=True)
    if args.figure:
        from ..pictures import adapters as pictures

        pictures.save_one(pictures.comparison(found), args.figure)
    print(json.dumps(found) if args.json else comparison_table(found, args.first, args.second))
    return 0


def comparison_table(found: Mapping[str, Any], first: str, second: str) -> str:
    """Everything that `compare` says, in 80 columns."""
    from ..interop import workbench

    rows = found["matrices"]
    lines = [f"{'':<40} {'cosine':>8} {'B / A':>8} {'phi of A':>9} {'phi of B':>9}"]
    lines += by_matrix(rows, 40, lambda row: cells(row, cosine=8, norm_ratio=8, similarity_A=9, similarity_B=9))
    for path, names in ((first, found["only_first"]), (second, found["only_second"])):
        lines += [f"{path} alone changes {len(names)} more, as {names[0]}"] if names else []
    words = workbench.in_words(found["cosine"], found["norm_ratio"])
    said = f"In all, cosine {found['cosine']:.3f} and norm ratio {found['norm_ratio']:.3f}: B has {words}"
    return "\n".join([*lines, "", textwrap.fill(said, 80)])
