"""Every public function with every odd argument: a result that is right, or one line that names the function.

The functions and their parameters are read from the package, so a new one is swept as soon as it is there. GOOD says,
by name, what a parameter takes; a test says which name is missing.
"""

import contextlib
import importlib
import inspect
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from letters import Letters

import minilora as ml
from minilora.nn.module import Module
from minilora.training.corpus import Corpus

CONFIG = ml.GPTConfig(vocab_size=96, block_size=8, n_layer=1, n_head=2, n_embd=4)
VISION = ml.ViT(ml.ViTConfig(image_size=4, patch_size=2, n_layer=1, n_head=1, n_embd=2, labels=2))
ROOMS = ("analysis.rank", "analysis.counting")  # whose functions are documented beside those of the package


def text(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 96, n)


def model() -> ml.GPT:
    return ml.GPT(CONFIG)


def adapted(merged: bool = False) -> ml.GPT:
    m = ml.add_lora(model(), ml.LoRAConfig(rank=2))
    for p in m.parameters(trainable=True):
        p.data = p.data + 0.1
    if merged:
        ml.merge_lora(m)
    return m


def dit() -> ml.DiT:
    return ml.DiT(ml.DiTConfig(image_size=4, patch_size=2, n_layer=1, n_head=1, n_embd=4))


def corpus() -> Corpus:
    return Corpus("text", text(200), text(50))


def matrix(m: int = 4, n: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(m, n))


def settings() -> ml.Settings:
    return ml.Settings(steps=1, batch_size=2, evaluation_windows=1, warmup=0)


def leaf() -> ml.Tensor:
    return ml.Tensor(np.array([1.0, 2.0]), requires_grad=True)


def file(kind: str) -> Path:
    """A saved model or adapter in the test's own folder."""
    path = Path(f"{kind}.npz").absolute()
    if not path.exists():
        ml.save_model(model(), path) if kind == "model" else ml.save_adapter(adapted(), path)
    return path


def text_file() -> Path:
    """A text in the test's own folder."""
    path = Path("text.txt").absolute()
    path.write_text("a text of some words\n" * 20)
    return path


def pairs_file() -> Path:
    """Pairs in the test's own folder."""
    path = Path("pairs.jsonl").absolute()
    path.write_text("".join(f'{{"prompt": "{n}", "completion": "{n}"}}\n' for n in range(3)))
    return path


def labels_file() -> Path:
    """Texts with labels in the test's own folder."""
    path = Path("labels.jsonl").absolute()
    path.write_text("".join(f'{{"text": "{n}", "label": "{n % 2}"}}\n' for n in range(4)))
    return path


def picture_folder() -> Path:
    """A picture in a label's folder, in the test's own folder."""
    from PIL import Image

    path = Path("pictures/cat").absolute()
    path.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path / "a.png")
    return path.parent


def masked_folder() -> Path:
    """A picture with its mask, in the test's own folder."""
    from PIL import Image

    root = Path("scenes").absolute()
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(4, dtype=np.uint8)).save(root / name / "a.png")
    return root


def trained() -> tuple:
    m = adapted()
    return m, ml.AdamW(m.parameters())


def gradient() -> dict:
    x = leaf()
    return {"output": (x * x).sum(), "inputs": [x]}


def two_states() -> dict:
    name = "blocks.0.attn.q_proj.weight"
    return {"before": {name: matrix(seed=0)}, "after": {name: matrix(seed=1)}}


def lora_arrays() -> dict:
    W, A, B, x = matrix(3, 4), matrix(2, 4), matrix(3, 2), matrix(5, 4)
    return {"x": x, "W": W, "b": np.ones(3), "A": A, "B": B, "s": 2.0, "g": matrix(5, 3), "h": x @ A.T}


WRITERS = ("write_episodes", "reinforce_step", "reinforce")  # of so many texts, so long


def segmenter() -> ml.Segmenter:
    return ml.Segmenter(ml.SegmenterConfig(size=4, patch=2, width=2, layers=1, decoder_layers=1, heads=1, features=1))


GOOD = {  # a parameter's name, or a function's and its, -> what makes a value of it
    "model": model, "config": lambda: ml.LoRAConfig(rank=2), "GPT.config": lambda: CONFIG, "corpus": corpus,
    "Transformer.architecture": lambda: CONFIG,
    "settings": settings, "run": lambda: ml.Run(adapted(), corpus(), settings()), "tokens": lambda: text(6)[None],
    "targets": lambda: text(6)[None], "data": lambda: matrix(), "array": lambda: matrix(), "text": lambda: "some text",
    "weights": lambda: {"default": 1.0}, "names": lambda: ["default", None], "path": lambda: Path("new.npz").absolute(),
    "load_labels.path": labels_file, "load_pairs.path": pairs_file, "tokenizer": Letters,
    "folder": lambda: Path("new").absolute(), "place": lambda: ml.save_pretrained(model(), Path("others").absolute()),
    "load_model.path": lambda: file("model"), "load_adapter.path": lambda: file("adapter"),
    "parameters": lambda: adapted().parameters(), "name_or_path": text_file, "function": lambda: np.exp,
    "gradcheck.function": lambda: lambda x: (x * x).sum(), "gradcheck.inputs": lambda: [matrix()],
    "decode.tokens": lambda: text(6), "use_backend.name": lambda: "numpy", "set_adapter.name": lambda: "default",
    "matrix": matrix, "spectrum_or_matrix": matrix, "updates": lambda: {"blocks.0.attn.q_proj": matrix()},
    "A1": lambda: matrix(3, 5), "A2": lambda: matrix(3, 5, 1), "i": lambda: 2, "j": lambda: 2, "r": lambda: 2,
    "similarity_grid.i": lambda: 2, "weight": matrix, "delta": lambda: matrix(seed=1),
    "directions": lambda: matrix(seed=1),
    "ranks": lambda: [0, 1, 2], "records": lambda: ml.analysis.rank.summaries({"blocks.0.attn.q_proj": matrix()}),
    "product_svd.B": lambda: matrix(4, 2), "product_svd.A": lambda: matrix(2, 3), "count.name": lambda: "gpt2",
    "adapted_matrix.name": lambda: "q_proj.weight", "name": lambda: "gpt2",
    "save_segmenter.model": segmenter, "Segmenter.config": lambda: segmenter().config,
    "before": matrix, "after": lambda: matrix(seed=1),
    "PromptConfig.tokens": lambda: 2, "PrefixConfig.tokens": lambda: 2, "LastBlocksConfig.blocks": lambda: 1,
    "batches": lambda: [(text(6)[None], text(6)[None])],
    "add_classifier.labels": lambda: ["a", "b"], "texts": lambda: ["some", "text"],
    "vocab_size": lambda: 9, "block_size": lambda: 8, "n_layer": lambda: 1, "n_head": lambda: 2, "n_embd": lambda: 4,
    "best_cosines.k": lambda: 2, "intruder_dimensions.k": lambda: 2,
    "state": lambda: model().state_dict(), "get_module.name": lambda: "blocks.0", "astype.dtype": lambda: "float64",
    "draw.loss": lambda: (leaf() * leaf()).sum(), "draw.names": lambda: {"x": leaf()},
    "claim": lambda: "it holds", "condition": lambda: True, "answer": lambda: 1, "check.name": lambda: "5.2",
    "reward": lambda: len, "prompt": lambda: text(2), "reinforce.steps": lambda: 1,
    "reinforce_step.rng": lambda: np.random.default_rng(0),
    **{f"{name}.{size}": lambda: 2 for name in WRITERS for size in ("samples", "longest")},
    "image_folder.path": picture_folder, "scene_folder.path": masked_folder,
    "ViT.config": lambda: VISION.config, "save_vision.model": lambda: VISION,
    "load_vision.path": lambda: ml.save_vision(VISION, Path("vision.npz").absolute()),
    "fonts": lambda: ["STIX", "cmmi10"], "characters": lambda: "Ab", "draw_glyphs.size": lambda: 16,
    **{f"{name}.model": dit for name in ("save_diffusion", "train_diffusion", "draw_letters")},
    "DiT.config": lambda: dit().config, "load_diffusion.path": lambda: ml.save_diffusion(dit(), "dit.npz"),
    "glyphs": lambda: ml.draw_glyphs("STIX", "ab", size=4),
    "train_diffusion.steps": lambda: 1, "draw_letters.steps": lambda: 2,
    "max_new_tokens": lambda: 2, "optimizer": lambda: None, "output": lambda: None, "inputs": lambda: None,
    **dict.fromkeys(("x", "W", "b", "A", "B", "s", "g", "h"), lambda: None),
}  # fmt: skip


def together(name: str) -> dict:
    """The arguments of functions whose arguments must fit one another, or that want a model in a certain state."""
    if name in ("lora_forward", "lora_backward"):
        return {n: a for n, a in lora_arrays().items() if n in inspect.signature(getattr(ml, name)).parameters}
    if name == "grad":
        return gradient()
    if name in ("train_step", "reinforce_step", "reinforce"):
        m, optimizer = trained()
        return {"model": m, "optimizer": optimizer}
    if name in ("truncations", "truncate_update"):
        return two_states()
    if name in ("merge_adapter", "remove_adapter", "set_adapter", "adapter_disabled", "delta_weights", "rows_use",
                "combine_adapters", "save_adapter", "lora_plus", "requantize"):  # fmt: skip
        return {"model": adapted()}
    if name == "classify":
        return {"model": ml.add_classifier(model(), ["a", "b"])}
    if name == "unmerge_adapter":
        return {"model": adapted(merged=True)}
    if name == "fold_prefix":
        return {"model": ml.add_adapter(model(), ml.PrefixConfig(2, hidden=3))}
    return {}


def functions() -> dict:
    """{name: function or class}: everything callable in the face, and the functions of the documented rooms."""
    found = {name: getattr(ml, name) for name in ml.__all__ if callable(getattr(ml, name))}
    for room in ROOMS:
        module = importlib.import_module(f"minilora.{room}")
        own = {n: f for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__}
        found |= {f"{room}.{n}": f for n, f in own.items() if not n.startswith("_")}
    for owner, methods in METHODS.items():
        found |= {f"{owner}.{method}": getattr(getattr(ml, owner), method) for method in methods}
    return found


METHODS = {  # on an object
    "GPT": ["__call__", "loss", "generate", "load_state_dict", "get_module", "astype", "to"],
    "Transformer": ["__call__", "loss"],
}
OWNERS = {"GPT": model, "Transformer": lambda: ml.Transformer(CONFIG)}
FUNCTIONS = functions()


def defined_in(function) -> type:
    """The class that a method is written in."""
    return getattr(importlib.import_module(function.__module__), function.__qualname__.partition(".")[0])


def arguments(function) -> dict:
    """A good value for each parameter that has no default, or has a name in GOOD."""
    name, given = function.__name__, together(function.__name__)
    for parameter in inspect.signature(function).parameters.values():
        key, required = f"{name}.{parameter.name}", parameter.default is parameter.empty
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name in given:
            continue
        if parameter.name == "self":
            given["self"] = OWNERS[next(o for o in METHODS if issubclass(getattr(ml, o), defined_in(function)))]()
            continue
        if key in GOOD or (required and parameter.name in GOOD):
            given[parameter.name] = GOOD.get(key, GOOD.get(parameter.name))()
        elif not required:
            given[parameter.name] = parameter.default
    return given


ODD = {  # what nobody should give, but somebody does
    "None": lambda good: None,
    "a text": lambda good: "abc",
    "an empty text": lambda good: "",
    "bytes": lambda good: b"abc",
    "True": lambda good: True,
    "zero": lambda good: 0,
    "a negative number": lambda good: -1,
    "a fraction": lambda good: 2.5,
    "nan": lambda good: float("nan"),
    "infinity": lambda good: float("inf"),
    "a complex number": lambda good: 1 + 2j,
    "a large number": lambda good: 10**6,
    "an empty list": lambda good: [],
    "an empty dictionary": lambda good: {},
    "a list of texts": lambda good: ["a", "b"],
    "ragged lists": lambda good: [[1, 2], [3]],
    "a set": lambda good: {1, 2},
    "a generator": lambda good: (i for i in range(3)),
    "a function": lambda good: lambda *a: None,
    "a class": lambda good: ml.GPT,
    "its class": lambda good: type(good),
    "an object": lambda good: object(),
    "a tensor": lambda good: ml.Tensor([[1.0, 2.0]]),
    "a module": lambda good: ml.nn.layers.Linear(2, 2, True, np.random.default_rng(0)),
    "a model": lambda good: model(),
    "an array of another shape": lambda good: np.ones((2, 3, 4)),
    "an empty array": lambda good: np.zeros((0, 3)),
    "an array of texts": lambda good: np.array(["a", "b"]),
    "an object array": lambda good: np.array([object(), None]),
    "complex numbers": lambda good: np.ones((4, 3)) * 1j,
    "nan in an array": lambda good: np.full((4, 3), np.nan),
    "a masked array": lambda good: np.ma.masked_array(np.ones((4, 3)), np.eye(4, 3, dtype=bool)),
    "dates": lambda good: np.array(["2020-01-01"], dtype="datetime64[D]"),
}

FORMS = {  # the same value in another form: the same result, or refused
    "a matrix": lambda good: np.matrix(good),
    "a list": lambda good: np.asarray(good).tolist(),
    "a Tensor": lambda good: ml.Tensor(good),
    "in Fortran's order": lambda good: np.asfortranarray(good),
    "an object array": lambda good: np.asarray(good).astype(object),
    "nothing masked": lambda good: np.ma.masked_array(good),
    "backwards twice": lambda good: np.ascontiguousarray(np.asarray(good)[::-1])[::-1],
    "of another byte order": lambda good: good.astype(good.dtype.newbyteorder()),
    "read-only": lambda good: np.frombuffer(good.tobytes(), good.dtype).reshape(good.shape),
}

NAMES = {  # what an error may call a function besides its own name
    "AdamW": ["optimizer"], "SGD": ["optimizer"], "grad": ["backward"],
    "__call__": ["GPT", "Transformer", "embedding"], "loss": ["GPT", "Transformer", "embedding", "cross_entropy"],
    "to": ["astype"],
    "add_lora": ["add_adapter"], "add_adapter": ["add_lora"], "add_lora_ga": ["add_lora"],
}  # fmt: skip
LEFT_TO_OTHERS = {"lora_plus", "lora_forward", "lora_backward"}  # the optimiser refuses it; the equations as they stand
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of np.matrix
ALLOWED = (AttributeError, ValueError, TypeError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


def call(function, given):
    """The result, with context managers entered and left, and generators used up."""
    result = function(**given)
    if isinstance(result, contextlib.AbstractContextManager) and not isinstance(result, ml.GPT | Path):
        with result:
            return None
    return list(itertools.islice(result, 5)) if inspect.isgenerator(result) else result


def attempt(function, given) -> tuple[str, bool]:
    """What is wrong with the way in which a call ends, "" for a result or one clear line; and whether by an error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if function.__name__ in LEFT_TO_OTHERS:
                warnings.simplefilter("ignore", RuntimeWarning)
            call(function, given)
    except ALLOWED as error:
        if isinstance(error, AttributeError) and function.__name__ != "get_module":  # which is a getattr
            return f"AttributeError: {error!s:.150}", True
        words, names = str(error), [function.__name__, *NAMES.get(function.__name__, [])]
        names += [str(value) for value in given.values() if isinstance(value, Path) or isinstance(error, OSError)]
        if "\n" in words:
            return f"{type(error).__name__} of several lines: {words!r:.150}", True
        if not any(name in words for name in names):
            return f"{type(error).__name__} without the name: {words:.150}", True
        return "", True
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.150}", True
    return "", False


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Paths that are no paths end here, and the backend is NumPy again."""
    monkeypatch.chdir(tmp_path)
    with ml.use_backend("numpy"):
        yield


@pytest.mark.parametrize("name", FUNCTIONS)
def test_good_arguments_are_known_and_good(name):
    function = FUNCTIONS[name]
    given = arguments(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            assert parameter.name in given or parameter.default is not parameter.empty, (
                f"GOOD lacks {name}.{parameter.name}"
            )
    if name not in ("requantize", "check"):  # which want a quantised model with LoRA, and a lecture
        assert attempt(function, given) == ("", False)


def takes(function, parameter: str, kind: str) -> bool:
    """Whether a parameter's annotation speaks of integers, say."""
    return kind in str(inspect.signature(function).parameters[parameter].annotation).replace("'", "").split("|")[0]


def refused(function, parameter: str) -> list[str]:
    """The odd values that no parameter of that type may take."""
    if takes(function, parameter, "int"):
        return ["a text", "True", "a fraction", "nan", "a class", "an object array", "a model"]
    if takes(function, parameter, "float") and function.__name__ not in LEFT_TO_OTHERS:
        return ["a text", "nan", "True", "a complex number", "a class", "an object array", "a model"]
    if takes(function, parameter, "bool") or takes(function, parameter, "str"):
        return ["zero", "a fraction", "a class", "an object array", "a model", "a set"]
    return {"model": ["None", "a text", "a tensor", "a class", "an object array", "an empty dictionary"]}.get(
        parameter, []
    )


LONG = ("max_new_tokens", "steps", "samples", "copies", ("train_diffusion", "batch_size"))  # of a million: minutes


@pytest.mark.parametrize("part", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_odd_arguments(name, part):
    """33 values for each parameter: a result, or one line; for its type's opposites, the line; then nothing changed."""
    function, wrong = FUNCTIONS[name], []
    parameters = [parameter for parameter in arguments(function) if parameter != "self"]
    for parameter, (odd, make) in list(itertools.product(parameters, ODD.items()))[part::8]:
        given = arguments(function)
        if takes(function, parameter, "Callable") and callable(make(None)):
            continue  # what it does is for its author to say
        if odd == "a large number" and (parameter in LONG or (name, parameter) in LONG):
            continue  # which takes as long as it says
        given[parameter] = make(given[parameter])
        before, here = state(given), f"{name}({parameter} = {odd})"
        problem, ended = attempt(function, given)
        if problem:
            wrong.append(f"{here}: {problem}")
        if not ended and odd in refused(function, parameter):
            wrong.append(f"{here}: taken without a word")
        if ended and state(given) != before:
            wrong.append(f"{here}: refused, and the model is another one")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong)


def state(given: dict) -> list:
    """What a failed call must leave alone: the model, with its adapters and its numbers."""
    if not isinstance(m := given.get("model", given.get("self")), Module):
        return []
    return [repr(m), [(name, p.data.tobytes(), p.requires_grad) for name, p in m.named_parameters()]]


def numbers(result) -> list:
    """The numbers in a result, in the order in which they stand."""
    if isinstance(result, dict):
        return [n for value in result.values() for n in numbers(value)]
    if isinstance(result, list | tuple):
        return [n for value in result for n in numbers(value)]
    if isinstance(result, ml.Tensor | np.ndarray | float | int | np.generic):
        return np.asarray(ml.to_numpy(result), float).ravel().tolist()
    return [result.state_dict()] if isinstance(result, Module) else []


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in ("grad", "Tensor", "to_numpy", "quantize")])
def test_arrays_in_other_forms(name):
    """A matrix, a list, a Tensor, another order of bytes ...: the result of the plain array, or a refusal."""
    function, wrong = FUNCTIONS[name], []
    for parameter, (form, make) in itertools.product(arguments(function), FORMS.items()):
        given = arguments(function)
        if not isinstance(given[parameter], np.ndarray):
            continue
        expected = numbers(call(function, arguments(function)))
        given[parameter] = make(given[parameter])
        try:
            result = numbers(call(function, given))
        except ALLOWED as error:
            words = str(error)
            if not any(n in words for n in [function.__name__, *NAMES.get(function.__name__, [])]) or "\n" in words:
                wrong.append(f"{name}({parameter} = {form}): {words:.150}")
            continue
        except Exception as error:
            wrong.append(f"{name}({parameter} = {form}): {type(error).__name__}: {error!s:.150}")
            continue
        if not (len(result) == len(expected) and np.allclose(result, expected, rtol=1e-6)):
            wrong.append(f"{name}({parameter} = {form}): another result")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong)
