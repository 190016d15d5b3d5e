"""What each way to adapt a model trains: a `Plan` names the parameters it adds and the ones it unfreezes, with shapes.

Every method is one short function from an architecture to those two sets; counts, memory and operations follow.
The formulas are those of Hu et al. 2021, "LoRA", section 5.1, and of each method's own paper. The method's file in
`adapters/` says the same by the arrays it makes, which is no way to count GPT-3; a test holds the two equal.
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from ..adapters.ia3 import IA3Config
from ..adapters.targets import Patterns, match_targets, patterns
from ..nn.architectures import Architecture, find, labelled, parameters, size
from ..nn.checks import unknown, whole
from ..nn.storage import blaming, load_arrays

Shapes = dict[str, tuple[int, ...]]
STARTED = (".lora_A0", ".lora_B0")  # what a corrected start keeps: stored, and never trained


@dataclass(frozen=True)
class Options:
    """The sizes that methods have; each uses its own.

    rank, target_modules: LoRA and what is made like it; target_modules: of IA3, too, whose default is its paper's;
    feedforward_modules: those whose inputs it stretches. modules_to_save: what these, prompts and prefixes train in
    full beside.
    bottleneck: the width of adapters; adapter_norm: whether each brings a layer norm of its own. tokens: the length of
    a prompt or prefix.
    blocks: how many blocks, from the last, are trained. labels: of a head for labels, "classifier", 0 without one.
    """

    rank: int = 4
    target_modules: Patterns = ("q_proj", "v_proj")
    bottleneck: int = 64
    adapter_norm: bool = False
    tokens: int = 20
    blocks: int = 2
    modules_to_save: Patterns = ()
    labels: int = 0
    feedforward_modules: Patterns = ("down_proj",)

    def __post_init__(self) -> None:
        for name in ("target_modules", "modules_to_save", "feedforward_modules"):
            object.__setattr__(self, name, patterns(getattr(self, name), f"count: {name}"))
        for name in ("rank", "bottleneck", "tokens", "blocks"):
            whole("count", name, getattr(self, name))
        whole("count", "labels", self.labels, 0)
        if not isinstance(self.adapter_norm, bool):
            raise ValueError(f"count: adapter_norm = {reprlib.repr(self.adapter_norm)}, expected True or False")
        if not self.target_modules:
            raise ValueError("count: target_modules is empty; name at least one, such as 'q_proj'")


@dataclass(frozen=True)
class Plan:
    """A method on an architecture: `base` shapes, the parameters `added`, and which of the base's are `trained`.

    frozen: what is added, stored and never trained: LoRA-FA's A, a start that is kept. drawn: how many numbers come
    from a seed and are no parameters: VeRA's pair of random matrices.
    """

    architecture: Architecture
    method: str
    options: Options
    base: Shapes
    added: Shapes
    trained: Shapes
    bits: int | None = None  # what the base's matrices are held in, where a file says that they are quantised
    frozen: Shapes = field(default_factory=dict)

    @property
    def drawn(self) -> int:
        """r (d_in + d_out) of the widest layers that share a pair."""
        pairs = [name.rpartition(".")[0] for name in self.added if name.endswith(".vera_d")]
        shapes = [self.base[f"{name}.weight"] for name in pairs]
        return sum(max(sizes) for sizes in zip(*shapes, strict=True)) * self.options.rank if pairs else 0

    @property
    def trainable(self) -> Shapes:
        """{name: shape} of everything that gets a gradient."""
        return {**self.trained, **self.added}

    @property
    def virtual(self) -> int:
        """How many positions virtual tokens take from the text."""
        a_row_each = sum(self.added.get(name, (0,))[0] for name in ("front.prompt", "front.embedding"))
        return a_row_each + self.added.get("front.keys", (0, 0))[1]

    @property
    def mergeable(self) -> bool:
        """Whether what was trained can be folded into the base, so that the forward pass costs nothing more.

        It can where all that is added stands beside a weight of the base, as q_proj.lora_A beside q_proj.weight does,
        and that weight is not the head's, too, which is left as it is.
        """
        tied = self.architecture.head in ("tied", "masked") and "wte.lora_A" in self.added
        return not tied and all(f"{name.rpartition('.')[0]}.weight" in self.base for name in self.added)


def plan(model: Any, method: str = "lora", **options: Any) -> Plan:
    """What `method` trains of `model` (whatever `architectures.find` takes), with the sizes of `Options`.

    A file that holds an adapter or a run says itself what is trained; method and options must not say otherwise.
    Raises ValueError for an unknown model or method, a target that matches nothing, a rank beyond a matrix, or virtual
    tokens that leave no room for a text.
    """
    architecture = find(model)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(unknown("method", str(method), list(METHODS)))
    if odd := options.keys() - {f.name for f in fields(Options)}:
        raise TypeError(f"count: no option {min(odd)!r}; there are {', '.join(f.name for f in fields(Options))}")
    if str(model).endswith(".npz") and (held := _held(model, architecture)) is not None:
        _agree(model, held, method, Options(**options))
        return held
    if method == "ia3":  # which has targets of its own
        options = {"target_modules": IA3Config.target_modules, **options}
    labels = getattr(model, "labels", ())  # a model's are words; an Architecture's are a number, among its parameters
    if isinstance(labels, tuple) and labels:
        options = {"labels": len(labels), **options}
    chosen = Options(**options)
    if chosen.labels and not architecture.causal:
        architecture = labelled(architecture, chosen.labels)
    base = _with_head(architecture, chosen.labels)
    if architecture.patch and method in ("prompt", "prefix"):
        raise ValueError(f"{method}: virtual tokens stand before a text; {architecture.name} reads pictures")
    added, trained = METHODS[method](architecture, base, chosen)
    frozen = {name: added.pop(name) for name in [*added] if method == "lora-fa" and name.endswith(".lora_A")}
    planned = Plan(architecture, method, chosen, base, added, trained, None, frozen)
    if planned.virtual >= architecture.context:
        room = f"no room for a text in the context of {architecture.name}, {architecture.context}"
        raise ValueError(f"{method}: {planned.virtual} virtual tokens leave {room}")
    return planned


def _held(path: Any, architecture: Architecture) -> Plan | None:
    """What is trained in a file of an adapter or a run, by its arrays; None for a file of a model alone."""
    arrays, header = load_arrays(path, None)
    if header["kind"] == "model":
        return None
    with blaming(path):
        if header["kind"] == "adapter":
            held, stored = header.get("quantized", []), {name: array.shape for name, array in arrays.items()}
            fixed = [one["config"]["target_modules"] for one in header["methods"] if one["kind"] == "lora-fa"]
            drawn = {f"{name}.lora_A" for wanted in fixed for name in targets(architecture, wanted)}
            shapes = {n: s for n, s in stored.items() if n not in drawn and not n.endswith(STARTED)}
        else:
            held = [settings["kind"] for settings in header["quantization"].values()]
            if len(several := header.get("carried", {}).get("active", ())) > 1:
                raise ValueError(f"{', '.join(several)} are in use together; save_adapter each, and count those files")
            stored = {name.removeprefix("model."): array.shape for name, array in arrays.items()}
            shapes = {name: stored[name] for name in header["trainable"]}
        methods, labels = header["methods"] or [{"kind": "full", "config": {}}], len(header.get("labels", ()))
        own, base = {f.name for f in fields(Options)}, _with_head(architecture, labels)
        options = Options(**{k: v for m in methods for k, v in m["config"].items() if k in own}, labels=labels)
        added = {name: shape for name, shape in shapes.items() if name not in base}
        trained = {name: shape for name, shape in base.items() if name in shapes}
        bits = (8 if "int8" in held else 4) if held else None
        frozen = {n: s for n, s in stored.items() if n.endswith((*STARTED, ".lora_A")) and n not in shapes}
        return Plan(architecture, " + ".join(m["kind"] for m in methods), options, base, added, trained, bits, frozen)


def _with_head(architecture: Architecture, labels: int) -> Shapes:
    """The base's parameters, and those of a head for labels."""
    head: Shapes = {"classifier.weight": (labels, architecture.width)}
    return parameters(architecture) | (head if labels and architecture.head != "labels" else {})


def _agree(path: Any, held: Plan, method: str, asked: Options) -> None:
    """Refuse a method or an option that is neither the default nor what the file holds."""
    pairs: list[tuple[str, Any, Any, Any]] = [("method", method, held.method, "lora")]
    pairs += [(f.name, getattr(asked, f.name), getattr(held.options, f.name), f.default) for f in fields(Options)]
    for name, value, there, default in pairs:
        if value not in (there, default):
            raise ValueError(
                f"count: {name} = {value!r}, but {path} holds {describe(held)}; count its base model instead"
            )


def targets(architecture: Architecture, wanted: Patterns) -> Shapes:
    """{"blocks.0.attn.q_proj": (d_out, d_in), ...} for target patterns as in `LoRAConfig`; of a table, (C, V)."""
    a, c = architecture, architecture.width
    layers = {f"blocks.{i}.{m}": shape for i in range(a.layers) for m, shape in a.matrices.items()}
    layers |= {name: (c, c) for name, there in (("pooler", a.pooler), ("head.dense", a.head == "masked")) if there}
    layers |= {"patch_proj": (c, a.patch)} if a.patch else {}
    rows = {} if a.patch else {"wte": a.vocab_size, "wpe": a.positions, "token_types": a.token_types}
    by_name = {name: (c, count) for name, count in rows.items() if count}
    outputs = ("head.weight", "classifier.weight", "classifier.dense.weight", "classifier.out_proj.weight")
    by_name |= {name.removesuffix(".weight"): s for name, s in parameters(a).items() if name in outputs}  # type: ignore
    layers |= by_name
    return {name: layers[name] for name in match_targets(wanted, list(layers), by_name=by_name)}


def linear_targets(architecture: Architecture, wanted: Patterns, method: str) -> Shapes:
    """`targets` of a method that takes linear layers alone. Raises ValueError for an embedding table."""
    found = targets(architecture, wanted)
    if table := next((name for name in found if name in ("wte", "wpe", "token_types")), ""):
        raise ValueError(f"{method}: {table} is an embedding table, and {method} is for linear layers")
    return found


def _full(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """Every parameter is trained."""
    return {}, dict(base)


def _last_blocks(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """The last n blocks are trained, the rest is frozen (FT-Top2 in table 3: Li & Liang 2021, section 5.2)."""
    if o.blocks > a.layers:
        raise ValueError(f"last-blocks: blocks = {o.blocks}, but {a.name} has {a.layers}")
    last = tuple(f"blocks.{i}." for i in range(a.layers - o.blocks, a.layers))
    return {}, {name: shape for name, shape in base.items() if name.startswith(last)}


def _bitfit(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """Every bias is trained, those of norms too (Ben Zaken et al. 2021, "BitFit", section 3)."""
    biases = {name: shape for name, shape in base.items() if name.endswith(".bias")}
    if not biases:
        raise ValueError(f"bitfit: {a.name} has no biases to train")
    return {}, biases


def _prompt(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """l C: the embeddings of l virtual tokens in front of the text (Lester et al. 2021, section 2)."""
    return {"front.prompt": (o.tokens, a.width)}, _saved(base, o)


def _prefix(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """2 L l K D: l keys and l values in every block (Li & Liang 2021, sections 4.2 and 4.3: the MLP is dropped)."""
    shape = (a.layers, o.tokens, a.key_value_heads * a.dim)
    return {"front.keys": shape, "front.values": shape}, _saved(base, o)


def _adapter(a: Architecture, place: str, o: Options) -> Shapes:
    """2 C b + b + C: down to the bottleneck b and up again, with biases; 2 C more with a norm of its own."""
    c, b = a.width, o.bottleneck
    shapes: Shapes = {"down.weight": (b, c), "down.bias": (b,), "up.weight": (c, b), "up.bias": (c,)}
    if o.adapter_norm:
        shapes |= {"norm.weight": (c,), "norm.bias": (c,)}
    return {f"{place}.{name}": shape for name, shape in shapes.items()}


def _houlsby(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """Two bottlenecks a block, after attention and after the MLP (Houlsby et al. 2019, section 2.1, figure 2)."""
    places = [f"blocks.{i}.{part}.adapter" for i in range(a.layers) for part in ("attn", "mlp")]
    return {name: shape for place in places for name, shape in _adapter(a, place, o).items()}, {}


def _pfeiffer(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """One bottleneck a block, after the MLP (Pfeiffer et al. 2021, appendix A.2; with a norm: Lin et al. 2020).

    Their best form (figure 5) has the block's own norms around the adapter: no parameter more, and left out here.
    """
    places = [f"blocks.{i}.mlp.adapter" for i in range(a.layers)]
    return {name: shape for place in places for name, shape in _adapter(a, place, o).items()}, {}


def _lora(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """r (d_in + d_out) for each target: A (r, d_in) and B (d_out, r) (Hu et al. 2021, section 4.1)."""
    added: Shapes = {}
    for name, (d_out, d_in) in targets(a, o.target_modules).items():
        if o.rank > min(d_out, d_in):
            raise ValueError(f"lora: rank {o.rank} exceeds min(d_in, d_out) = {min(d_out, d_in)} of {name}")
        added |= {f"{name}.lora_A": (o.rank, d_in), f"{name}.lora_B": (d_out, o.rank)}
    return added, _saved(base, o)


def _saved(base: Shapes, o: Options) -> Shapes:
    """What is trained in full beside: modules_to_save, by the names of `LoRAConfig`."""
    parts = (name.split(".")[:-1] for name in base)
    modules = list(dict.fromkeys(".".join(path[:n]) for path in parts for n in range(1, len(path) + 1)))
    saved = tuple(f"{name}." for name in match_targets(o.modules_to_save, modules, "modules_to_save"))
    return {name: shape for name, shape in base.items() if name.startswith(saved)}


def _dora(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """LoRA's A and B and d_out magnitudes, one a row of W (Liu et al. 2024, "DoRA", section 4.1)."""
    added, trained = _lora(a, base, o)
    return {**added, **{f"{n}.magnitude": (d_out,) for n, (d_out, _) in targets(a, o.target_modules).items()}}, trained


def _lora_fa(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """LoRA's, of which A is frozen: r d_out trained (Zhang et al. 2023, "LoRA-FA", section 3)."""
    return _lora(a, base, o)


def _vera(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """r + d_out for each target: d and v; the pair of matrices is drawn (Kopiczko et al. 2024, "VeRA", section 3.1)."""
    added: Shapes = {}
    for name, (d_out, _) in linear_targets(a, o.target_modules, "vera").items():
        added |= {f"{name}.vera_d": (o.rank,), f"{name}.vera_b": (d_out,)}
    return added, _saved(base, o)


def _miss(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """r d_out for each target: D (Kang & Yin 2024, "MiSS")."""
    added: Shapes = {}
    for name, (d_out, d_in) in linear_targets(a, o.target_modules, "miss").items():
        if o.rank > d_in:
            raise ValueError(f"miss: rank {o.rank} exceeds d_in = {d_in} of {name}")
        added[f"{name}.miss_D"] = (o.rank, d_out)
    return added, _saved(base, o)


def _ia3(a: Architecture, base: Shapes, o: Options) -> tuple[Shapes, Shapes]:
    """d_out for each target, d_in where its inputs are stretched (Liu et al. 2022, "IA3", section 3.3)."""
    inputs, found = (linear_targets(a, wanted, "ia3") for wanted in (o.feedforward_modules, o.target_modules))
    return {f"{n}.ia3_l": (shape[n in inputs],) for n, shape in found.items()}, _saved(base, o)


METHODS: dict[str, Callable[[Architecture, Shapes, Options], tuple[Shapes, Shapes]]] = {
    "full": _full,
    "last-blocks": _last_blocks,
    "bitfit": _bitfit,
    "prompt": _prompt,
    "prefix": _prefix,
    "houlsby": _houlsby,
    "pfeiffer": _pfeiffer,
    "lora": _lora,
    "dora": _dora,
    "lora-fa": _lora_fa,
    "vera": _vera,
    "miss": _miss,
    "ia3": _ia3,
}


RANKED = ("lora", "dora", "lora-fa", "vera", "miss")  # methods with a rank, on target modules


def describe(chosen: Plan) -> str:
    """The method and the sizes it uses, in a few words: "lora, rank 4 on q_proj, v_proj"."""
    return " + ".join(_describe(chosen, method) for method in chosen.method.split(" + "))


def _describe(chosen: Plan, method: str) -> str:
    o = chosen.options
    if method == "ia3":
        return f"ia3, {len(chosen.added)} vectors"
    if method in RANKED:
        names = o.target_modules if isinstance(o.target_modules, str) else ", ".join(o.target_modules)
        return f"{method}, rank {o.rank} on {names}"
    if method in ("houlsby", "pfeiffer"):
        return f"{method}, bottleneck {o.bottleneck}" + (" with a norm" if o.adapter_norm else "")
    if method in ("prompt", "prefix"):
        return f"{method}, {o.tokens} tokens"
    return f"{method}, {o.blocks} of {chosen.architecture.layers}" if method == "last-blocks" else method


__all__ = ["METHODS", "Options", "Plan", "describe", "plan", "size", "targets"]
