"""Every public function of the adapters with every odd argument: right, or one line that names the function."""

import inspect

import numpy as np
import pytest
from adapters.test_attach import LORA, TOKENS, adapted, base, logits, two

import minilora as ml
from minilora.adapters.lora import lora_layers
from minilora.adapters.state import adapter_parameters, base_parameters

ODD = {
    "None": None, "a number": 3, "a fraction": 0.5, "a complex number": 1j, "a text": "x", "no text": "", "bytes": b"x",
    "an object": object(), "a function": len, "a class": dict, "no tuple": (), "a list": [1, 2], "a dictionary": {},
    "a wrong dictionary": {1: "x"}, "a set": {1}, "an array": np.ones((2, 3)), "text in an array": np.array(["x"]),
    "a tensor": ml.Tensor(np.ones(2)), "a generator": (i for i in ()), "NaN": float("nan"), "a model": ml.GPT,
    "a negative number": -1, "nothing in a list": [None], "a masked array": np.ma.array([1.0], mask=[True]),
}  # fmt: skip
W, A, B = np.ones((4, 3)), np.ones((2, 3)), np.ones((4, 2))
LOW = ml.LoRAConfig(rank=2)
x, g, bias, h = np.ones((5, 3)), np.ones((5, 4)), np.ones(4), np.ones((5, 2))


def prefixed():
    return ml.add_adapter(base(), ml.PrefixConfig(1, hidden=2))


def entered(block):
    with block as value:
        return value


CALLS = {  # name -> (the function, what makes its arguments, by name; other names that errors may say)
    "add_adapter": (ml.add_adapter, lambda p: dict(model=base(), config=LORA, rng=0, name="n")),
    "add_lora": (ml.add_lora, lambda p: dict(model=base(), config=LORA, rng=0, name="n"), "add_adapter"),
    "set_adapter": (ml.set_adapter, lambda p: dict(model=two(), name="a")),
    "merge_adapter": (ml.merge_adapter, lambda p: dict(model=adapted(), safe=True)),
    "unmerge_adapter": (ml.unmerge_adapter, lambda p: dict(model=merged())),
    "remove_adapter": (ml.remove_adapter, lambda p: dict(model=two(), name="a")),
    "adapter_disabled": (lambda model: entered(ml.adapter_disabled(model)), lambda p: dict(model=adapted())),
    "save_adapter": (ml.save_adapter, lambda p: dict(model=adapted(), path=p / "new.npz", name="default")),
    "load_adapter": (ml.load_adapter, lambda p: dict(model=base(), path=p / "a.npz", name="n")),
    "delta_weights": (ml.delta_weights, lambda p: dict(model=adapted())),
    "combine_adapters": (
        ml.combine_adapters, lambda p: dict(model=two(), weights={"a": 1.0}, how="svd", rank=2, name="n"),
    ),
    "rows_use": (lambda model, names: entered(ml.rows_use(model, names)), lambda p: dict(model=two(), names=["a"])),
    "quantize_model": (
        ml.quantize_model, lambda p: dict(model=base(), kind="nf4", block=16, double=True, target_modules="*"),
    ),
    "requantize": (ml.requantize, lambda p: dict(model=adapted(model=ml.quantize_model(base(), block=16)))),
    "quantize": (ml.quantize, lambda p: dict(array=W, kind="nf4", block=16, double=True)),
    "fold_prefix": (ml.fold_prefix, lambda p: dict(model=prefixed())),
    "lora_plus": (ml.lora_plus, lambda p: dict(model=adapted(), ratio=4.0)),
    "lora_layers": (lora_layers, lambda p: dict(model=adapted())),
    "adapter_parameters": (adapter_parameters, lambda p: dict(model=adapted())),
    "base_parameters": (base_parameters, lambda p: dict(model=adapted())),
    "lora_forward": (ml.lora_forward, lambda p: dict(x=x, W=W, b=bias, A=A, B=B, s=2.0)),
    "lora_backward": (ml.lora_backward, lambda p: dict(g=g, x=x, h=h, W=W, A=A, B=B, s=2.0)),
    "PromptConfig": (ml.PromptConfig, lambda p: dict(tokens=2, init="vocabulary", text=(1, 2))),
    "PrefixConfig": (ml.PrefixConfig, lambda p: dict(tokens=2, init="vocabulary", text=(1, 2), hidden=None)),
    "HoulsbyConfig": (ml.HoulsbyConfig, lambda p: dict(bottleneck=2, adapter_norm=False, activation="relu")),
    "PfeifferConfig": (ml.PfeifferConfig, lambda p: dict(bottleneck=2, adapter_norm=True, activation="gelu")),
    "LastBlocksConfig": (ml.LastBlocksConfig, lambda p: dict(blocks=1)),
    "IA3Config": (
        ml.IA3Config,
        lambda p: dict(target_modules=("q_proj",), feedforward_modules=(), exclude_modules=(), modules_to_save=()),
    ),
    "VeRAConfig": (
        ml.VeRAConfig, lambda p: dict(rank=2, target_modules="*", dropout=0.1, seed=0, d_initial=0.1),
    ),
    "MiSSConfig": (ml.MiSSConfig, lambda p: dict(rank=2, target_modules="*", dropout=0.1)),
    "add_lora_ga": (
        ml.add_lora_ga,
        lambda p: dict(model=base(), config=LOW, batches=[(TOKENS, TOKENS)], rng=0, name="n", gamma=9.0),
        "add_lora", "add_adapter",
    ),
}  # fmt: skip


def merged():
    model = adapted()
    ml.merge_adapter(model)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_odd_arguments(name, tmp_path, recwarn, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a path of "x" is a good one
    ml.save_adapter(adapted(), tmp_path / "a.npz")
    function, make, *others = CALLS[name]
    assert function(**make(tmp_path)) is not NotImplemented  # as it is meant, it works
    for argument in make(tmp_path):
        for kind, odd in ODD.items():
            arguments = make(tmp_path)
            model = arguments.get("model")
            before = logits(model) if argument != "model" and model is not None else None
            arguments[argument] = odd
            try:
                function(**arguments)
            except (ValueError, TypeError, OSError) as error:
                said = str(error)
                assert "\n" not in said, (argument, kind, said)
                named = any(word in said for word in (name, *others)) or (
                    isinstance(error, OSError) and argument == "path"
                )
                assert named, (argument, kind, type(error), said)
                assert len(said) < 400, (argument, kind, said)
                if before is not None:
                    np.testing.assert_array_equal(logits(model), before)
            except Exception as error:
                raise AssertionError(f"{name}({argument}={kind}): {type(error).__name__}: {error}") from error


def test_the_table_has_every_public_function_of_the_face():
    """A function that is added to the adapters' part of the face must be tried, too."""
    face = {n for n in ml.__all__ if getattr(getattr(ml, n), "__module__", "").startswith("minilora.adapters")}
    same = {"merge_lora": "merge_adapter", "unmerge_lora": "unmerge_adapter", "remove_lora": "remove_adapter",
            "lora_disabled": "adapter_disabled"}  # fmt: skip
    # LoRA's: test_targets.py; the last two have no settings
    others = {"LoRAConfig", "DoRAConfig", "LoRAFAConfig", "FullConfig", "BitFitConfig"}
    assert {same.get(n, n) for n in face} - others <= CALLS.keys()
    assert all(not inspect.signature(kind).parameters for kind in (ml.FullConfig, ml.BitFitConfig))
