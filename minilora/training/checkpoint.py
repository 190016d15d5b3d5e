"""Checkpoints: a run in a file, complete enough to go on bit for bit.

A GPT of this package is in it whole. Of a model that has files of its own, a hundred times as large, it holds what is
trained, and the fingerprint of the rest.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..adapters.attach import add_adapter
from ..adapters.files import adapters_state, check_sizes, fingerprint, from_recipe, put_adapters, recipe
from ..adapters.qlora import quantization, quantize_model
from ..adapters.state import active_adapter, base_parameters, changeable, refuse_merged
from ..nn.checks import shown
from ..nn.classifier import add_classifier, with_classifier
from ..nn.gpt import GPT, GPTConfig
from ..nn.language_model import LanguageModel
from ..nn.storage import Blank, blaming, check_size, load_arrays, refuse_parts, save_arrays
from .classify import CATEGORIES, load_labels, unicode_categories
from .corpus import BUILT_IN, PYTHON, load_corpus
from .pairs import load_pairs
from .run import Run, Settings

EXAMPLES: dict[str, Callable[..., Any]] = {  # how examples say that they were read -> what reads them
    "pairs": load_pairs,
    "labels": load_labels,
    CATEGORIES: lambda name, tokenizer, **how: unicode_categories(tokenizer, **how),
    "task": lambda name, tokenizer, **how: _task(name, tokenizer, **how),
}
MADE = {*BUILT_IN, CATEGORIES}  # from no file


def save_checkpoint(run: Run, path: str | Path) -> Path:
    """Write a run: weights, all adapters, optimiser, generator state, settings and curves.

    Of a model that is no GPT only what is trained, and the adapters; `load_checkpoint` is given the rest.
    Raises ValueError while an adapter is merged or disabled, and for what `check_run` refuses.
    """
    optimizer, model = run.optimizer.state_dict(), run.model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    base, state = base_parameters(model), model.state_dict()
    name = getattr(model, "active_adapter", None)
    whole = isinstance(model, GPT)
    alone = whole and isinstance(name, str)  # one in use stands in the state dict; the others, or several, beside it
    others = [one for one in getattr(model, "adapters", ()) if not alone or one != name]
    carried, aside = adapters_state(model, others or ["none beside it"], "save_checkpoint")
    check_run(run, "save_checkpoint")
    if not alone:
        state = {key: p.data for key, p in base.items() if whole or p.requires_grad}
        state |= dict(model.named_buffers(remove_duplicate=False)) if whole else {}
    header = {
        "kind": "checkpoint",
        "config": asdict(model.config) if whole else None,
        "base": None if whole else {"frozen": fingerprint(model, state), "trained": list(state)},
        "labels": getattr(model, "labels", ()),
        "quantization": quantization(model),
        "methods": recipe(active_adapter(model)) if alone else None,
        "adapter": name if alone else None,
        "carried": carried,
        "trainable": list(trained),
        "dtype": str(next(iter(base.values())).dtype),
        "corpus": run.corpus.name,
        "examples": getattr(run.corpus, "how", None),  # with what they are read from their file
        "text": run.corpus.digest,
        "place": str(Path(run.corpus.name).absolute()),
        "python": PYTHON,
        "notes": run.notes,
        "settings": asdict(run.settings),
        "steps": optimizer.pop("steps"),
        "rng": run.rng.bit_generator.state,
        "history": run.history,
        "validation": run.validation,
    }
    parts = {"model": state, "adapters": aside, "optimizer": optimizer}
    arrays = {f"{part}.{key}": value for part in parts for key, value in parts[part].items()}
    return save_arrays(path, arrays, header, compress=False)  # every few steps: 20 times faster, 8 % larger


def check_run(run: Run, caller: str) -> None:
    """Raise ValueError where an adapter is merged, disabled or on a part alone, or model and run train other things."""
    refuse_merged(changeable(run.model, caller), caller)
    refuse_parts(run.model, caller)
    if {id(p) for p in run.model.parameters(trainable=True)} != {id(p) for p in run.optimizer.parameters}:
        raise ValueError(
            f"{caller}: the model trains other parameters now than when the run was made; set_adapter to the one "
            "that the run trains, or make another run"
        )


def load_checkpoint(path: str | Path, corpus: Any = None, base: Any = None) -> Run:
    """The run in a checkpoint, ready for `train`, which continues it as if it had never stopped.

    corpus: a Corpus or Examples, if not those it was trained on. base: the model that is trained, as it was before,
    where it is no GPT: ml.load_pretrained gives it, and it gets what the run has trained. Raises ValueError when the
    file is damaged or does not fit, the base is another, or the text is another one by now, and FileNotFoundError when
    it is gone.
    """
    arrays, header = load_arrays(path, "checkpoint")
    with blaming(path):
        if header.get("base") is None:
            model = _whole(header, arrays)
            text = corpus or _same_text(header, model.tokenizer)
        else:
            text = corpus or _same_text(header, getattr(base, "tokenizer", None))
            with with_classifier(base, header.get("labels", ())):
                model = _on_base(header, arrays, base)
        for name, p in model.named_parameters():
            p.requires_grad = name in header["trainable"]
        run = Run(model, text, Settings(**header["settings"]))
        run.optimizer.load_state_dict({"steps": header["steps"], **_part(arrays, "optimizer")})
        run.rng.bit_generator.state = header["rng"]
        run.history, run.validation = header["history"], header["validation"]
        run.notes = header.get("notes", {})
    return run


def _whole(header: dict[str, Any], arrays: dict[str, Any]) -> GPT:
    """The model of a run that holds all of it."""
    config = GPTConfig(**header["config"])
    check_size(config, arrays)
    model: Any = GPT(config, Blank()).astype(header["dtype"])
    for layer, settings in header["quantization"].items():
        if settings["block"] > max(2 * array.size for array in arrays.values()):
            raise ValueError(f"{layer} has blocks of {settings['block']:,} codes, more than the file holds")
        quantize_model(model, **settings, target_modules=(layer,))  # its codes are loaded below
    if header.get("labels"):
        add_classifier(model, header["labels"])
    if header.keys().isdisjoint({"adapter", "carried"}):  # from before it held all adapters
        header |= {"adapter": "default", "carried": {"adapters": {}}}
    name, carried = header["adapter"], header["carried"]
    for methods in (header["methods"], *(one["methods"] for one in carried["adapters"].values())):
        check_sizes(methods or [], arrays)
    if header["methods"]:
        add_adapter(model, from_recipe(header["methods"]), name=name)
    names, state = dict(model.named_parameters()), _part(arrays, "model")
    for name in names.keys() & state.keys():
        names[name].data = names[name].data.astype(state[name].dtype, copy=False)
    names |= dict(model.named_buffers())
    if missing := names.keys() - state.keys():  # load_state_dict alone would do without an adapter's
        raise ValueError(f"missing {min(missing)}")
    model.load_state_dict(state, fresh=True)
    if carried["adapters"]:
        put_adapters(model, carried, _part(arrays, "adapters"))
    return model


def _on_base(header: dict[str, Any], arrays: dict[str, Any], base: Any) -> Any:
    """The base model with what a run had trained of it, and on it. What does not fit is found before it is changed."""
    if not isinstance(base, LanguageModel) or isinstance(base, GPT):
        raise ValueError(
            f"it holds what was trained, and not the model it was trained on; base = {shown(base)}, expected that: "
            "load_checkpoint(path, base=ml.load_pretrained(place))"
        )
    trained, own, values = header["base"]["trained"], base_parameters(base), _part(arrays, "model")
    shapes = {name: own[name].shape if name in own else None for name in trained}
    if shapes != {name: value.shape for name, value in values.items()}:
        raise ValueError("the base is another model: what was trained of it has other names or shapes")
    if getattr(base, "adapters", None) or fingerprint(base, trained) != header["base"]["frozen"]:
        raise ValueError("the base is another model, or is held in another precision, than the run was begun on")
    for one in header["carried"]["adapters"].values():
        check_sizes(one["methods"], arrays)
    for name, value in values.items():
        own[name].data = own[name].data.astype(value.dtype)
        own[name].data[...] = value
        own[name].changed()
    if header["carried"]["adapters"]:
        put_adapters(base, header["carried"], _part(arrays, "adapters"))
    return base


def _part(arrays: dict[str, Any], part: str) -> dict[str, Any]:
    """{"model.x": a, "optimizer.y": b} -> {"x": a} for the part "model"."""
    return {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}


def _same_text(header: dict[str, Any], tokenizer: Any) -> Any:
    """The corpus that a run was trained on, found by its name, or where it was when the run began."""
    name, place, text = header["corpus"], header.get("place", header["corpus"]), header.get("text")
    made = name in MADE or (header.get("examples") or {}).get("kind") == "task"
    places = [name] if made else [path for path in dict.fromkeys((name, place)) if Path(path).is_file()]
    if not places:
        raise FileNotFoundError(f"the run's text {name!r} is neither here nor at {place!r}, where it was")
    for path in places:
        corpus = replace(_read(path, header.get("examples"), tokenizer), name=name)
        if text in (None, corpus.digest):  # None: from before texts had a digest
            return corpus
    why = f"it was that of Python {header['python']}" if made else "the file has changed"
    raise ValueError(
        f"the run was trained on another text than {name!r} is now: {why}; put that back, or go on with another text "
        "knowingly: ml.train(load_checkpoint(path, corpus))"
    )


def _task(name: str, tokenizer: Any, **how: Any) -> Any:
    from .tasks import load_task  # here: it starts databases and processes, which few runs need

    return load_task(name, tokenizer, **how)


def _read(path: str, how: dict[str, Any] | None, tokenizer: Any) -> Any:
    """A text, or examples, of which the checkpoint says how they were read."""
    if how is None:
        return load_corpus(path, tokenizer)
    if how.get("kind") not in EXAMPLES or tokenizer is None:
        raise ValueError("the run's examples cannot be read again here: give them, load_checkpoint(path, examples)")
    return EXAMPLES[how["kind"]](path, tokenizer, **{key: value for key, value in how.items() if key != "kind"})
