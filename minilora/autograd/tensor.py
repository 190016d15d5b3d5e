"""The tape: how a computation is recorded, and walked backwards to differentiate it.

A primitive is a plain function on arrays that returns its output and, for each input, a function that maps the
output's cotangent to that input's cotangent (a vector-Jacobian product, vjp). `primitive` turns it into a function on
tensors that also records a node. `grad` walks the nodes from an output back to the inputs (reverse-mode
differentiation: Baydin et al. 2018, "Automatic Differentiation in Machine Learning: a Survey", section 3.2).

    a tensor holds data and points to its node
    a node holds vjps and points to its inputs' nodes, and never holds data

A vjp is kept only if its input needs a gradient. The vjp of a frozen weight W is dropped on the spot, and with it the
only reference to the layer's input: a frozen layer stores no activation. That is LoRA's memory story.
"""

import functools
import inspect
import itertools
import operator
import reprlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .backend import Array, array_module, as_computed, mixed, new_array, to_numpy

PRIMITIVES: dict[str, Callable[..., "Tensor"]] = {}  # name -> primitive: the complete list

_creation_order = itertools.count()  # an input's node is always older than its output's
_order = operator.attrgetter("order")


class Node:
    """One step of the tape: the vjps that survive, and the nodes of the inputs they send cotangents to."""

    __slots__ = ("name", "inputs", "vjps", "shape", "dtype", "order", "leaf", "__weakref__")

    vjps: Any  # a tuple of functions, one function that returns all cotangents, or None once freed
    inputs: tuple["Node | None", ...]

    def __init__(self, name: str, inputs: tuple, vjps: Any, data: Array, leaf: Any = None):
        self.name, self.inputs, self.vjps, self.leaf = name, inputs, vjps, leaf
        self.shape, self.dtype = data.shape, data.dtype
        self.order = next(_creation_order)

    @property
    def freed(self) -> bool:
        return self.vjps is None


class _Recording(threading.local):
    paused = 0  # how many no_grad blocks this thread is inside


_recording = _Recording()


class no_grad:
    """Context manager: inside it this thread records no tape, so nothing is kept for a backward pass."""

    def __enter__(self) -> None:
        _recording.paused += 1

    def __exit__(self, *error: object) -> None:
        _recording.paused -= 1


def primitive(function: Callable[..., tuple]) -> Callable[..., "Tensor"]:
    """Make a differentiable function on tensors of `function`, which maps arrays to (output, vjps).

    vjps: a tuple with one function (or None, where there is nothing to differentiate) per leading input, or one
    function that returns all the cotangents, where inputs share work. Everything that is not mathematics is done here:
    unwrapping tensors, recording the node, dropping the vjps that nobody needs, naming the primitive in errors.
    """
    name = function.__name__
    code: Any = inspect.unwrap(function).__code__  # read in a tenth of the time that inspect.signature takes
    names = code.co_varnames[: code.co_argcount]
    options = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    variadic = bool(code.co_flags & inspect.CO_VARARGS)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        if variadic and args and isinstance(args[0], (list, tuple)):  # concatenate([a, b], axis), as in NumPy
            kwargs, args = {**dict(zip(options, args[1:], strict=False)), **kwargs}, tuple(args[0])
        while kwargs and len(args) < len(names) and names[len(args)] in kwargs:  # bias=b is as good as the third place
            args = (*args, kwargs.pop(names[len(args)]))
        try:
            values = [a.data if isinstance(a, Tensor) else new_array(a) if type(a) is list else a for a in args]
            output, vjps = function(*values, **kwargs)
        except (ValueError, IndexError, TypeError) as error:
            raise _named(error, name, args) from None
        result = _around(as_computed(output))
        if not _recording.paused:
            nodes = tuple([a.node if isinstance(a, Tensor) else None for a in args])
            if any(nodes):
                if None in nodes and not callable(vjps):
                    vjps = tuple([node and vjp for node, vjp in zip(nodes, vjps, strict=False)])
                result.node = Node(name, nodes, vjps, result.data)
        return result

    return call


def _around(data: Array) -> "Tensor":
    """A tensor that holds this array, where it is; `Tensor(data)` would bring it to the current backend."""
    tensor = Tensor.__new__(Tensor)
    tensor.data, tensor.grad, tensor.node = data, None, None
    return tensor


def register(function: Callable[..., tuple]) -> Callable[..., "Tensor"]:
    """`primitive`, entered into `PRIMITIVES`."""
    PRIMITIVES[function.__name__] = primitive(function)
    return PRIMITIVES[function.__name__]


def _named(error: Exception, name: str, args: Sequence) -> Exception:
    """The same error with the primitive's name, and the shapes and options that came."""
    if str(error).startswith(f"{name}:"):
        return error
    if isinstance(error, TypeError) and (words := mixed(map(_data, args))):
        return TypeError(f"{name}: {words}")
    shapes = ", ".join(str(a.shape) if hasattr(a, "shape") else reprlib.repr(a) for a in args)
    kind = type(error) if type(error) in (TypeError, IndexError) else ValueError  # NumPy's AxisError, for one
    return kind(f"{name}: got ({shapes}): {error}")


def _tape(output: Node) -> list[Node]:
    """Every node that the output was computed from, the newest first; no recursion, so depth is no limit."""
    seen, stack = {output}, [output]
    while stack:
        node = stack.pop()
        if node.freed:
            raise ValueError(
                f"backward: the tape was already freed at {node.name!r} by an earlier backward pass; "
                "run the forward pass again, or pass retain_graph=True to the first one"
            )
        for source in node.inputs:
            if source is not None and source not in seen:
                seen.add(source)
                stack.append(source)
    return sorted(seen, key=_order, reverse=True)


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
    cotangent = xp.asarray(cotangent.data if isinstance(cotangent, Tensor) else cotangent, dtype=output.dtype)
    if cotangent.shape != output.shape:
        raise ValueError(f"backward: the cotangent has shape {cotangent.shape}, the output {output.shape}")
    return cotangent


def grad(output: "Tensor", inputs: Sequence["Tensor"], cotangent: Any = None, retain_graph: bool = False) -> list:
    """The gradient of `output` with respect to each of `inputs`, as arrays of their shapes.

    d output / d input, contracted with `cotangent` (default 1, for a scalar output). Pure: no tensor is written to.
    The tape is freed on the way unless `retain_graph`. An input that the output does not depend on gets zeros.
    Raises ValueError for a non-scalar output without cotangent, a freed tape, or an input without requires_grad.
    """
    if isinstance(inputs, Tensor):
        raise TypeError("grad: inputs is one Tensor, expected a list of them: grad(output, [x])")
    for place, tensor in enumerate(inputs):
        if tensor.node is None:
            raise ValueError(f"grad: input {place} (shape {tensor.shape}) has requires_grad=False")
    seed = _seed(output, cotangent)
    assert output.node is not None
    targets = {tensor.node for tensor in inputs}
    cotangents = _pull_back(_tape(output.node), targets, {output.node: seed}, retain_graph)
    return _owned([cotangents.get(tensor.node) for tensor in inputs], inputs, seed)


def _pull_back(tape: list[Node], targets: set, cotangents: dict, retain_graph: bool) -> dict:
    """Send cotangents from the newest node to the oldest, through the nodes that lead to a target."""
    leads_to_target = set(targets)
    for node in reversed(tape):
        if not leads_to_target.isdisjoint(node.inputs):
            leads_to_target.add(node)
    tape.reverse()
    while tape:
        node = tape.pop()  # popped, so that nothing but `cotangents` keeps what was used
        if node not in leads_to_target or node not in cotangents:
            continue
        g = cotangents[node] if node in targets else cotangents.pop(node)
        for source, cotangent in _apply(node, g, leads_to_target):
            cotangents[source] = _added(cotangent, cotangents[source], g) if source in cotangents else cotangent
        if not retain_graph and node.leaf is None:
            node.vjps, node.inputs = None, ()
    return cotangents


def _added(fresh: Array, earlier: Array, g: Array) -> Array:
    """Their sum, written over the cotangent just made, unless it is g itself, which others hold, or a view of it."""
    if fresh is g or fresh.base is not None:
        return fresh + earlier
    fresh += earlier
    return fresh


def _apply(node: Node, g: Array, wanted: set) -> Iterator[tuple[Node, Array]]:
    """(input node, its cotangent) for each wanted input, with broadcasting undone: the one place where it is."""
    joint = node.vjps(g) if callable(node.vjps) else None
    rules = node.vjps if joint is None else joint
    for i, source in enumerate(node.inputs):
        if source is None or source not in wanted:
            continue
        if i >= len(rules):
            raise TypeError(f"backward: {node.name} has no derivative in its argument {i}; detach it: x.detach()")
        if joint is not None:
            cotangent = joint[i]
        elif rules[i] is not None:
            cotangent = rules[i](g)
        else:
            continue  # nothing to differentiate with respect to: a condition, token numbers
        if cotangent.shape != source.shape:
            cotangent = sum_to_shape(cotangent, source.shape)
        yield source, cotangent if cotangent.dtype == source.dtype else cotangent.astype(source.dtype)


def sum_to_shape(g: Array, shape: tuple) -> Array:
    """Undo broadcasting: an entry that was used many times receives the sum of its copies' cotangents."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))  # axes that broadcasting put in front
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=stretched, keepdims=True).reshape(shape)


def _owned(gradients: list, inputs: Sequence["Tensor"], seed: Array) -> list:
    """Gradients that share memory with nothing: the vjp of `+`, for one, hands the same array to both sides."""
    taken = {id(seed)}
    for i, (g, tensor) in enumerate(zip(gradients, inputs, strict=True)):
        xp = array_module(tensor.data)
        if g is None:
            gradients[i] = xp.zeros(tensor.shape, dtype=tensor.dtype)
        elif type(g) is not type(tensor.data) or g.base is not None or id(g) in taken:
            gradients[i] = xp.array(g)
        taken.add(id(gradients[i]))
    return gradients


class Tensor:
    """An array that remembers how it was computed.

    data: an array, a number, nested lists, or another Tensor (its data is shared). The current backend holds it, or the
    GPU that it is on. With requires_grad=True it is a leaf: `backward()` on anything computed from it adds to its
    `.grad`. Arithmetic, indexing and the methods below are NumPy's, on either side of an array or a number.
    Comparisons give plain boolean arrays.
    Raises TypeError when a gradient is asked of integers, or when the data is no numbers.
    """

    __slots__ = ("data", "grad", "node", "__weakref__")

    data: Array
    grad: Array | None
    node: Node | None

    def __init__(self, data: Any, requires_grad: bool = False):
        self.data = data.data if isinstance(data, Tensor) else new_array(data)
        if self.data.dtype.kind in "OUSV":
            raise TypeError(f"Tensor: got data of dtype {self.data.dtype}, expected numbers")
        self.grad = None
        self.node = None
        if requires_grad:
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
        if value != (self.node is not None):
            self.node = Node("leaf", (), (), self.data, weakref.ref(self)) if value else None

    def backward(self, cotangent: Any = None, retain_graph: bool = False) -> None:
        """Add d self / d leaf to the `.grad` of every leaf this tensor was computed from."""
        _seed(self, cotangent)
        assert self.node is not None
        leaves = [node.leaf() for node in _tape(self.node) if node.leaf is not None]
        leaves = [leaf for leaf in leaves if leaf is not None]  # a leaf that nobody holds any more wants no gradient
        for leaf, g in zip(leaves, grad(self, leaves, cotangent, retain_graph), strict=True):
            leaf.grad = g if leaf.grad is None else leaf.grad + g

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)

    def item(self) -> Any:
        """The one number in this tensor, as a Python number."""
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array, without copying where it is one already."""
        return to_numpy(self.data)

    def detach(self) -> "Tensor":
        """The same data, cut off from the tape."""
        return Tensor(self)

    def __reduce__(self) -> tuple:  # copy, deepcopy and pickle give a leaf; weak references survive none of them
        return Tensor, (self.data, self.node is not None and self.node.leaf is not None)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.data, dtype=dtype, copy=copy)  # refused by CuPy: .numpy() says that data crosses

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """np.exp(x) and array + x are the primitives of those names; comparisons give plain boolean arrays."""
        name = {"negative": "negate"}.get(ufunc.__name__, ufunc.__name__)
        if method == "__call__" and not options and name in PRIMITIVES:
            return PRIMITIVES[name](*inputs)
        if method == "__call__" and name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
            return ufunc(*(_data(value) for value in inputs), **options)
        raise TypeError(f"np.{ufunc.__name__} has no derivative here; use a primitive of ml.ops, or x.data without one")

    def __repr__(self) -> str:
        text = np.array2string(self.numpy(), separator=", ", prefix="Tensor(", threshold=100)
        origin = "" if self.node is None else ", requires_grad=True" if self.node.leaf else f", from={self.node.name}"
        return f"Tensor({text}, {self.dtype}{origin})"

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
    def __neg__(self) -> "Tensor": return ops.negate(self)
    def __getitem__(self, key: Any) -> "Tensor": return ops.index(self, key)

    def __eq__(self, other: Any) -> Any: return self.data == _data(other)
    def __ne__(self, other: Any) -> Any: return self.data != _data(other)
    def __lt__(self, other: Any) -> Any: return self.data < _data(other)
    def __le__(self, other: Any) -> Any: return self.data <= _data(other)
    def __gt__(self, other: Any) -> Any: return self.data > _data(other)
    def __ge__(self, other: Any) -> Any: return self.data >= _data(other)
    __hash__ = object.__hash__

    def exp(self) -> "Tensor": return ops.exp(self)
    def log(self) -> "Tensor": return ops.log(self)
    def sqrt(self) -> "Tensor": return ops.sqrt(self)
    def tanh(self) -> "Tensor": return ops.tanh(self)
    def sum(self, axis: Any = None, keepdims: bool = False) -> "Tensor": return ops.sum(self, axis, keepdims)
    def mean(self, axis: Any = None, keepdims: bool = False) -> "Tensor": return ops.mean(self, axis, keepdims)
    def max(self, axis: Any = None, keepdims: bool = False) -> "Tensor": return ops.max(self, axis, keepdims)
    @property
    def T(self) -> "Tensor": return ops.transpose(self)
    # fmt: on

    def reshape(self, *shape: Any) -> "Tensor":
        """x.reshape(2, 3) or x.reshape((2, 3)); one entry may be -1."""
        return ops.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> "Tensor":
        """x.transpose() reverses the axes; x.transpose(1, 0) or x.transpose((1, 0)) puts them in that order."""
        return ops.transpose(self, axes[0] if len(axes) == 1 else axes or None)


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


from . import ops  # noqa: E402  (at the end: ops needs Tensor, and Tensor's operators need ops)
