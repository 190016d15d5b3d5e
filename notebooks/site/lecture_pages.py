"""Lectures on their way to the site: words instead of pictures for those who do not see, and notes folded away."""

import ast
import base64
import copy
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from words import PAGES, ROOT, linked, relative

NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
Notebook = dict[str, Any]
PICTURES = ("image/png", "image/svg+xml", "image/jpeg")


def lectures() -> list[Path]:
    """The notebooks of the course, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]*_*.ipynb"))


def with_slides() -> list[Path]:
    """The lectures whose cells say where they stand in the slides."""
    return [path for path in lectures() if '"slide_type"' in path.read_text("utf-8")]


def title_of(notebook: Notebook) -> str:
    """Lecture 5. LoRA"""
    return text_of(notebook["cells"][0]).split("\n")[0].removeprefix("# ").strip()


def text_of(cell: dict[str, Any]) -> str:
    """A cell's source."""
    return "".join(cell["source"])


def slide_type(cell: dict[str, Any]) -> str:
    """What a cell is in the slides, "" where nothing is said."""
    return cell["metadata"].get("slideshow", {}).get("slide_type", "")


# --- alt text --------------------------------------------------------------------------------------------------------


def caption(name: str) -> str:
    """A committed figure's caption, on one line; else the words that the README shows it under."""
    written = FIGURES / f"{name}.txt"
    if written.exists():
        return " ".join(written.read_text("utf-8").split())
    shown = re.search(rf"!\[([^\]]+)\]\(figures/{re.escape(name)}\.\w+\)", (ROOT / "README.md").read_text("utf-8"))
    return shown[1] if shown else OTHERS.get(name, "")


OTHERS = {  # figures that stand in no README and have no caption of their own
    "adapter": "Spectra by layer, and norms by layer and kind, of one adapter.",
    "bench": "How fast each part is beside its peers.",
    "bench-scaling": "How a step's time and memory grow with text, batch, width and depth, beside PyTorch.",
    "exchange-messages": "What the sum over two and four processes takes, by the bytes that each gives.",
    "loss": "The demo's losses while the shipped model is adapted to new text.",
    "singular_values": "The singular values of the demo's update ΔW.",
}


def alt_texts(notebook: Notebook) -> dict[int, str]:
    """{place of a code cell that shows pictures: what they show}.

    A committed figure has its caption; another picture the words that lead to it, under its section's heading.
    """
    found, heading, words = {}, title_of(notebook), ""
    for i, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            if slide_type(cell) != "notes":
                text = text_of(cell)
                heading = ([heading, *re.findall(r"^#+ (.+)$", text, re.M)])[-1]
                words = _last_words(text) or words
            continue
        if any(kind in output.get("data", {}) for output in cell.get("outputs", []) for kind in PICTURES):
            made = [caption(name) for name in re.findall(r"\bmake\(\s*[\"']([\w-]+)[\"']", text_of(cell))]
            section = re.sub(r"\s*\(\d+ minutes\)$", "", heading)
            found[i] = (
                " ".join(filter(None, made))
                or f"Picture in “{_plain(section)}”: {_titles(cell) or words or 'see the text beside it'}"
            )
    return found


def _titles(cell: dict[str, Any]) -> str:
    """The titles that a cell itself gives its picture: texts of several words in its calls."""
    try:
        tree = ast.parse("\n".join(line for line in text_of(cell).split("\n") if not line.startswith(("%", "!"))))
    except SyntaxError:
        return ""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) not in ("print", "ml.holds", "holds")
    ]
    texts = [
        a.value
        for call in calls
        for a in [*call.args, *(k.value for k in call.keywords)]
        if isinstance(a, ast.Constant) and isinstance(a.value, str)
    ]
    return "; ".join(dict.fromkeys(" ".join(text.split()) for text in texts if len(text.split()) > 2))


def _last_words(text: str) -> str:
    """The last sentence of a text, without its markup."""
    text = re.sub(r"<details>.*?</details>|```.*?```|^#+ [^\n]*$|\$\$.*?\$\$", " ", text, flags=re.S | re.M)
    sentences = [s for s in re.split(r"(?<=[.?!:])\s+", _plain(text)) if len(s.split()) > 2]
    return sentences[-1].rstrip(":") if sentences else ""


def _plain(text: str) -> str:
    """Words without Markdown's signs."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"[*`$#>|]|<[^>]+>", "", text).replace("\\", "").split())


def with_alt_texts(notebook: Notebook) -> Notebook:
    """A copy in which every picture says what it shows, to MyST-NB and to nbconvert."""
    notebook = copy.deepcopy(notebook)
    for i, words in alt_texts(notebook).items():
        cell = notebook["cells"][i]
        cell["metadata"].setdefault("mystnb", {})["image"] = {"alt": words}
        for output in cell["outputs"]:
            for kind in PICTURES:
                if kind in output.get("data", {}):
                    output.setdefault("metadata", {}).setdefault(kind, {})["alt"] = words
    for cell in notebook["cells"]:  # a slider needs a running notebook; its picture and its text stay
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


# --- pages -----------------------------------------------------------------------------------------------------------


def lecture_page(path: Path, keep: Callable[[str], str], badges: str) -> Notebook:
    """A lecture as the site shows it: links led within the site, speaker notes folded, outputs as committed."""
    notebook = with_alt_texts(json.loads(path.read_text("utf-8")))
    place, page = f"notebooks/{path.name}", f"lectures/{path.stem}"
    for cell in notebook["cells"]:
        if cell["cell_type"] != "markdown":
            continue
        text = linked(text_of(cell), place, page, keep)
        if slide_type(cell) == "notes":
            text = f'<details class="lecturer"><summary>For the lecturer</summary>\n\n{text}\n\n</details>\n'
        cell["source"] = text
    first = notebook["cells"][0]
    title, _, rest = first["source"].partition("\n")
    first["source"] = f"{title}\n\n{badges}\n{rest}"
    notebook["metadata"].pop("widgets", None)
    return notebook


def quiz(notebook: Notebook) -> tuple[str, str]:
    """The questions of a lecture's quiz, and its answers; both empty where it has none."""
    cells = [text_of(c) for c in notebook["cells"] if c["cell_type"] == "markdown" and slide_type(c) != "notes"]
    start = next((i for i, text in enumerate(cells) if text.startswith("## Quiz")), None)
    if start is None:
        return "", ""
    end = next((i for i in range(start + 1, len(cells)) if cells[i].startswith("## ")), len(cells))
    text = "\n\n".join(cells[start:end]).split("\n", 1)[1]
    folded = re.compile(r"[ \t]*<details>\s*<summary>Answer</summary>(.*?)</details>", re.S)
    answers = "\n".join(f"{i}. {' '.join(a.split())}" for i, a in enumerate(folded.findall(text), 1))
    return folded.sub("", text), answers


def quiz_page(path: Path, keep: Callable[[str], str]) -> str:
    """A page of questions to print, and a page of answers after it."""
    notebook = json.loads(path.read_text("utf-8"))
    questions, answers = quiz(notebook)
    title, page = title_of(notebook), f"quiz/{path.stem}"
    if not questions:
        return ""
    body = linked(questions, f"notebooks/{path.name}", page, keep)
    return (
        f"# Quiz: {title}\n\n[The lecture]({relative(f'lectures/{path.stem}.ipynb', page)})\n\n{body}\n\n"
        f'<div class="newpage"></div>\n\n<details>\n<summary>Answers</summary>\n\n{answers}\n\n</details>\n'
    )


def figures_page(keep: Callable[[str], str]) -> str:
    """Every committed figure with its caption."""
    parts = [
        "# Figures\n\nDrawn by `minilora figures` from the records in `figures/data`; titles are computed from them.\n"
    ]
    for path in sorted(FIGURES.glob("*.png")):
        words = caption(path.stem)
        image = f'<img src="{keep(f"figures/{path.name}")}" alt="{html.escape(words)}">'
        parts.append(f"## {path.stem}\n\n{image}\n\n{_escaped(words)}\n")
    return "\n".join(parts)


def _escaped(words: str) -> str:
    return re.sub(r"([\\*_<>$\[\]{}|~^`#])", r"\\\1", words)


def picture(output: dict[str, Any]) -> bytes | None:
    """The PNG that an output shows."""
    data = output.get("data", {}).get("image/png")
    return base64.b64decode("".join(data)) if data else None


def repository_page(place: str, keep: Callable[[str], str]) -> str:
    """A Markdown file of the repository as the site shows it."""
    return linked((ROOT / place).read_text("utf-8"), place, PAGES[place], keep)
