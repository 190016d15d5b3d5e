"""What a function may be given: its signature says it, and `checked` holds callers to it.

    @checked
    def evaluate(model: Module, corpus: Corpus, most: int | None = None) -> float: ...

    evaluate(model, "a text")    TypeError: evaluate: corpus = 'a text', expected a Corpus, as load_corpus(name) gives

An integer or a number may be NumPy's; a truth value is neither. What a type cannot say (a positive rank, arrays that
fit), the function checks itself. If it ends in an error of Python's or NumPy's own words, these get its name.
"""

import functools
import inspect
import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

WORDS: dict[Any, str] = {  # a type -> what is expected
    bool: "True or False", int: "an integer", float: "a number", str: "a text", Path: "a path", type(None): "None",
    np.random.Generator: "a numpy Generator, as np.random.default_rng(0)",
}  # fmt: skip
GIVES = {  # a class -> what gives one of it
    "Corpus": "load_corpus(name)", "Module": "load_model('base') or GPT(config)", "GPT": "load_model('base')",
    "Run": "Run(model, corpus, Settings())", "Settings": "Settings(steps=200)", "Tensor": "Tensor(array)",
    "Optimizer": "AdamW(model.parameters())", "LoRAConfig": "LoRAConfig(rank=8)",
}  # fmt: skip


def shown(value: Any) -> str:
    """What came, in the one line of an error: its repr, cut where it is long."""
    return " ".join(reprlib.repr(value).split())


def is_whole(value: Any) -> bool:
    """Whether a value is one integer, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is one real number, and no truth value."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


SIMPLE: dict[Any, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool | np.bool_),
    int: lambda value: is_real(value) or isinstance(value, bool),  # which whole numbers will do, the function says
    float: is_real,
    Path: lambda value: isinstance(value, os.PathLike),
    np.ndarray: lambda value: True,  # lists and tensors are as good: the function makes an array of them
}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that an annotation names."""
    kind, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint in SIMPLE:
        return SIMPLE[hint](value)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inside)
    if kind is None or hint is Any:
        return hint is Any or not isinstance(hint, type) or isinstance(value, hint)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(fits(v, inside[-1]) for v in value.values())
    if issubclass(kind, Iterable):
        many = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | type)
        fixed = kind is tuple and Ellipsis not in inside
        if kind is Sequence and not isinstance(value, Sequence) and not hasattr(value, "dtype"):
            return False  # a set has no order, and a generator is used up by a look
        if not many or getattr(value, "shape", (1,)) == () or (kind is tuple and not isinstance(value, list | tuple)):
            return False
        if not isinstance(value, list | tuple):
            return not hasattr(value, "dtype") or inside[0] in (Any, int, float)  # what numbers in an array may be
        kinds = inside if fixed else inside[:1] * len(value)
        return len(kinds) == len(value) and all(fits(v, one) for v, one in zip(value, kinds, strict=True))
    return isinstance(value, kind)


def expected(hint: Any) -> str:
    """The words for a type: "an integer or None"."""
    kind, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint in WORDS:
        return WORDS[hint]
    if kind in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(expected(one) for one in inside))
    if kind is None or not inside:
        name = getattr(kind or hint, "__name__", str(hint))
        return f"a {name}" + (f", as {GIVES[name]} gives" if name in GIVES else "")
    if issubclass(kind, Mapping):
        return "a dictionary"
    if not issubclass(kind, Iterable):
        return "a function"
    one = expected(inside[0])
    return f"{len(inside)} values, each {one}" if kind is tuple and Ellipsis not in inside else f"several, each {one}"


def misfit(caller: str, hints: Mapping[str, Any], given: Mapping[str, Any]) -> TypeError | None:
    """The error about the first argument that is not of its parameter's type."""
    for name, value in given.items():
        if name == "rng" and hints.get(name, Any) is Any:
            try:
                np.random.default_rng(value)
            except (TypeError, ValueError):
                wanted = "expected a seed, an integer of 0 or more, or a numpy Generator"
                return TypeError(f"{caller}: rng = {shown(value)}, {wanted}")
        if name in hints and not fits(value, hints[name]):
            return TypeError(f"{caller}: {name} = {shown(value)}, expected {expected(hints[name])}")
    return None


def in_its_name(caller: str, error: Exception) -> Exception:
    """The same error in one line that names the function: as it is, where it does."""
    words = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename:
        words = f"{error.filename}: {error.strerror}"  # without its number
    if caller in words and "\n" not in str(error):
        return error
    kind = next((k for k in (ValueError, TypeError) if isinstance(error, k)), type(error))  # OSError's kinds stay
    return kind(words if caller in words else f"{caller}: {words}")


def _kind(value: Any) -> str:
    return str(value.shape) if isinstance(value, np.ndarray) else f"of type {type(value).__name__}"


def checked(function: Function) -> Function:
    """Raise TypeError, before anything is done, for an argument that is not of the type its annotation names."""
    name = function.__name__

    @functools.cache  # at the first call: by then every name in an annotation is there
    def read() -> tuple[inspect.Signature, dict[str, Any]]:
        signature = inspect.signature(function)
        found = typing.get_type_hints(function)
        packed = {p.name for p in signature.parameters.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        return signature, {name: hint for name, hint in found.items() if name not in packed}

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        caller = type(args[0]).__name__ if name == "__init__" else name
        try:
            signature, hints = read()
            given = signature.bind(*args, **options).arguments
            if error := misfit(caller, hints, given):
                raise error
            return function(*args, **options)
        except (ValueError, TypeError, OSError) as error:
            named = in_its_name(caller, error)
            if named is error:
                raise
            raise named from error
        except AttributeError as error:  # an argument of a kind that no annotation names: None for an array
            came = ", ".join(f"{name} {_kind(value)}" for name, value in given.items())
            raise TypeError(f"{caller}: got {came}: {error}") from error

    return typing.cast(Function, call)
