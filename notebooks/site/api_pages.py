"""The API from the docstrings: what `import minilora as ml` gives, and what else each room offers."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from source_pages import PACKAGE, ROOMS, contents
from words import ROOT, from_docstring


def api_pages() -> dict[str, str]:
    """{"api/face": the names of the package itself, "api/nn": what the files of a room define, ...}"""
    import minilora as ml

    pages = {"api/face": "# The face: import minilora as ml\n\n" + "\n".join(_entries("ml", ml, dir(ml)))}
    for room in ROOMS:
        parts = [f"# {room}\n"]
        for path in sorted((PACKAGE / room).glob("*.py")):
            name = f"minilora.{room}" + ("" if path.stem == "__init__" else f".{path.stem}")
            module = importlib.import_module(name)
            own = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == name]
            if entries := list(_entries(name, module, own)):
                words = from_docstring((module.__doc__ or "").strip().split("\n")[0])
                parts += [f"## {name}\n\n{words}\n", *entries]
        pages[f"api/{room}"] = "\n".join(parts)
    names = contents(["api/face", *(f"api/{room}" for room in ROOMS)], "api/index")
    front = "# The API\n\nFrom the docstrings; each class and function leads to its place in the annotated source.\n"
    return {**pages, "api/index": front + names}


def _entries(prefix: str, module: Any, names: list[str]) -> Iterator[str]:
    """Every public class and function of these names."""
    for name in sorted(set(names), key=str.lower):
        value = None if name.startswith("_") else inspect.unwrap(getattr(module, name))
        if inspect.isclass(value) or inspect.isfunction(value):
            yield _entry(f"{prefix}.{name}", value)


def _entry(name: str, value: Any) -> str:
    methods = "\n".join(_methods(value)) if inspect.isclass(value) else ""
    kind = "class" if inspect.isclass(value) else "function"
    words = from_docstring(inspect.getdoc(value) or "")
    return f":::::{{py:{kind}}} {name}{_signature(value)}\n{words}\n\n{_link(value)}\n\n{methods}\n:::::\n"


def _methods(owner: type) -> Iterator[str]:
    """What a class itself defines and documents."""
    for name, value in vars(owner).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            kind = "property" if isinstance(value, property) else "method"
            signature = "" if isinstance(value, property) else _signature(function)
            yield f"::::{{py:{kind}}} {name}{signature}\n{from_docstring(inspect.getdoc(function) or '')}\n::::\n"


def _signature(value: Any) -> str:
    """(model: Module, rank: int = 8), the names of types without their modules; of a class the names of its fields."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    if inspect.isclass(value):
        return f"({', '.join(signature.parameters)})"
    return re.sub(r"\b[a-z_]+(\.[a-z_]+)*\.(?=[A-Z])", "", " ".join(str(signature).split()))


def _link(value: Any) -> str:
    """To a definition's row in the annotated source."""
    module, name = value.__module__, value.__qualname__
    if not module.startswith("minilora") or "<" in name:
        return ""
    place = module.replace("minilora", "source", 1).replace(".", "/")
    if (ROOT / module.replace(".", "/") / "__init__.py").exists():
        place += "/index"
    return f'<a href="../{place}.html#{name}">source</a>'
