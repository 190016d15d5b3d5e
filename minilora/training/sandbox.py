"""A function of one line that somebody else wrote, called in a process of its own: it can compute there, no more.

Two walls, each enough against accidents. The line is read first: it must be one `def` with one `return`, made of
expressions over its arguments and a few functions that compute, so no import, no file, no way to other objects. Then
a new Python, without this one's environment, sets itself limits of time, memory, files and processes, and calls it.
What is expected of it never gets there: its results come back, and are compared here.
"""

import ast
import builtins
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

FUNCTIONS = (
    "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "filter", "float", "int", "len", "list", "map", "max",
    "min", "pow", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip",
)  # fmt: skip
METHODS = ("count", "index", "get", "items", "keys", "values", "lower", "upper", "strip", "split", "join", "replace",
           "startswith", "endswith")  # fmt: skip
EXPRESSIONS = (
    ast.Constant, ast.Name, ast.Load, ast.Store, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp,
    ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.keyword, ast.Subscript, ast.Slice, ast.Attribute, ast.Starred,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.Lambda, ast.arguments, ast.arg,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
LONGEST = 1_000  # characters of an answer
SECONDS, MEMORY, OUTPUT = 1, 2**28, 100_000  # of processor time, bytes of address space, characters that come back


def call(code: str, calls: list[list]) -> list | None:
    """What the function in a line of Python returns for each list of arguments. None: it is no such line, or fails.

    Arguments are what JSON holds, results what Python writes as literals.
    """
    if not is_one_function(code):
        return None
    needed = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    argv = [sys.executable, "-I", "-S", __file__]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env=needed,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, _ = process.communicate(json.dumps([code, calls]).encode(), timeout=10 * SECONDS)
            results = ast.literal_eval(out.decode())
        except (subprocess.TimeoutExpired, ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        finally:
            with contextlib.suppress(OSError, AttributeError):  # Windows has no groups
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
    return results if process.returncode == 0 and len(results) == len(calls) else None


def is_one_function(code: str) -> bool:
    """Whether a text is `def name(arguments): return expression` in one line, of what may be used."""
    code = code.strip()
    if "\n" in code or len(code) > LONGEST:
        return False
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef) or body[0].decorator_list:
        return False
    returned = body[0].body[0]
    parts = [node for node in ast.walk(body[0]) if node not in (body[0], returned)]
    known = {*FUNCTIONS, body[0].name, *(node.arg for node in parts if isinstance(node, ast.arg))}
    known |= {node.id for node in parts if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return (
        len(body[0].body) == 1
        and isinstance(returned, ast.Return)
        and all(isinstance(node, EXPRESSIONS) for node in parts)
        and all(node.id in known for node in parts if isinstance(node, ast.Name))
        and all(node.attr in METHODS for node in parts if isinstance(node, ast.Attribute))
    )


def limit() -> None:
    """From here on: so many seconds, so much memory, no file to write, no process more. Windows has no such limits."""
    with contextlib.suppress(ImportError):
        import resource

        limits = {"CPU": SECONDS, "AS": MEMORY, "FSIZE": 0, "NPROC": 0, "CORE": 0, "NOFILE": 3}
        for kind, most in limits.items():
            with contextlib.suppress(ValueError, OSError, AttributeError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))


def main() -> None:
    """The new Python's part: a line and lists of arguments come in, results go out. An error is its exit code."""
    code, calls = json.loads(sys.stdin.buffer.read())
    limit()
    scope: dict[str, Any] = {"__builtins__": {name: getattr(builtins, name) for name in FUNCTIONS}}
    exec(code.strip(), scope)
    function = next(value for name, value in scope.items() if name != "__builtins__")
    results = repr([function(*arguments) for arguments in calls])
    if len(results) > OUTPUT:
        sys.exit(1)
    sys.stdout.write(results)


if __name__ == "__main__":
    main()
