"""Where arrays live: names, the context manager, and what is said when there is no GPU."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import minilora as ml
from minilora.autograd.backend import array_module, new_array


class StandIn(np.ndarray):
    """An array type of another library."""


def cupy_stand_in(count):
    """A module shaped like CuPy: `count` says how many GPUs there are, or raises."""
    module = ModuleType("cupy")
    module.ndarray = StandIn
    module.asarray = lambda data, dtype=None: np.asarray(data, dtype=dtype).view(StandIn)
    module.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count))
    return module


def test_an_unknown_backend():
    with pytest.raises(ValueError, match=r"use_backend: got 'jax', expected 'numpy' or 'cupy'"):
        ml.use_backend("jax")
    assert type(new_array([1.0])) is np.ndarray


def test_cupy_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # so that importing it fails
    with pytest.raises(ValueError, match=r"CuPy is not installed; .*NVIDIA GPU: pip install 'minilora\[gpu\]'"):
        ml.use_backend("cupy")
    assert type(new_array([1.0])) is np.ndarray


def test_cupy_without_a_driver(monkeypatch):
    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver")

    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in(no_driver))
    with pytest.raises(ValueError, match=r"no usable NVIDIA driver \(cudaErrorInsufficientDriver\)"):
        ml.use_backend("cupy")
    assert type(new_array([1.0])) is np.ndarray


def test_cupy_without_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in(lambda: 0))
    with pytest.raises(ValueError, match="no NVIDIA GPU on this machine"):
        ml.use_backend("cupy")
    assert type(new_array([1.0])) is np.ndarray


def test_the_context_manager_puts_the_backend_back(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in(lambda: 1))
    with pytest.raises(KeyError), ml.use_backend("cupy"):
        assert type(ml.Tensor([1.0, 2.0]).data) is StandIn
        with ml.use_backend("numpy"):
            assert type(ml.Tensor([1.0, 2.0]).data) is np.ndarray
        assert type(ml.Tensor([1.0, 2.0]).data) is StandIn
        raise KeyError
    assert type(ml.Tensor([1.0, 2.0]).data) is np.ndarray


def test_a_call_lasts_until_the_next(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in(lambda: 1))
    try:
        ml.use_backend("cupy")
        assert type(ml.Tensor(1.0).data) is StandIn
    finally:
        ml.use_backend("numpy")
    assert type(ml.Tensor(1.0).data) is np.ndarray


def test_to_numpy():
    array = np.arange(3.0)
    assert ml.to_numpy(array) is array
    assert ml.to_numpy(ml.Tensor(array)) is array
    assert ml.to_numpy([1, 2]).tolist() == [1, 2]
    on_a_gpu = SimpleNamespace(get=lambda: array)  # CuPy's way back
    assert ml.to_numpy(on_a_gpu) is array


def test_new_arrays_share_memory_and_array_module_finds_the_library():
    array = np.arange(3.0)
    assert new_array(array) is array
    assert new_array(array, np.float32).dtype == np.float32
    assert array_module(array) is np and array_module(1.0, 2) is np and array_module() is np
