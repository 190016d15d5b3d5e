"""What LoRA saves, counted exactly from an architecture alone: parameters, checkpoints, memory, operations.

    count("gpt3-175b", "lora", rank=4)     one model and method, as numbers
    table(...), compare(...)               the same as text of 80 columns, for one method and for all side by side
    by_matrix(...), by_layer(...)          where the parameters are
    count_model(model)                     the same numbers from walking a running model's parameters

Architectures are in `nn/architectures.py`, what each method trains in `methods.py`, memory and operations in
`costs.py`, the paper's own tables in `paper.py`.

>>> count("gpt3-175b", method="lora", rank=4)["trainable_parameters"]
18874368
"""

from typing import Any

from ..autograd.signatures import checked
from ..nn.architectures import MODELS, Architecture, find, from_gpt_config, from_hugging_face, parameters, size
from ..nn.checks import whole
from ..nn.config_json import FAMILIES
from ..nn.module import Module, shown
from .costs import ENGINES, OPTIMIZERS, Walk, activation_bytes, latency, training_memory, weight_bytes
from .methods import METHODS, RANKED, Options, Plan, describe, plan
from .paper import paper_rows, paper_table, savings

__all__ = [
    "Architecture",
    "ENGINES",
    "FAMILIES",
    "METHODS",
    "MODELS",
    "OPTIMIZERS",
    "Count",
    "Options",
    "Plan",
    "activation_bytes",
    "by_layer",
    "by_matrix",
    "compare",
    "compare_records",
    "count",
    "count_model",
    "find",
    "from_gpt_config",
    "from_hugging_face",
    "operations",
    "paper_rows",
    "paper_table",
    "parameters",
    "plan",
    "savings",
    "size",
    "table",
    "weight_bytes",
]

LONGEST = 2048  # tokens a text, where no length is given and the context is longer
MIB = 2**20
EMBEDDINGS = ("wte", "wpe", "token_types", "ln_embedding", "patch_proj", "class_token")


class Count(dict):
    """A dictionary whose keys can also be read as attributes: c["trainable_fraction"] or c.trainable_fraction."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"Count has no {name!r}; there are {', '.join(self)}") from None


@checked
def count(
    name: Any,
    method: str = "lora",
    rank: int = 4,
    target_modules: str | tuple[str, ...] | None = None,
    *,
    batch: int = 1,
    length: int | None = None,
    bits: int | None = None,
    optimizer: str = "adamw",
    engine: str | None = None,
    **options: Any,
) -> Count:
    """The accounts of one model and one method.

    name: a model's name, a Hugging Face config (dictionary or path of a .json), an `Architecture`, a GPTConfig, a GPT,
    or the path of a minilora file (.npz). An adapter or a checkpoint says itself what is trained, and how.
    target_modules: by default q_proj and v_proj, of ia3 k_proj, v_proj and down_proj.
    batch, length: texts in a step and tokens in each (default 1, and the context up to 2,048, less the positions that
    virtual tokens take). bits a base weight: 32, 16, 8 or 4 (default 16, for our own model 32). optimizer: "adamw",
    "adamw-16bit" or "sgd". engine: what is kept for the backward pass, "pytorch", "flash" or "minilora" (default: our
    own for our own model). Other options are those of `methods.Options`: bottleneck, adapter_norm, tokens, blocks.

    -> {"model", "method", "rank", "target_modules" (both None for methods that have none), "total_parameters" (with
    what the method adds), "trainable_parameters", "trainable_fraction", "checkpoint_bytes" (what one task stores: the
    trained parameters, and what is frozen beside them, in 32 bits or 16), "training_memory_bytes": {"weights",
    "gradients", "optimizer_state", "activations"}}.   Raises ValueError for unknown names (listing those there are) and
    for sizes that do not fit.
    """
    named = {} if target_modules is None else {"target_modules": target_modules}
    chosen = plan(name, method, rank=rank, **named, **options)
    length, bits, engine = _defaults(chosen, batch, length, bits, engine)
    trainable, kinds = size(chosen.trainable), set(chosen.method.split(" + "))
    low_rank, targeted = not kinds.isdisjoint(RANKED), not kinds.isdisjoint((*RANKED, "ia3"))
    total, wanted = size(chosen.base) + size(chosen.added) + size(chosen.frozen), chosen.options.target_modules
    return Count(
        model=chosen.architecture.name,
        method=chosen.method,
        rank=chosen.options.rank if low_rank else None,
        target_modules=(wanted if isinstance(wanted, str) else list(wanted)) if targeted else None,
        total_parameters=total,
        trainable_parameters=trainable,
        trainable_fraction=trainable / total,
        checkpoint_bytes=(trainable + size(chosen.frozen)) * (4 if bits == 32 else 2),
        training_memory_bytes=training_memory(chosen, batch, length, bits, optimizer, engine),
    )


def _defaults(
    chosen: Plan, batch: int, length: int | None, bits: int | None, engine: str | None
) -> tuple[int, int, str]:
    a, virtual = chosen.architecture, chosen.virtual
    longest = a.context if a.patch else min(a.context - virtual, LONGEST)
    length = longest if length is None else whole("count", "length", length)
    whole("count", "batch", batch)
    if a.patch and length != a.context:
        raise ValueError(f"count: length = {length}, but {a.name} makes {a.context} tokens of each picture")
    if length + virtual > a.context:
        what = f"length = {length} and {virtual} virtual tokens exceed" if virtual else f"length = {length} exceeds"
        raise ValueError(f"count: {what} the context of {a.name}, {a.context}")
    ours = a.bits == 32
    return length, (chosen.bits or a.bits) if bits is None else bits, engine or ("minilora" if ours else "pytorch")


@checked
def operations(
    name: Any, method: str = "lora", *, batch: int = 1, length: int | None = None, **options: Any
) -> dict[str, float]:
    """Floating-point operations of a step on batch x length tokens.

    -> {"forward", "training" (forward and backward), "overhead" (what the method adds to a forward pass while it is not
    merged), "overhead_merged" (0 where it can be merged), "overhead_fraction" (of the base model's forward pass)}.
    See `costs.py` for what is counted, and its sources.
    """
    chosen = plan(name, method, **options)
    length, _, engine = _defaults(chosen, batch, length, None, None)
    walk, extra = Walk(chosen, batch, length, ENGINES[engine]), latency(chosen, batch, length, ENGINES[engine])
    return {
        "forward": walk.forward,
        "training": walk.training,
        "overhead": extra["added"],
        "overhead_merged": extra["added_merged"],
        "overhead_fraction": extra["share"],
    }


@checked
def by_layer(name: Any, method: str = "lora", **options: Any) -> dict[str, dict[str, int]]:
    """{layer: {"total", "trainable"}} for "embeddings", "blocks.0", "blocks.1", ... and "head" (what comes after).

    The virtual tokens of a prompt or prefix are "front".
    """
    return _grouped(plan(name, method, **options), _layer)


@checked
def by_matrix(name: Any, method: str = "lora", **options: Any) -> dict[str, dict[str, int]]:
    """{matrix: {"total", "trainable"}} over all layers: "wte", "q_proj" (with its bias and what adapts it), ..."""
    return _grouped(plan(name, method, **options), _matrix)


def _grouped(chosen: Plan, group: Any) -> dict[str, dict[str, int]]:
    groups: dict[str, dict[str, int]] = {}
    for name, shape in {**chosen.base, **chosen.added, **chosen.frozen}.items():
        numbers = groups.setdefault(group(name), {"total": 0, "trainable": 0})
        numbers["total"] += size({name: shape})
        numbers["trainable"] += size({name: shape}) if name in chosen.trainable else 0
    return groups


def _layer(name: str) -> str:
    if name.startswith("blocks."):
        return ".".join(name.split(".")[:2])
    part = name.partition(".")[0]
    if part == "front":  # a prompt, or the prefixes of all blocks in one array
        return part
    return "embeddings" if part in EMBEDDINGS else "head"


def _matrix(name: str) -> str:
    parts = name.split(".")
    if "adapter" in parts:
        return f"{parts[2]}.adapter"
    return ".".join(parts) if parts[0] == "front" else parts[-2:][0]


@checked
def count_model(model: Any) -> Count:
    """The counts of a running model, from walking its parameters: total, trainable, their share, and bytes to store.

    -> {"total_parameters" (quantised ones, too), "trainable_parameters", "trainable_fraction", "checkpoint_bytes"}
    """
    if not isinstance(model, Module):
        raise TypeError(f"count_model: got {shown(model)}, expected a model; for a name or a file: count(name)")
    trained = [p for p in model.parameters() if p.requires_grad]
    total, trainable = model.count(), model.count(trainable=True)
    return Count(
        total_parameters=total,
        trainable_parameters=trainable,
        trainable_fraction=trainable / total if total else 0.0,
        checkpoint_bytes=sum(p.size * p.dtype.itemsize for p in trained),
    )


# --- text of 80 columns ----------------------------------------------------------------------------------------------


@checked
def table(name: Any, method: str = "lora", **options: Any) -> str:
    """`count`, by matrix, with memory and operations beside full fine-tuning's: what `minilora count NAME` prints."""
    record = count(name, method, **options)
    sizes = {k: v for k, v in options.items() if k not in ("batch", "length", "bits", "optimizer", "engine")}
    chosen = plan(name, method, **sizes)
    lines = [f"{chosen.architecture.name}: {describe(chosen)}", ""]
    lines += [
        f"parameters           {record.total_parameters:>20,}",
        f"trainable            {record.trainable_parameters:>20,}   {record.trainable_fraction:.4%}",
        f"stored for each task {record.checkpoint_bytes:>20,} bytes   {_mib(record.checkpoint_bytes)}",
        "",
        f"{'matrix, all layers':<20} {'parameters':>20} {'trainable':>20}",
    ]
    for matrix, numbers in by_matrix(name, method, **sizes).items():
        lines.append(f"{matrix:<20} {numbers['total']:>20,} {numbers['trainable']:>20,}")
    return "\n".join([*lines, "", *_cost_lines(name, method, options, record, chosen)])


def _cost_lines(name: Any, method: str, options: dict[str, Any], record: Count, chosen: Plan) -> list[str]:
    """Memory by part and operations, beside those of full fine-tuning (whose weights cannot be held in 8 or 4 bits)."""
    length, bits, _ = _defaults(chosen, options.get("batch", 1), options.get("length"), options.get("bits"), None)
    told = chosen.method if len(chosen.method) <= 20 else "several"
    step = {"batch": options.get("batch", 1), "length": length}
    whole_options = {k: v for k, v in options.items() if k in ("optimizer", "engine")}
    full = count(chosen.architecture, "full", **whole_options, **step, bits=max(bits, 16))
    sizes = {k: v for k, v in options.items() if k not in (*step, "bits", "optimizer", "engine")}
    lines = [
        f"a training step: batch {step['batch']}, length {length:,}, {bits}-bit weights, "
        f"{options.get('optimizer', 'adamw')}",
        f"{'memory':<20} {told:>20} {'full':>20}",
    ]
    parts, others = record.training_memory_bytes, full.training_memory_bytes
    for part in parts:
        lines.append(f"{part.replace('_', ' '):<20} {_mib(parts[part]):>20} {_mib(others[part]):>20}")
    lines.append(f"{'sum':<20} {_mib(sum(parts.values())):>20} {_mib(sum(others.values())):>20}")
    mine, all_of_it = operations(name, method, **step, **sizes), operations(chosen.architecture, "full", **step)
    lines.append(f"{'operations':<20} {told:>20} {'full':>20}")
    for key in ("forward", "training"):
        lines.append(f"{key:<20} {mine[key]:>20.4e} {all_of_it[key]:>20.4e}")
    merged = "none after merging" if chosen.mergeable else "cannot be merged"
    lines.append(f"{'added to forward':<20} {mine['overhead']:>20.4e}   {mine['overhead_fraction']:.3%}, {merged}")
    return lines


@checked
def compare_records(name: Any, **options: Any) -> list[Count]:
    """`count` for every method that the model can have, all with texts of the same length.

    Methods that train base matrices stay at 16 bits or more.
    """
    architecture, records = find(name), []
    options["length"], room = _same_length(architecture, options)
    for method in METHODS:
        if (
            (method == "bitfit" and not any(n.endswith(".bias") for n in parameters(architecture)))
            or (method in ("prompt", "prefix") and room < options["length"])  # none for virtual tokens beside the text
            or (method == "last-blocks" and options.get("blocks", Options.blocks) > architecture.layers)
        ):
            continue
        unquantised = {"bits": 16} if options.get("bits") in (8, 4) and method in ("full", "last-blocks") else {}
        records.append(count(architecture, method, **{**options, **unquantised}))
    return records


def _same_length(a: Architecture, options: dict[str, Any]) -> tuple[int, int]:
    """The length of the texts that methods are compared on, and what virtual tokens leave of the context."""
    room = a.context - Options(tokens=options.get("tokens", Options.tokens)).tokens
    length = options.get("length")
    if a.patch:
        return a.context if length is None else length, 0  # all of a picture, which has no text to stand before
    return min(room if room > 0 else a.context, LONGEST) if length is None else length, room


@checked
def compare(name: Any, **options: Any) -> str:
    """All methods side by side, one a line: what `minilora count NAME --compare` prints."""
    architecture = find(name)
    lines = [
        f"{architecture.name}: {size(parameters(architecture)):,} parameters",
        "",
        f"{'method':<12}{'trainable':>16}{'share':>10}{'stored':>14}{'memory':>16}{'added':>9}",
    ]
    options["length"], _ = _same_length(architecture, options)
    sizes = {k: v for k, v in options.items() if k not in ("bits", "optimizer", "engine")}
    records = compare_records(architecture, **options)
    for record in records:
        method = record.method
        added = operations(architecture, method, **sizes)["overhead_fraction"]
        lines.append(
            f"{method:<12}{record.trainable_parameters:>16,}{record.trainable_fraction:>10.4%}"
            f"{_mib(record.checkpoint_bytes):>14}{_mib(sum(record.training_memory_bytes.values())):>16}"
            f"{added:>9.3%}{' ' if plan(architecture, method, **_sizes(sizes)).mergeable else '*'}"
        )
    missing = ", ".join(m for m in METHODS if m not in {r.method for r in records})
    return "\n".join(
        [
            *lines,
            *([f"this model cannot have, in these sizes: {missing}"] if missing else []),
            "",
            f"stored: for each task. memory: of a training step on texts of {options['length']:,} tokens.",
            "added: operations of a forward pass, until merged; * cannot be merged.",
        ]
    )


def _sizes(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in ("batch", "length")}


def _mib(size_in_bytes: float) -> str:
    return f"{size_in_bytes / MIB:,.{1 if size_in_bytes >= MIB else 3}f} MiB"
