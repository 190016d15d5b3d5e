"""One adapter in another form of file: PEFT's folder, the single file of image tools, minilora's .npz.

PEFT and the single file hold the same matrices under other names, so that one is made of the other from files alone;
A and B stay as they are, s goes into alpha, and what the form cannot hold is refused by name. Minilora's file belongs
to a base and calls its modules otherwise, of which several may be one of PEFT's: that way goes over the model, once
`base` is given. A single file that is written here keeps the names, the configuration and the form that it was made
of in its metadata, by which the way back gives the same file again.
"""

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.files import from_recipe
from ..analysis import low_rank
from ..autograd.signatures import checked
from ..nn.checks import unknown
from ..nn.storage import load_model
from ..training.parallel import blas_of_one_thread
from . import npz_files, peft_files
from .adapter_files import read_adapter
from .adapter_writing import check_place, folder_beside, pair_of, refuse_inputs, write_adapter
from .adapters import load_adapter, save_adapter
from .base_weights import Base
from .merged_folder import copier, refuse_inside
from .module_names import STORED, flat_names, stored_names, with_names
from .pairs import AdapterFile, Pair
from .peft_files import CONFIG, WEIGHTS
from .pretrained import load_pretrained
from .tensor_files import Stored
from .updates import opened, progress_over, require_change, update_of

FORMS = ("peft", "kohya", "minilora")
SOURCE = "minilora_source"  # in a single file's metadata: {"form", "config"} of what it was made of, as JSON
FIX = "give its base: --base CHECKPOINT, or --base base for the model that comes with minilora"


@checked
def convert(
    path: str | Path,
    to: str,
    output: str | Path,
    base: str | Path | None = None,
    matrices_only: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write an adapter in another form: to = "peft", "kohya" or "minilora".

    base: the checkpoint it was trained on, which gives modules their names and is needed to and from minilora's form;
    "base" is the model that comes with minilora. matrices_only: leave out heads and biases that a form cannot hold.
    -> {"from", "to", "norm", "lost", "matrices", "notes"}; of a matrix of what is written: name, shape, rank, alpha,
    scale, frobenius_norm. lost: how far the Delta W that is written is from what was read, in norm, of all matrices;
    between names of different models the difference of their norms.
    """
    if to not in FORMS:
        raise ValueError(f"convert: {unknown('form', to, [*FORMS])}")
    source = read_adapter(path)
    if source.form == to:
        raise ValueError(f"{source.path} has this form already: {to}")
    refuse_inputs(Path(output), source.inputs)
    refuse_inside(Path(output), [source.path] if source.path.is_dir() else [])
    check_place(Path(output), to, new=True)
    require_change(source)
    stored = source_of(source)
    if to == "kohya":
        made, notes = to_kohya(source, base, matrices_only, progress)
    elif (to == "minilora") != ("minilora" in (source.form, stored.get("form"))):
        over_the_model(source, to, Path(output), stored, base)
        return told(source, None, read_adapter(output), [])
    else:
        made, notes = from_kohya(source, to, stored, base, matrices_only)
    write_adapter(made, output)
    return told(source, made, read_adapter(output), notes)


def told(source: AdapterFile, made: AdapterFile | None, written: AdapterFile, notes: list[str]) -> dict[str, Any]:
    """What was written, measured from the file, beside what was read. made: what was to be written."""
    with blas_of_one_thread():  # thin matrices are too small for two
        sizes = {name: low_rank.norm(*pair.factors()) for name, pair in written.matrices.items()}
        norm = float(np.linalg.norm([*sizes.values()]))
        if made is None:
            before = [low_rank.norm(*pair.factors()) for pair in source.matrices.values()]
            lost = abs(norm - float(np.linalg.norm(before)))
        else:
            both = ((pair.factors(), made.matrices[name].factors()) for name, pair in written.matrices.items())
            equal = lambda one, other: all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))
            apart = [0.0 if equal(one, other) else low_rank.distance(one, other) for one, other in both]
            lost = float(np.linalg.norm(apart))
    rows = [{"name": name, "shape": list(pair.shape), "rank": pair.rank, "alpha": pair.alpha, "scale": pair.scale,
             "frobenius_norm": sizes[name]} for name, pair in written.matrices.items()]  # fmt: skip
    return {"from": source.form, "to": written.form, "norm": norm, "lost": lost, "matrices": rows, "notes": notes}


def source_of(adapter: AdapterFile) -> Mapping[str, Any]:
    """What a single file of ours was made of; {} of another's."""
    try:
        found = json.loads(adapter.config.get(SOURCE) or "{}") if adapter.form == "kohya" else {}
    except ValueError:
        return {}
    good = isinstance(found, dict) and isinstance(found.get("config"), dict) and stored_names(adapter)
    return found if good else {}


def refuse_lost(adapter: AdapterFile, to: str, matrices_only: bool) -> list[str]:
    """What is left out, as notes. Raises ValueError, by name, for what a form cannot hold."""
    adapter.require_matrices(f"write as {to}")
    if adapter.config.get("alora_invocation_tokens"):
        raise ValueError(
            f"{adapter.path}: its update acts from its invocation tokens on (aLoRA), which {to} cannot say"
        )
    tables = [name for name, pair in adapter.matrices.items() if pair.kind == "embedding"]
    if to == "kohya" and tables:
        raise ValueError(f"{adapter.path}: {tables[0]} is a table, whose update a single file has no form for")
    if not adapter.others:
        return []
    names = ", ".join(list(adapter.others)[:3]) + (
        f" and {len(adapter.others) - 3} more" if len(adapter.others) > 3 else ""
    )
    if not matrices_only:
        raise ValueError(f"{adapter.path} holds {names} beside its matrices, which {to} has no form for; "
                         "--matrices-only leaves them out")  # fmt: skip
    return [f"left out: {names}"]


# --- the single file, from the files alone ---------------------------------------------------------------------------


def to_kohya(
    source: AdapterFile, base: str | Path | None, matrices_only: bool, progress: bool
) -> tuple[AdapterFile, list[str]]:
    """The single file's matrices, and what to tell."""
    notes = refuse_lost(source, "kohya", matrices_only)
    residual = bool(source.needs) and not any(pair.magnitude for pair in source.matrices.values())
    checkpoint: Base | None = None
    if residual or (base is not None and source.form == "peft"):
        source, checkpoint = opened(source.path, base, "convert")
    flat, pairs = flat_names(source.matrices), {}
    for name, pair in progress_over(list(source.matrices.items()), "converted", progress, checkpoint):
        pairs[flat[name]] = replace(plain(source, pair, checkpoint if residual else None), name=flat[name])
    kept: dict[str, Any] = {"modules_to_save": None, "bias": "none"} if source.form == "peft" and source.others else {}
    config = json.dumps({"form": source.form, "config": {**source.config, **kept}})
    metadata = {"ss_network_module": "networks.lora", "ss_network_dim": "", "ss_network_alpha": "",
                STORED: json.dumps({there: name for name, there in flat.items()}),
                **({} if residual else {SOURCE: config})}  # fmt: skip
    return replace(source, form="kohya", config=metadata, matrices=pairs, others={}), notes


def plain(source: AdapterFile, pair: Pair, base: Base | None) -> Pair:
    """A pair whose Delta W is s B A alone, with DoRA's lengths as a single file has them, (d_out, 1)."""
    if base is not None:
        B, A, _ = update_of(source, pair, base)
        return pair_of(pair, B, A, pair.scale)
    if pair.start is not None:
        return pair_of(pair, *pair.factors(), pair.scale)
    if pair.magnitude is not None:
        return replace(pair, magnitude=lengths(pair, (pair.shape[0], *(1 for _ in pair.a.shape[1:]))))
    return pair


def lengths(pair: Pair, shape: tuple[int, ...]) -> Stored:
    """DoRA's lengths, one for each row of W, in another form's shape. Raises ValueError for as many as columns."""
    stored = pair.magnitude
    assert stored is not None, "a pair with lengths"
    if math.prod(stored.shape) != pair.shape[0]:
        raise ValueError(
            f"{pair.path}: {pair.name} has {stored.shape} lengths, expected one for each of {pair.shape[0]} rows"
        )
    return Stored(shape, stored.dtype, lambda: stored.read().reshape(shape))


def from_kohya(
    source: AdapterFile, to: str, stored: Mapping[str, Any], base: str | Path | None, matrices_only: bool
) -> tuple[AdapterFile, list[str]]:
    """PEFT's matrices, or ours where the file was made of ours; and what to tell."""
    notes = refuse_lost(source, to, matrices_only)
    checkpoint = None
    if base is not None and to == "peft":
        from .base_weights import open_base

        checkpoint = open_base(base)
    adapter = with_names(source, checkpoint)
    if checkpoint is not None:
        checkpoint.check(adapter)
    if any(name in source.matrices for name in adapter.matrices) and checkpoint is None:
        notes.append("modules keep the names that the single file has; --base CHECKPOINT gives the model's")
    exact = settings_of(to, stored, adapter) if stored.get("form") == to else {}
    pairs = {}
    for name, pair in adapter.matrices.items():
        if pair.middle is not None:
            pair = pair_of(pair, *pair.factors(), pair.scale)
        if pair.magnitude is not None:
            axes = pair.a.shape[2:] if to == "peft" else ()
            shape = (1, pair.shape[0], *(1 for _ in axes)) if axes else (pair.shape[0],)
            pair = replace(pair, magnitude=lengths(pair, shape))
        scale = exact.get(name, pair.scale)
        same = math.isclose(scale, pair.scale, rel_tol=1e-6)  # alpha went by in float32
        pairs[name] = replace(pair, scale=scale if same else pair.scale)
    config = stored["config"] if stored.get("form") == to else new_config(adapter, pairs, checkpoint)
    if to == "minilora":
        notes.append("the base's fingerprint is that of the file it was made of")
    return replace(adapter, form=to, config=config, matrices=pairs, others={}), notes


def settings_of(to: str, stored: Mapping[str, Any], adapter: AdapterFile) -> dict[str, float]:
    """{module: the scale that the configuration of old gives it}"""
    config, found = stored["config"], {}
    if to == "minilora":
        configs = [one for one in from_recipe(config["methods"]) if hasattr(one, "rank_pattern")]
        return {name: npz_files.settings(configs, name, pair.rank)[2] for name, pair in adapter.matrices.items()}
    for name in adapter.matrices:
        rank, alpha = peft_files.settings(config, name, adapter.path)
        found[name] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return found


def new_config(adapter: AdapterFile, pairs: Mapping[str, Pair], base: Base | None) -> dict[str, Any]:
    """adapter_config.json, but for ranks and alphas, of an adapter that never had one."""
    turned = base is not None and any((place := base.place(name)) and place.transposed for name in pairs)
    return {
        "peft_type": "LORA", "base_model_name_or_path": None if base is None else str(base.path), "task_type": None,
        "inference_mode": True, "target_modules": list(pairs), "lora_dropout": 0.0, "bias": "none",
        "init_lora_weights": True, "use_rslora": False, "use_dora": adapter.method == "dora", "modules_to_save": None,
        "fan_in_fan_out": bool(turned),
    }  # fmt: skip


# --- minilora's form, over the model ---------------------------------------------------------------------------------


def over_the_model(
    source: AdapterFile, to: str, output: Path, stored: Mapping[str, Any], base: str | Path | None
) -> None:
    """Load the adapter on its base and save it in the other form. Raises ValueError where there is no base."""
    if base is None:
        why = (
            "its base's fingerprint, and calls modules otherwise" if to == "minilora" else "other names for its modules"
        )
        raise ValueError(f"{source.path}: minilora's form has {why}; {FIX}")
    own = (str(base) == "base" and not Path(base).exists()) or Path(base).suffix == ".npz"
    model = load_model(base) if own else load_pretrained(str(base))
    with tempfile.TemporaryDirectory() as place:
        given = source.path
        if source.form == "kohya":
            form = stored.get("form", "peft")
            given = Path(place) / ("given.npz" if form == "minilora" else "given")
            made, _ = from_kohya(source, form, stored, None if stored else base, False)
            write_adapter(made, given)
        load_adapter(model, given)
        if to == "minilora":
            save_adapter(model, output)
            return
        save_adapter(model, Path(place) / "out", format="peft")
        writers: dict[str, Callable[[Path], object]] = {n: copier(Path(place) / "out" / n) for n in (WEIGHTS, CONFIG)}
        folder_beside(output, writers)
