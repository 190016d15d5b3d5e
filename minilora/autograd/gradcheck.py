"""Is this gradient right? Three independent ways to find out, each comparing with the tape's answer.

    central        (f(x + h) - f(x - h)) / 2h, entry by entry: error h^2 from truncation, eps/h from rounding
    complex-step   Im f(x + ih) / h, entry by entry: no subtraction, so h = 1e-30 and every digit is right
                   (Squire & Trapp 1998); f must be analytic, and its code complex-safe
    directional    one random direction u through all inputs: (f(x + hu) - f(x - hu)) / 2h against grad . u,
                   at the cost of two forward passes however large the inputs

A function with many outputs is checked through a fixed random projection v . f(x) of them, so a wrong entry of any
vector-Jacobian product shows.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import array_module, new_array, to_numpy
from .signatures import checked, is_whole
from .tensor import Tensor, grad, no_grad

CENTRAL_STEP = 6e-6  # the cube root of float64's rounding error: where truncation and rounding meet
COMPLEX_STEP = 1e-30
TOLERANCE = {"central": 1e-6, "complex-step": 1e-12, "directional": 1e-6}


@dataclass(frozen=True)
class InputReport:
    """One input's result: the largest errors, where the largest is, and the two numbers there."""

    name: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    where: tuple[int, ...]
    tape: float
    reference: float
    passed: bool


@dataclass(frozen=True)
class Report:
    """What `gradcheck` found. True when every input passed; prints as a table."""

    method: str
    tolerance: float
    inputs: tuple[InputReport, ...]

    @property
    def passed(self) -> bool:
        """Whether every input passed."""
        return all(row.passed for row in self.inputs)

    @property
    def relative(self) -> float:
        """The largest relative error of any input."""
        return max((row.relative for row in self.inputs), default=0.0)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        lines = [f"gradcheck, {self.method}: {'pass' if self.passed else 'FAIL'} (tolerance {self.tolerance:.0e})"]
        titles = f"{'input':<12} {'shape':<11} {'abs err':>7} {'rel err':>7}"
        lines.append(f"{titles} {'at':<11} {'tape':>10} {'reference':>10}")
        for row in self.inputs:
            if len(row.name) > 12:  # a line of its own, so that the columns stay within 80
                lines.append(row.name)
            name = row.name if len(row.name) <= 12 else ""
            shape, where = (str(axes).replace(" ", "") for axes in (row.shape, row.where))
            lines.append(
                f"{name:<12} {shape:<11} {row.absolute:>7.1e} {row.relative:>7.1e} {where:<11} "
                f"{row.tape:>10.4g} {row.reference:>10.4g} {'ok' if row.passed else 'FAIL'}"
            )
        return "\n".join(lines)

    __repr__ = __str__  # a notebook shows the table


@checked
def gradcheck(
    function: Callable[..., Tensor],
    inputs: Sequence[Any],
    method: str = "central",
    tolerance: float | None = None,
    max_entries: int | None = None,
    names: Sequence[str] | None = None,
    rng: Any = 0,
) -> Report:
    """Compare the tape's gradients of function(*inputs) with a computation that knows no derivative rule.

    inputs: arrays, or float64 leaf Tensors (a model's parameters, say), which the function may also use without taking
    them as arguments; they are changed entry by entry and put back. max_entries: check that many random entries of each
    input. The relative error of an input is max |tape - reference| / max |reference|; it passes at `tolerance` (1e-6,
    or 1e-12 for complex-step), or where the absolute error is as small as rounding makes it.
    Raises ValueError for an unknown method, and TypeError when the function is not complex-safe.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ValueError(f"gradcheck: tolerance = {tolerance}, expected a positive number, or None")
    if max_entries is not None and (not is_whole(max_entries) or max_entries < 1):
        raise ValueError(f"gradcheck: max_entries = {max_entries!r}, expected a positive integer, or None for all")
    if method not in TOLERANCE:
        raise ValueError(f"gradcheck: method = {method!r}, expected one of {', '.join(map(repr, TOLERANCE))}")
    inputs = [inputs] if hasattr(inputs, "dtype") else inputs
    tensors = [_leaf(value, i) for i, value in enumerate(inputs)]
    rng = np.random.default_rng(rng)
    output = function(*tensors)
    if not isinstance(output, Tensor):
        raise TypeError(f"gradcheck: the function returned {type(output).__name__}, expected a Tensor")
    if method == "complex-step":
        _refuse_real_code(function, tensors)
    projection = rng.standard_normal(output.shape) if output.size != 1 else np.ones(output.shape)
    weights = array_module(output.data).asarray(projection)
    tape = [to_numpy(g) for g in grad(output, tensors, cotangent=weights)]
    magnitude = float(np.abs(to_numpy(output.data) * projection).sum())

    def value() -> complex:
        with no_grad():
            result = function(*tensors).data
        return complex((result * weights).sum())

    tolerance = TOLERANCE[method] if tolerance is None else tolerance
    if method == "directional":
        rows = [_check_direction(value, tensors, tape, tolerance, magnitude, rng)]
    else:
        names = names or [f"input {i}" for i in range(len(tensors))]
        rows = [
            _check_entries(value, tensor, g, method, tolerance, magnitude, _entries(tensor, max_entries, rng), name)
            for tensor, g, name in zip(tensors, tape, names, strict=True)
        ]
    return Report(method, tolerance, tuple(rows))


def _leaf(value: Any, place: int) -> Tensor:
    if np.iscomplexobj(to_numpy(value)):
        raise TypeError(
            f"gradcheck: input {place} is complex; expected real numbers: give its real and imaginary parts as two"
        )
    if not isinstance(value, Tensor):
        return Tensor(new_array(value, dtype=np.float64), requires_grad=True)
    if value.dtype != np.float64 or value.node is None or value.node.leaf is None:
        raise ValueError(
            f"gradcheck: input {place} is a {value.dtype} tensor with requires_grad={value.requires_grad}; "
            "expected a float64 leaf with requires_grad=True, or a plain array"
        )
    return value


def _refuse_real_code(function: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    """Raise TypeError when complex inputs give a real output: the step along i was lost, and with it the derivative."""
    originals = [tensor.data for tensor in tensors]
    cause: Any = None
    kind = "?"
    try:
        for tensor, x in zip(tensors, originals, strict=True):
            tensor.data = x.astype(complex)
        with no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            kind = function(*tensors).dtype.kind
    except (TypeError, np.exceptions.ComplexWarning) as error:
        cause = error
    finally:
        for tensor, x in zip(tensors, originals, strict=True):
            tensor.data = x
    if kind != "c":
        raise TypeError(
            f"gradcheck: the function is not complex-safe ({cause or 'complex inputs gave a real output'}): it uses "
            "abs, .real, float() or .astype(float) on data, say; check it with method='central'"
        ) from cause


def _entries(tensor: Tensor, most: int | None, rng: np.random.Generator) -> np.ndarray:
    every = np.arange(tensor.size)
    return every if most is None or most >= tensor.size else rng.choice(every, most, replace=False)


def _check_entries(
    value: Callable[[], complex],
    tensor: Tensor,
    tape: np.ndarray,
    method: str,
    tolerance: float,
    magnitude: float,
    entries: np.ndarray,
    name: str,
) -> InputReport:
    """Move one entry at a time, by h or by ih, with the rest in place."""
    original = tensor.data
    reference = np.zeros(len(entries))
    try:
        for i, entry in enumerate(entries):
            if method == "complex-step":
                reference[i] = _moved(value, tensor, original, entry, 1j * COMPLEX_STEP).imag / COMPLEX_STEP
            else:
                h = CENTRAL_STEP * max(1.0, abs(float(original.reshape(-1)[entry])))
                up, down = (_moved(value, tensor, original, entry, step) for step in (h, -h))
                reference[i] = (up - down).real / (2 * h)
    finally:
        tensor.data = original
    got = tape.reshape(-1)[entries]
    return _row(name, tensor.shape, got, reference, entries, method, tolerance, magnitude)


def _moved(value: Callable[[], complex], tensor: Tensor, original: Any, entry: int, step: complex) -> complex:
    data = original.astype(complex, order="C") if isinstance(step, complex) else original.copy(order="C")
    data.reshape(-1)[entry] += step
    tensor.data = data
    return value()


def _check_direction(
    value: Callable[[], complex],
    tensors: list[Tensor],
    tape: list[np.ndarray],
    tolerance: float,
    magnitude: float,
    rng: np.random.Generator,
) -> InputReport:
    """Move all inputs at once along a random direction of unit length."""
    originals = [tensor.data for tensor in tensors]
    direction = [rng.standard_normal(tensor.shape) for tensor in tensors]
    length = np.sqrt(sum(float((u * u).sum()) for u in direction)) or 1.0
    size = max((float(abs(x).max()) for x in originals if x.size), default=1.0)
    h = CENTRAL_STEP * max(1.0, size)
    values = []
    try:
        for sign in (h, -h):
            for tensor, x, u in zip(tensors, originals, direction, strict=True):
                tensor.data = x + array_module(x).asarray(sign / length * u)
            values.append(value().real)
    finally:
        for tensor, x in zip(tensors, originals, strict=True):
            tensor.data = x
    reference = np.array([(values[0] - values[1]) / (2 * h)])
    got = np.array([sum(float((g * u).sum()) for g, u in zip(tape, direction, strict=True)) / length])
    count = sum(tensor.size for tensor in tensors)
    return _row("direction", (count,), got, reference, np.zeros(1, int), "directional", tolerance, magnitude)


def _row(
    name: str,
    shape: tuple,
    got: np.ndarray,
    reference: np.ndarray,
    entries: np.ndarray,
    method: str,
    tolerance: float,
    magnitude: float,
) -> InputReport:
    if not len(got):
        return InputReport(name, shape, 0.0, 0.0, (), 0.0, 0.0, True)
    error = np.abs(got - reference)
    error[np.isnan(error)] = np.inf
    worst = int(error.argmax())
    scale = float(np.abs(reference).max())
    relative = float(error[worst] / scale) if scale else (0.0 if error[worst] == 0 else float("inf"))
    # What rounding of f alone puts into the reference: a gradient that is exactly zero cannot be met more closely.
    rounding = 100 * np.finfo(float).eps * max(magnitude, 1.0) / (1.0 if method == "complex-step" else CENTRAL_STEP)
    passed = relative <= tolerance or bool(error[worst] <= min(rounding, tolerance * max(magnitude, 1.0)))
    where = tuple(int(i) for i in np.unravel_index(entries[worst], shape)) if method != "directional" else ()
    return InputReport(name, shape, float(error[worst]), relative, where, got[worst], reference[worst], passed)
