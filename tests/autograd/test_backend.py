"""Where arrays live: names, the context manager, what is said when there is no GPU, and where two backends meet."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from strict import StrictArray, strict

import minilora as ml
from minilora.autograd import backend
from minilora.autograd.backend import array_module, new_array, sum_of_rows
from minilora.commands.main import main


class CUDARuntimeError(RuntimeError):
    """As CuPy's: no subclass of what Python itself raises for a missing library or memory."""


class OutOfMemoryError(MemoryError):
    """As CuPy's, and with its words."""

    def __init__(self):
        super().__init__("Out of memory allocating 2,048 bytes (allocated so far: 1,024 bytes).")


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


def fake_cupy(monkeypatch, count=lambda: 1, ones=strict.ones, **functions):
    """`import cupy` gives the stand-in; `count` says how many GPUs there are, or raises, and `ones` computes first."""
    module = ModuleType("cupy")
    module.__getattr__ = lambda name: getattr(strict, name)
    module.ndarray = type("ndarray", (StrictArray,), {"__slots__": ()})  # not StrictArray, which may be known already
    module.ndarray = StrictArray
    module.ones, module.cuda = ones, SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count))
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setattr(backend, "_modules", {np.ndarray: np})
    monkeypatch.setitem(sys.modules, "cupy", module)


def raising(error):
    """A function that raises this, whatever it is given."""

    def function(*args, **kwargs):
        raise error

    return function


def test_an_unknown_backend():
    with pytest.raises(ValueError, match=r"use_backend: got 'jax', expected 'numpy' or 'cupy'"):
        ml.use_backend("jax")
    assert type(new_array([1.0])) is np.ndarray


NOT_FOUND = CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
NO_DRIVER = CUDARuntimeError("cudaErrorInsufficientDriver: the driver is too old for this CUDA version")
NO_COMPILER = RuntimeError("\n====\nCuPy failed to load libnvrtc.so.12: OSError: no such file\n\nmore lines")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"count": raising(NO_DRIVER)}, r"no usable NVIDIA driver \(cudaErrorInsufficientDriver: .* version\); stay"),
        ({"count": raising(NOT_FOUND)}, "no NVIDIA GPU on this machine; stay on 'numpy'"),
        ({"count": lambda: 0}, "no NVIDIA GPU on this machine; stay on 'numpy'"),
        ({"ones": raising(NO_COMPILER)}, r"cannot compute on it \(CuPy failed to load libnvrtc.so.12: .*file\); pip"),
    ],
    ids=["no driver", "no device", "no GPU", "no compiler"],
)
def test_cupy_that_cannot_compute(parts, words, monkeypatch, capsys):
    fake_cupy(monkeypatch, **parts)
    with pytest.raises(ValueError, match=f"^use_backend: CuPy finds .*{words}"):
        ml.use_backend("cupy")
    assert type(new_array([1.0])) is np.ndarray
    assert main(["generate", "--backend", "cupy"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("minilora: error: use_backend: CuPy finds")
    assert said.err.count("\n") == 1


def test_cupy_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)  # so that importing it fails
    with pytest.raises(ValueError, match=r"CuPy is not installed; .*NVIDIA GPU: pip install 'minilora\[gpu\]'"):
        ml.use_backend("cupy")
    assert type(new_array([1.0])) is np.ndarray
    assert main(["demo", "--backend", "cupy"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_cupy_that_lacks_a_part(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("import a_part_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(ValueError, match=r"incomplete \(No module named 'a_part_that_is_missing'\)"):
        ml.use_backend("cupy")


def test_a_full_gpu(monkeypatch, capsys):
    fake_cupy(monkeypatch, ones=raising(OutOfMemoryError()))
    with pytest.raises(MemoryError):
        ml.use_backend("cupy")
    fake_cupy(monkeypatch, asarray=raising(OutOfMemoryError()))
    assert main(["generate", "--backend", "cupy"]) == 2
    assert capsys.readouterr().err == (
        "minilora: error: not enough memory (Out of memory allocating 2,048 bytes (allocated so far: 1,024 bytes).): "
        "a smaller model, --batch or --context needs less\n"
    )
    assert backend._current is np


def test_a_gpu_that_fails(monkeypatch, capsys):
    error = CUDARuntimeError("cudaErrorECCUncorrectable: uncorrectable ECC error encountered")
    fake_cupy(monkeypatch, asarray=raising(error))
    assert main(["generate", "--backend", "cupy"]) == 2
    assert capsys.readouterr().err == f"minilora: error: the GPU failed: CUDARuntimeError: {error}\n"
    fake_cupy(monkeypatch, asarray=raising(RuntimeError("a mistake of ours")))
    with pytest.raises(RuntimeError, match="a mistake of ours"):  # is shown with all it has
        main(["generate", "--backend", "cupy"])


def test_it_is_tried_out_once(monkeypatch):
    tries = []
    fake_cupy(monkeypatch, ones=lambda shape: tries.append(shape) or strict.ones(shape))
    for _ in range(3):
        with ml.use_backend("cupy"):
            pass
    assert len(tries) == 1


def test_the_context_manager_puts_the_backend_back(monkeypatch):
    fake_cupy(monkeypatch)
    with pytest.raises(KeyError), ml.use_backend("cupy"):
        assert type(ml.Tensor([1.0, 2.0]).data) is StrictArray
        with ml.use_backend("numpy"):
            assert type(ml.Tensor([1.0, 2.0]).data) is np.ndarray
        assert type(ml.Tensor([1.0, 2.0]).data) is StrictArray
        raise KeyError
    assert type(ml.Tensor([1.0, 2.0]).data) is np.ndarray


def test_a_call_lasts_until_the_next(monkeypatch):
    fake_cupy(monkeypatch)
    try:
        ml.use_backend("cupy")
        assert type(ml.Tensor(1.0).data) is StrictArray
    finally:
        ml.use_backend("numpy")
    assert type(ml.Tensor(1.0).data) is np.ndarray


def test_tensors_of_numpy_arrays_go_to_the_backend_and_computed_ones_stay(monkeypatch):
    fake_cupy(monkeypatch)
    here = ml.Tensor(np.arange(3.0), requires_grad=True)
    with ml.use_backend("cupy"):
        there = ml.Tensor(np.arange(3.0), requires_grad=True)
        assert type(there.data) is StrictArray
        for x, kind in ((here, np.ndarray), (there, StrictArray)):
            for y in (x.exp(), x.sum(), x[1], x.detach(), ml.Tensor(x), x * np.float64(2)):
                assert type(y.data) is kind
            assert type(ml.grad(x.sum(), [x])[0]) is kind
    assert type(there.exp().data) is StrictArray and type(ml.Tensor(there.data).data) is StrictArray
    assert type(new_array(there.data, "float32")) is StrictArray


def test_to_numpy(monkeypatch):
    array = np.arange(3.0)
    assert ml.to_numpy(array) is array
    assert ml.to_numpy(ml.Tensor(array)) is array
    assert ml.to_numpy([1, 2]).tolist() == [1, 2]
    fake_cupy(monkeypatch)
    with ml.use_backend("cupy"):
        x = ml.Tensor(array)
    assert type(x.numpy()) is np.ndarray and ml.to_numpy(x.data).tolist() == [0, 1, 2]


def test_new_arrays_share_memory_and_array_module_finds_the_library():
    array = np.arange(3.0)
    assert new_array(array) is array
    assert new_array(array, np.float32).dtype == np.float32
    assert array_module(array) is np and array_module(1.0, 2) is np and array_module() is np


# --- two backends in one computation


@pytest.fixture
def both(monkeypatch):
    """(make a model, tokens): by NumPy or, with "cupy", on the device."""
    fake_cupy(monkeypatch)

    def make(name):
        with ml.use_backend(name):
            return ml.GPT(ml.GPTConfig(5, 4, 1, 1, 4)), new_array(np.array([[1, 2]]))

    return make


ADVICE = r"make or load the model and the data inside one `with ml.use_backend\(...\):` block"


def test_a_model_of_numpy_fed_tokens_of_the_gpu(both):
    (model, _), (_, tokens) = both("numpy"), both("cupy")
    with pytest.raises(TypeError, match=rf"^embedding: an array of numpy \(5, 4\) meets cupy \(1, 2\): .*{ADVICE}"):
        model(tokens)
    with pytest.raises(TypeError, match=r"^embedding: an array of numpy"):
        ml.train_step(model, ml.SGD(model.parameters()), tokens, tokens)


def test_a_model_of_the_gpu_fed_tokens_of_numpy(both):
    (_, tokens), (model, _) = both("numpy"), both("cupy")
    assert type(model.loss(tokens, tokens).data) is StrictArray  # the code says that tokens go where the model is


def test_an_adapter_made_on_the_other_backend(both):
    model, tokens = both("cupy")
    ml.add_lora(model, ml.LoRAConfig(rank=1))  # outside of use_backend("cupy"): A and B are NumPy's
    with pytest.raises(TypeError, match=rf"^lora_linear: .* cupy \(1, 2, 4\) meets numpy \(1, 4\): .*{ADVICE}"):
        model(tokens)


@pytest.mark.parametrize("operate", [ml.ops.add, ml.ops.matmul, lambda a, b: ml.ops.concatenate([a, b])])
def test_tensors_of_two_backends(operate, both):
    here = ml.Tensor(np.ones((2, 2)))
    with ml.use_backend("cupy"):
        there = ml.Tensor(np.ones((2, 2)))
    for pair in ((here, there), (there, here), (there, here.data), (there.data, here)):
        with pytest.raises(TypeError, match=r"an array of (numpy|cupy) \(2, 2\) meets (numpy|cupy) \(2, 2\)"):
            operate(*pair)


def test_other_errors_keep_their_words(both):
    model, _ = both("cupy")
    with pytest.raises(TypeError, match="embedding: tokens have dtype float64, expected integers"):
        model.wte(np.array([0.5]))


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 1), (600, 5), (4, 9, 3), (2, 0, 3), (1 << 12, 1 << 10)])
def test_sums_of_rows(shape):
    """By BLAS or by NumPy, the same sum: of no rows it is 0, and infinities stay where they are."""
    x = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_allclose(sum_of_rows(x), x.sum(axis=-2), rtol=1e-12, atol=1e-12)
    if x.size:
        x[..., 0, 0] = np.inf
        np.testing.assert_allclose(sum_of_rows(x), x.sum(axis=-2), rtol=1e-12, atol=1e-12)
