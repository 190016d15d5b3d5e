"""The annotated source: every file of the package as a page, its words on the left and its code on the right."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

from words import ROOT, docstring, relative

PACKAGE = ROOT / "minilora"
EMPTY = "<!-- nothing is said -->"
Definition = ast.FunctionDef | ast.ClassDef
ROOMS = ("autograd", "nn", "adapters", "training", "analysis", "interop", "studies", "pictures", "bench", "commands",
         "course", "homework")  # fmt: skip


FRONT = """# The annotated source

Every file of the package: what the docstrings say on the left, with their equations set, and the code on the right. The
rooms stand in the order in which they build on each other.
"""


def annotated(path: Path) -> str:
    """A file of the package as a page: a row for each class, function and method."""
    text = path.read_text("utf-8")
    lines, rows, done = text.split("\n"), [], 0
    for words, name, start, end in _pieces(ast.parse(text)):
        if any(line.strip() for line in lines[done : start - 1]):
            rows.append(row("", lines[done : start - 1]))
        rows.append(row(words, lines[start - 1 : end], name))
        done = end
    if any(line.strip() for line in lines[done:]):
        rows.append(row("", lines[done:]))
    title = path.relative_to(PACKAGE).as_posix().removesuffix("/__init__.py").replace("__", "\\_\\_")
    return f"---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n# {title}\n\n" + "\n".join(rows)


def _pieces(tree: ast.Module) -> Iterator[tuple[str, str, int, int]]:
    """(words, name, first line, last line) of the module's head, and of every class's head, function and method."""
    first = next((node for node in tree.body if isinstance(node, Definition)), None)
    yield docstring(tree), "", 1, _start(first) - 1 if first else tree.body[-1].end_lineno or 1
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(isinstance(n, ast.FunctionDef) for n in node.body):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            yield docstring(node), node.name, _start(node), _start(methods[0]) - 1
            for method in methods:
                yield docstring(method), f"{node.name}.{method.name}", _start(method), method.end_lineno or 0
        elif isinstance(node, Definition):
            yield docstring(node), node.name, _start(node), node.end_lineno or 0


def _start(node: Definition) -> int:
    """The line of its first decorator."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def row(words: str, code: list[str], name: str = "") -> str:
    """Words on the left, code on the right; the code's own copy of the docstring is left out."""
    kept = "\n".join(without_docstring(code)).strip("\n")
    anchor = f'<a id="{name}"></a>\n\n' if name else ""
    fence = f"``````python\n{kept}\n``````" if kept.strip() else ""
    left, right = anchor + words or EMPTY, fence or EMPTY
    return f"::::{{container}} row\n:::{{container}} words\n{left}\n:::\n:::{{container}} code\n{right}\n:::\n::::\n"


def without_docstring(code: list[str]) -> list[str]:
    """The lines of a definition, or of a module's head, without the docstring that stands first in it."""
    text = textwrap.dedent("\n".join(code))
    indent = len(code[0]) - len(code[0].lstrip()) if code and code[0].strip() else 0
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a class's head alone may have no body
        try:
            tree = ast.parse(text + "\n" + "    pass")
        except SyntaxError:
            return code
    holder = tree if not tree.body or not isinstance(tree.body[0], Definition) else tree.body[0]
    first = holder.body[0] if holder.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        code = code[: first.lineno - 1] + code[first.end_lineno or 0 :]
    return [line[indent:] if line[:indent].strip() == "" else line for line in code]


def source_pages() -> dict[str, str]:
    """{"source/nn/gpt": the page} of every file, and an index of each room."""
    pages = {}
    for path in sorted(PACKAGE.glob("**/*.py")):
        if "homework" in path.relative_to(PACKAGE).parts[:-1] and "source" in path.parts:
            continue
        name = path.relative_to(PACKAGE).as_posix().removesuffix(".py").replace("__init__", "index")
        pages[f"source/{name}"] = annotated(path)
    for room in ROOMS:
        files = sorted(n for n in pages if n.startswith(f"source/{room}/") and n != f"source/{room}/index")
        pages[f"source/{room}/index"] += contents(files, f"source/{room}/index")
    top = sorted(n for n in pages if n.count("/") == 1 and n != "source/index")
    own = pages["source/index"].split("---\n\n", 1)[1].replace("# \\_\\_init\\_\\_.py", "## The face")
    pages["source/index"] = FRONT + contents([*(f"source/{room}/index" for room in ROOMS), *top], "source/index") + own
    return pages


def contents(names: list[str], page: str) -> str:
    """A list of pages, which also puts them into the sidebar."""
    listed = "\n".join(relative(name, page) for name in names)
    return f"\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n\n"
