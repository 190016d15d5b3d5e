"""Products of vectors, matrices and whole tensors: sums over a shared axis, in which every input is linear.

As in `ops.py`, g is the cotangent of the output. The cotangent of one factor is g times the others, summed over the
axes that this factor does not have.
"""

import math
from typing import Any

from .backend import array_module, narrow, wide
from .tape import sum_to_shape
from .tensor import register

__all__ = ["dot", "einsum", "matmul", "outer"]


@register
def matmul(a, b):
    """a @ b.   a: (..., n, k), b: (..., k, m) -> (..., n, m); a vector on either side is NumPy's row or column.

    y_ij = sum_k a_ik b_kj, so da = g b^T and db = a^T g.
    """
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: a number is no matrix; multiply with *")
    row = a if a.ndim > 1 else a[None, :]  # (..., n, k)
    column = b if b.ndim > 1 else b[:, None]  # (..., k, m)
    n, k = row.shape[-2:]
    if k != column.shape[-2]:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: inner dimensions {k} and {column.shape[-2]} differ")
    y = a @ b
    batch = y.shape[: y.ndim - (a.ndim > 1) - (b.ndim > 1)]
    matrix = (*batch, n, column.shape[-1])  # the shape of g before NumPy drops a vector's axis
    from_column = (lambda x: x) if b.ndim > 1 else (lambda x: x[..., 0])
    return y, (
        lambda g: g.reshape(matrix) @ column.swapaxes(-1, -2),  # (..., n, k)
        lambda g: from_column(row.swapaxes(-1, -2) @ g.reshape(matrix)),  # (..., k, m)
    )


@register
def dot(a, b):
    """NumPy's np.dot: the last axis of a with the last but one of b, or the only one; all batches with all.

    a: (..., k), b: (..., k, m) or (k,). Of vectors and matrices it is matmul; of a number and an array, multiply.
    """
    if a.ndim == 0 or b.ndim == 0:
        return a * b, (lambda g: g * b, lambda g: g * a)
    xp, k, place = array_module(a, b), a.shape[-1], -min(2, b.ndim)
    if k != b.shape[place]:
        raise ValueError(f"dot: {a.shape} and {b.shape}: inner dimensions {k} and {b.shape[place]} differ")
    moved = xp.moveaxis(b, place, 0)  # (k, ..., m)
    rows, columns = a.reshape(math.prod(a.shape[:-1]), k), moved.reshape(k, math.prod(moved.shape[1:]))
    matrix = (len(rows), columns.shape[1])
    return (rows @ columns).reshape(a.shape[:-1] + moved.shape[1:]), (
        lambda g: (g.reshape(matrix) @ columns.T).reshape(a.shape),
        lambda g: xp.moveaxis((rows.T @ g.reshape(matrix)).reshape(moved.shape), 0, place),
    )


@register
def outer(a, b):
    """y_ij = a_i b_j, of the flattened a and b: (n,), (m,) -> (n, m).   da = g b,  db = g^T a"""
    row, column = a.reshape(-1), b.reshape(-1)
    return row[:, None] * column, (
        lambda g: (g @ column).reshape(a.shape),
        lambda g: (row @ g).reshape(b.shape),
    )


@register
def einsum(subscripts, *operands):
    """The sum of products that the letters name: einsum("ij,jk->ik", a, b) is a @ b.   NumPy's np.einsum

    Letters that the output does not have are summed over. An operand's cotangent is the einsum of g and the other
    operands down to the operand's letters; a letter that only the operand has was summed alone, so g is the same all
    along it; a letter that it has twice stands for its diagonal, and the rest of it gets 0.
    """
    xp = array_module(*operands)
    inputs, output = _letters(subscripts, [x.shape for x in operands])
    longs = [wide(x) for x in operands]
    y = xp.einsum(f"{','.join(inputs)}->{output}", *longs, optimize=True)
    pairs = [pair for own, x in zip(inputs, operands, strict=True) for pair in zip(own, x.shape, strict=True)]
    size = {letter: n for letter, n in pairs if n != 1}

    def vjp_of(place):
        own = inputs[place]
        others, factors = inputs[:place] + inputs[place + 1 :], longs[:place] + longs[place + 1 :]
        axes = "".join(dict.fromkeys(own))  # each letter once
        known = "".join(letter for letter in axes if letter in output + "".join(others))

        def vjp(g):
            d = xp.einsum(f"{','.join([output, *others])}->{known}", wide(g), *factors, optimize=True)
            d = d[tuple(slice(None) if letter in known else None for letter in axes)]
            whole = xp.zeros([size.get(letter, 1) for letter in own], dtype=d.dtype)
            diagonals = whole if own == axes else xp.einsum(f"{own}->{axes}", whole)  # a view
            diagonals[...] = d
            return sum_to_shape(whole, operands[place].shape)  # a letter may be 1 here and more elsewhere

        return vjp

    return narrow(y, *operands), (None, *(vjp_of(place) for place in range(len(operands))))


def _letters(subscripts: Any, shapes: list) -> tuple[list[str], str]:
    """Each operand's letters and the output's, with the dots spelled out."""
    if not isinstance(subscripts, str):
        raise TypeError(f"einsum: got {type(subscripts).__name__}, expected letters first: einsum('ij,jk->ik', a, b)")
    left, arrow, output = subscripts.replace(" ", "").partition("->")
    inputs = left.split(",")
    if len(inputs) != len(shapes):
        raise ValueError(f"einsum: {subscripts!r} names {len(inputs)} operands, got {len(shapes)}")
    free = [chr(c) for c in (*range(0x41, 0x5B), *range(0x61, 0x7B)) if chr(c) not in subscripts]  # A-Z and a-z
    batch = [(len(shape) - len(own) + 3) * ("..." in own) for own, shape in zip(inputs, shapes, strict=True)]
    dots = "".join(free[: max(batch)])
    inputs = [own.replace("...", dots[len(dots) - n :]) for own, n in zip(inputs, batch, strict=True)]
    for own, shape in zip(inputs, shapes, strict=True):
        if len(own) != len(shape):
            raise ValueError(f"einsum: {subscripts!r} does not fit shapes {', '.join(map(str, shapes))}")
    if not arrow:  # NumPy's rule: the dots, then what stands once, in the order of the alphabet
        together = "".join(inputs)
        return inputs, dots + "".join(sorted(a for a in set(together) - set(dots) if together.count(a) == 1))
    return inputs, output.replace("...", dots)
