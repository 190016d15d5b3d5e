"""What the tests of the problem sets are written with: call an answer, and say of a wrong result what is wrong with it.

    dx, dw = call("dx dw", head_norm_vjp, x=x, w=w, heads=2, g=g)      # the student's function; arguments by name
    expect("dx for x (4, 6)", dx, wanted, "Three ways lead from x to y.", {"w is forgotten": without_w})

`call` turns whatever the function raises into a line that names it and the shapes it was given, refuses a function that
lets a library do its work, and sees whether an argument was written into. `expect` shows as many digits as it takes to
tell two numbers apart, and looks for the cause: first the mistakes that the test foresees, then the usual ones.
"""

import dis
import functools
import tracemalloc
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..autograd.tensor import Tensor, grad

# What an answer must not lean on: libraries that have it ready, and what reaches them past our eyes.
LIBRARIES = {"minilora", "torch", "jax", "autograd", "tensorflow", "cupy", "peft", "transformers", "scipy", "sklearn"}
PASSAGES = {"importlib", "sys", "gc", "inspect", "runpy", "ctypes", "subprocess"}
BUILTINS = {"__import__", "eval", "exec", "compile", "globals", "vars", "__builtins__", "get_ipython"}
NAMES = {"LOAD_GLOBAL", "LOAD_NAME"}  # the instructions that look a global name up


# --- The student's function, called.


def call(what: str, function: Any, may_write: bool = False, **arguments: Any) -> Any:
    """function(*arguments), whose results are called `what`, such as "dx" or "dx dw".

    Raises AssertionError, in one line, for a function that is no own work, raises, returns None or another number of
    results, or writes into its arguments, unless it may.
    """
    return traced(what, function, may_write, arguments)[0]


def held(what: str, limit: float, look: str, function: Any, **arguments: Any) -> Any:
    """`call`, which may hold at most `limit` bytes at once beyond its arguments: -> what it returns."""
    result, used = traced(what, function, False, arguments)
    assert used <= limit, (
        f"your {function.__name__} holds {used / 2**20:.1f} MiB at once on {named(arguments)}, "
        f"and {limit / 2**20:.1f} are enough. {look}"
    )
    return result


def traced(what: str, function: Any, may_write: bool, arguments: dict[str, Any]) -> tuple[Any, int]:
    """What `call` does: -> what the function returns, and the most bytes that it held at once."""
    own_work(function)
    name, on = function.__name__, named(arguments)
    before = {key: snapshot(value) for key, value in arguments.items()}
    tracemalloc.start()
    try:
        result = function(*arguments.values())
        used = tracemalloc.get_traced_memory()[1]
    except NotImplementedError:
        raise AssertionError(f"{name} is not written yet") from None
    except Exception as error:
        said = " ".join(str(error).split())
        raise AssertionError(f"your {name} raises {type(error).__name__} on {on}: {said}") from error
    finally:
        tracemalloc.stop()
    for key, value in arguments.items():
        if not (may_write or same(before[key], value)):
            raise AssertionError(f"your {name} writes into its argument {key}. Work on a new array.")
    wanted = what.split()
    if result is None:
        raise AssertionError(f"your {name} returns None on {on}. Does every path of it return something?")
    if len(wanted) > 1 and not (isinstance(result, tuple | list) and len(result) == len(wanted)):
        raise AssertionError(f"your {name} returns {form(result)} on {on}; expected ({', '.join(wanted)})")
    return result, used


def named(arguments: Mapping[str, Any]) -> str:
    """The arguments of a call, in words: x (2, 3), alpha 6.0"""
    return ", ".join(f"{key} {form(value)}" for key, value in arguments.items())


def form(value: Any) -> str:
    """What a value is, in few words: an array's shape, a number."""
    if isinstance(value, np.ndarray):
        return (
            f"{value.shape}" if value.dtype == np.float64 or value.dtype.kind == "i" else f"{value.shape} {value.dtype}"
        )
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {form(v)}" for key, v in value.items()) + "}"
    if isinstance(value, tuple | list) and len(value) <= 4:
        return f"({', '.join(form(v) for v in value)})"
    text = repr(value)
    return text if len(text) <= 60 and not callable(value) else f"a {type(value).__name__}"


def snapshot(value: Any) -> Any:
    """A copy of what a function could write into."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: snapshot(v) for key, v in value.items()}
    return [snapshot(v) for v in value] if isinstance(value, list | tuple) else value


def same(before: Any, after: Any) -> bool:
    """Whether a value is what its snapshot was."""
    if isinstance(before, np.ndarray):
        return before.shape == np.shape(after) and np.array_equal(before, after, equal_nan=before.dtype.kind in "fc")
    if isinstance(before, Mapping):
        return list(before) == list(after) and all(same(v, after[key]) for key, v in before.items())
    if isinstance(before, list):
        return len(before) == len(after) and all(map(same, before, after))
    return True


def own_work(function: Any) -> None:
    """Raises AssertionError for a function that a library wrote, or that calls one of those that have the answer."""
    assert callable(function), f"expected a function, got {form(function)}"
    if found := leans_on(function, set()):
        name = getattr(function, "__name__", type(function).__name__)
        raise AssertionError(f"{name} uses {found}. It is to be written with NumPy alone.")


def leans_on(value: Any, seen: set[int]) -> str:
    """What forbidden thing a value is or, if it is a function or a class, leans on; "" for none."""
    if id(value) in seen:
        return ""
    seen.add(id(value))
    if isinstance(value, types.ModuleType):
        return value.__name__ if value.__name__.partition(".")[0] in LIBRARIES | PASSAGES else ""
    if isinstance(value, functools.partial):
        value = value.func
    value = getattr(value, "__func__", value)  # a method's function
    home = value if isinstance(value, type | types.FunctionType) else type(value)
    if (home.__module__ or "").partition(".")[0] in LIBRARIES:
        return f"{home.__module__}.{home.__qualname__}"
    if isinstance(value, type):
        parts = [*vars(value).values(), *value.__bases__] if home.__module__ == "__main__" else []
    elif isinstance(value, types.FunctionType):
        if names := forbidden_names(value.__code__):
            return names
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell is not None]
        used = [value.__globals__[name] for name in names_in(value.__code__) if name in value.__globals__]
        wrapped = [value.__wrapped__] if hasattr(value, "__wrapped__") else []
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        parts = [*cells, *used, *defaults, *wrapped] if home.__module__ == "__main__" else []
    elif isinstance(value, Mapping | list | tuple):
        parts = list(value.values() if isinstance(value, Mapping) else value)
    else:
        parts = [type(value)] if home.__module__ == "__main__" else []
    return next((found for part in parts if (found := leans_on(part, seen))), "")


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def names_in(code: types.CodeType) -> set[str]:
    """The global names that a function looks up."""
    return {str(step.argval) for part in codes(code) for step in dis.get_instructions(part) if step.opname in NAMES}


def forbidden_names(code: types.CodeType) -> str:
    """An import of what is forbidden, or a builtin that could hide one; "" for none."""
    for part in codes(code):
        for step in dis.get_instructions(part):
            name = str(step.argval)
            if step.opname == "IMPORT_NAME" and name.partition(".")[0] in LIBRARIES | PASSAGES:
                return name
            if step.opname in NAMES and name in BUILTINS:
                return name
    return ""


# --- What it returned, compared.


def expect(
    what: str, got: Any, wanted: Any, look: str = "", causes: Mapping[str, Any] | None = None, rtol: float = 1e-7
) -> None:
    """Stop, with what came, what was expected and the likeliest cause, unless two arrays agree to rtol (1 + |wanted|).

    causes: {hint: what somebody gets who made this mistake}, an array or a function that computes it.
    """
    wanted = np.asarray(wanted, dtype=float)
    came = got
    try:
        got = np.asarray(came)
        assert got.dtype.kind in "biuf"
    except (AssertionError, TypeError, ValueError):
        raise AssertionError(f"{what}: got {form(came)}, expected an array of numbers {wanted.shape}. {look}") from None
    got = got.astype(float)
    if got.shape != wanted.shape:
        hint = of_shape(got, wanted)
        raise AssertionError(f"{what}: got shape {got.shape}, expected {wanted.shape}. {hint or look}")
    wrong = ~near(got, wanted, rtol)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        one, other = apart(got[at], wanted[at])
        where = f"{int(wrong.sum())} of {wrong.size} entries differ; at {at} " if wrong.ndim else ""
        raise AssertionError(
            f"{what}: {where}got {one}, expected {other}. {cause(got, wanted, causes or {}) or look}".strip()
        )


def near(got: np.ndarray, wanted: np.ndarray, rtol: float) -> np.ndarray:
    """Where two arrays agree; written so that nan agrees with nothing."""
    with np.errstate(invalid="ignore"):
        return (np.abs(got - wanted) <= rtol * (1 + np.abs(wanted))) | (got == wanted)


def apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to tell them apart."""
    pairs = ((f"{one:.{digits}g}", f"{other:.{digits}g}") for digits in range(6, 18))
    return next(((a, b) for a, b in pairs if a != b), (repr(one), repr(other)))


def of_shape(got: np.ndarray, wanted: np.ndarray) -> str:
    """What another shape says."""
    if got.ndim == 2 and got.T.shape == wanted.shape:
        return "It is transposed." + (" The numbers are right." if near(got.T, wanted, 1e-6).all() else "")
    if got.size == wanted.size:
        return f"As many numbers in another form: {got.ndim} axes where {wanted.ndim} are expected."
    if got.ndim > wanted.ndim and got.shape[got.ndim - wanted.ndim :] == wanted.shape:
        return "What is used once for every row gets a gradient from every row: sum over the axes in front."
    return ""


def cause(got: np.ndarray, wanted: np.ndarray, causes: Mapping[str, Any]) -> str:
    """A likely cause of a wrong result of the right shape; "" for none."""
    with np.errstate(all="ignore"):
        for hint, value in causes.items():
            mistaken = np.asarray(value() if callable(value) else value, dtype=float)
            if mistaken.shape == got.shape and (near(got, mistaken, 1e-6) | (np.isnan(got) & np.isnan(mistaken))).all():
                return hint
        if not np.isfinite(got).all():
            kind = "nan" if np.isnan(got).any() else "inf"
            return f"There is {kind}: did an exponential overflow, or is something divided by zero?"
        if near(got, wanted, 1e-4).all():
            return "They agree in the first digits only: is something float32, or a constant rounded?"
        if not got.any():
            return "Everything is zero."
        return of_factor(got, wanted) or of_order(got, wanted)


def of_factor(got: np.ndarray, wanted: np.ndarray) -> str:
    """What it says when all entries are off by one and the same factor."""
    there = wanted != 0
    if not there.any() or got[~there].any() or there.sum() < 2:
        return ""
    ratios = got[there] / wanted[there]
    factor = float(ratios.flat[0])
    if not np.allclose(ratios, factor, rtol=1e-6, atol=0):
        return ""
    if np.isclose(factor, -1):
        return "The sign is wrong, all else is right."
    for n in {n for n in (*wanted.shape, wanted.size) if n > 2}:
        if np.isclose(abs(factor), n):
            return f"Everything is {factor:.6g} times too large: a sum in place of a mean?"
        if np.isclose(abs(factor), 1 / n):
            return f"Everything is 1/{n} of what is expected: a mean in place of a sum?"
    return f"Everything is {factor:.6g} times what is expected: which factor is missing, or there once too often?"


def of_order(got: np.ndarray, wanted: np.ndarray) -> str:
    """What it says when the right numbers stand in other places."""
    if got.ndim == 2 and near(got.T, wanted, 1e-6).all() if got.T.shape == wanted.shape else False:
        return "It is transposed."
    if got.size > 2 and near(np.sort(got, axis=None), np.sort(wanted, axis=None), 1e-6).all():
        return "The right numbers in the wrong places."
    return ""


# --- What it is compared with.


def tape(function: Callable, inputs: Sequence[np.ndarray], g: Any) -> list[np.ndarray]:
    """What the package's tape finds: for each input of function(*inputs), its cotangent, given that of the output."""
    tensors = [Tensor(x, requires_grad=True) for x in inputs]
    return grad(function(*tensors), tensors, g)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Arrays of normal random numbers, one for each shape."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]
