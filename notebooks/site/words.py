"""Words on their way to the site: a docstring becomes Markdown, a link within the repository one within the site."""

import ast
import posixpath
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

from equations import plain, said, typeset

ROOT = Path(__file__).parent.parent.parent
PAGES = {  # what stands in the repository -> the page of the site
    "README.md": "package",
    ".github/CONTRIBUTING.md": "contributing",
    ".github/WALK.md": "walk",
    "notebooks": "syllabus",
    "notebooks/README.md": "syllabus",
    "notebooks/frequently_confused.md": "frequently_confused",
    "notebooks/notation.md": "notation",
    "notebooks/sources.md": "sources",
    "notebooks/homework": "homework",
    "notebooks/homework/README.md": "homework",
    "figures": "figures",
    "minilora": "source/index",
}
LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\]]*\]|!\[[^\]]*\]\([^)]*\))*)\]\((?!\w+://|#|mailto:)([^)#\s]*)(#[^)\s]*)?\)"
)


def page_of(path: str) -> str | None:
    """The page of a file or folder of the repository, None where the site has none."""
    path = path.rstrip("/")
    if path in PAGES:
        return PAGES[path]
    if re.fullmatch(r"notebooks/\d\d[a-c]?_\w+\.ipynb", path):
        return f"lectures/{Path(path).stem}"
    if path.startswith("minilora/"):
        inner = path.removeprefix("minilora/")
        if path.endswith(".py"):
            return f"source/{inner.removesuffix('.py').replace('__init__', 'index')}"
        if (ROOT / path / "__init__.py").exists():
            return f"source/{inner}/index"
    return None


def linked(text: str, place: str, page: str, keep: Callable[[str], str]) -> str:
    """A text that stands at `place` in the repository and on `page` of the site, with its links led there.

    keep: puts a picture into the site -> its path there. A link to what the site does not have becomes its words.
    """

    def lead(match: re.Match[str]) -> str:
        picture, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        words = LINK.sub(lead, words)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target)) if target else place
        if picture or path.endswith((".png", ".svg")):
            return f"{picture}[{words}]({relative(keep(path), page)})"
        there = page_of(path)
        if there is None:
            return words
        kind = ".ipynb" if there.startswith("lectures/") else ".md"
        return f"[{words}]({relative(there + kind, page)}{anchor})"

    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)  # blocks of code are left as they are
    return "".join(part if i % 2 else LINK.sub(lead, part) for i, part in enumerate(parts))


def unlinked(text: str) -> str:
    """A text whose links within the repository are their words; pictures stay."""
    return LINK.sub(lambda match: match[0] if match[1] else match[2], text)


def relative(target: str, page: str) -> str:
    """The way from a page to a file of the site."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def from_docstring(text: str) -> str:
    """A docstring as Markdown: paragraphs, examples, and what is indented: an equation where it reads as one."""
    found, lines = [], textwrap.dedent(text).strip("\n").split("\n")
    while lines:
        line = lines.pop(0)
        if line.startswith(">>>"):
            block = [line]
            while lines and lines[0].strip():
                block.append(lines.pop(0))
            found.append("\n```pycon\n" + "\n".join(block) + "\n```\n")
        elif line.startswith("    "):
            block = [line]
            while lines and (
                lines[0].startswith("    ") or (not lines[0].strip() and lines[1:2] and lines[1].startswith("    "))
            ):
                block.append(lines.pop(0))
            found.append("\n" + indented(textwrap.dedent("\n".join(block))) + "\n")
        else:
            found.append(columns(line))
    return re.sub(r"\\(?=\n\s*(\n|$)|$)", "", "\n".join(found).strip())


def indented(block: str) -> str:
    """What stands indented in a docstring: equations where every line is one, otherwise letter by letter."""
    return typeset(block) or f"```text\n{block}\n```"


def columns(line: str) -> str:
    """A line of a docstring; where it has columns, or is an equation from end to end, its formulas are set."""
    parts = re.split(r"(?<=\S)\s{3,}(?=\S)", line)
    if len(parts) > 1:
        return " &emsp; ".join(map(said, parts)) + "\\"  # and its end is one
    return said(line) if " = " in line else plain(line)


def docstring(node: ast.AST) -> str:
    """A node's docstring as Markdown, or nothing."""
    text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
    return from_docstring(text) if text else ""
