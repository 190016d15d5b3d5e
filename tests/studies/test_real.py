"""The study of a real model: what a record holds, on a tiny model of its family, and on the fetched one."""

from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.lora import lora_layers
from minilora.nn.architectures import MODELS
from minilora.studies import real
from minilora.studies.runs import QUICK, Runs
from minilora.studies.studies import load_records, run_study

TINY = replace(QUICK, name="tiny", steps=2)


@pytest.fixture
def tiny(monkeypatch):
    """A small model of the family, which reads characters, in the place of the fetched one."""
    sizes = dict(vocab_size=96, layers=1, heads=2, kv_heads=1, width=8, mlp_width=9, context=400, head_dim=4)
    make = lambda *_: ml.Transformer(replace(MODELS["smollm2-135m"], **sizes))
    monkeypatch.setattr(real.pretrained, "load_pretrained", make)
    monkeypatch.setattr(real, "WINDOWS", 1)
    monkeypatch.setattr(real, "PAIRS", 20)
    return make


@pytest.mark.slow
def test_the_study_runs_and_a_row_holds_what_can_be_computed_otherwise(tiny, tmp_path):
    run_study("real", TINY, tmp_path, tmp_path / "runs", progress=False)
    rows = load_records("real", tmp_path)["rows"]
    assert [(row["lr"], row["steps"]) for row in rows] == [(2e-3, 0), (2e-3, 2)]
    came, first = rows[:2]
    assert came["asked"] == 2 and came["right"] == 0 and len(came["shown"]) == 2
    assert (
        came["seconds"] == 0 and first["processor_seconds"] >= 0 and first["processor"] and first["versions"]["numpy"]
    )
    model = ml.add_lora(tiny(), ml.LoRAConfig(2, target_modules=("*",)))
    assert first["trainable"] == model.count(trainable=True)
    pairs = real.load_task("sql", model.tokenizer, pairs=1)
    assert came["loss"] == pytest.approx(ml.evaluate(model, pairs, 3), abs=1e-5)  # B = 0: the model as it came
    assert came["old_loss"] == pytest.approx(ml.evaluate(model, real.english(model.tokenizer), 1), abs=1e-5)
    assert first["curve"]["step"] == [1, 2] and first["loss"] == first["curve"]["loss"][-1]
    monkey = pytest.MonkeyPatch()
    monkey.setattr(real.RealRuns, "_train", lambda *_: pytest.fail("a finished run was trained again"))
    run_study("real", TINY, tmp_path / "again", tmp_path / "runs", progress=False)
    monkey.undo()
    assert load_records("real", tmp_path / "again")["rows"] == rows


@pytest.mark.slow
def test_steps_are_those_that_train_takes(tiny):
    losses = []
    for way in ("here", "train"):
        model = ml.add_lora(tiny(), ml.LoRAConfig(2, target_modules=("*",)))
        run = ml.Run(model, real.load_task("sql", model.tokenizer, pairs=20), ml.Settings(4, 2, 1e-2, warmup=2))
        taken = list(real.trained(run, 4)) if way == "here" else ml.train(run, progress=False)
        assert way == "train" or taken == [0, 1, 2, 3, 4]
        losses.append(ml.evaluate(model, run.corpus, 8))
    assert losses[0] == losses[1]


def test_what_changed_in_few_numbers_is_what_the_dense_matrices_say(tiny):
    model = ml.add_lora(tiny(), ml.LoRAConfig(4, target_modules=("*",)))
    rng = np.random.default_rng(0)
    for layer in lora_layers(model).values():
        layer.lora_B.data = rng.normal(size=layer.lora_B.shape).astype(np.float32)
    found = real.changes(model)
    for path, layer in lora_layers(model).items():
        kind = path.split(".")[-1].removesuffix("_proj")
        dense = ml.analysis.rank.amplification(layer.weight.data, layer.delta(), 4)
        assert found["amplification"][kind] == pytest.approx(dense, rel=1e-3)
        assert found["energy_rank"][kind] == ml.analysis.rank.energy_rank(layer.delta())
    assert found["spectrum"][0] == 1 and len(found["spectrum"]) == 4


def test_the_english_is_prose():
    text = real.prose()
    assert 20_000 < len(text) < 500_000 and not set("{}=<>[]\\`*") & set(text)
    assert all(p[0].isupper() and p[-1] == "." and "\n" not in p for p in text.split("\n\n"))


@pytest.mark.model
def test_a_record_of_the_fetched_model(smollm2, tmp_path):
    runs = real.RealRuns(Runs(tmp_path, TINY, progress=False))
    spec = real.RealSpec(steps=2, rank=2, questions=2)
    record = runs.record(spec)
    assert record["asked"] == 2 and record["curve"]["step"] == [2] and 0 < record["loss"] < 2 < record["old_loss"] < 4
    assert runs.file(spec).exists()
