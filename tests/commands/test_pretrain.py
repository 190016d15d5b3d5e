"""`minilora pretrain`: the model, its record, and the same bytes from the same seed."""

import contextlib
import json
import platform

import numpy as np
import pytest
from lines import QUICK, SIZES, the_error

import minilora as ml
from minilora.commands import pretrain
from minilora.commands.main import main
from minilora.nn.storage import load_arrays


def test_pretrain_writes_a_model_and_its_record(base, capsys):
    record = json.loads((base.parent / "base.json").read_text())
    model, corpus = ml.load_model(base), ml.load_corpus("text.txt")
    assert (record["steps"], record["seed"], record["corpus"]) == (4, 0, "text.txt")
    assert record["validation_loss"] == pytest.approx(ml.evaluate(model, corpus), abs=1e-5)
    assert record["training"]["step"] == [1, 2, 3, 4] and len(record["training"]["loss"]) == 4
    assert record["config"]["n_embd"] == 8 and record["parameters"] == model.count()
    assert record["versions"]["numpy"] == np.__version__
    assert record["python"] == platform.python_version() == load_arrays(base, "model")[1]["python"]
    with np.load(base) as file:
        assert file["wte.weight"].dtype == np.float16
    assert sorted(p.name for p in base.parent.iterdir()) == ["base.json", "base.npz", "text.txt"]


def test_pretrain_leaves_its_dropout_behind(here):
    main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--dropout", "0.2", "--output", "b.npz"])
    assert json.loads((here / "b.json").read_text())["config"]["dropout"] == 0.2
    assert ml.load_model("b.npz").config.dropout == 0


def test_the_same_seed_gives_the_same_file(base):
    first = base.read_bytes()
    main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--output", "base.npz"])
    assert base.read_bytes() == first
    main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--seed", "1", "--output", "base.npz"])
    assert base.read_bytes() != first


@pytest.mark.parametrize(
    "sizes", [["--layers", "99999999"], ["--width", "99999996"], ["--context", "99999999"], ["--layers", "9" * 30]]
)
def test_a_model_that_the_memory_cannot_hold_is_refused_at_once(sizes, here, capsys, monkeypatch):
    monkeypatch.setattr(ml, "GPT", lambda *args, **how: pytest.fail("began to build it"))
    line = the_error(capsys, "pretrain", "--corpus", "text.txt", *sizes)
    assert "not enough memory" in line and "parameters take" in line and "GiB to train, of " in line


def test_what_the_memory_can_hold_is_counted_as_the_model_has_it(monkeypatch):
    for layers in (1, 2, 5):
        config = ml.GPTConfig(96, 16, layers, 2, 8)
        needed = 16 * ml.GPT(config).count()
        for free, enough in ((needed, True), (needed - 1, False)):
            monkeypatch.setattr(pretrain.os, "sysconf", lambda name, free=free: free if name == "SC_PHYS_PAGES" else 1)
            with contextlib.nullcontext() if enough else pytest.raises(MemoryError):
                pretrain.require_memory(config)
