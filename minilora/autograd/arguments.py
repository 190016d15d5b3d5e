"""What a primitive is given and gives back where it is not an array: containers, options, odd types, words for errors.

    a list or a tuple      is an array; with tensors in it they are stacked, and keep their tape
    a number of any kind   raises the precision of no array, and neither does an array of integers or of shape () beside
                           one of floating-point numbers: PyTorch's rule, where NumPy makes float64 of float32
    anything else          is refused in one line that names the primitive and the argument

An argument that is no array goes by one of the names in `OPTIONS`.
"""

import inspect
import reprlib
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import Any

import numpy as np

from .backend import Array, as_computed, is_array, mixed, new_array
from .tape import PRIMITIVES, Taped

OPTIONS = {
    "axis", "axes", "axis1", "axis2", "shape", "key", "keepdims", "ddof", "ord", "repeats", "subscripts", "dtype",
    "eps", "p", "rng", "heads", "causal", "window", "scale", "weight_of",
    "rows_of", "vocab_size", "activation",
}  # fmt: skip
ODD = (ValueError, IndexError, TypeError, AttributeError, OverflowError)  # what odd arguments end in
AS_IT_IS = {int, float, bool, complex, NoneType, slice, FunctionType, MethodType, BuiltinFunctionType}
AS_IT_IS |= {np.random.Generator}
OTHER_NAMES = {"dim": "axis", "keepdim": "keepdims", "a_min": "low", "a_max": "high", "min": "low", "max": "high"}


class Parameters:
    """A primitive's name and parameters, read once, and what is asked of them at a call that is out of the ordinary."""

    def __init__(self, function: Callable):
        code: Any = inspect.unwrap(function).__code__  # read in a tenth of the time that inspect.signature takes
        self.function, self.name = function, function.__name__
        self.names = code.co_varnames[: code.co_argcount]
        self.options = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        defaults: tuple = inspect.unwrap(function).__defaults__ or ()
        self.optional = self.names[len(self.names) - len(defaults) :]
        self.defaults = dict(zip(self.optional, defaults, strict=True))
        self.variadic = bool(code.co_flags & inspect.CO_VARARGS)

    def is_option(self, place: int) -> bool:
        """Whether the argument at this place is no array."""
        return place < len(self.names) and self.names[place] in OPTIONS

    def called(self, place: int) -> str:
        """What the argument at this place is called in an error."""
        return repr(self.names[place]) if place < len(self.names) else str(place)

    def bound(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments with keywords put into their places, and PyTorch's names for options replaced by NumPy's."""
        if self.variadic and not self.names and args and isinstance(args[0], list | tuple):  # concatenate([a, b], axis)
            if len(args) - 1 > len(self.options):
                raise TypeError(f"{self.name}: got {len(args)} arguments, expected a list of arrays and options")
            kwargs = {**dict(zip(self.options, args[1:], strict=False)), **kwargs}
            args = tuple(args[0])
        for theirs in kwargs.keys() & OTHER_NAMES.keys():
            ours = OTHER_NAMES[theirs]
            if theirs not in self.names and ours in (*self.names, *self.options) and ours not in kwargs:
                if theirs == "dim" and self.name in ("max", "min"):
                    raise TypeError(
                        f"{self.name}: dim= gives values and their places in PyTorch; here, axis= the values"
                    )
                kwargs[ours] = kwargs.pop(theirs)
        while not kwargs.keys().isdisjoint(self.names[len(args) :]):  # bias=b is as good as the third place
            name = self.names[len(args)]
            if name not in kwargs and name not in self.defaults:
                break
            args = (*args, kwargs.pop(name) if name in kwargs else self.defaults[name])
        for key, value in kwargs.items():
            if isinstance(value, Taped):
                if value.node is not None:
                    raise TypeError(
                        f"{self.name}: {key} is a tensor with a tape, and has no derivative: {key}.detach()"
                    )
                kwargs[key] = value._array
        return args, kwargs

    def unwrapped(self, args: tuple) -> tuple[list, list]:
        """(values, nodes) of any arguments."""
        dtypes = [a.dtype for a in args if isinstance(a, Taped) or is_array(a)]
        args = tuple(a if self.is_option(i) else self._settled(i, a, dtypes) for i, a in enumerate(args))
        values = [a._array if isinstance(a, Taped) else a for a in args]
        return values, [a.node if isinstance(a, Taped) else None for a in args]

    def _settled(self, place: int, a: Any, beside: list) -> Any:
        """An array argument as a tensor, an array or a number; None and functions stay."""
        if isinstance(a, Taped) or type(a) in AS_IT_IS:
            return a
        try:
            if isinstance(a, np.generic):
                return {"f": float, "c": complex}.get(a.dtype.kind, np.generic.item)(a) if beside else a
            if isinstance(a, list | tuple):
                floating = [dtype for dtype in beside if dtype.kind in "fc"]
                made = gathered(a)  # numbers in a list have no precision of their own
                weak = floating and is_array(made) and made.dtype.kind == "f" and not any(map(is_array, a))
                return made.astype(np.result_type(*floating), copy=False) if weak else made
            return as_array(a)
        except (ValueError, TypeError) as error:
            words = str(error) if str(error).startswith(f"{self.name}:") else f"argument {self.called(place)}: {error}"
            raise type(error)(words if words is str(error) else f"{self.name}: {words}") from None

    def again(self, values: list, kwargs: dict, error: Exception) -> tuple:
        """The primitive on arrays where it failed on numbers, which have no shape; or the error with its words."""
        numbers = [i for i, v in enumerate(values) if isinstance(v, int | float | complex) and not self.is_option(i)]
        if numbers and isinstance(error, AttributeError | TypeError):
            arrays = [np.asarray(v) if i in numbers else v for i, v in enumerate(values)]
            try:
                return self.function(*arrays, **kwargs)
            except ODD as second:
                error, values = second, arrays
        raise self.named(error, values) from None

    def named(self, error: Exception, values: Sequence) -> Exception:
        """The same error with the primitive's name, and the shapes and options that came."""
        said = " ".join(str(error).split())
        if said.startswith(f"{self.name}:"):
            return error if "\n" not in str(error) else type(error)(said)
        if isinstance(error, TypeError) and (words := mixed(values)):
            return TypeError(f"{self.name}: {words}")
        if "unpack" in said and error.__traceback__ is not None and error.__traceback__.tb_next is None:
            return TypeError(f"{self.name}: the primitive returned one thing, expected (output, vjps)")
        for place, value in enumerate(values):
            if value is None and place < len(self.names) and self.names[place] in self.optional:
                continue
            if not (self.is_option(place) or is_array(value) or isinstance(value, int | float | complex | np.generic)):
                came = f"{self.called(place)} is {reprlib.repr(value)} ({type(value).__name__})"
                return TypeError(f"{self.name}: argument {came}, expected an array or a number")
        shapes = ", ".join(str(v.shape) if hasattr(v, "shape") else reprlib.repr(v) for v in values)
        kinds = {TypeError: TypeError, AttributeError: TypeError, IndexError: IndexError}
        return kinds.get(type(error), ValueError)(f"{self.name}: got ({shapes}): {said}")  # NumPy's AxisError, for one

    def in_floats(self, values: list, kwargs: dict) -> tuple:
        """The primitive where whole numbers too large for an array had made objects of its output, or an error."""
        floats = [float(v) if type(v) is int and abs(v) >= 2**63 else v for v in values]
        output, vjps = self.function(*[np.asarray(v) if type(v) is float else v for v in floats], **kwargs)
        if output.dtype.hasobject:
            raise self.named(TypeError("expected numbers"), values)
        return output, vjps

    def array_of(self, output: Any) -> Array:
        """What a primitive computed, as an array, where it was computed. NumPy makes a number of its own of a sum."""
        output = as_computed(output._array if isinstance(output, Taped) else output)
        if output.dtype.kind not in "biufc":
            raise TypeError(
                f"{self.name}: the primitive returned {reprlib.repr(output)}, expected an array and its vjps"
            )
        return output

    def not_raised(self, output: Array, values: Sequence) -> Array:
        """The output in the precision of its floating-point arrays, where one of shape () or of integers raised it."""
        first = values[0]
        if type(first) is np.ndarray and first.ndim and first.dtype == output.dtype and output.dtype.kind in "fc":
            return output  # a table's rows, a model's loss: nothing to ask
        arrays = [v for v in values if is_array(v)]
        if wrong := [v.dtype for v in (output, *arrays) if v.dtype.kind not in "biufc"]:
            raise TypeError(f"{self.name}: got an array of {wrong[0]}, expected numbers")
        floating = [v for v in arrays if v.dtype.kind in "fc"]
        deciding = [v.dtype for v in floating if v.ndim] or [v.dtype for v in floating]
        if not deciding or output.dtype != np.result_type(*(v.dtype for v in arrays)):
            return output
        wanted = np.result_type(*deciding)
        if output.dtype.kind == "c" and wanted.kind == "f":
            wanted = np.result_type(wanted, np.complex64)
        return output.astype(wanted, copy=False) if output.dtype.kind in "fc" else output

    def functions(self, vjps: Any) -> Any:
        """The vjps of a primitive, where they are no tuple: one function that returns all cotangents, or a list."""
        if callable(vjps):
            return vjps
        if isinstance(vjps, list):
            return tuple(vjps)
        came = type(vjps).__name__
        raise TypeError(f"{self.name}: the primitive returned {came} for its vjps, expected a function per input")


def as_array(value: Any) -> Array:
    """An array of what is one by another name. Raises TypeError for what is none, or would lose something."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError("a masked array, whose mask would be lost; fill it, x.filled(0), or choose with ops.where")
    if isinstance(value, np.matrix):
        raise TypeError("a np.matrix, whose * is a matrix product; take np.asarray(x) for NumPy's arrays, and @")
    array = new_array(value)
    if array.dtype.kind not in "biufc":
        fix = "; x.astype('float32') holds the same numbers" if array.dtype.name == "bfloat16" else ""
        raise TypeError(f"got data of dtype {array.dtype}, expected numbers{fix}: {reprlib.repr(value)}")
    return array


def gathered(items: list | tuple) -> Any:
    """An array of a list, or a tensor where there are tensors in it, with their tape."""
    kinds = _dtypes(items)
    if kinds is None:
        return as_array(items)
    parts = [gathered(part) if isinstance(part, list | tuple) and _dtypes(part) is not None else part for part in items]
    floating = [dtype for dtype in kinds if dtype.kind in "fc"]
    dtype = np.result_type(*floating or kinds)
    return PRIMITIVES["stack"]([new_array(part, dtype) if isinstance(part, int | float) else part for part in parts])


def _dtypes(items: list | tuple) -> list | None:
    """The dtypes of the tensors and arrays in nested lists; None where there is no tensor."""
    found, taped, rest = [], False, list(items)
    while rest:
        part = rest.pop()
        if isinstance(part, list | tuple):
            rest += part
        elif isinstance(part, Taped) or is_array(part):
            taped |= isinstance(part, Taped)
            found.append(part.dtype)
    return found if taped else None
