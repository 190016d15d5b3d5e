"""What stands after >>> in prose and docstrings runs and prints what is written; what the walk names is there."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WALK = ROOT / ".github" / "WALK.md"
EXAMPLES = [path for path in sorted(ROOT.glob("minilora/**/*.py")) if ">>> " in path.read_text(encoding="utf-8")]
NAMED = re.compile(r"\[`([\w/]+)\.py`\]\(\.\./minilora/\1\.py\):\s+((?:`[\w.]+`(?:,\s+)?(?:then\s+)?)+)")


def test_the_walk_prints_what_it_says():
    failed, tried = doctest.testfile(str(WALK), module_relative=False, encoding="utf-8")
    assert tried > 50 and failed == 0


def test_every_station_names_a_file_and_functions_that_are_there():
    stations = re.split(r"\n## \d+\. ", WALK.read_text(encoding="utf-8"))[1:]
    assert len(stations) == 12
    for station in stations[:11]:
        named = NAMED.findall(station)
        assert named, f"no file and function in {station.splitlines()[0]!r}"
        for file, functions in named:
            module = importlib.import_module("minilora." + file.replace("/", "."))
            for function in re.findall(r"`([\w.]+)`", functions):
                found = module
                for part in function.split("."):
                    found = getattr(found, part)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_docstrings_print_what_they_say(path):
    name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried == len(re.findall(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.M)) and failed == 0


@pytest.mark.slow
def test_the_readmes_python_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert blocks and "steps=200" in blocks[0]
    for block in blocks:
        exec(block.replace("steps=200", "steps=5"), {})
    before, after = map(float, capsys.readouterr().out.split("\n")[:2])
    assert after < before
