"""NumPy's and PyTorch's words that a Tensor does not have: harmless ones work, others say what to write here."""

from collections.abc import Callable
from typing import Any

from .backend import to_numpy

SYNONYMS: dict[str, str] = {  # PyTorch's or NumPy's -> ours
    "view": "reshape", "permute": "transpose", "unsqueeze": "expand_dims", "clone": "copy", "ravel": "flatten",
    "clamp": "clip", "mm": "matmul", "bmm": "matmul", "mul": "multiply", "sub": "subtract", "div": "divide",
    "neg": "negate", "pow": "power", "absolute": "abs", "permute_dims": "transpose",
}  # fmt: skip
COMPUTED: dict[str, Callable] = {
    "dim": lambda x: lambda: x.ndim,
    "numel": lambda x: lambda: x.size,
    "nelement": lambda x: lambda: x.size,
    "contiguous": lambda x: lambda: x,
    "cpu": lambda x: lambda: x,  # .numpy() brings it, wherever it is
    "t": lambda x: lambda: x.T,
    "mT": lambda x: x.swapaxes(-1, -2),
    "square": lambda x: lambda: x * x,
    "half": lambda x: lambda: x.astype("float16"),
    "float": lambda x: lambda: x.astype("float32"),
    "double": lambda x: lambda: x.astype("float64"),
    "is_leaf": lambda x: x.node is None or x.node.leaf is not None,
    "requires_grad_": lambda x: lambda value=True: _with_gradient(x, value),
    "tolist": lambda x: to_numpy(x).tolist,
    "nbytes": lambda x: x.data.nbytes,
    "itemsize": lambda x: x.data.itemsize,
    "strides": lambda x: x.data.strides,
    "flags": lambda x: x.data.flags,
}
LOOKING = ("argmax", "argmin", "argsort", "all", "any", "nonzero")  # at values: plain arrays, as comparisons are
ADVICE = {
    "cuda": "tensors and models made inside `with ml.use_backend('cupy'):` are on the GPU",
    "to": "x.astype('float32') for another precision; `with ml.use_backend('cupy'):` makes things on the GPU",
    "type": "x.dtype says the precision, x.astype('float32') changes it",
    "device": "ml.use_backend says where arrays are made, type(x.data) where this one is",
    "long": "x.data.astype('int64'): whole numbers have no gradient", "int": "x.data.astype('int32')",
    "bool": "x.data.astype(bool)", "round": "x.data.round()", "sign": "np.sign(x)", "floor": "np.floor(x)",
    "real": "x.data.real", "imag": "x.data.imag", "conj": "x.data.conj()",
    "grad_fn": "x.node is the step of the tape that made it",
    "retain_grad": "ml.grad(output, [x]) gives the gradient of any tensor on the way",
    "register_hook": "ml.grad(output, [x]) gives the gradient of any tensor on the way",
    "expand": "x.broadcast_to(shape)", "expand_as": "x.broadcast_to(other.shape)", "view_as": "x.reshape(other.shape)",
    "masked_fill": "ops.where(mask, value, x)", "where": "ops.where(condition, x, other)", "gather": "x[rows, places]",
    "index_select": "x[:, places]", "masked_select": "x[mask]", "take": "x.flatten()[places]",
    "chunk": "slices, x[:n] and x[n:]", "split": "slices, x[:n] and x[n:]", "unbind": "list(x)", "narrow": "x[a:b]",
    "cat": "ops.concatenate([x, y])", "stack": "ops.stack([x, y])", "concatenate": "ops.concatenate([x, y])",
    "einsum": "ops.einsum('ij,jk->ik', x, y)", "topk": "x[np.argsort(x.data)[-k:]]", "sort": "x[np.argsort(x.data)]",
    "cross_entropy": "ops.cross_entropy(logits, targets)", "embedding": "ops.embedding(table, tokens)",
    "cumprod": "ops.exp(ops.cumsum(ops.log(x)))", "diagonal": "np.diagonal(x)", "trace": "np.trace(x)",
    "tril": "np.tril(x)", "triu": "np.triu(x)", "flip": "x[::-1]", "fill": "a new Tensor", "put": "a new Tensor",
    "resize": "x.reshape(shape)", "data_ptr": "x.data.ctypes", "zero_grad": "x.grad = None",
}  # fmt: skip
IN_PLACE = (
    "add_", "sub_", "mul_", "div_", "pow_", "neg_", "zero_", "fill_", "copy_", "clamp_", "exp_", "sqrt_", "relu_",
    "sigmoid_", "tanh_", "normal_", "uniform_", "detach_",
)  # fmt: skip
NO_PLACE = "in-place operations would write over what the tape keeps; write x = x + y, say, a new tensor"
NO_WRITING = (
    "Tensor: x[key] = value would write over what the tape keeps; write ops.where(mask, value, x), or, outside of any "
    "gradient, x.data[key] = value and then x.changed()"
)
SAME_ORDER = "x.transpose(0, 1) of two axes is NumPy's: the same order; PyTorch's swap is x.swapaxes(0, 1), or x.T"


class Word:
    """A name on a class whose value is made when it is asked for, or whose absence is explained."""

    def __init__(self, name: str, value: Callable | None = None):
        self.name, self.value = name, value

    def __get__(self, x: Any, owner: Any = None) -> Any:
        if x is None or self.value is None:
            raise AttributeError(f"{owner.__name__} has no {self.name!r}: {ADVICE.get(self.name, NO_PLACE)}")
        return self.value(x)


def teach(tensors: type) -> None:
    """Give a class these words. As attributes of their own, since a `__getattr__` would slow every other one down."""
    for name, value in COMPUTED.items():
        setattr(tensors, name, Word(name, value))
    for name in LOOKING:
        setattr(tensors, name, _looking(name))
    for name in (*ADVICE, *IN_PLACE):
        setattr(tensors, name, Word(name))
    for name, ours in SYNONYMS.items():
        setattr(tensors, name, lambda x, *args, ours=ours, **options: getattr(x, ours)(*args, **options))


def _with_gradient(x: Any, value: bool) -> Any:
    x.requires_grad = value
    return x


def _looking(name: str) -> Callable:
    """x.argmax(axis) as its array has it; `dim` and `keepdim` are PyTorch's words."""

    def look(x: Any, *axis: Any, **options: Any) -> Any:
        theirs = {"dim": "axis", "keepdim": "keepdims"}
        return getattr(x.data, name)(*axis, **{theirs.get(key, key): value for key, value in options.items()})

    return look
