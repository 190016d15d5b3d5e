"""A GPU for tests that have none: arrays that refuse what CuPy's refuse, over NumPy's arithmetic.

`StrictArray` holds its numbers where nothing but `.get()` reaches them. NumPy cannot read it, NumPy's functions do not
take it, NumPy's arrays do not mix with it, and its methods and functions have CuPy's names and options and no others:
`tests/test_devices.py` compares both lists with CuPy itself where that is installed, which takes no GPU. Where CuPy
would copy an array over silently (an index, a NumPy function), this refuses: a crossing has to stand in the code.

    BACKENDS["strict"] = lambda: strict       registered as CuPy is; then use_backend("strict")
"""

import functools
import inspect
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

SCALARS = (bool, int, float, complex, np.generic)  # what CuPy takes beside its own arrays; arrays () are not among them

METHODS = """
all(axis=None, out=None, keepdims=False)
any(axis=None, out=None, keepdims=False)
argmax(axis=None, out=None, dtype=None, keepdims=False)
argmin(axis=None, out=None, dtype=None, keepdims=False)
argsort(axis=-1, kind=None)
astype(dtype, order='K', casting=None, subok=None, copy=True)
clip(min=None, max=None, out=None)
conj()
copy(order='C')
cumprod(axis=None, dtype=None, out=None)
cumsum(axis=None, dtype=None, out=None)
diagonal(offset=0, axis1=0, axis2=1)
dot(b, out=None)
fill(value)
flatten(order='C')
item()
max(axis=None, out=None, keepdims=False)
mean(axis=None, dtype=None, out=None, keepdims=False)
min(axis=None, out=None, keepdims=False)
nonzero()
prod(axis=None, dtype=None, out=None, keepdims=None)
ravel(order='C')
repeat(repeats, axis=None)
reshape(*shape, order='C', copy=None)
round(decimals=0, out=None)
sort(axis=-1, kind=None)
squeeze(axis=None)
std(axis=None, dtype=None, out=None, ddof=0, keepdims=False)
sum(axis=None, dtype=None, out=None, keepdims=False)
swapaxes(axis1, axis2)
take(indices, axis=None, out=None)
tolist()
trace(offset=0, axis1=0, axis2=1, dtype=None, out=None)
transpose(*axes)
var(axis=None, dtype=None, out=None, ddof=0, keepdims=False)
view(dtype=None, type=None)
"""

FUNCTIONS = """
all(a, axis=None, out=None, keepdims=False)
allclose(a, b, rtol=1e-05, atol=1e-08, equal_nan=False)
any(a, axis=None, out=None, keepdims=False)
arange(start, stop=None, step=1, dtype=None)
argmax(a, axis=None, dtype=None, out=None, keepdims=False)
argmin(a, axis=None, dtype=None, out=None, keepdims=False)
argsort(a, axis=-1, kind=None)
array_equal(a1, a2, equal_nan=False)
ascontiguousarray(a, dtype=None)
bincount(x, weights=None, minlength=None)
broadcast_to(array, shape)
clip(a, a_min, a_max, out=None)
concatenate(tup, axis=0, out=None, *, dtype=None, casting='same_kind')
copyto(dst, src, casting='same_kind', where=None)
cumprod(a, axis=None, dtype=None, out=None)
cumsum(a, axis=None, dtype=None, out=None)
diag(v, k=0)
dot(a, b, out=None)
einsum(*operands, **kwargs)
empty(shape, dtype=float, order='C')
empty_like(prototype, dtype=None, order='K', subok=None, shape=None)
expand_dims(a, axis)
eye(N, M=None, k=0, dtype=float, order='C')
flatnonzero(a)
flip(a, axis=None)
full(shape, fill_value, dtype=None, order='C')
full_like(a, fill_value, dtype=None, order='K', subok=None, shape=None)
isclose(a, b, rtol=1e-05, atol=1e-08, equal_nan=False)
linspace(start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0)
matmul(*args, keepdims=False, casting='same_kind', dtype=None, order='K', out=None)
max(a, axis=None, out=None, keepdims=False)
mean(a, axis=None, dtype=None, out=None, keepdims=False)
median(a, axis=None, out=None, overwrite_input=False, keepdims=False)
min(a, axis=None, out=None, keepdims=False)
moveaxis(a, source, destination)
nan_to_num(x, copy=True, nan=0.0, posinf=None, neginf=None)
nonzero(a)
ones(shape, dtype=float, order='C')
ones_like(a, dtype=None, order='K', subok=None, shape=None)
outer(a, b, out=None)
pad(array, pad_width, mode='constant', **kwargs)
prod(a, axis=None, dtype=None, out=None, keepdims=False)
ravel(a, order='C')
repeat(a, repeats, axis=None)
reshape(a, newshape, order='C', *, copy=None)
roll(a, shift, axis=None)
round(a, decimals=0, out=None)
searchsorted(a, v, side='left', sorter=None)
sort(a, axis=-1, kind=None)
split(ary, indices_or_sections, axis=0)
squeeze(a, axis=None)
stack(tup, axis=0, out=None, *, dtype=None, casting='same_kind')
std(a, axis=None, dtype=None, out=None, ddof=0, keepdims=False)
sum(a, axis=None, dtype=None, out=None, keepdims=False)
swapaxes(a, axis1, axis2)
take(a, indices, axis=None, out=None)
take_along_axis(a, indices, axis)
tensordot(a, b, axes=2)
tile(A, reps)
trace(a, offset=0, axis1=0, axis2=1, dtype=None, out=None)
transpose(a, axes=None)
tri(N, M=None, k=0, dtype=float)
tril(m, k=0)
triu(m, k=0)
unravel_index(indices, dims, order='C')
unique(ar, return_index=False, return_inverse=False, return_counts=False, axis=None)
unravel_index(indices, dims, order='C')
var(a, axis=None, dtype=None, out=None, ddof=0, keepdims=False)
vdot(a, b)
where(condition, x=None, y=None)
zeros(shape, dtype=float, order='C')
zeros_like(a, dtype=None, order='K', subok=None, shape=None)
linalg.cholesky(a)
linalg.det(a)
linalg.eigh(a, UPLO='L')
linalg.inv(a)
linalg.lstsq(a, b, rcond=None)
linalg.matrix_rank(M, tol=None)
linalg.norm(x, ord=None, axis=None, keepdims=False)
linalg.pinv(a, rcond=1e-15)
linalg.qr(a, mode='reduced')
linalg.slogdet(a)
linalg.solve(a, b)
linalg.svd(a, full_matrices=True, compute_uv=True)
"""

UFUNCS = (  # each takes its inputs and out=, dtype=, casting=; `where=` is NumPy's alone
    "abs", "absolute", "add", "ceil", "conj", "cos", "cosh", "divide", "equal", "exp", "expm1", "floor", "frexp",
    "greater", "isfinite", "isinf", "isnan", "ldexp", "less", "log", "log1p", "logaddexp", "logical_and",
    "logical_not", "logical_or", "maximum", "minimum", "multiply", "negative", "power", "rint", "sign", "sin",
    "sinh", "sqrt", "square", "subtract", "tanh",
)  # fmt: skip
WITH_AT = ("add", "maximum", "minimum", "subtract")  # these have `.at`
CONSTANTS = ("inf", "nan", "pi", "e", "float16", "float32", "float64", "complex64", "complex128", "int8", "uint8",
             "int32", "int64", "bool_", "finfo", "iinfo")  # fmt: skip


def unwrapped(value: Any) -> Any:
    """What the arithmetic works on. Raises TypeError, in CuPy's words, for an array of another library."""
    if type(value) is StrictArray:
        return value.held
    if isinstance(value, list | tuple):
        return type(value)(unwrapped(item) for item in value)
    if isinstance(value, np.ndarray) or (hasattr(value, "__array_ufunc__") and not isinstance(value, (*SCALARS, type))):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def wrapped(value: Any) -> Any:
    """A result on the device; CuPy has no scalars of its own, so a sum is an array of shape ()."""
    if isinstance(value, np.ndarray | np.generic):
        return StrictArray(np.asarray(value))
    return tuple(wrapped(item) for item in value) if isinstance(value, list | tuple) else value


def with_signature(name: str, function: Any, parameters: str) -> Any:
    """`function` on held arrays, for calls that fit CuPy's signature; any other is a TypeError, as there."""
    signature = inspect.signature(eval(f"lambda {parameters}: None"))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}() as CuPy has it: {error}") from None
        return wrapped(function(*map(unwrapped, args), **{key: unwrapped(value) for key, value in kwargs.items()}))

    return call


class StrictArray:
    """An array on a device that is not there."""

    __slots__ = ("held", "__weakref__")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, held: np.ndarray):
        self.held = held

    # What NumPy asks of an object that it does not know.

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"np.{function.__name__} on an array of the device; ask array_module(x) for its library")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or not any(isinstance(x, np.generic | np.ndarray) for x in inputs):
            raise TypeError(f"np.{ufunc.__name__} on an array of the device; ask array_module(x) for its library")
        return wrapped(ufunc(*map(unwrapped, inputs), **options))  # np.float64(2) * array comes here; CuPy allows it

    def get(self) -> np.ndarray:
        """The way back to the host: a copy."""
        return self.held.copy()

    # What it is.

    shape = property(lambda self: self.held.shape)
    dtype = property(lambda self: self.held.dtype)
    ndim = property(lambda self: self.held.ndim)
    size = property(lambda self: self.held.size)
    nbytes = property(lambda self: self.held.nbytes)
    itemsize = property(lambda self: self.held.itemsize)
    strides = property(lambda self: self.held.strides)
    T = property(lambda self: wrapped(self.held.T))
    real = property(lambda self: wrapped(self.held.real))
    imag = property(lambda self: wrapped(self.held.imag))
    base = property(lambda self: wrapped(self.held.base))

    @property
    def flags(self) -> SimpleNamespace:
        """CuPy's three."""
        held = self.held.flags
        return SimpleNamespace(c_contiguous=held.c_contiguous, f_contiguous=held.f_contiguous, owndata=held.owndata)

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Any:
        return (wrapped(row) for row in self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __float__(self) -> float:
        return float(self.held)

    def __complex__(self) -> complex:
        return complex(self.held)

    def __format__(self, spec: str) -> str:
        return format(self.held[()] if self.ndim == 0 else self.held, spec)

    def __repr__(self) -> str:
        return repr(self.held)

    def __getitem__(self, key: Any) -> "StrictArray":
        return wrapped(self.held[unwrapped(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.held[unwrapped(key)] = unwrapped(value)


def _operator(name: str) -> Any:
    def operate(self: StrictArray, *others: Any) -> Any:
        result = getattr(self.held, name)(*map(unwrapped, others))
        if result is NotImplemented:
            return result
        return self if result is self.held else wrapped(result)  # in place

    return operate


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    for _kind in (_name, f"r{_name}", f"i{_name}"):
        setattr(StrictArray, f"__{_kind}__", _operator(f"__{_kind}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert"):
    setattr(StrictArray, f"__{_name}__", _operator(f"__{_name}__"))


def _held(name: str) -> Any:
    return lambda held, *args, **kwargs: getattr(held, name)(*args, **kwargs)


def signatures(table: str) -> dict[str, str]:
    """{name: parameters} of a table above."""
    return {line.split("(", 1)[0]: line.split("(", 1)[1][:-1] for line in table.strip().splitlines()}


for _name, _parameters in signatures(METHODS).items():
    _method = with_signature(_name, _held(_name), f"self, {_parameters}")
    setattr(StrictArray, _name, lambda self, *args, _method=_method, **kwargs: _method(self, *args, **kwargs))


def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> StrictArray:
    """The way from the host to the device: a copy, since their memories are two. An array of the device stays."""
    if type(a) is StrictArray:
        return a if dtype is None or a.dtype == np.dtype(dtype) else a.astype(dtype)
    return array(a, dtype)


def array(obj: Any, dtype: Any = None, copy: Any = True, order: Any = "K", subok: bool = False,
          ndmin: int = 0) -> StrictArray:  # fmt: skip
    """A new array on the device, of host arrays, numbers, lists of numbers, or arrays of the device."""
    if isinstance(obj, list | tuple) and any(type(item) is StrictArray for item in obj):
        obj = unwrapped(obj)
    values = np.array(obj.held if type(obj) is StrictArray else obj, dtype=dtype, ndmin=ndmin)
    if values.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {values.dtype}")
    return StrictArray(values)


def _ufunc(name: str) -> Any:
    ufunc = getattr(np, name)
    inputs = ", ".join(f"x{i}" for i in range(ufunc.nin))
    call = with_signature(name, ufunc, f"{inputs}, /, out=None, *, casting='same_kind', dtype=None")
    if name in WITH_AT:
        call.at = with_signature(f"{name}.at", ufunc.at, "a, indices, b=None")
    return call


def _missing(name: str) -> Any:
    raise AttributeError(f"the stand-in for CuPy has no {name!r}; if CuPy has it, enter its signature in strict.py")


strict = ModuleType("strict")
strict.linalg = ModuleType("strict.linalg")
strict.ndarray, strict.asarray, strict.array = StrictArray, asarray, array
strict.__getattr__ = strict.linalg.__getattr__ = _missing
for _name in CONSTANTS:
    setattr(strict, _name, getattr(np, _name))
for _name in UFUNCS:
    setattr(strict, _name, _ufunc(_name))
for _name, _parameters in signatures(FUNCTIONS).items():
    _short = _name.removeprefix("linalg.")
    _numpy = getattr(np.linalg if _name != _short else np, _short)
    setattr(strict.linalg if _name != _short else strict, _short, with_signature(_name, _numpy, _parameters))
