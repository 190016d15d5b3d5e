"""Where arrays live: in the processor's memory with NumPy, or on a GPU with CuPy.

The rest of the package never says `np.` to data; it asks `array_module(x)` which library made x.
"""

from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray: the two share one interface

_modules: dict[type, ModuleType] = {np.ndarray: np}  # array type -> the module whose functions take it
_current: ModuleType = np  # the module that makes new arrays


def array_module(*arrays: Any) -> ModuleType:
    """The library (numpy or cupy) that the first array among the arguments belongs to; numpy if there is none."""
    for array in arrays:
        if type(array) in _modules:
            return _modules[type(array)]
    return np


def new_array(data: Any, dtype: Any = None) -> Array:
    """An array on the current backend, sharing memory with `data` where that is possible."""
    return data if type(data) in _modules and dtype is None else _current.asarray(data, dtype=dtype)


def to_numpy(array: Any) -> np.ndarray:
    """A NumPy array with the values of an array of any backend, or of a Tensor. The one way back from a GPU."""
    array = getattr(array, "data", array) if hasattr(array, "requires_grad") else array
    return array.get() if hasattr(array, "get") else np.asarray(array)


class use_backend:
    """Choose where new arrays are made: `use_backend("cupy")` from now on, or `with use_backend("cupy"):` for a block.

    Raises ValueError for an unknown name, and says what is missing when "cupy" finds no library or no GPU.
    """

    def __init__(self, name: str):
        global _current
        self.previous = _current
        _current = _find_module(name)

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, *error: object) -> None:
        global _current
        _current = self.previous


def _find_module(name: str) -> ModuleType:
    if name == "numpy":
        return np
    if name != "cupy":
        raise ValueError(f"use_backend: got {name!r}, expected 'numpy' or 'cupy'")
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except ImportError:
        raise ValueError(
            "use_backend: CuPy is not installed; on a machine with an NVIDIA GPU: pip install 'minilora[gpu]'"
        ) from None
    except Exception as error:  # CuPy raises its own type here, which cannot be named where it cannot be imported
        raise ValueError(f"use_backend: CuPy finds no usable NVIDIA driver ({error}); stay on 'numpy'") from None
    if count == 0:
        raise ValueError("use_backend: CuPy finds no NVIDIA GPU on this machine; stay on 'numpy'")
    _modules[cupy.ndarray] = cupy
    return cupy
