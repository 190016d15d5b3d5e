"""Every primitive at extreme values beside PyTorch, in float16, float32 and float64: the value and every gradient.

The judge is PyTorch twice: in the same precision, and in float64 for what is exact. An entry passes that agrees with
either: where PyTorch's own float32 is infinite on the way and the result is not, the exact number is as good an answer.
Where both are no number though no input is, a limit is as good as none (gelu's slope at infinity is 1).
"""

import numpy as np
import pytest

import minilora as ml
from minilora import ops

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
from pytorch_rows import ROWS  # noqa: E402

F = torch.nn.functional
DTYPES = ("float16", "float32", "float64")
ULPS = {"float16": 2, "float32": 32, "float64": 256}  # what each library's own order of operations costs

ENTRYWISE = {
    "abs": (ops.abs, torch.abs),
    "cos": (ops.cos, torch.cos),
    "exp": (ops.exp, torch.exp),
    "expm1": (ops.expm1, torch.expm1),
    "gelu": (ops.gelu, lambda x: F.gelu(x, approximate="tanh")),
    "gelu_exact": (ops.gelu_exact, F.gelu),
    "log": (ops.log, torch.log),
    "log1p": (ops.log1p, torch.log1p),
    "negate": (ops.negate, torch.neg),
    "relu": (ops.relu, torch.relu),
    "sigmoid": (ops.sigmoid, torch.sigmoid),
    "silu": (ops.silu, F.silu),
    "sin": (ops.sin, torch.sin),
    "sqrt": (ops.sqrt, torch.sqrt),
    "tanh": (ops.tanh, torch.tanh),
    "add": (ops.add, torch.add),
    "divide": (ops.divide, torch.div),
    "maximum": (ops.maximum, torch.maximum),
    "minimum": (ops.minimum, torch.minimum),
    "multiply": (ops.multiply, torch.mul),
    "power": (ops.power, torch.pow),
    "subtract": (ops.subtract, torch.sub),
}
EXACT = {  # the same function in a form whose derivative keeps the digits that the built-in one's loses
    "divide": lambda a, b: a / b.detach() * (b.detach() / b),
    "expm1": lambda x: x.exp() - 1,
    "gelu": lambda x: x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)),
    "gelu_exact": lambda x: x * torch.special.erfc(-x / 2**0.5) / 2,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}
ABSOLUTE = {"tanh": 1.0}  # 1 - tanh^2 is right to one rounding error of 1, here as there
BINARY = ("add", "divide", "maximum", "minimum", "multiply", "power", "subtract")


def values(dtype):
    """Zeros, what is smallest and largest, what overflows when squared or exponentiated, infinities and no number."""
    info = np.finfo(dtype)
    root, most = float(info.max) ** 0.5, float(info.max)
    sizes = [0, info.tiny, info.eps, 0.5, 1, 2, 3.5, 5, 9, 17, 60, 85, 89, 120, 750]
    sizes += [2**0.5 * root, root / 2, most / 2, most, np.inf]
    return np.array([sign * float(size) for size in sizes for sign in (1, -1)] + [np.nan]).astype(dtype)


def answers(ours, theirs, arrays, exact=None):
    """Ours; PyTorch's in the same precision, in float64 and in another form: value and gradients, as float64."""
    tensors = [ml.Tensor(a, requires_grad=True) for a in arrays]
    with np.errstate(all="ignore"):
        y = ours(*tensors)
        assert y.dtype == arrays[0].dtype
        g = np.cos(np.arange(y.size)).reshape(y.shape).astype(y.dtype)
        gradients = ml.grad(y, tensors, g)
    assert all(d.dtype == a.dtype for d, a in zip(gradients, arrays, strict=True))
    results = [[y.data, *gradients]]
    asked = [(str(arrays[0].dtype), theirs), ("float64", theirs), ("float64", exact or theirs)]
    for dtype, function in asked:
        peers = [torch.tensor(a).to(getattr(torch, dtype)).requires_grad_() for a in arrays]
        try:
            expected = function(*peers)
            back = torch.autograd.grad(expected, peers, torch.tensor(g).to(expected.dtype))
        except (NotImplementedError, RuntimeError) as error:  # what PyTorch does not have in float16
            assert "not implemented for 'Half'" in str(error), error
        else:
            results.append([expected.detach(), *back])
    return [[np.asarray(a).astype(np.float64) for a in result] for result in results]


def agree(here, there, scale, dtype):
    """Entry by entry: equal within rounding of `scale`, equally infinite, or equally no number."""
    info = np.finfo(dtype)
    bar = ULPS[dtype] * (info.eps * scale + float(info.tiny))
    with np.errstate(invalid="ignore", over="ignore"):
        close = (np.abs(here - there) <= bar) | (here == there) | (np.isnan(here) & np.isnan(there))
        beyond = np.abs(there) > float(info.max) * (1 - ULPS[dtype] * info.eps)  # in this precision it is infinite
    return close | (beyond & np.isinf(here) & (np.sign(here) == np.sign(there)))


def disagreements(results, dtype, entrywise, floor=0.0):
    """{place: entries} of the value (place 0) and of the gradients that agree with none of PyTorch's answers."""
    ours, *peers = results
    wrong = {}
    for place, here in enumerate(ours):
        theirs = [peer[place] for peer in peers]
        fine = np.all([np.isnan(there) for there in theirs], axis=0)  # a limit is as good as none
        for there in theirs:
            largest = np.abs(there[np.isfinite(there)]).max(initial=0)
            scale = np.nan_to_num(np.abs(there), posinf=0) if entrywise else largest
            fine |= agree(here, there, np.maximum(scale, floor), dtype)
            if not entrywise:  # what a sum that overflows becomes is a matter of its order
                fine |= ~np.isfinite(here) & ~np.isfinite(there)
        if not fine.all():
            entries = [index for index in np.ndindex(here.shape) if not fine[index]]
            wrong[place] = [(index, here[index], [there[index] for there in theirs]) for index in entries[:5]]
    return wrong


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ENTRYWISE)
def test_entry_by_entry(name, dtype):
    """Of two arguments, every pair. What comes back to an entry that is no number is not compared."""
    v = values(dtype)
    arrays = [a.ravel() for a in np.meshgrid(v, v)] if name in BINARY else [v]
    ours, *peers = answers(*ENTRYWISE[name], arrays, EXACT.get(name))
    number = ~np.any(np.isnan(arrays), axis=0)
    np.testing.assert_array_equal(np.isnan(ours[0][~number]), np.isnan(peers[0][0][~number]))
    results = [[y, *(np.where(number, g, 0) for g in gradients)] for y, *gradients in (ours, *peers)]
    assert not disagreements(results, dtype, True, ABSOLUTE.get(name, 0))


CHOICES = ("abs", "clip", "max", "maximum", "min", "minimum", "relu")  # their slope at no number is a custom
LENGTHS = ("layer_norm", "norm", "rms_norm", "std", "var")
SCALES = ("tiny", "one", "hundred", "root", "most")


def drawn(row, dtype, scale, special):
    """Normal arrays for a row of the table, multiplied by a scale, and one entry of the first made special."""
    _, _, _, _, shapes, *positive = row
    most, tiny = float(np.finfo(dtype).max), float(np.finfo(dtype).eps) ** 1.5
    size = {"tiny": tiny, "one": 1, "hundred": 100, "root": most**0.5 / 4, "most": most / 8}[scale]
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=shape) * size for shape in shapes]
    arrays = [size / 2 + abs(a) for a in arrays] if positive else arrays
    arrays = [np.clip(a, -most, most).astype(dtype) for a in arrays]
    if special is not None:
        arrays[0].reshape(-1)[arrays[0].size // 2] = special
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(filter(None, row[:2])))
def test_every_primitive(row, dtype):
    """At five scales, and with one infinity, no number or zero among ordinary ones."""
    name, _, ours, theirs, *_ = row
    cases = [(scale, None) for scale in SCALES] + [("one", special) for special in (np.inf, -np.inf, np.nan, 0.0)]
    wrong = {}
    for scale, special in cases:
        arrays, floor = drawn(row, dtype, scale, special), 0.0
        if name in LENGTHS and dtype == "float64" and scale in ("root", "most"):
            continue  # squares overflow in PyTorch; here they do not, as tests/autograd shows
        if name == "attention":  # P (dP - g O) cancels: what is left of it is the rounding of its parts
            if scale == "most" or not np.isfinite(arrays[0]).all():
                continue  # scores overflow, and PyTorch's blocks make zeros of rows that are no number
            floor = max(float(np.abs(a).max()) for a in arrays) ** 2
        results = answers(ours, theirs, arrays)
        if name in CHOICES and special is not None and np.isnan(special):
            results = [result[:1] for result in results]
        if found := disagreements(results, dtype, False, floor):
            wrong[scale, special] = found
    assert not wrong
