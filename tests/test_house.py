"""The rules of the house that its source can show: who imports whom, how long a text is, and that it says what it is.

Each rule takes a package as {path: source} and returns a list of complaints. Every rule is proved by a fault planted in
a small package that is otherwise right, then put to the whole of `minilora/`.
"""

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("autograd", "nn", "adapters", "training", "analysis", "interop", "studies", "pictures", "bench", "commands")
CORE = ROOMS[:3]  # on NumPy and the standard library alone; CuPy is NumPy's interface on another device
FACE = {"__init__", "__main__", "course", "demo", "homework", "interrupt"}  # in no room: they may use every one
PRIMITIVES = (
    "ops",
    "fused",
    "attention",
    "normal",
    "gated",
    "head",
    "masks",
    "products",
    "reductions",
    "shapes",
)  # ops, and what it gathers
CIRCLE = {f"minilora.autograd.{name}" for name in ("tensor", *PRIMITIVES)}  # a tensor's + is a primitive on tensors
LONGEST_FILE, LONGEST_FUNCTION, LARGEST_ROOM = 400, 60, 0.2

Package = dict[str, str]


def source() -> Package:
    """{"minilora/nn/gpt.py": its text} of the whole package."""
    return {p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for p in sorted(ROOT.glob("minilora/**/*.py"))}


@functools.cache
def parsed(text: str) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(text)


def dotted(path: str) -> str:
    """minilora/nn/gpt.py -> minilora.nn.gpt"""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def room(module: str) -> str:
    """minilora.nn.gpt -> nn; a file that is in no room -> its own name, the package itself -> __init__"""
    return (*module.split("."), "__init__")[1]


def imports(path: str, text: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions too, as the longest module that is known."""
    package = dotted(path).split(".") if path.endswith("__init__.py") else dotted(path).split(".")[:-1]
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*above, *(node.module.split(".") if node.module else [])])
            for alias in node.names:  # `from ..nn import gpt` and `from ..nn.gpt import GPT` both mean minilora.nn.gpt
                longer = f"{stem}.{alias.name}"
                yield node.lineno, longer if longer in known else stem


def all_imports(package: Package) -> Iterator[tuple[str, int, str]]:
    """(path, line, module) of every import in the package."""
    known = {dotted(path) for path in package}
    for path, text in package.items():
        yield from ((path, line, module) for line, module in imports(path, text, known))


# --- the rules -------------------------------------------------------------------------------------------------------


def a_room_imports_from_those_below(package: Package) -> list[str]:
    """And from the face, the package itself, only commands does."""
    found = []
    for path, line, module in all_imports(package):
        here, there = room(dotted(path)), room(module) if module.split(".")[0] == "minilora" else None
        if here in FACE or there is None:
            continue
        if there in FACE and here != "commands":
            found.append(f"{path}:{line}: {here} imports {module}, which stands above every room")
        elif there in ROOMS and ROOMS.index(there) > ROOMS.index(here):
            found.append(f"{path}:{line}: {here} imports {there}, a room above it")
    return found


def every_folder_is_a_room(package: Package) -> list[str]:
    """And every file outside the rooms is one of the face's."""
    return [f"{path}: no such room" for path in package if room(dotted(path)) not in {*ROOMS, *FACE}]


def the_core_lives_on_numpy(package: Package) -> list[str]:
    """autograd, nn and adapters import NumPy and the standard library, inside functions too."""
    allowed = {"minilora", "numpy", "cupy", "cupyx", *sys.stdlib_module_names}
    return [
        f"{path}:{line}: {room(dotted(path))} imports {module}"
        for path, line, module in all_imports(package)
        if room(dotted(path)) in CORE and module.split(".")[0] not in allowed
    ]


def no_import_circle(package: Package) -> list[str]:
    """No file is imported by what it imports, over however many files, but for the tensor and its primitives."""
    one = {path: "tensor-ops-fused" if dotted(path) in CIRCLE else dotted(path) for path in package}
    name = {dotted(path): told for path, told in one.items()}
    reach: dict[str, set[str]] = {told: set() for told in one.values()}
    for path, _, module in all_imports(package):
        if name.get(module, one[path]) != one[path]:
            reach[one[path]].add(name[module])
    for middle in reach:  # Warshall 1962: who is reached over `middle`
        for start in reach:
            if middle in reach[start]:
                reach[start] |= reach[middle]
    return [f"{start} is imported by what it imports" for start in reach if start in reach[start]]


def nothing_is_too_long(package: Package) -> list[str]:
    """No file, and no function."""
    found = [
        f"{path}: {text.count(chr(10))} lines" for path, text in package.items() if text.count("\n") > LONGEST_FILE
    ]
    for path, text in package.items():
        for node in ast.walk(parsed(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION:
                found.append(f"{path}:{node.lineno}: {node.name} has more than {LONGEST_FUNCTION} lines")
    return found


def no_room_is_too_large(package: Package) -> list[str]:
    """No room holds more than a fifth of the package's lines."""
    lines = {name: sum(t.count("\n") for p, t in package.items() if room(dotted(p)) == name) for name in ROOMS}
    whole = sum(text.count("\n") for text in package.values())
    return [f"{name}: {n / whole:.0%} of the package" for name, n in lines.items() if n > LARGEST_ROOM * whole]


def everything_public_says_what_it_is(package: Package) -> list[str]:
    """Every module, class, function and method that has a public name, but for a method that is one line in all."""
    found, one_line = [], lambda node: node.body[0].lineno == node.lineno
    for path, text in package.items():
        tree = parsed(text)
        found += [] if ast.get_docstring(tree) else [f"{path}: the module has no docstring"]
        owners = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
        for node in (node for owner in owners for node in owner.body):
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            again = any(isinstance(d, ast.Attribute) for d in getattr(node, "decorator_list", []))  # @shape.setter
            if public and not again and not one_line(node) and not ast.get_docstring(node):
                found.append(f"{path}:{node.lineno}: {node.name} has no docstring")
    return found


def nothing_is_left_for_later(package: Package) -> list[str]:
    """Nothing raises NotImplementedError, and no exception is caught whatever it is."""
    found = []
    for path, text in package.items():
        for node in ast.walk(parsed(text)):
            if isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node):
                found.append(f"{path}:{node.lineno}: raises NotImplementedError")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{path}:{node.lineno}: a bare except")
    return found


# --- the proof -------------------------------------------------------------------------------------------------------

GOOD: Package = {f"minilora/{name}/__init__.py": f'"""Room {name}."""\n' + 20 * "\n" for name in ROOMS}
GOOD |= {
    "minilora/__init__.py": '"""The face."""\n\nfrom .nn.gpt import GPT\n',
    "minilora/demo.py": '"""A story."""\n\nimport minilora as ml\n\nfrom .nn.gpt import GPT\n',
    "minilora/autograd/ops.py": '"""Primitives."""\n\nfrom . import fused\nfrom .tensor import Tensor\n',
    "minilora/autograd/fused.py": '"""More."""\n\nfrom .tensor import Tensor\n',
    "minilora/autograd/tensor.py": '"""The tape."""\n\nfrom . import ops\n',
    "minilora/nn/gpt.py": '"""A GPT."""\n\nimport numpy as np\n\nfrom ..autograd.tensor import Tensor\n',
    "minilora/nn/layers.py": '"""Layers."""\n\nfrom ..autograd import ops\n',
    "minilora/commands/main.py": '"""The door."""\n\nimport tqdm\n\nimport minilora as ml\n\nfrom ..demo import tell\n',
}
LINE = "x = 1\n"
FAULTS = [  # rule, file, what is written at its end
    (a_room_imports_from_those_below, "nn/gpt.py", "from ..adapters.lora import LoRALinear\n"),
    (a_room_imports_from_those_below, "nn/gpt.py", "from .. import training\n"),
    (a_room_imports_from_those_below, "nn/gpt.py", "def _late():\n    from minilora.bench import rows\n"),
    (a_room_imports_from_those_below, "bench/__init__.py", "import minilora.commands.main\n"),
    (a_room_imports_from_those_below, "bench/__init__.py", "from .. import demo\n"),
    (a_room_imports_from_those_below, "bench/__init__.py", "import minilora as ml\n"),
    (every_folder_is_a_room, "tools/__init__.py", '"""Tools."""\n'),
    (every_folder_is_a_room, "tools.py", '"""Tools."""\n'),
    (the_core_lives_on_numpy, "adapters/__init__.py", "import scipy.linalg\n"),
    (the_core_lives_on_numpy, "autograd/ops.py", "def _late():\n    from tqdm import tqdm\n"),
    (no_import_circle, "nn/layers.py", "from . import gpt\nfrom .gpt import GPT\n"),
    (no_import_circle, "nn/layers.py", "def _late():\n    from .gpt import GPT\n"),
    (no_import_circle, "autograd/tensor.py", "from .tape import Node\n"),
    (nothing_is_too_long, "nn/gpt.py", 397 * LINE),
    (nothing_is_too_long, "nn/gpt.py", "def _long():\n" + 60 * "    x = 1\n"),
    (no_room_is_too_large, "nn/layers.py", 30 * LINE),
    (everything_public_says_what_it_is, "nn/new.py", LINE),
    (everything_public_says_what_it_is, "nn/gpt.py", "def new():\n    pass\n"),
    (everything_public_says_what_it_is, "nn/gpt.py", "class _Inner:\n    class New:\n        pass\n"),
    (everything_public_says_what_it_is, "nn/gpt.py", "class _Inner:\n    def new(self):\n        pass\n"),
    (nothing_is_left_for_later, "nn/gpt.py", "def _new():\n    raise NotImplementedError\n"),
    (nothing_is_left_for_later, "nn/gpt.py", "try:\n    x = 1\nexcept:\n    pass\n"),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in FAULTS))
TURNED = {
    "minilora/nn/gpt.py": "from .layers import Linear\n",
    "minilora/autograd/tape.py": "from .ops import add\n",
}


@pytest.mark.parametrize("rule", RULES)
def test_a_house_in_order_has_no_complaints(rule):
    assert rule(GOOD) == []


@pytest.mark.parametrize(("rule", "file", "fault"), FAULTS)
def test_a_planted_fault_is_found(rule, file, fault):
    path = f"minilora/{file}"
    house = {**GOOD, path: GOOD.get(path, "") + fault}
    if rule is no_import_circle:  # the other half of the circle, which alone is none
        house |= {p: GOOD.get(p, "") + line for p, line in TURNED.items()}
        assert rule({**house, path: GOOD[path]}) == []
    assert rule(house)


@pytest.mark.parametrize("rule", RULES)
def test_the_house_is_in_order(rule):
    assert rule(source()) == []


def test_the_tests_have_the_same_rooms():
    folders = {p.parent.name for p in ROOT.glob("tests/*/test_*.py")}
    assert folders - {"peers"} <= {*ROOMS, "course"} and "peers" in folders


QUIET = """
import json, sys, threading
import numpy
opened = []
def hook(event, args):
    if event in ("subprocess.Popen", "socket.connect") or event == "open" and ".py" not in str(args[0]):
        opened.append(f"{event} {args[0]}")
sys.addaudithook(hook)
import minilora
print(json.dumps([sorted(sys.modules), opened, threading.active_count()]))
print(minilora.analysis.rank.energy_rank([3.0, 0.0]))
"""


def test_importing_the_face_is_quiet():
    """No thread, no file, no picture, no extra, and none of the rooms that only a few need."""
    ran = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True, cwd=ROOT)
    said, rank = ran.stdout.splitlines()
    modules, opened, threads = json.loads(said)
    late = {"matplotlib", "tqdm", "scipy", "torch", "jax", "cupy", *(f"minilora.{name}" for name in ROOMS[6:])}
    assert not {name for module in modules for name in late if f"{module}.".startswith(f"{name}.")}
    assert "minilora.analysis" in modules and "minilora.analysis.rank" not in modules and rank == "1"  # when asked for
    assert opened == [] and threads == 1


# --- the signposts ---------------------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", *(ROOT / ".github" / name for name in ("CONTRIBUTING.md", "WALK.md"))]


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_signpost_leads_somewhere(page):
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link
    files = [name for name in re.findall(r"`([\w/]+\.py)`", text) if "/" in name and not re.search(r"[A-Z]", name)]
    for name in files:
        assert (ROOT / name).exists() or (ROOT / "minilora" / name).exists(), name
    assert len(links) > 5


def test_where_something_new_goes():
    """Each row of the table: the file and the table it is entered in are there, and so many steps follow."""
    text = PAGES[1].read_text("utf-8")
    rows = re.findall(r"^\| (\w[\w ]+) \| (.+) \| (.+) \| \[(\d)\]\(#(.+)\) \|$", text, re.M)
    assert len(rows) == 9
    for what, written, entered, steps, anchor in rows:
        [section] = re.findall(rf"^### {anchor.replace('-', ' ')}\n(.*?)(?=^##|\Z)", text, re.M | re.S | re.I)
        assert len(re.findall(r"^\d\. ", section, re.M)) == int(steps) <= 5, what
        files = re.findall(r"`(\w+/\w+\.py)`", entered) or re.findall(r"`(\w+/\w+\.py)`", written)
        for name in re.findall(r"`([A-Za-z_]+)`", entered):
            assert re.search(rf"^(def )?{name}\b", (ROOT / "minilora" / files[0]).read_text("utf-8"), re.M), name
