"""The optimiser's state shared out over the processes that train together: ZeRO's first stage.

AdamW keeps two numbers for each that is trained, and every process would keep them all. Here the trained numbers stand
in one line, and process k of n has the k-th n-th of it:

    g = the sum of all gradients        as without it (`together.py`), in every process
    m, v, p <- AdamW(g)                 each process its own share: the same bits, since an update goes entry by entry
    p = every share, one after the other        one Allgather

Rajbhandari et al. 2020, "ZeRO", section 5.1; there the sum, too, reaches each process for its own share alone.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..autograd.backend import Array
from .optim import AdamW
from .together import every_share, own_rank, own_rows


class ShardedAdamW(AdamW):
    """AdamW whose moments each process keeps of its own share of the trained numbers: 1/n of the memory.

    The parameters after a step are AdamW's, bit for bit. Without `together()` there is one share, which is all.
    """

    whole: dict[str, Array] | None = None  # all moments, in the first process, from `gather` to the next step

    @functools.cached_property
    def ends(self) -> list[int]:
        """Where each parameter begins in the line, and where the line ends."""
        return list(itertools.accumulate((p.size for p in self.parameters), initial=0))

    def own(self, i: int, array: Array) -> Array:
        """This process's share of parameter i's array, flat; of some it is empty."""
        start, stop = own_rows(self.ends[-1])
        return array.reshape(-1)[max(start - self.ends[i], 0) : max(stop - self.ends[i], 0)]

    def _step(self, gradients: list) -> None:
        for p in self.parameters:
            if not p.data.flags.c_contiguous:
                p.data = np.ascontiguousarray(p.data)  # so that a share is a view of it
        self.whole = None
        super()._step(gradients)
        line = self._line([self.own(i, p.data) for i, p in enumerate(self.parameters)])
        for p, values in zip(self.parameters, self._cut(line), strict=True):
            p.data[...] = values
            p.changed()

    def _line(self, shares: list[Array], first_alone: bool = False) -> Any:
        """All processes' shares in one line; of 16 bits as 32, which MPI can send."""
        wide = np.result_type(np.float32, *(share.dtype for share in shares))
        return every_share(np.concatenate(shares).astype(wide, copy=False), self.ends[-1], first_alone)

    def _cut(self, line: Array) -> Iterator[Array]:
        """The parts of a line that are each parameter's."""
        for p, start in zip(self.parameters, self.ends, strict=False):
            yield line[start : start + p.size].reshape(p.shape)

    def gather(self) -> None:
        """Bring all moments to the first process, for a checkpoint: every process calls it."""
        lines = {slot: self._line(kept, first_alone=True) for slot, kept in self.state.items()}
        if own_rank() == 0:
            whole = {slot: zip(kept, self._cut(lines[slot]), strict=True) for slot, kept in self.state.items()}
            self.whole = {f"{slot}.{i}": all_of_it.astype(share.dtype) for slot, both in whole.items()
                          for i, (share, all_of_it) in enumerate(both)}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """AdamW's, of all processes. Raises ValueError where they have not been gathered since the last step."""
        if own_rows(self.ends[-1]) == (0, self.ends[-1]):
            self.gather()  # this process has all
        if self.whole is None:
            raise ValueError("ShardedAdamW.state_dict: each process has a share; call gather() in all of them first")
        return {"steps": self.steps, "ages": np.array(self.ages), **self.whole}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from AdamW's state, or this one's, of any number of processes."""
        super().load_state_dict(state)
        self.whole = None
        self.state = {slot: [self.own(i, a).copy() for i, a in enumerate(kept)] for slot, kept in self.state.items()}
