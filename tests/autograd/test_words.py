"""The words of NumPy and PyTorch on a Tensor: they work, or one line says what to write."""

import copy
import pickle

import numpy as np
import pytest

import minilora as ml
from minilora.autograd.words import ADVICE, COMPUTED, IN_PLACE, LOOKING, SYNONYMS

M = np.array([[0.5, -1.25, 2.0], [1.5, 0.75, -0.5]])

WORK = {  # what a student writes, and the same in NumPy
    "abs": (lambda x: x.abs(), abs(M)), "abs()": (lambda x: abs(x), abs(M)), "+": (lambda x: +x, M),
    "min": (lambda x: x.min(), M.min()), "min dim": (lambda x: x.min(axis=1), M.min(1)),
    "var": (lambda x: x.var(dim=0), M.var(0)), "std": (lambda x: x.std(1, keepdims=True), M.std(1, keepdims=True)),
    "clip": (lambda x: x.clip(-1, 1), M.clip(-1, 1)), "clamp": (lambda x: x.clamp(min=0), M.clip(0)),
    "flatten": (lambda x: x.flatten(), M.flatten()), "ravel": (lambda x: x.ravel(), M.ravel()),
    "squeeze": (lambda x: x[None].squeeze(0), M), "unsqueeze": (lambda x: x.unsqueeze(1), M[:, None]),
    "sigmoid": (lambda x: x.sigmoid(), 1 / (1 + np.exp(-M))), "sin": (lambda x: x.sin(), np.sin(M)),
    "cos": (lambda x: x.cos(), np.cos(M)), "relu": (lambda x: x.relu(), M.clip(0)), "T": (lambda x: x.T, M.T),
    "softmax": (lambda x: x.softmax(dim=-1), np.exp(M) / np.exp(M).sum(-1, keepdims=True)), "t": (lambda x: x.t(), M.T),
    "swapaxes": (lambda x: x.swapaxes(0, 1), M.T), "copy": (lambda x: x.copy(), M), "clone": (lambda x: x.clone(), M),
    "view": (lambda x: x.view(3, 2), M.reshape(3, 2)), "view -1": (lambda x: x.view(-1), M.reshape(-1)),
    "permute": (lambda x: x.permute(1, 0), M.T), "mT": (lambda x: x.mT, M.T), "square": (lambda x: x.square(), M * M),
    "sum dim": (lambda x: x.sum(dim=1, keepdim=True), M.sum(1, keepdims=True)),
    "mean": (lambda x: x.mean(dim=0), M.mean(0)),
    "pow": (lambda x: x.pow(2), M**2), "mul": (lambda x: x.mul(2).add(1).sub(0.5).div(3).neg(), -(M * 2 + 0.5) / 3),
    "mm": (lambda x: x.mm(x.T), M @ M.T), "contiguous": (lambda x: x.contiguous(), M),
    "max": (lambda x: x.max(0), M.max(0)),
    "float64": (lambda x: x.double(), M), "astype": (lambda x: x.astype("float64"), M),
    "expm1": (lambda x: x.expm1(), np.expm1(M)),
    "prod": (lambda x: x.prod(1), M.prod(1)), "cumsum": (lambda x: x.cumsum(1), M.cumsum(1)),
    "norm": (lambda x: x.norm(), np.linalg.norm(M)),
    "repeat": (lambda x: x.repeat(2, axis=0), M.repeat(2, 0)), "matmul": (lambda x: x.matmul(M.T), M @ M.T),
}  # fmt: skip


@pytest.mark.parametrize("name", WORK)
def test_words_that_work(name):
    use, expected = WORK[name]
    x = ml.Tensor(M, requires_grad=True)
    y = use(x)
    assert isinstance(y, ml.Tensor) and y.requires_grad
    np.testing.assert_allclose(y.data, expected, rtol=1e-14)
    assert ml.grad(y, [x], np.ones(y.shape))[0].shape == M.shape


def test_words_about_values_give_plain_ones():
    x = ml.Tensor(M, requires_grad=True)
    assert x.argmax() == 2 and x.argmin(1).tolist() == [1, 2] and x.argmax(dim=0, keepdim=True).tolist() == [[1, 1, 0]]
    assert x.argsort(-1).tolist() == M.argsort(-1).tolist() and x.all() and x.any() and len(x.nonzero()) == 2
    assert x.tolist() == M.tolist() and (x.numel(), x.nelement(), x.dim(), x.nbytes) == (6, 6, 2, 48)
    assert x.is_leaf and not (x * 2).is_leaf and x.cpu() is x.contiguous() is x
    assert x.requires_grad_(False) is x and not x.requires_grad and x.requires_grad_().requires_grad
    assert type(x.detach().numpy()) is np.ndarray and x.detach().cpu().numpy() is x.data


@pytest.mark.parametrize("name", [*ADVICE, *IN_PLACE])
def test_words_that_do_not_work_say_what_to_write(name):
    x = ml.Tensor(M, requires_grad=True)
    with pytest.raises(AttributeError, match=rf"^Tensor has no '{name}': [^\n]+$"):
        getattr(x, name)
    assert not hasattr(x, name) and name not in dir(x)


def test_no_word_hides_a_method():
    taught = [*ADVICE, *IN_PLACE, *COMPUTED, *LOOKING, *SYNONYMS]
    assert len(taught) == len(set(taught))
    own = {
        "data",
        "grad",
        "backward",
        "item",
        "numpy",
        "detach",
        "shape",
        "sum",
        "exp",
        "reshape",
        "T",
        "changed",
        "version",
    }
    assert not own & set(taught) and own <= set(dir(ml.Tensor))
    assert not set(ml.ops.PRIMITIVES) & (set(COMPUTED) | set(LOOKING) | set(SYNONYMS))


def test_the_order_of_two_axes():
    x = ml.Tensor(M, requires_grad=True)
    with pytest.warns(UserWarning, match=r"x.transpose\(0, 1\) of two axes is NumPy's: the same order; .*x.swapaxes"):
        assert x.transpose(0, 1).shape == (2, 3)
    with pytest.raises(ValueError, match=r"^transpose: "):
        x[None].transpose(0, 1)


def test_writing_into_a_tensor_is_refused():
    x = ml.Tensor(M, requires_grad=True)
    with pytest.raises(TypeError, match=r"^Tensor: x\[key\] = value .*ops.where.*x.changed\(\)"):
        x[0] = 1.0
    np.testing.assert_array_equal(x.data, M)


def test_taught_words_survive_copies():
    x = ml.Tensor(M, requires_grad=True)
    for twin in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert twin.view(-1).shape == (6,) and twin.requires_grad
