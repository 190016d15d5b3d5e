"""The model that comes with the package: small, what its record says it is, and good enough to write English."""

import json

import numpy as np
import pytest

import minilora as ml
from minilora.nn.storage import BASE


def test_it_is_small_and_stored_in_16_bits():
    assert BASE.stat().st_size <= 2 * 10**6
    with np.load(BASE) as file:
        assert {file[name].dtype for name in file.files if name != "header"} == {np.dtype("float16")}


def test_its_record_says_how_it_was_made():
    record = json.loads(BASE.with_suffix(".json").read_text(encoding="utf-8"))
    model = ml.load_model("base")
    assert record["parameters"] == model.count() == 822_016
    assert record["corpus"] == "python-docs" and record["settings"]["steps"] == record["training"]["step"][-1]
    assert model.config.dropout == 0  # it was for the pretraining: who adapts the model chooses anew
    assert all(p.dtype == np.float32 for p in model.parameters())


@pytest.mark.slow
def test_it_has_learned_its_text():
    loss = ml.evaluate(ml.load_model("base"), ml.load_corpus("python-docs"))
    assert loss <= 1.2  # nats per character on held-out text; the text differs a little between versions of Python


@pytest.mark.slow
def test_lora_halves_its_loss_on_new_text():
    model, corpus = ml.load_model("base"), ml.load_corpus("unicode-names")
    before = ml.evaluate(model, corpus, 32)
    ml.add_lora(model, ml.LoRAConfig(rank=8, target_modules=("*",)))
    assert ml.evaluate(model, corpus, 32) == before
    settings = ml.Settings(steps=100, lr=1e-2, evaluate_every=100, evaluation_windows=8)
    ml.train(ml.Run(model, corpus, settings), progress=False)
    assert ml.evaluate(model, corpus, 32) < before / 2
