"""The border: NumPy's functions on tensors, and the words of NumPy and PyTorch that a Tensor does not have.

A NumPy function on a tensor is a primitive of ours, moves entries about, or looks at values only, and then gives plain
arrays. Any other is refused while a gradient would get lost on the way; without a tape there is none to lose, and NumPy
computes as with any array.
"""

import inspect
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import numpy as np

from .tape import PRIMITIVES, Taped

# NumPy's name -> our primitive's, where the two mean the same and are called differently.
SAME = {
    "negative": "negate", "absolute": "abs", "fabs": "abs", "amax": "max", "amin": "min", "concat": "concatenate",
    "permute_dims": "transpose", "float_power": "power", "linalg.norm": "norm", "linalg.matmul": "matmul",
    "linalg.vector_norm": "norm", "linalg.outer": "outer", "cumulative_sum": "cumsum",
}  # fmt: skip
RENAMED = {"newshape": "shape", "a_min": "low", "a_max": "high", "min": "low", "max": "high"}  # options
NAMES = {"concatenate": ("arrays", "axis", "out"), "where": ("condition", "x", "y"), "dot": ("a", "b", "out")}
ARRAYS = {
    "where": 3,
    "dot": 2,
    "outer": 2,
    "linalg.outer": 2,
    "linalg.matmul": 2,
}  # how many arrays come first, if not 1
INSTEAD = {
    "add.reduce": "ops.sum(x, axis)", "maximum.reduce": "ops.max(x, axis)", "minimum.reduce": "ops.min(x, axis)",
    "multiply.reduce": "ops.prod(x, axis)", "add.accumulate": "ops.cumsum(x, axis)", "add.outer": "a[:, None] + b",
    "multiply.outer": "ops.outer(a, b)", "tensordot": "ops.einsum('ij,jk->ik', a, b)", "sort": "x[np.argsort(x)]",
    "median": "x[np.argsort(x)] and its middle", "average": "ops.mean(x, axis)", "pad": "ops.concatenate with zeros",
    "kron": "ops.outer and ops.reshape", "cross": "ops.einsum", "nansum": "ops.sum(ops.where(mask, x, 0))",
}  # fmt: skip


def _lower(m: Any, k: int) -> Any:
    """True on and below the k-th diagonal."""
    return np.tri(*m.shape[-2:], k=k, dtype=bool)  # type: ignore[call-overload]


COMPOSED: dict[str, Callable] = {
    "positive": lambda x: x,
    "copy": lambda a: a.copy(),
    "square": lambda x: x * x,
    "reciprocal": lambda x: 1 / x,
    "log2": lambda x: x.log() / np.log(2),
    "log10": lambda x: x.log() / np.log(10),
    "exp2": lambda x: 2.0**x,
    "tan": lambda x: x.sin() / x.cos(),
    "sinh": lambda x: (x.expm1() - (-x).expm1()) / 2,
    "cosh": lambda x: (x.exp() + (-x).exp()) / 2,
    "vdot": lambda a, b: PRIMITIVES["dot"](PRIMITIVES["flatten"](a), PRIMITIVES["flatten"](b)),
    "trace": lambda a, offset=0, axis1=0, axis2=1: np.diagonal(a, offset, axis1, axis2).sum(-1),
    "inner": lambda a, b: PRIMITIVES["dot"](
        a, PRIMITIVES["swapaxes"](b, -1, -2) if np.ndim(a) and np.ndim(b) > 1 else b
    ),
    "diff": lambda a: a[..., 1:] - a[..., :-1],
    "tril": lambda m, k=0: PRIMITIVES["where"](_lower(m, k), m, 0.0),
    "triu": lambda m, k=0: PRIMITIVES["where"](_lower(m, k - 1), 0.0, m),
}
REARRANGING = {
    "ravel", "moveaxis", "rollaxis", "flip", "fliplr", "flipud", "roll", "rot90", "take", "take_along_axis",
    "diagonal", "tile", "delete", "resize", "atleast_1d", "atleast_2d", "atleast_3d", "split",
    "array_split", "hsplit", "vsplit", "dsplit", "vstack", "hstack", "dstack", "column_stack", "append",
    "unstack", "matrix_transpose",
}  # fmt: skip
LOOKING = set(  # at values alone: their results are plain arrays, whose derivative is zero or none
    [
        "argmax",
        "argmin",
        "argsort",
        "argwhere",
        "nonzero",
        "flatnonzero",
        "count_nonzero",
        "lexsort",
        "searchsorted",
        "digitize",
        "unique",
        "isin",
        "all",
        "any",
        "allclose",
        "isclose",
        "array_equal",
        "array_equiv",
        "shape",
        "ndim",
        "size",
        "result_type",
        "can_cast",
        "common_type",
        "iscomplexobj",
        "isrealobj",
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "shares_memory",
        "may_share_memory",
        "array2string",
        "array_repr",
        "array_str",
        "histogram",
        "bincount",
        "round",
        "around",
        "iscomplex",
        "isreal",
        "isposinf",
        "isneginf",
        "save",
        "savez",
        "savez_compressed",
        "equal",
        "not_equal",
        "less",
        "less_equal",
        "greater",
        "greater_equal",
        "isfinite",
        "isnan",
        "isinf",
        "signbit",
        "floor",
        "ceil",
        "trunc",
        "rint",
        "sign",
        "logical_and",
        "logical_or",
        "logical_not",
        "logical_xor",
    ]
)
NO_ARRAY = (
    "Tensor: an array made of this tensor would lose its tape, and gradients would vanish: use NumPy's function on the "
    "tensor itself (np.dot(a, x), not a.dot(x)), a primitive of ml.ops (ops.stack for a list of tensors), or x.data "
    "where no gradient is wanted"
)


def tensors_in(values: Iterable) -> Iterable[Taped]:
    """Every tensor among arguments, through lists and tuples."""
    for value in values:
        if isinstance(value, Taped):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def without_tape(value: Any) -> Any:
    """The same arguments with arrays in the places of tensors."""
    if isinstance(value, list | tuple) and any(True for _ in tensors_in(value)):
        return type(value)(map(without_tape, value)) if type(value) in (list, tuple) else [*map(without_tape, value)]
    return value._array if isinstance(value, Taped) else value


def ufunc(ufunc: Any, method: str, inputs: tuple, options: dict) -> Any:
    """np.exp(x) and array + x are the primitives of those names; comparisons give plain boolean arrays."""
    name = ufunc.__name__
    ours = PRIMITIVES.get(SAME.get(name, name)) or COMPOSED.get(name)
    if method == "__call__" and not options and ours and name not in LOOKING:
        return ours(*inputs)
    taped = [x for x in tensors_in((*inputs, *options.values())) if x.node is not None]
    written = [*tensors_in(options.get("out", ())), *(tensors_in(inputs[:1]) if method == "at" else ())]
    if written or (taped and not (method == "__call__" and name in LOOKING)):
        what = name if method == "__call__" else f"{name}.{method}"
        if "out" in options or method == "at":
            raise TypeError(f"np.{what}: an array written in place keeps no tape: write y = y + x instead of y += x")
        if options and ours and method == "__call__":
            raise TypeError(f"np.{what}: a tensor takes no {'=, '.join(options)}=; use ops.{SAME.get(name, name)}")
        raise TypeError(_no_derivative(name, method))
    plain = [without_tape(value) for value in inputs]
    return getattr(ufunc, method)(*plain, **{key: without_tape(value) for key, value in options.items()})


def function(function: Callable, args: tuple, kwargs: dict) -> Any:
    """A function of NumPy's that is no ufunc."""
    module = getattr(function, "__module__", None) or "numpy"
    name = f"{module.removeprefix('numpy')}.{function.__name__}".removeprefix(".")
    if name in LOOKING:
        return function(*map(without_tape, args), **{key: without_tape(value) for key, value in kwargs.items()})
    if name == "where" and len(args) == 1:
        return np.nonzero(*args)
    if SAME.get(name, name) in PRIMITIVES:
        return _primitive(name, function, args, kwargs)
    if name in REARRANGING:
        return _rearranged(function, *_bound(name, function, args, kwargs))
    if name in COMPOSED:
        try:
            return COMPOSED[name](*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"np.{name}: {error}") from None
    taped = [x for x in tensors_in((*args, *kwargs.values())) if x.node is not None]
    if taped:
        raise TypeError(_no_derivative(name))
    return function(*map(without_tape, args), **{key: without_tape(value) for key, value in kwargs.items()})


def _no_derivative(name: str, method: str = "__call__") -> str:
    full = name if method == "__call__" else f"{name}.{method}"
    use = INSTEAD.get(full, "a primitive of ml.ops")
    return (
        f"np.{name} has no derivative here{'' if full == name else f' as np.{full}'}; use {use}, or x.data without one"
    )


def _parameters(name: str, function: Callable) -> list[tuple[str, Any]]:
    """(name, default) of a NumPy function's parameters; older NumPys do not tell those of the compiled ones."""
    try:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]
    except ValueError:
        return [(parameter, None) for parameter in NAMES.get(name, ())]


def _primitive(name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
    """Our primitive, with NumPy's arguments: its options by name, those left as they are left out."""
    ours = PRIMITIVES[SAME.get(name, name)]
    if name == "einsum":
        return ours(*args, **{key: value for key, value in kwargs.items() if key != "optimize"})
    code = inspect.unwrap(ours).__code__  # type: ignore[attr-defined]
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    theirs = dict(_parameters(name, function))
    given = [*zip(theirs, args, strict=False), *kwargs.items()]
    positional: list = []
    options: dict[str, Any] = {}
    for place, (parameter, value) in enumerate(given):
        own = RENAMED[parameter] if RENAMED.get(parameter) in known else parameter
        if place < ARRAYS.get(name, 1):
            positional.append(value)
        elif own in known:
            options[own] = value
        elif value is not theirs.get(parameter, inspect.Parameter.empty):
            takes = ", ".join(f"{option}=" for option in known[len(positional) :]) or "no options"
            raise TypeError(f"np.{name}: a tensor takes no {parameter}=; ops.{ours.__name__} takes {takes}")
    if code.co_flags & inspect.CO_VARARGS and isinstance(positional[0], Taped):
        positional = [list(positional[0])]  # type: ignore[call-overload]  # np.concatenate of one array joins its rows
    return ours(*positional, **options)


def _bound(name: str, function: Callable, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The array in the first place, however it was named."""
    first = _parameters(name, function)[0][0]
    return (
        ((kwargs[first], *args), {k: v for k, v in kwargs.items() if k != first}) if first in kwargs else (args, kwargs)
    )


def _rearranged(function: Callable, args: tuple, kwargs: dict) -> Any:
    """What a function that only moves entries does to their places tells where each entry of its result comes from."""
    if function.__name__.startswith("atleast") and len(args) > 1:
        raise TypeError(f"np.{function.__name__}: got {len(args)} arguments, expected one tensor at a time")
    first, *rest = args
    several = isinstance(first, list | tuple) or function.__name__ == "append"
    parts = [*first] if isinstance(first, list | tuple) else [first, rest.pop(0)] if several else [first]
    flat = [PRIMITIVES["flatten"](part) for part in parts]
    starts = accumulate((x.size for x in flat), initial=0)
    places = [
        np.arange(start, start + np.size(without_tape(p))).reshape(np.shape(without_tape(p)))
        for p, start in zip(parts, starts, strict=False)
    ]
    arguments = places if function.__name__ == "append" else [places] if several else places
    moved = function(*arguments, *map(without_tape, rest), **{key: without_tape(v) for key, v in kwargs.items()})
    whole = PRIMITIVES["concatenate"](flat)
    pick = lambda where: PRIMITIVES["index"](whole, where)
    return [pick(where) for where in moved] if isinstance(moved, list | tuple) else pick(moved)
