"""An adapter is merged into a checkpoint: W + s B A, tensor by tensor through the checkpoint's own files.

No model is built, so that any architecture takes part whose names fit, and no tensor is in memory whole (`edits.py`).
What rounding keeps of Delta W is measured on the way: an update far smaller than the spacing of bfloat16's numbers is
lost in it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.files import digest
from ..analysis import low_rank
from ..autograd.signatures import checked
from ..nn.checks import listed, unknown
from . import fetch
from .adapter_files import read_adapter
from .adapter_writing import refuse_inputs
from .base_weights import Base, open_base
from .edits import Replacement, Update
from .folders import FLOATS, open_folder
from .merged_folder import refuse_inside, require_new, write_folder
from .module_names import with_names
from .names import Place
from .pairs import AdapterFile, Pair
from .peft_files import RESIDUAL
from .tensor_files import Stored, float_type
from .updates import require_change, update_of

WRAPPED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")  # what PEFT puts into a module's name
OF_B = re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.bias")
TABLES = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")  # of tokens, which heads are tied to
CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|DoubleHeadsModel)$")
HEAD = "lm_head.weight"
LABELS = {  # PEFT's task_type -> what transformers' class of such a model ends with
    "SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass
class Plan:
    """What merging changes: {tensor: its edits}, tensors that are new, what config.json will say, and what to tell."""

    edits: dict[str, list[Update | Replacement]]
    new: dict[str, Stored]
    config: dict[str, Any]
    notes: list[str]
    table: str | None = None  # what a tied head begins as
    prefix: str = ""  # what names in the base's files lack, where a head is set beside them

    @property
    def updates(self) -> list[Update]:
        """Every matrix."""
        return [edit for edits in self.edits.values() for edit in edits if isinstance(edit, Update)]


@checked
def merge(
    base: str | Path, adapter: str | Path, output: str | Path, dtype: str | None = None, progress: bool = False
) -> dict[str, Any]:
    """Write a checkpoint with an adapter in its weights: a folder, of the base's other files too.

    base: a Hugging Face folder, or one .safetensors file. dtype: "float32", "bfloat16", "float16" or "float64", by
    default each tensor's own. -> {"dtype", "norm", "arrived", "kept", "changed", "lost", "matrices", "notes"}; of a
    matrix: name, tensor, shape, rank, frobenius_norm of Delta W, arrived, the norm of what was added to the numbers in
    the file, kept, their ratio, changed, the share of entries that are others now, and lost, ||arrived - Delta W||_F.

    Biases, heads and other modules that were trained beside Delta W take their places. A head that is tied to a table
    which alone was adapted becomes a tensor of its own. Raises ValueError in one line for what does not fit or cannot
    be merged, and for an output that is an input, within one, or a folder that holds something; nothing is written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"merge: {unknown('dtype', dtype, [*DTYPES])}")
    checkpoint, found = open_floats(base), read_adapter(adapter)
    refuse_inside(Path(output), [checkpoint.path, found.path])
    refuse_inputs(Path(output), found.inputs)
    require_new(Path(output))
    plan = planned(checkpoint, mergeable(found, checkpoint))
    write_folder(Path(output), checkpoint, plan, None if dtype is None else float_type(dtype), progress)
    rows = [row_of(checkpoint, tensor, edit) for tensor, edits in plan.edits.items() for edit in edits
            if isinstance(edit, Update)]  # fmt: skip
    sums = [edit.arrived for edit in plan.updates]
    norm, arrived, lost = (float(np.sqrt(sum(getattr(one, what) for one in sums)))
                           for what in ("asked", "added", "missing"))  # fmt: skip
    return {
        "dtype": dtype or next(iter(checkpoint.tensors.values())).dtype.name,
        "norm": norm, "arrived": arrived, "kept": arrived / norm if norm else None,
        "changed": sum(one.changed for one in sums) / max(1, sum(one.entries for one in sums)),
        "lost": lost, "matrices": rows, "notes": plan.notes,
    }  # fmt: skip


def row_of(base: Base, tensor: str, edit: Update) -> dict[str, Any]:
    """What is told of a matrix once it is written."""
    one = edit.arrived
    norm, arrived = float(np.sqrt(one.asked)), float(np.sqrt(one.added))
    return {
        "name": edit.pair.name, "tensor": tensor, "shape": list(edit.pair.shape), "rank": edit.pair.rank,
        "frobenius_norm": norm, "arrived": arrived, "kept": arrived / norm if norm else None,
        "changed": one.changed / max(1, one.entries), "lost": float(np.sqrt(one.missing)),
    }  # fmt: skip


def open_floats(path: str | Path) -> Base:
    """A checkpoint that can be written as it was read. Raises ValueError for one in few bits, or of another form."""
    place = fetch.cached(str(path)) if path in fetch.MODELS else Path(path)
    if place.suffix == ".gguf":
        raise ValueError(f"{place} is a GGUF file; a folder can be merged into: "
                         f"ml.save_pretrained(ml.load_pretrained({str(path)!r}), FOLDER) writes one of it")  # fmt: skip
    if place.suffix == ".npz" or (str(path) == "base" and not place.exists()):
        raise ValueError(f"{path} is a model of minilora's own: minilora merge --model {path} --adapter FILE")
    found = open_base(place)
    if method := found.config.get("quantization_config"):
        kind = method.get("quant_method", "few bits") if isinstance(method, Mapping) else method
        raise ValueError(f"{place} holds its weights in few bits ({kind}), which an update cannot be added to: "
                         "give the checkpoint in floats")  # fmt: skip
    return found


def mergeable(adapter: AdapterFile, base: Base) -> AdapterFile:
    """An adapter by the base's names. Raises ValueError for one that has no Delta W, a zero one, or another base's."""
    adapter.require_matrices("merge")
    if adapter.config.get("alora_invocation_tokens"):
        raise ValueError(f"{adapter.path}: its update acts from its invocation tokens on (aLoRA), and cannot be merged")
    adapter = with_names(adapter, base)
    start = str(adapter.config.get("init_lora_weights")).lower()
    if adapter.form == "peft" and start.startswith(RESIDUAL) and (start != "pissa" or adapter.method == "dora"):
        fix = "save_pretrained(..., path_initial_model_for_weight_conversion=...) of PEFT makes plain LoRA of it"
        raise ValueError(f"{adapter.path}: it started from {start}, and what that took out of W no file holds; {fix}")
    require_change(adapter)
    if adapter.form == "minilora":
        check_fingerprint(adapter, base)
    elif lost := not_held(adapter, base):
        raise ValueError(
            f"{adapter.path}: its configuration trains {lost} in full (modules_to_save), and it does not hold it"
        )
    return adapter


def not_held(adapter: AdapterFile, base: Base) -> str:
    """A module of the base that the configuration trains in full and the file lacks, such as a head; "" without one."""
    wanted = adapter.config.get("modules_to_save") or ()
    wanted = [wanted] if isinstance(wanted, str) else wanted
    ends = lambda name, end: f".{name}".endswith(f".{end}")
    held = [WRAPPED.sub("", name).rpartition(".")[0] for name in adapter.others]
    there = dict.fromkeys(tensor.rpartition(".")[0] for tensor in base.tensors)
    named = [name for name in there if any(ends(name, one) for one in wanted)]
    return next((name for name in named if not any(ends(name, one) or ends(one, name) for one in held)), "")


def check_fingerprint(adapter: AdapterFile, base: Base) -> None:
    """Raises ValueError where minilora's file says that it was trained on another base."""
    if adapter.config.get("quantized"):
        raise ValueError(f"{adapter.path} was trained on a base of few bits ({adapter.config['quantized'][0]}): "
                         "minilora merge --quantize makes floats of both")  # fmt: skip
    if base.config and base.path.is_dir():
        values = open_folder(base.path).values
        ours = digest((name, np.asarray(getattr(v, "dequantize", lambda v=v: v)())) for name in sorted(values)
                      for v in (values[name](),)).hexdigest()  # fmt: skip
        if adapter.config.get("base") != ours:
            raise ValueError(f"{adapter.path} was trained on another base than {base.path} (fingerprint "
                             f"{str(adapter.config.get('base'))[:12]}, this one's is {ours[:12]})")  # fmt: skip


# --- the plan --------------------------------------------------------------------------------------------------------


def planned(base: Base, adapter: AdapterFile) -> Plan:
    """Every edit, checked by names, shapes and types before a number is read of the base."""
    table = tied_table(base)
    whole = base if table is None else replace(base, tensors={**base.tensors, HEAD: base.tensors[table]})
    whole.check(adapter)
    plan = Plan({}, {}, dict(base.config), list(adapter.notes), table)
    for pair in adapter.matrices.values():
        place = whole.place(pair.name)
        assert place is not None  # or the check would have said so
        tensor = f"{place.module}.weight"
        turned = whole.turned(place, pair, adapter)
        plan.edits.setdefault(tensor, []).append(update(whole, adapter, pair, place, turned))
    unplaced = [name for name, stored in adapter.others.items() if not beside(plan, whole, adapter, name, stored)]
    if unplaced:
        raise ValueError(f"{base.path} has no place for {listed(unplaced, ', ')} of {adapter.path}")
    odd = [f"{name} is {kind}" for name in plan.edits if (kind := whole.tensors[name].dtype.name) not in FLOATS]
    if odd:
        raise ValueError(f"{base.path}: {listed(odd)}, expected floats that an update can be added to")
    refuse_tied(plan, base, adapter)
    if table is not None:
        part_head(plan, adapter, table)
    if plan.new:
        with_new_head(plan, base, adapter)
    return plan


def update(base: Base, adapter: AdapterFile, pair: Pair, place: Place, turned: bool) -> Update:
    """A matrix's edit."""
    where: dict[str, Any] = {"pair": pair, "rows": place.rows or slice(None), "turned": turned}
    if adapter.needs and pair.magnitude is None:
        B, A, _ = update_of(adapter, pair, base)
        return Update(B=B, A=A, **where)
    B, A = pair.factors()
    lengths = None
    if pair.magnitude is not None:
        lengths = pair.finite(pair.magnitude, "the magnitude").astype(float).reshape(-1)
        if len(lengths) != len(B):
            raise ValueError(
                f"{pair.path}: {pair.name} has {len(lengths)} lengths, expected one for each of {len(B)} rows"
            )
    return Update(B=B, A=A, lengths=lengths, **where)


def beside(plan: Plan, base: Base, adapter: AdapterFile, name: str, stored: Stored) -> bool:
    """Enter what is no pair, a bias or a module trained in full; False where it has no place.

    Raises ValueError where its shape is another.
    """
    if ".original_module." in name:  # the base's own, which PEFT keeps beside the one that was trained
        return True
    of_b = OF_B.fullmatch(name)
    module, _, last = (f"{of_b[1]}.bias" if of_b else WRAPPED.sub("", name)).rpartition(".")
    pair = adapter.matrices.get(module)
    place = base.place(module)
    tensor = f"{place.module}.{last}" if place else f"{module}.{last}"
    if not np.isfinite(stored.read().astype(float)).all():
        raise ValueError(f"{adapter.path}: {name} holds numbers that are not finite")
    if tensor not in base.tensors:
        if of_b and place:
            raise ValueError(f"{adapter.path}: {module} has a bias of B, and the base has none to add it to")
        if place is None and may_be_new(adapter, module):
            plan.new[tensor] = stored
            return True
        return False
    turned = bool(place and place.transposed) and len(stored.shape) == 2 and adapter.form == "minilora"
    part = Replacement(stored=stored, rows=(place.rows if place else None) or slice(None), turned=turned,
                       add=pair.scale if of_b and pair else None)  # fmt: skip
    shape = base.tensors[tensor].shape
    there = (*(shape[::-1] if turned else shape),)
    rows = len(range(there[0])[part.rows]) if there else 0
    if (rows, *there[1:]) != stored.shape:
        fix = (
            "; was the table made longer? model.resize_token_embeddings of the base first"
            if shape[1:] == stored.shape[1:]
            else ""
        )
        raise ValueError(f"{base.path} is not the base of {adapter.path}: {name} is {stored.shape}, there {shape}{fix}")
    plan.edits.setdefault(tensor, []).append(part)
    return True


def may_be_new(adapter: AdapterFile, module: str) -> bool:
    """Whether a module that was trained in full may be one that the base lacks: a head for a task."""
    if str(adapter.config.get("task_type")) in LABELS:
        return not re.search(r"\.\d+\.", module)
    named = [str(name).rpartition(".")[2] for name in adapter.config.get("modules_to_save") or ()]
    return module.rpartition(".")[2] in named


# --- heads -----------------------------------------------------------------------------------------------------------


def tied_table(base: Base) -> str | None:
    """The name of the table that the model's head is tied to; None where it has no head, or one of its own."""
    told = [*(base.config.get("architectures") or ())]
    causal = any(CAUSAL.search(str(name)) for name in told) or (not told and bool(base.config))
    if HEAD in base.tensors or base.config.get("tie_word_embeddings") is False:
        return None
    names = [name for name in base.tensors if name.split(".")[-2:] in [[table, "weight"] for table in TABLES]]
    return names[0] if causal and names else None


def refuse_tied(plan: Plan, base: Base, adapter: AdapterFile) -> None:
    """Raises ValueError where a table is adapted whose head, or whose other users, cannot be parted from it."""
    for tensor in plan.edits:
        last = tensor.split(".")[-2:-1]
        masked = any(re.search("For(MaskedLM|PreTraining)$", str(n)) for n in base.config.get("architectures") or ())
        plain = adapter.config.get("task_type") not in LABELS
        untied = base.config.get("tie_word_embeddings") is False
        if not untied and (last == ["shared"] or (last[:1] in [[name] for name in TABLES] and masked and plain)):
            raise ValueError(f"{base.path}: other parts of the model are tied to {tensor}, which merging into it would "
                             "change as well, and they have no tensor of their own in its files")  # fmt: skip


def part_head(plan: Plan, adapter: AdapterFile, table: str) -> None:
    """Where a table and the head that is tied to it no longer are one, write the head as a tensor of its own."""
    ours, heads = plan.edits.get(table, []), plan.edits.get(HEAD, [])
    methods = adapter.config.get("methods", ())
    tied = adapter.config.get("ensure_weight_tying") or any(m["config"].get("ensure_weight_tying") for m in methods)
    if (not ours and not heads) or (ours and not heads and tied) or alike(ours, heads):
        plan.edits.pop(HEAD, None)
        return
    plan.edits.setdefault(HEAD, [])
    plan.config["tie_word_embeddings"] = False
    for inside in plan.config.values():
        if isinstance(inside, dict) and "tie_word_embeddings" in inside:
            inside["tie_word_embeddings"] = False
    plan.notes.append(f"{HEAD} was tied to {table}, and only one of them was adapted: it is a tensor of its own now")


def alike(table: list, head: list) -> bool:
    """Whether a table and its head change in the same way: (s B A)^T of the one is s B A of the other."""
    if len(table) != 1 or len(head) != 1 or type(table[0]) is not type(head[0]):
        return False
    one, other = table[0], head[0]
    if isinstance(one, Replacement):
        return np.array_equal(one.stored.read(), other.stored.read())
    left = (one.A.T, one.B.T) if one.turned != other.turned else (one.B, one.A)
    return low_rank.distance(left, (other.B, other.A)) <= 1e-6 * low_rank.norm(other.B, other.A)


def with_new_head(plan: Plan, base: Base, adapter: AdapterFile) -> None:
    """config.json of a model that has got a head for labels: its class, and how many labels there are."""
    told = str((plan.config.get("architectures") or [""])[0])
    stem = re.sub(r"(For[A-Z]\w*|LMHeadModel|DoubleHeadsModel|Model)$", "", told)
    kind = LABELS.get(str(adapter.config.get("task_type")))
    if stem and kind:
        plan.config["architectures"] = [stem + kind]
    names = [(pair.name, place.module) for pair in adapter.matrices.values() if (place := base.place(pair.name))]
    plan.prefix = next((n.removesuffix(there) for n, there in names if n != there and n.endswith(f".{there}")), "")
    labels = [
        stored.shape[0]
        for name, stored in plan.new.items()
        if re.search(r"(^|\.)(classifier|score|out_proj|qa_outputs)\.weight$", name)
    ]
    if kind and labels and len(plan.config.get("id2label") or ()) != labels[-1]:
        plan.config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels[-1])}
        plan.config["label2id"] = {f"LABEL_{i}": i for i in range(labels[-1])}
    plan.notes.append(f"the base has no {', '.join(list(plan.new)[:4])}: taken from the adapter as they are")
