"""Checkpoints: a run in a file, complete enough to go on bit for bit."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..adapters.attach import add_adapter
from ..adapters.files import adapters_state, check_sizes, from_recipe, put_adapters, recipe
from ..adapters.qlora import quantization, quantize_model
from ..adapters.state import active_adapter, base_parameters
from ..nn.gpt import GPT, GPTConfig
from ..nn.storage import Blank, blaming, check_size, load_arrays, save_arrays
from .corpus import BUILT_IN, PYTHON, load_corpus
from .pairs import load_pairs
from .run import Run, Settings

EXAMPLES: dict[str, Callable[..., Any]] = {
    "pairs": load_pairs
}  # how examples say that they were read -> what reads them


def save_checkpoint(run: Run, path: str | Path) -> Path:
    """Write a run: weights, all adapters, optimiser, generator state, settings and curves.

    Raises ValueError while an adapter is merged or disabled, and where the model no longer trains what the run does.
    """
    optimizer, model = run.optimizer.state_dict(), run.model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    base, state = base_parameters(model), model.state_dict()
    name = getattr(model, "active_adapter", None)
    alone = isinstance(name, str)  # one adapter in use stands in the state dict; the others, or several, beside it
    others = [one for one in getattr(model, "adapters", ()) if not alone or one != name]
    carried, aside = adapters_state(model, others or ["none beside it"], "save_checkpoint")
    if {id(p) for p in trained.values()} != {id(p) for p in run.optimizer.parameters}:
        raise ValueError(
            "save_checkpoint: the model trains other parameters now than when the run was made; set_adapter to the one "
            "that the run trains, or make another run"
        )
    if not alone:
        state = {key: p.data for key, p in base.items()} | dict(model.named_buffers(remove_duplicate=False))
    header = {
        "kind": "checkpoint",
        "config": asdict(run.model.config),
        "quantization": quantization(run.model),
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


def load_checkpoint(path: str | Path, corpus: Any = None) -> Run:
    """The run in a checkpoint, ready for `train`, which continues it as if it had never stopped.

    corpus: a Corpus or Examples, if not those it was trained on. Raises ValueError when the file is damaged or does not
    fit, or the text is another one by now, and FileNotFoundError when it is gone.
    """
    arrays, header = load_arrays(path, "checkpoint")
    with blaming(path):
        config = GPTConfig(**header["config"])
        check_size(config, arrays)
        model = GPT(config, Blank()).astype(header["dtype"])
        for layer, settings in header["quantization"].items():
            if settings["block"] > max(2 * array.size for array in arrays.values()):
                raise ValueError(f"{layer} has blocks of {settings['block']:,} codes, more than the file holds")
            quantize_model(model, **settings, target_modules=(layer,))  # its codes are loaded below
        if header.keys().isdisjoint({"adapter", "carried"}):  # from before it held all adapters
            header |= {"adapter": "default", "carried": {"adapters": {}}}
        name, carried = header["adapter"], header["carried"]
        for methods in (header["methods"], *(one["methods"] for one in carried["adapters"].values())):
            check_sizes(methods or [], arrays)
        if header["methods"]:
            add_adapter(model, from_recipe(header["methods"]), name=name)
        names = dict(model.named_parameters())
        state = {part: _part(arrays, part) for part in ("model", "optimizer")}
        for name in names.keys() & state["model"].keys():
            names[name].data = names[name].data.astype(state["model"][name].dtype, copy=False)
        names |= dict(model.named_buffers())
        if missing := names.keys() - state["model"].keys():  # load_state_dict alone would do without an adapter's
            raise ValueError(f"missing {min(missing)}")
        model.load_state_dict(state["model"], fresh=True)
        if carried["adapters"]:
            put_adapters(model, carried, _part(arrays, "adapters"))
        for name, p in model.named_parameters():
            p.requires_grad = name in header["trainable"]
        run = Run(
            model, corpus or _same_text(header, getattr(model, "tokenizer", None)), Settings(**header["settings"])
        )
        run.optimizer.load_state_dict({"steps": header["steps"], **state["optimizer"]})
        run.rng.bit_generator.state = header["rng"]
        run.history, run.validation = header["history"], header["validation"]
        run.notes = header.get("notes", {})
    return run


def _part(arrays: dict[str, Any], part: str) -> dict[str, Any]:
    """{"model.x": a, "optimizer.y": b} -> {"x": a} for the part "model"."""
    return {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}


def _same_text(header: dict[str, Any], tokenizer: Any) -> Any:
    """The corpus that a run was trained on, found by its name, or where it was when the run began."""
    name, place, text = header["corpus"], header.get("place", header["corpus"]), header.get("text")
    places = [name] if name in BUILT_IN else [path for path in dict.fromkeys((name, place)) if Path(path).is_file()]
    if not places:
        raise FileNotFoundError(f"the run's text {name!r} is neither here nor at {place!r}, where it was")
    for path in places:
        corpus = replace(_read(path, header.get("examples"), tokenizer), name=name)
        if text in (None, corpus.digest):  # None: from before texts had a digest
            return corpus
    why = f"it was that of Python {header['python']}" if name in BUILT_IN else "the file has changed"
    raise ValueError(
        f"the run was trained on another text than {name!r} is now: {why}; put that back, or go on with another text "
        "knowingly: ml.train(load_checkpoint(path, corpus))"
    )


def _read(path: str, how: dict[str, Any] | None, tokenizer: Any) -> Any:
    """A text, or examples, of which the checkpoint says how they were read."""
    if how is None:
        return load_corpus(path)
    if how.get("kind") not in EXAMPLES or tokenizer is None:
        raise ValueError("the run's examples cannot be read again here: give them, load_checkpoint(path, examples)")
    return EXAMPLES[how["kind"]](path, tokenizer, **{key: value for key, value in how.items() if key != "kind"})
