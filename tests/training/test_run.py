"""What a run is made of: settings that are checked where they are given, a model that can be trained, a text."""

import dataclasses
import json

import numpy as np
import pytest

import minilora as ml
from minilora.training.run import RULES

DOCUMENTED = {
    "steps": 200, "batch_size": 16, "lr": 3e-3, "warmup": 20, "floor": 0.1, "betas": (0.9, 0.99),
    "weight_decay": 0.01, "max_norm": 1.0, "evaluate_every": 50, "evaluation_windows": 64, "checkpoint_every": 200,
    "seed": 0, "lr_ratio": 1.0, "pieces": None, "accumulate": 1, "checkpoint_blocks": False, "window": None,
    "shard": False,
}  # fmt: skip
WHOLE = [
    "steps",
    "batch_size",
    "warmup",
    "evaluate_every",
    "evaluation_windows",
    "checkpoint_every",
    "seed",
    "pieces",
    "accumulate",
    "window",
]
REAL = ["lr", "floor", "weight_decay", "max_norm", "lr_ratio"]
ODD = [-1, float("nan"), "a", "3", True, np.bool_(True), 1j, [3], (0.9,), {}, np.arange(2), ml.Tensor(3.0), object()]


def test_settings_that_are_not_given():
    assert dataclasses.asdict(ml.Settings()) == DOCUMENTED
    assert RULES.keys() == DOCUMENTED.keys()


@pytest.mark.parametrize("name", ["steps", "batch_size", "evaluate_every", "checkpoint_every", "evaluation_windows"])
def test_wrong_settings(name):
    with pytest.raises(ValueError, match=f"Settings: {name} = 0, expected 1 or more"):
        ml.Settings(**{name: 0})


def odd_settings():
    for name in DOCUMENTED:
        truths = 2 if name in ("checkpoint_blocks", "shard") else 0  # True is one of the odd values elsewhere
        yield from ((name, value) for value in ODD if not (truths and isinstance(value, bool | np.bool_)))
        yield from ((name, value) for value in ([2.5, float("inf"), np.float64(3.0)] if name in WHOLE else []))
        yield from ((name, None) for _ in range(name not in ("evaluation_windows", "max_norm", "pieces", "window")))
    yield from [
        ("lr", float("inf")),
        ("floor", 1.01),
        ("lr_ratio", 0),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9, 0.9, 0.9)),
    ]
    yield from [("betas", ("a", 0.9)), ("betas", 0.9), ("lr", 10**400), ("max_norm", -float("inf")), ("pieces", 0)]


@pytest.mark.slow
@pytest.mark.parametrize("name, value", list(odd_settings()), ids=lambda value: repr(value)[:17])
def test_settings_that_make_no_sense_are_named_when_given_and_when_changed(name, value):
    expected = rf"^Settings: {name} = .+, expected "
    with pytest.raises((TypeError, ValueError), match=expected) as error:
        ml.Settings(**{name: value})
    assert "\n" not in str(error.value)
    settings = ml.Settings()
    with pytest.raises((TypeError, ValueError), match=expected):
        setattr(settings, name, value)
    assert dataclasses.asdict(settings) == DOCUMENTED


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16, int])
def test_numpys_whole_numbers_are_numbers(kind):
    settings = ml.Settings(**{name: kind(3) for name in WHOLE}, **{name: np.float32(0.5) for name in REAL})
    assert all(type(getattr(settings, name)) is int for name in WHOLE)
    assert all(type(getattr(settings, name)) is float for name in REAL)
    assert json.loads(json.dumps(dataclasses.asdict(settings)))["steps"] == 3  # as a checkpoint holds them
    assert ml.Settings(betas=[np.float64(0.5), 0]).betas == (0.5, 0.0)


def test_what_may_be_left_out():
    settings = ml.Settings(evaluation_windows=None, max_norm=None, pieces=None, lr=0, weight_decay=0, warmup=0, floor=1)
    assert (settings.evaluation_windows, settings.max_norm, settings.pieces) == (None, None, None)
    assert ml.Settings(max_norm=float("inf")).max_norm == float("inf")


def test_a_misspelt_setting_is_named():
    settings = ml.Settings()
    with pytest.raises(AttributeError, match="Settings: there is no 'step'; there are steps, batch_size"):
        settings.step = 3
    with pytest.raises(TypeError, match="step"):
        ml.Settings(step=3)


# Runs


def test_a_run_by_the_name_of_its_text(make_model, text_path):
    run = ml.Run(make_model(), str(text_path))
    assert run.corpus.name == str(text_path)
    assert run.settings == ml.Settings()
    assert repr(run) == f"Run(GPT on {str(text_path)!r}, step 0 of 200)"
    run.validation["loss"].append(2.5)
    assert repr(run).endswith("step 0 of 200, validation loss 2.500)")


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"model": "base"}, TypeError, r"Run: model is 'base', expected one such as ml\.load_model"),
        ({"model": None}, TypeError, "Run: model is None"),
        ({"corpus": None}, TypeError, r"Run: corpus is None, expected one such as ml\.load_corpus\('unicode-names'\)"),
        ({"corpus": np.arange(9)}, TypeError, "Run: corpus is a ndarray"),
        ({"corpus": "unicode-name"}, FileNotFoundError, "did you mean 'unicode-names'"),
        ({"settings": {"steps": 3}}, TypeError, r"Run: settings is a dict, expected ml\.Settings\(steps=200\)"),
        ({"settings": 200}, TypeError, "Run: settings is 200"),
    ],
)
def test_odd_runs(make_model, corpus, change, error, message):
    with pytest.raises(error, match=message):
        ml.Run(**{"model": make_model(), "corpus": corpus, "settings": ml.Settings(), **change})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_is_not_trained(make_model, corpus, value):
    """Even where no batch would show it: the embedding of a character that is never read."""
    model = make_model()
    model.wte.weight.data[95, 3] = value
    with pytest.raises(ValueError, match=rf"Run: wte\.weight: entry \(95, 3\) is {value}, which training would spread"):
        ml.Run(model, corpus)
