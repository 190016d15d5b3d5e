"""Updates from adapters' files: Delta W's factors, with the base where they need it; which matrices are the same."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import low_rank
from ..analysis import rank as ranks
from ..nn.checks import listed
from ..training.parallel import blas_of_one_thread
from .adapter_files import read_adapter
from .base_weights import Base, open_base
from .module_names import key_of, with_names
from .pairs import AdapterFile, Pair

LAYER = re.compile(r"^((?:.*[._])?(?:blocks?|layers?|attentions|resnets|h)[._]\d+)[._](.+)$")


def layer_and_kind(name: str) -> tuple[str | None, str]:
    """Of a module's name: "model.layers.3.self_attn.q_proj" -> ("model.layers.3", "self_attn.q_proj").

    Numbers in a kind are its members': "mlp.experts.5.up_proj" is of the kind "mlp.experts.*.up_proj".
    """
    found = LAYER.match(name)
    layer, kind = found.groups() if found else (None, name)
    return layer, re.sub(r"(?<=[._])\d+(?=[._]|$)", "*", kind)


def opened(path: str | Path, base: str | Path | None, caller: str) -> tuple[AdapterFile, Base | None]:
    """An adapter, and its base where one is given. Raises ValueError where they do not fit, or a base is needed."""
    adapter = read_adapter(path)
    if base is None:
        if adapter.needs and caller != "show":
            raise ValueError(f"{adapter.path}: {adapter.needs}; give the checkpoint it was trained on: --base FOLDER")
        return adapter, None
    start = adapter.config.get("init_lora_weights")
    if (
        adapter.needs
        and adapter.form == "peft"
        and isinstance(start, str)
        and (start != "pissa" or adapter.method == "dora")
    ):
        fix = "PEFT does where it trained: save_pretrained(path_initial_model_for_weight_conversion=...)"
        raise ValueError(f"{adapter.path}: {adapter.needs}; what {start} took out of W cannot be had again here; {fix}")
    found = open_base(base)
    named = with_names(adapter, found)
    found.check(named)
    return adapter, replace(found, called=dict(zip(adapter.matrices, named.matrices, strict=True)))


def update_of(adapter: AdapterFile, pair: Pair, base: Base | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """B and A whose product is Delta W, and W where there is a base.   -> (d_out, r), (r, d_in), (d_out, d_in)"""
    B, A = pair.factors()
    if base is None:
        return B, A, None
    W = base.weight(pair, adapter)
    if pair.magnitude is not None:  # DoRA: Delta W = c (W + s B A) - W with c = m / ||W + s B A||, row by row
        V = W + B @ A
        m = pair.finite(pair.magnitude, "the magnitude").astype(float).reshape(-1, 1)
        u, s, vt = ranks.svd(m / np.linalg.norm(V, axis=1, keepdims=True) * V - W)
        return u * s, vt, W
    if adapter.needs:  # PiSSA: the update counts from W's first r directions, which the residual base lacks
        u, s, vt = ranks.svd(W)
        r = pair.rank
        B, A = low_rank.total([(B, A), (-u[:, :r] * s[:r], vt[:r])])
    return B, A, W


def require_change(adapter: AdapterFile) -> None:
    """Raises ValueError where every Delta W is zero and nothing is beside them, or a number of A or B is none."""
    with blas_of_one_thread():  # thin matrices are too small for two
        sizes = [low_rank.norm(*pair.factors()) for pair in adapter.matrices.values()]
    if sizes and not any(sizes) and not adapter.others and not adapter.needs:
        raise ValueError(f"{adapter.path}: every Delta W is zero, as B is before training; nothing is written")


def progress_over(pairs: Iterable[Any], words: str, progress: bool, base: Base | None = None) -> Iterator[Any]:
    """The same, with a bar on a terminal. Thin matrices are too small for two threads, which would wait for each other:
    without a base BLAS has one in the meantime.
    """
    from tqdm import tqdm  # here: only when there is a bar to show

    with blas_of_one_thread() if base is None else contextlib.nullcontext():
        yield from tqdm(
            pairs, words, unit="matrix", disable=None if progress else True, leave=False, dynamic_ncols=True
        )


def keyed(adapters: Sequence[AdapterFile]) -> list[dict[str, Pair]]:
    """{key: pair} of each adapter, in which a matrix has one key, whatever the form of its file.

    Files of one form have one name for it. Image tools write "lora_unet_a_b" for "a.b": between forms the key is "a_b".
    Raises ValueError where that is the key of two matrices, as of the two text encoders of one model.
    """
    if len({adapter.form for adapter in adapters}) == 1:
        return [adapter.matrices for adapter in adapters]
    found = []
    for adapter in adapters:
        keys = {name: key_of(name) for name in adapter.matrices}
        if len({*keys.values()}) < len(keys):
            raise ValueError(f"{adapter.path}: two of its matrices would have one name in another form of file")
        found.append({keys[name]: pair for name, pair in adapter.matrices.items()})
    return found


def in_common(one: AdapterFile, other: AdapterFile) -> list[tuple[Pair, Pair]]:
    """The matrices that two adapters both change. Raises ValueError where there are none, or their shapes differ."""
    ours, theirs = keyed([one, other])
    pairs = [(pair, theirs[key]) for key, pair in ours.items() if key in theirs]
    if not pairs:
        first, second = (next(iter(adapter.matrices)) for adapter in (one, other))
        raise ValueError(f"{one.path} and {other.path} have no matrix in common: one adapts {first}, one {second}")
    if odd := [f"{a.name} is {a.shape} and {b.shape}" for a, b in pairs if a.shape != b.shape]:
        raise ValueError(f"{one.path} and {other.path} are of different bases: {listed(odd)}")
    return pairs
