"""What machines that train together exchange in a step, and how long that takes: LoRA beside full fine-tuning.

A message of n bytes takes alpha + beta n seconds: a start, and a time for each byte. Each of p nodes has the gradients
of its own texts and needs the sum over all of them. In p - 1 rounds every node passes a p-th of it on to the next, and
in p - 1 more each sum goes round; or the nodes halve and double, with fewer starts and as many bytes:

    ring       2 (p - 1) alpha + 2 (p - 1) / p beta n          Patarasuk & Yuan 2009
    halving    2 log2 p alpha + 2 (p - 1) / p beta n           Thakur et al. 2005, which they name after Rabenseifner

The bytes that a node sends hardly depend on how many there are: twice its gradients. These are all numbers in full
fine-tuning, and A and B alone in LoRA, while a step's operations differ by a third (`costs.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd.signatures import checked, is_real, is_whole, shown
from ..nn.architectures import find
from .counting import count, operations

RATE = 1e14  # operations a second that a node reaches, about a third of what one such GPU as an A100 promises
LENGTH = 2048  # tokens that a node reads a step: one long text


@dataclass(frozen=True)
class Network:
    """What joins the nodes.   alpha: seconds that a message takes to start; rate: bytes a second"""

    alpha: float
    rate: float

    @property
    def beta(self) -> float:
        """Seconds a byte."""
        return 1 / self.rate


NETWORKS = {  # of this order, not of one product: Ethernet in an office and in a rack, and a cluster's own network
    "1 Gbit/s": Network(50e-6, 1e9 / 8),
    "10 Gbit/s": Network(20e-6, 10e9 / 8),
    "100 Gbit/s": Network(2e-6, 100e9 / 8),
}


@checked
def fitted(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """alpha and beta of messages that were timed: the least squares of (alpha + beta n - t) / t.

    Relative, since times from microseconds to seconds count alike. Raises ValueError for fewer than two sizes.
    """
    n, t = np.asarray(sizes, float), np.asarray(seconds, float)
    if n.ndim != 1 or n.shape != t.shape or len(np.unique(n)) < 2 or not (t > 0).all() or not np.isfinite([n, t]).all():
        raise ValueError(f"fitted: sizes {shown(sizes)} and seconds {shown(seconds)}, expected two or more sizes and "
                         "a time above 0 for each")  # fmt: skip
    alpha, beta = np.linalg.lstsq(np.stack([1 / t, n / t], axis=1), np.ones(len(t)))[0]
    return float(alpha), float(beta)


@checked
def allreduce_seconds(size: float, nodes: int, network: Network, algorithm: str = "ring") -> float:
    """Seconds until each of the nodes has the sum of what all have, size bytes each; 0 of one node.

    algorithm: "ring", or "halving", of which the number of nodes is a power of 2.
    """
    if algorithm not in ("ring", "halving"):
        raise ValueError(f"allreduce_seconds: algorithm = {shown(algorithm)}, expected 'ring' or 'halving'")
    if not is_real(size) or not 0 <= size < math.inf:
        raise ValueError(f"allreduce_seconds: size = {shown(size)}, expected bytes, 0 or more")
    if not is_whole(nodes) or nodes < 1 or (algorithm == "halving" and nodes & (nodes - 1)):
        expected = "a power of 2" if algorithm == "halving" else "an integer of 1 or more"
        raise ValueError(f"allreduce_seconds: nodes = {shown(nodes)}, expected {expected}")
    starts = 2 * (nodes - 1) if algorithm == "ring" else 2 * math.log2(nodes)
    return starts * network.alpha + 2 * (nodes - 1) / nodes * size * network.beta


@checked
def exchange(
    name: Any, method: str = "lora", nodes: int = 64, network: Network = NETWORKS["10 Gbit/s"], algorithm: str = "ring",
    bits: int = 16, rate: float = RATE, length: int | None = None, **options: Any,
) -> dict[str, float]:  # fmt: skip
    """A step on several nodes, each with one text: -> {"bytes", "exchange", "compute", "ratio"}.

    bytes: a node's gradients; exchange and compute: seconds; ratio: exchange over compute. Nothing is sent while the
    node computes, as here. options: the method's, as `count` takes them. bits: of a gradient's number. rate: operations
    a second of a node. length: tokens of its text (default 2,048, or the context where that is shorter).
    """
    if not is_real(rate) or not 0 < rate < math.inf:
        raise ValueError(f"exchange: rate = {shown(rate)}, expected operations a second, above 0")
    if not is_whole(bits) or bits < 1:
        raise ValueError(f"exchange: bits = {shown(bits)}, expected an integer of 1 or more")
    length = min(LENGTH, find(name).context) if length is None else length
    size = count(name, method, **options).trainable_parameters * bits / 8
    compute = operations(name, method, batch=1, length=length, **options)["training"] / rate
    seconds = allreduce_seconds(size, nodes, network, algorithm)
    return {"bytes": size, "exchange": seconds, "compute": compute, "ratio": seconds / compute}
