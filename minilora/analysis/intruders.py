"""What the intruder dimensions of a tuned matrix do: W + Delta W with some of its singular directions made weaker.

Shuttleworth et al. 2024, "LoRA vs full fine-tuning: an illusion of equivalence" (arXiv 2410.21228v3): `rank` finds the
intruders (definition 3.1), here they are shrunk (section 5). With W + Delta W = sum_i s_i u_i v_i^T and intruders I,

    W + Delta W + (factor - 1) sum_{i in I} s_i u_i v_i^T,    factor = 1 as it is, 0 without them

PEFT's reduce_intruder_dimension adds one thing: it cuts the Delta W that remains to the adapter's rank again.

>>> import numpy as np
>>> W, delta = np.diag([3.0, 2.0, 1.0]), 9 * np.ones((3, 3))
>>> shrink_intruders(W, W + delta, 0.0, k=1, epsilon=0.8).round(1)[0].tolist()
[1.6, -1.0, -0.7]
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..autograd.signatures import checked, is_real, shown
from . import rank


@checked
def part_of(matrix: Any, directions: Iterable[int]) -> np.ndarray:
    """sum_{i in directions} s_i u_i v_i^T, i from 0: what a matrix has in some of its singular directions.   -> (m, n)

    Raises ValueError for a direction that the matrix does not have, and for one that is named twice.
    """
    u, s, vt = rank.svd(matrix)
    chosen = [*directions]
    odd = [i for i in chosen if isinstance(i, bool) or not isinstance(i, int | np.integer) or not 0 <= i < len(s)]
    if odd or len(set(chosen)) != len(chosen):
        said = f"{shown(odd[0])} is none of 0 to {len(s) - 1}" if odd else "one is named twice"
        raise ValueError(f"part_of: directions = {shown(chosen)}: {said}")
    return (u[:, chosen] * s[chosen]) @ vt[chosen]


@checked
def shrink_intruders(before: Any, after: Any, factor: float, k: int = 10, epsilon: float = 0.5) -> np.ndarray:
    """W_after with its intruders' singular values times a factor, 1 for as they are, 0 for none of them.   -> (m, n)

    before: W, after: W + Delta W, both (m, n). k, epsilon: which are intruders, as `rank.intruder_dimensions` says. The
    result may have other intruders: directions that stood behind the first k come forward.
    """
    if not (is_real(factor) and np.isfinite(factor)):
        raise ValueError(f"shrink_intruders: factor = {shown(factor)}, expected a finite number such as 0.5")
    found = rank.intruder_dimensions(before, after, k, epsilon)
    return np.asarray(after, float) + (factor - 1) * part_of(after, found)
