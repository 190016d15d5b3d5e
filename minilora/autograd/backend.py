"""Where arrays live: in the processor's memory with NumPy, or on a GPU with CuPy.

The rest of the package never says `np.` to data; it asks `array_module(x)` which library made x. Arrays cross in two
places: `new_array` and that library's `asarray` bring data to a GPU, `to_numpy` brings it back.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from .signatures import checked

Array = Any  # numpy.ndarray or cupy.ndarray: the two share one interface


def _cupy() -> ModuleType:
    """CuPy, once it has computed something. Raises ValueError, with the way out, where it cannot."""
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except ImportError as error:
        if error.name == "cupy":
            fix = "pip install 'minilora[gpu]'"
            raise ValueError(f"use_backend: CuPy is not installed; on a machine with an NVIDIA GPU: {fix}") from None
        raise ValueError(f"use_backend: CuPy is installed but incomplete ({_first_line(error)})") from None
    except Exception as error:  # CuPy raises its own type here, which cannot be named where it cannot be imported
        if "NoDevice" not in str(error):
            why = f"no usable NVIDIA driver ({_first_line(error)})"
            raise ValueError(f"use_backend: CuPy finds {why}; stay on 'numpy'") from None
        count = 0
    if count == 0:
        raise ValueError("use_backend: CuPy finds no NVIDIA GPU on this machine; stay on 'numpy'")
    if cupy.ndarray not in _modules:
        _try_out(cupy)
    return cupy


def _try_out(cupy: Any) -> None:
    """CuPy loads its compiler and BLAS when they are first needed: here, so that what is missing is said at once."""
    try:
        one = cupy.ones((1, 1))
        (one @ one + one).item()
    except MemoryError:
        raise  # the GPU is there, and full
    except Exception as error:
        why, fix = _first_line(error), "pip install 'minilora[gpu]' brings CUDA's libraries"
        raise ValueError(f"use_backend: CuPy finds a GPU but cannot compute on it ({why}); {fix}") from None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip(" =")), type(error).__name__)


BACKENDS: dict[str, Callable[[], ModuleType]] = {"numpy": lambda: np, "cupy": _cupy}  # name -> its module, or why not

_modules: dict[type, ModuleType] = {np.ndarray: np}  # array type -> the module whose functions take it
_current: ModuleType = np  # the module that makes new arrays


class use_backend:
    """Choose where new arrays are made: `use_backend("cupy")` from now on, or `with use_backend("cupy"):` for a block.

    Models, tensors and adapters made or loaded from then on are there, and what is computed from them; what was made
    before stays where it is. Raises ValueError for an unknown name, and says what is missing when "cupy" finds no
    library, no driver or no GPU.
    """

    @checked
    def __init__(self, name: str):
        global _current
        if name not in BACKENDS:
            raise ValueError(f"use_backend: got {name!r}, expected {' or '.join(map(repr, BACKENDS))}")
        self.previous, module = _current, BACKENDS[name]()
        _modules[module.ndarray] = module
        _current = module

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, *error: object) -> None:
        global _current
        _current = self.previous


def array_module(*arrays: Any) -> ModuleType:
    """The library (numpy or cupy) that the first array among the arguments belongs to; numpy if there is none."""
    for array in arrays:
        if type(array) in _modules:
            return _modules[type(array)]
    return np


def is_array(value: Any) -> bool:
    """Whether this is an array of a library in use; a Tensor, a list or a number is none."""
    return isinstance(value, tuple(_modules))


def new_array(data: Any, dtype: Any = None) -> Array:
    """An array on the current backend, sharing memory with `data` where that is possible.

    An array of a GPU stays there, whatever the current backend: only `to_numpy` brings one back.
    """
    xp = _modules.get(type(data), np)
    if xp is np:
        xp = _current
    return data if dtype is None and type(data) is xp.ndarray else xp.asarray(data, dtype=dtype)


def as_computed(output: Any) -> Array:
    """What a primitive computed, as an array, where it was computed. NumPy makes a number of its own of a full sum."""
    if type(output) in _modules:
        return output
    return np.asarray(output) if isinstance(output, np.generic) else new_array(output)


def to_numpy(array: Any) -> np.ndarray:
    """A NumPy array with the values of an array of any backend, or of a Tensor. The one way back from a GPU."""
    array = getattr(array, "data", array) if hasattr(array, "requires_grad") else array
    if hasattr(array, "get") and hasattr(array, "dtype"):  # a GPU's
        return array.get()
    try:
        return np.asarray(array)
    except ValueError as error:  # rows of unequal lengths
        raise ValueError(f"to_numpy: {error}") from None


def wide(x: Array) -> Array:
    """x to add up: float16 as float32, since 2048 + 1 is 2048 in float16, and 256 squared is infinite."""
    return x.astype("float32") if x.dtype.char == "e" else x


MANY = 1 << 21  # numbers that no longer fit a core's cache: there NumPy is no slower than BLAS


def sum_of_rows(x: Array) -> Array:
    """The sum over the last axis but one, as a product with ones: BLAS adds rows two to five times faster than NumPy.

    (..., n, C) -> (..., C)
    """
    if x.size > MANY or x.shape[-1] < 4 or x.dtype.kind not in "fc":  # few columns NumPy adds with more digits
        return x.sum(axis=-2)
    return array_module(x).ones(x.shape[-2], dtype=x.dtype) @ x


def floating(x: Array) -> Array:
    """x to put into a formula of real numbers: integers as float64, float16 as float32."""
    x = array_module(x).asarray(x)
    return x.astype("float64") if x.dtype.kind in "iub" else wide(x)


def narrow(y: Array, *inputs: Any) -> Array:
    """y, which was computed from these inputs made `wide`, in float16 where all of them are."""
    for given in inputs:
        if given is not None and getattr(given, "dtype", y.dtype).char != "e":
            return y
    return y.astype("float16") if y.dtype.kind == "f" else y


def at_least_float32(function: Callable) -> Callable:
    """A formula of real numbers: integers go in as floats, float16 as float32, to come out as float16 again."""

    @functools.wraps(function)
    def call(x: Any, *rest: Any, **options: Any) -> tuple:
        if type(x) is not np.ndarray:
            x = array_module(x).asarray(x)
        codes = [a.dtype.char for a in rest if hasattr(a, "dtype")] if rest else ()
        if x.dtype.kind in "iub":
            x = x.astype(next((code for code in codes if code in "efdFD"), "d"))
        if x.dtype.char != "e" and "e" not in codes:
            return function(x, *rest, **options)
        output, vjps = function(*(wide(a) if is_array(a) else a for a in (x, *rest)), **options)
        back = lambda vjp: vjp and (lambda g: vjp(wide(g)))
        vjps = back(vjps) if callable(vjps) else tuple(map(back, vjps))
        return output if any(code in "fdFD" for code in (x.dtype.char, *codes)) else output.astype("float16"), vjps

    return call


def by_value(given: Any) -> Array:
    """What a vjp may keep of an array that the caller gave and could write over before the backward pass: a copy."""
    array = array_module(given).asarray(given)
    whole = type(array) is np.ndarray and array.base is None  # a view may be read-only, and what it shows not
    return array if whole and not array.flags.writeable else array.copy()


def mixed(values: Any) -> str:
    """What to say where arrays of two backends meet, which no operation takes; "" where they are all of one."""
    of: dict[str, tuple] = {}  # a backend -> the shape of the first of its arrays
    for value in values:
        if type(value) in _modules:
            of.setdefault(_modules[type(value)].__name__, value.shape)
    if len(of) < 2:
        return ""
    both = " meets ".join(f"{name} {shape}" for name, shape in of.items())
    return (
        f"an array of {both}: all that a computation uses belongs on one backend; make or load the model and the data "
        "inside one `with ml.use_backend(...):` block, or bring an array back with ml.to_numpy"
    )
