"""Tensors and primitives: how a computation is recorded on the tape, and differentiated.

A primitive is a plain function on arrays that returns its output and, for each input, a function that maps the
output's cotangent to that input's cotangent (a vector-Jacobian product, vjp). `primitive` turns it into a function on
tensors that also records a node of the tape (`tape.py`). `grad` walks the nodes from an output back to the inputs.
"""

import functools
import inspect
import operator
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import border, words
from .arguments import AS_IT_IS, ODD, Parameters, as_array, gathered
from .backend import Array, array_module, to_numpy
from .recording import blocks, no_grad, paused  # noqa: F401  (no_grad for those who import it from here)
from .signatures import shown
from .tape import PRIMITIVES, Node, Taped, nodes_behind, pull_back
from .versions import changed, version

UNUSED = ("zeros", "none", "error")  # what `grad` may give for an input that the output does not depend on


def primitive(function: Callable[..., tuple]) -> Callable[..., "Tensor"]:
    """Make a differentiable function on tensors of `function`, which maps arrays to (output, vjps).

    vjps: a tuple with one function (or None, where there is nothing to differentiate) per leading input, or one
    function that returns all the cotangents, where inputs share work. Everything that is not mathematics is done here:
    unwrapping tensors, recording the node, dropping the vjps that nobody needs, and what `arguments.py` says of lists,
    of numbers, and of errors. Arguments that are no arrays go by the names in `arguments.OPTIONS`.
    """
    name, parameters = function.__name__, Parameters(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        if kwargs or parameters.variadic:
            args, kwargs = parameters.bound(args, kwargs)
        values: list = []
        nodes: list[Node | None] = []
        dtype, kinds = None, 0  # how often the precision changes from one array to the next
        for a in args:
            if type(a) is Tensor:
                data = a._array
                if data.dtype is not dtype:
                    dtype, kinds = data.dtype, kinds + 1
                values.append(data)
                nodes.append(a.node)
            elif type(a) in AS_IT_IS:
                values.append(a)
                nodes.append(None)
            elif type(a) is np.ndarray:
                values.append(a)
                nodes.append(None)
                kinds = 2
            else:
                values, nodes, kinds = *parameters.unwrapped(args), 2
                break
        try:
            output, vjps = function(*values, **kwargs)
        except ODD as error:
            output, vjps = parameters.again(values, kwargs, error)
        if type(output) is not np.ndarray:
            output = parameters.array_of(output)
        if output.dtype.hasobject:
            output, vjps = parameters.in_floats(values, kwargs)
        if kinds > 1:
            output = parameters.not_raised(output, values)
        if type(vjps) is not tuple:
            vjps = parameters.functions(vjps)
        result = _around(output)
        if any(nodes) and not (blocks.get() and paused()):
            if None in nodes and type(vjps) is tuple:
                vjps = tuple([node and vjp for node, vjp in zip(nodes, vjps, strict=False)])
            result.node = Node(name, tuple(nodes), vjps, output)
        return result

    return call


def _around(data: Array) -> "Tensor":
    """A tensor that holds this array, where it is; `Tensor(data)` would bring it to the current backend."""
    tensor = Tensor.__new__(Tensor)
    tensor._array, tensor.grad, tensor.node = data, None, None
    return tensor


def register(function: Callable[..., tuple]) -> Callable[..., "Tensor"]:
    """`primitive`, entered into `PRIMITIVES`; one whose first argument is x or a is also a method of Tensor."""
    name, made = function.__name__, primitive(function)
    PRIMITIVES[name] = made
    if inspect.unwrap(made).__code__.co_varnames[:1] in (("x",), ("a",)) and name not in vars(Tensor):
        setattr(Tensor, name, made)
    return made


def _seed(output: "Tensor", cotangent: Any) -> Array:
    if output.node is None:
        raise ValueError("backward: the output depends on no tensor with requires_grad=True")
    if cotangent is None and output.size != 1:
        raise ValueError(
            f"backward: the output has shape {output.shape}, not one number; take .sum() or .mean() first, "
            "or pass its cotangent (the gradient of your loss with respect to it)"
        )
    xp = array_module(output.data)
    if cotangent is None:
        return xp.ones(output.shape, dtype=output.dtype)
    try:
        cotangent = _numbers(cotangent)
    except (ValueError, TypeError) as error:
        raise type(error)(f"backward: the cotangent: {error}") from None
    if cotangent.dtype.kind == "c" and output.dtype.kind != "c":
        raise TypeError(f"backward: the cotangent is complex ({cotangent.dtype}), and the output real")
    if cotangent.shape != output.shape:
        raise ValueError(f"backward: the cotangent has shape {cotangent.shape}, the output {output.shape}")
    return xp.asarray(cotangent, dtype=output.dtype)


def grad(
    output: "Tensor", inputs: Sequence["Tensor"], cotangent: Any = None, retain_graph: bool = False,
    unused: str = "zeros",
) -> list:  # fmt: skip
    """The gradient of `output` with respect to each of `inputs`, as arrays of their shapes.

    d output / d input, contracted with `cotangent` (default 1, for a scalar output). Pure: no tensor is written to.
    The tape is freed on the way unless `retain_graph`. unused: what an input gets that the output does not depend on:
    "zeros"; "none", None in the array's place, so that it is told from a derivative that is zero; or "error".
    Raises ValueError for a non-scalar output without cotangent, a freed tape, an input without requires_grad, or a
    value that a derivative needs and that an optimiser's step, say, has written over since the forward pass.
    """
    if isinstance(inputs, Tensor):
        raise TypeError("grad: inputs is one Tensor, expected a list of them: grad(output, [x])")
    try:
        inputs = list(inputs)
    except TypeError:
        raise TypeError(f"grad: inputs is {shown(inputs)}, expected a list of Tensors") from None
    if not isinstance(retain_graph, bool | np.bool_):
        raise TypeError(f"grad: retain_graph = {shown(retain_graph)}, expected True or False")
    for what, value in [("output", output), *((f"input {i}", x) for i, x in enumerate(inputs))]:
        if not isinstance(value, Tensor):
            raise TypeError(f"grad: {what} is {shown(value)} ({type(value).__name__}), expected a Tensor")
    if not isinstance(unused, str) or unused not in UNUSED:
        raise ValueError(f"grad: unused = {shown(unused)}, expected one of {', '.join(map(repr, UNUSED))}")
    for place, tensor in enumerate(inputs):
        if tensor.node is None:
            raise ValueError(f"grad: input {place} (shape {tensor.shape}) has requires_grad=False")
    seed = _seed(output, cotangent)
    assert output.node is not None
    targets = {tensor.node for tensor in inputs}
    tape = nodes_behind(output.node)
    if unused == "error" and (unreached := targets.difference(tape)):
        place = next(i for i, tensor in enumerate(inputs) if tensor.node in unreached)
        raise ValueError(f"grad: the output does not depend on input {place} (shape {inputs[place].shape})")
    cotangents = pull_back(tape, targets, {output.node: seed}, retain_graph)
    gradients = _owned([cotangents.get(tensor.node) for tensor in inputs], inputs, seed)
    return [_zeros_like(x) if g is None and unused == "zeros" else g for g, x in zip(gradients, inputs, strict=True)]


def _zeros_like(tensor: "Tensor") -> Array:
    return array_module(tensor.data).zeros(tensor.shape, dtype=tensor.dtype)


def _owned(gradients: list, inputs: Sequence["Tensor"], seed: Array) -> list:
    """Gradients that share memory with nothing: the vjp of `+`, for one, hands the same array to both sides."""
    taken = {id(seed)}
    for i, (g, tensor) in enumerate(zip(gradients, inputs, strict=True)):
        if g is None:
            continue
        if type(g) is not type(tensor.data) or g.base is not None or id(g) in taken:
            gradients[i] = array_module(tensor.data).array(g)
        taken.add(id(gradients[i]))
    return gradients


class Tensor(Taped):
    """An array that remembers how it was computed.

    data: an array, a number, nested lists, or another Tensor (its data is shared); tensors in lists are stacked, and
    keep their tape. The current backend holds it, or the GPU that it is on. With requires_grad=True it is a leaf:
    `backward()` on anything computed from it adds to its `.grad`. Arithmetic, indexing, methods and functions are
    NumPy's, on either side of an array or a number; comparisons give plain boolean arrays. A number of any kind, and an
    array of integers or of shape (), raises the precision of no floating-point array.
    Raises TypeError when a gradient is asked of integers, or when the data is no numbers.
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = False):
        self.grad = self.node = None
        if isinstance(data, list | tuple):
            data = _named("Tensor", gathered, data)
            self.node = data.node if isinstance(data, Tensor) else None
        self._array = _named("Tensor", _numbers, data)
        if not isinstance(requires_grad, bool | np.bool_):
            raise TypeError(f"Tensor: requires_grad = {shown(requires_grad)}, expected True or False")
        if requires_grad and self.node is None:
            self.requires_grad = True

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can reach this tensor. Assign False to a leaf to freeze it."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.node is not None and self.node.leaf is None:
            raise ValueError("requires_grad: this tensor was computed; only a leaf can be frozen. Use .detach()")
        if value and self.data.dtype.kind not in "fc":
            raise TypeError(f"requires_grad: gradients need floating-point data, got dtype {self.data.dtype}")
        if value and not hasattr(self, "_leaf"):
            self._leaf = Node("leaf", (), (), self.data, weakref.ref(self))
        self.node = self._leaf if value else None

    def _assign(self, value: Any) -> None:
        before, value = self._array, _named("data", _numbers, value)
        if value.dtype.kind not in "fc" and hasattr(self, "_leaf") and self.node is not None:
            raise TypeError(f"data: gradients need floating-point data, got dtype {value.dtype}")
        self._array = value
        if value is before:  # x.data -= step
            self.changed()
        elif value.dtype == before.dtype:
            self._replaced = weakref.ref(before)
        if hasattr(self, "_leaf"):
            self._leaf.fits(value)

    data = property(
        operator.attrgetter("_array"),
        _assign,
        doc="""The array. Assign another one, of any shape or precision, and the next forward pass uses it; a derivative
        of an earlier one uses the values it had. `x.data -= step` is noticed as an optimiser's step is. A write into
        the array, x.data[0] = 1, cannot be seen: call x.changed() after it, or a backward pass through an earlier
        forward pass may silently use what stands there now.""",
    )

    @property
    def version(self) -> int:
        """How often the values were written over, as far as `changed` was told."""
        return version(self._array)

    def changed(self) -> None:
        """Say that the values were written over: derivatives that need the values before are refused from now on."""
        changed(self._array)
        if (before := getattr(self, "_replaced", None)) and before() is not None:
            changed(before())

    def backward(self, cotangent: Any = None, retain_graph: bool = False) -> None:
        """Add d self / d leaf to the `.grad` of every leaf this tensor was computed from; others keep None."""
        _seed(self, cotangent)
        assert self.node is not None
        held = [(node, node.leaf()) for node in nodes_behind(self.node) if node.leaf is not None]
        leaves = [leaf for node, leaf in held if leaf is not None and leaf.node is node]  # neither gone nor frozen
        for leaf, g in zip(leaves, grad(self, leaves, cotangent, retain_graph, "none"), strict=True):
            if g is not None:
                leaf.grad = g if leaf.grad is None else leaf.grad + g

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)

    def item(self) -> Any:
        """The one number in this tensor, as a Python number."""
        if self.size != 1:
            raise ValueError(f"item: got shape {self.shape}, expected one number; .tolist() gives them all")
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array, without copying where it is one already."""
        return to_numpy(self.data)

    def copy(self) -> "Tensor":
        """The same values in memory of their own, on the same tape."""
        return ops.multiply(self, 1)

    def astype(self, dtype: Any) -> "Tensor":
        """In another precision, on the same tape; as whole numbers or booleans, which have no gradient, off it."""
        wanted = _named("astype", np.dtype, dtype)
        return ops.astype(self, wanted) if wanted.kind in "fc" else Tensor(self.data.astype(wanted))

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in (*words.ADVICE, *words.IN_PLACE)]

    def detach(self) -> "Tensor":
        """The same data, cut off from the tape."""
        return Tensor(self)

    def __reduce__(self) -> tuple:  # copy, deepcopy and pickle give a leaf; weak references survive none of them
        return Tensor, (self.data, self.node is not None and self.node.leaf is not None)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.node is not None:
            raise TypeError(border.NO_ARRAY)
        return np.array(self.data, dtype=dtype, copy=copy)  # refused by CuPy: .numpy() says that data crosses

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return border.ufunc(ufunc, method, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return border.function(function, args, kwargs)

    def __repr__(self) -> str:
        text = np.array2string(self.numpy(), separator=", ", prefix="Tensor(", threshold=100)
        origin = "" if self.node is None else ", requires_grad=True" if self.node.leaf else f", from={self.node.name}"
        return f"Tensor({text}, {self.dtype}{origin})"

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        return float(self.data)

    def __int__(self) -> int:
        return int(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    if TYPE_CHECKING:  # `register` makes methods of primitives, and `words.teach` of other people's words

        def __getattr__(self, name: str) -> Any: ...

    # fmt: off
    def __add__(self, other: Any) -> "Tensor": return ops.add(self, other)
    def __radd__(self, other: Any) -> "Tensor": return ops.add(other, self)
    def __sub__(self, other: Any) -> "Tensor": return ops.subtract(self, other)
    def __rsub__(self, other: Any) -> "Tensor": return ops.subtract(other, self)
    def __mul__(self, other: Any) -> "Tensor": return ops.multiply(self, other)
    def __rmul__(self, other: Any) -> "Tensor": return ops.multiply(other, self)
    def __truediv__(self, other: Any) -> "Tensor": return ops.divide(self, other)
    def __rtruediv__(self, other: Any) -> "Tensor": return ops.divide(other, self)
    def __pow__(self, other: Any) -> "Tensor": return ops.power(self, other)
    def __rpow__(self, other: Any) -> "Tensor": return ops.power(other, self)
    def __matmul__(self, other: Any) -> "Tensor": return ops.matmul(self, other)
    def __rmatmul__(self, other: Any) -> "Tensor": return ops.matmul(other, self)
    def __pos__(self) -> "Tensor": return self
    def __abs__(self) -> "Tensor": return ops.abs(self)
    def __neg__(self) -> "Tensor": return ops.negate(self)
    def __getitem__(self, key: Any) -> "Tensor": return ops.index(self, key)
    def __setitem__(self, key: Any, value: Any) -> None: raise TypeError(words.NO_WRITING)

    def __eq__(self, other: Any) -> Any: return self.data == _data(other)
    def __ne__(self, other: Any) -> Any: return self.data != _data(other)
    def __lt__(self, other: Any) -> Any: return self.data < _data(other)
    def __le__(self, other: Any) -> Any: return self.data <= _data(other)
    def __gt__(self, other: Any) -> Any: return self.data > _data(other)
    def __ge__(self, other: Any) -> Any: return self.data >= _data(other)
    __hash__ = object.__hash__

    @property
    def T(self) -> "Tensor": return ops.transpose(self)
    # fmt: on

    def reshape(self, *shape: Any) -> "Tensor":
        """x.reshape(2, 3) or x.reshape((2, 3)); one entry may be -1."""
        return ops.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> "Tensor":
        """x.transpose() reverses the axes; x.transpose(1, 0) or x.transpose((1, 0)) puts them in that order."""
        if axes == (0, 1) and self.ndim == 2:
            warnings.warn(words.SAME_ORDER, stacklevel=2)
        return ops.transpose(self, axes[0] if len(axes) == 1 else axes or None)


def _numbers(data: Any) -> Array:
    return data._array if isinstance(data, Tensor) else as_array(data)


def _named(name: str, function: Callable, value: Any) -> Any:
    """function(value), with the name in its errors."""
    try:
        return function(value)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from None


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


words.teach(Tensor)

from . import ops  # noqa: E402  (at the end: ops needs Tensor, and Tensor's operators need ops)
