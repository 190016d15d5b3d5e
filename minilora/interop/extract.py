"""An adapter out of two checkpoints: the low-rank part of what fine-tuning in full did to each matrix.

D = W_tuned - W_base is read matrix by matrix from the files, and B A is its randomised SVD cut to a rank
(`analysis/randomised.py`), sqrt(s_i) to each side. How far B A is from D is measured, and its bound is beside it. A
change that full fine-tuning made need not be low-rank: what a random matrix's directions would hold is told, too.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.randomised import Decomposition, distance, random_share, randomised_svd
from ..autograd.signatures import checked, is_whole
from ..nn.checks import listed
from ..training.parallel import blas_of_one_thread
from .adapter_writing import check_place, write_adapter
from .base_weights import CONV1D, CONV1D_LAYERS, Base, open_base
from .folders import BUFFERS, FLOATS
from .merged_folder import refuse_inside, require_new
from .names import FAMILIES
from .pairs import AdapterFile, Pair
from .peft_files import CONFIG
from .tensor_files import Stored

TABLE = re.compile(  # modules that hold a matrix and multiply nothing by it
    r"(embed_\w+|\w+_embeddings?|embeddings?|\w+_embed|wte|wpe|shared|relative_attention_bias)"
)
SMALL = 2**22  # numbers of a matrix, below which one thread is quicker than two
HEADS = ("lm_head", "embed_out", "output")  # the last parts of heads, which may be tied to a table
TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS",
         "ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS",
         "ForConditionalGeneration": "SEQ_2_SEQ_LM"}  # fmt: skip


@checked
def extract(
    base: str | Path,
    tuned: str | Path,
    output: str | Path,
    rank: int | None = None,
    energy: float | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a PEFT folder with the low-rank part of the difference of two checkpoints.

    base, tuned: Hugging Face folders, or .safetensors files. rank: of every matrix; or energy: the smallest rank that
    holds so much of ||D||_F^2, matrix by matrix. -> {"rank", "norm", "lost", "energy", "random", "matrices", "beside",
    "unchanged", "only_base", "only_tuned"}; of a matrix: name, shape, rank, frobenius_norm of D, lost, ||D - B A||_F,
    energy, the share that B A holds, random, the share that it would hold of a random matrix, error, ||D - B A||_2 as
    the power method measures it, and bound, which that is at most. beside: what else changed and is in no adapter.

    Raises ValueError in one line for checkpoints without a tensor in common, of different shapes, that do not differ in
    a linear layer, or are not in floats, for numbers that are not finite, and for an output that is an input.
    """
    require_one(rank, energy)
    one, other = in_floats(base), in_floats(tuned)
    place = Path(output)
    refuse_inside(place, [one.path, other.path])
    check_place(place, "peft")
    if not (place / CONFIG).is_file():
        require_new(place)
    names = in_common(one, other)
    pairs, rows, beside, unchanged = {}, [], [], 0
    for name, theirs in watched(names, progress):
        old, new = one.tensors[name], other.tensors[theirs]
        D = difference(one, other, name, theirs)
        size = norm(D)
        if not size:
            unchanged += 1
        elif not is_linear(name, one, old):
            weight = norm(old.read())
            beside.append({"name": theirs, "shape": list(new.shape), "frobenius_norm": size,
                           "relative_norm": size / weight if weight else None})  # fmt: skip
        else:
            module = module_of(name, theirs, other)
            D = D.T if turned(name, one) else D
            with blas_of_one_thread() if D.size < SMALL else contextlib.nullcontext():  # two would wait for each other
                pairs[module], row = taken(module, D, size, rank, energy)
            rows.append(row)
    if not rows:
        also = f", though {beside[0]['name']} did" if beside else ""
        raise ValueError(f"no linear layer changed from {base} to {tuned}{also}: there is nothing to extract")
    write_adapter(AdapterFile(place, "peft", "lora", config_of(one, other, pairs), pairs), place)
    total, lost = (float(np.sqrt(sum(row[key] ** 2 for row in rows))) for key in ("frobenius_norm", "lost"))
    chance = sum(row["random"] * row["frobenius_norm"] ** 2 for row in rows) / total**2
    return {
        "rank": max(row["rank"] for row in rows), "norm": total, "lost": lost, "energy": 1 - (lost / total) ** 2,
        "random": chance, "matrices": rows, "beside": beside, "unchanged": unchanged,
        "only_base": sorted(one.tensors.keys() - names.keys()),
        "only_tuned": sorted(other.tensors.keys() - {*names.values()}),
    }  # fmt: skip


def require_one(rank: int | None, energy: float | None) -> None:
    """Raises ValueError where not one of the two is given, or it is none."""
    if (rank is None) == (energy is None):
        raise ValueError(f"extract: rank = {rank} and energy = {energy}; give one of the two")
    if rank is not None and (not is_whole(rank) or rank < 1):
        raise ValueError(f"extract: rank = {rank}, expected a positive integer")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"extract: energy = {energy}, expected 0 < energy <= 1")


def taken(module: str, D: np.ndarray, size: float, rank: int | None, energy: float | None) -> tuple[Pair, dict]:
    """The pair of a matrix's change D (d_out, d_in), and what is told of it."""
    found = decomposed(D, size, rank, energy)
    root, k = np.sqrt(found.s), len(found.s)
    B, A = (np.ascontiguousarray(x, np.float32) for x in (found.u * root, root[:, None] * found.vt))
    lost, error = distance(D, B.astype(D.dtype), A.astype(D.dtype))
    row = {
        "name": module, "shape": list(D.shape), "rank": k, "frobenius_norm": size, "lost": lost,
        "energy": max(0.0, 1 - (lost / size) ** 2), "random": random_share(D.shape, k), "error": error,
        "bound": found.bound + 1e-6 * size,  # B and A are rounded to float32
    }  # fmt: skip
    return Pair(module, Stored.of(A), Stored.of(B), float(k), 1.0, Path(module)), row


def decomposed(D: np.ndarray, size: float, rank: int | None, energy: float | None) -> Decomposition:
    """D's SVD cut to a rank, or to the smallest that holds a share of its energy: asked of twice as many directions
    until they hold it, and of the whole matrix where that would take half of them.
    """
    least = min(D.shape)
    if rank is not None:
        return randomised_svd(D, min(rank, least))
    assert energy is not None, "one of the two"
    count = 16
    while count < least / 2:
        found = randomised_svd(D, count)
        held = np.cumsum(found.s.astype(float) ** 2)
        if held[-1] >= energy * size**2:
            break
        count *= 2
    else:
        found = Decomposition(*np.linalg.svd(D.astype(float), full_matrices=False), 0.0)
        held = np.cumsum(found.s**2)
    k = min(int(np.searchsorted(held, energy * size**2 * (1 - 1e-7))) + 1, len(held))
    return Decomposition(found.u[:, :k], found.s[:k], found.vt[:k], found.bound + float(found.s[k : k + 1].sum()))


# --- what the two hold -----------------------------------------------------------------------------------------------


def in_floats(path: str | Path) -> Base:
    """A checkpoint. Raises ValueError for one in few bits, whose rounding would be taken for fine-tuning."""
    if Path(path).suffix == ".gguf":
        raise ValueError(f"{path} is a GGUF file: what rounding to few bits did would be extracted as well; give the "
                         "checkpoint in floats, a Hugging Face folder")  # fmt: skip
    found = open_base(path)
    if found.config.get("quantization_config"):
        raise ValueError(f"{path} holds its weights in few bits: what rounding did would be extracted as well; give "
                         "the checkpoint in floats")  # fmt: skip
    return found


def in_common(one: Base, other: Base) -> dict[str, str]:
    """{a tensor's name in one: its name in the other}, of floats. One may be a bare model, whose names lack a prefix.

    Raises ValueError where there are none, or their shapes differ.
    """
    names = {name: name for name in one.tensors if name in other.tensors}
    if not names and one.tensors and other.tensors:
        longest = max(one.tensors, key=len)
        added = next((n.removesuffix(longest) for n in other.tensors if n.endswith(f".{longest}")), None)
        longest = max(other.tensors, key=len)
        gone = next((n.removesuffix(longest) for n in one.tensors if n.endswith(f".{longest}")), None)
        if added is not None:
            names = {name: added + name for name in one.tensors if added + name in other.tensors}
        elif gone is not None:
            names = {gone + name: name for name in other.tensors if gone + name in one.tensors}
    if not names:
        first, second = (next(iter(x.tensors), "nothing") for x in (one, other))
        raise ValueError(f"{one.path} and {other.path} have no tensor in common: one holds {first}, one {second}")
    names = {a: b for a, b in names.items() if not BUFFERS.search(a)}
    shapes = {a: (one.tensors[a].shape, other.tensors[b].shape) for a, b in names.items()}
    if odd := [f"{name} is {a} and {b}" for name, (a, b) in shapes.items() if a != b]:
        raise ValueError(f"{one.path} and {other.path} differ in shape: {listed(odd)}")
    few = [f"{a} is {x.dtype}" for a, b in names.items() for x in (one.tensors[a], other.tensors[b])
           if x.dtype.name not in FLOATS and len(x.shape) > 1]  # fmt: skip
    if few:
        raise ValueError(f"{one.path} and {other.path} are not both in floats: {listed(few)}")
    return {a: b for a, b in names.items() if one.tensors[a].dtype.name in FLOATS}


def watched(names: dict[str, str], progress: bool) -> Iterator[tuple[str, str]]:
    """The same, with a bar on a terminal."""
    from tqdm import tqdm  # here: only when there is a bar to show

    bar = tqdm(names.items(), "extracted", unit="tensor", disable=None if progress else True, leave=False,
               dynamic_ncols=True)  # fmt: skip
    yield from bar


def difference(one: Base, other: Base, name: str, theirs: str) -> np.ndarray:
    """D = W_tuned - W_base, in float32, or float64 where one of them is. Raises ValueError where one is not finite."""
    old, new = one.tensors[name].read(), other.tensors[theirs].read()
    dtype = np.result_type(*(x.dtype for x in (old, new) if x.dtype.kind == "f"), np.float32)
    with np.errstate(invalid="ignore"):
        D = new.astype(dtype, copy=False) - old.astype(dtype, copy=False)
    if not np.isfinite(D.sum(dtype=float)):  # a sum is, where every number is
        for base, called, array in ((one, name, old), (other, theirs, new)):
            if not np.isfinite(array).all():
                raise ValueError(f"{base.path}: {called} holds numbers that are not finite")
    return D


def norm(array: np.ndarray) -> float:
    """||M||_F, summed in float64 a stretch at a time."""
    flat = array.reshape(-1)
    parts = (flat[i : i + 2**20].astype(float) for i in range(0, flat.size, 2**20))
    return float(np.sqrt(sum(float(part @ part) for part in parts)))


def is_linear(name: str, base: Base, stored: Stored) -> bool:
    """Whether a tensor is the weight of a linear layer: a matrix, of no table and no head that is tied to one."""
    module, _, last = name.rpartition(".")
    part = module.rpartition(".")[2]
    if len(stored.shape) != 2 or last != "weight" or 1 in stored.shape:
        return False
    if part in HEADS:
        return base.config.get("tie_word_embeddings") is not True
    return not TABLE.fullmatch(part)


def turned(name: str, base: Base) -> bool:
    """Whether a weight is GPT-2's Conv1D, (d_in, d_out)."""
    part = name.split(".")[-2]
    kind = base.config.get("model_type")
    if kind is not None:
        return kind in CONV1D and part in CONV1D_LAYERS
    fused = next((t.shape for n, t in base.tensors.items() if n.endswith(".c_attn.weight")), (1, 1))
    return part in CONV1D_LAYERS and fused[1] == 3 * fused[0]  # no configuration, and q, k and v side by side


def module_of(name: str, theirs: str, base: Base) -> str:
    """What PEFT calls a module: of the model with a head, whose names begin with more than a bare one's."""
    module = max(name, theirs, key=len).removesuffix(".weight")
    told = str((base.config.get("architectures") or [""])[0])
    family = FAMILIES.get(str(base.config.get("model_type")))
    outside = module.rpartition(".")[2] in (*HEADS, "score", "classifier")
    if family and re.search("(For[A-Z]|LMHead)", told) and not module.startswith(family.prefix) and not outside:
        return family.prefix + module
    return module


def config_of(one: Base, other: Base, pairs: dict[str, Pair]) -> dict[str, Any]:
    """adapter_config.json, but for ranks and alphas: plain LoRA on exactly these modules."""
    told = str((other.config.get("architectures") or one.config.get("architectures") or [""])[0])
    return {
        "peft_type": "LORA", "base_model_name_or_path": str(one.config.get("_name_or_path") or one.path),
        "task_type": next((task for end, task in TASKS.items() if told.endswith(end)), None), "inference_mode": True,
        "target_modules": list(pairs), "lora_dropout": 0.0, "bias": "none", "init_lora_weights": True,
        "use_rslora": False, "use_dora": False, "modules_to_save": None,
        "fan_in_fan_out": any(turned(f"{name}.weight", one) for name in pairs),
    }  # fmt: skip
