"""The study of a classifier that learns Greek: what each method trains, what is measured, and what is matched."""

import numpy as np
import pytest

import minilora as ml
from minilora.studies import images
from minilora.studies.images import CHOOSING, GREEK, LEARNING, METHODS, TESTING, learning, matched, old_errors, prepared
from minilora.studies.runs import FULL, QUICK, Runs
from minilora.training.glyphs import CHARACTERS, FONTS, HELD_OUT, draw_glyphs


@pytest.fixture
def base():
    """A small classifier of characters, of four blocks as the shipped one."""
    model = ml.ViT(ml.ViTConfig(n_embd=8, n_head=2), rng=1)
    model.labels = tuple(CHARACTERS)
    return model


def test_fonts_are_apart():
    assert len(LEARNING) == 10 and len(CHOOSING) == len(TESTING) == 3 and set(TESTING) <= set(HELD_OUT)
    assert not {*LEARNING} & {*CHOOSING} and not {*TESTING} & {*LEARNING, *CHOOSING}
    assert {*LEARNING, *CHOOSING, *TESTING} <= {*FONTS} and len(set(GREEK)) == 24
    assert len(draw_glyphs([*LEARNING, *CHOOSING, *TESTING], GREEK)) == 16 * 24  # all have them


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_trains(base, method):
    model = prepared(base, method, 0)
    trained = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.startswith("classifier") for name in trained) and model.labels == tuple(GREEK)
    inside = {name for name in trained if not name.startswith("classifier")}
    if method == "head":
        assert not inside
    elif method == "last block":
        assert inside and all(name.startswith(("blocks.3", "ln_f")) for name in inside)
    elif method == "lora":
        assert {f"blocks.{i}.mlp.up_proj" for i in range(4)} < inside
    else:
        assert len(trained) == len(base.parameters())
    assert base.labels == tuple(CHARACTERS) and base.config.labels == 62


def test_the_old_head_reads_the_new_blocks(base):
    glyphs = draw_glyphs("STIX")
    wrong = float((base.predict(glyphs.images) != glyphs.character).mean())
    for method in METHODS:  # at the start nothing is forgotten
        assert old_errors(prepared(base, method, 0), base, glyphs.images, glyphs.character) == wrong


@pytest.mark.slow
def test_a_run_is_the_same_again_and_says_its_way(base):
    first, again = (learning(base, "lora", 1, 1e-2, 0, 4) for _ in range(2))
    assert first == again and first["curve"]["step"] == [0, 1, 2, 3, 4]
    assert first["error"] == first["curve"]["loss"][-1] and 0 <= first["chosen_by"] <= 1
    assert learning(base, "lora", 1, 1e-2, 1, 4) != first


def test_rates_are_tried_with_the_first_seed_and_the_best_with_the_others(base, monkeypatch):
    run = lambda base, method, examples, lr, seed, steps: {"lr": lr, "seed": seed, "chosen_by": abs(lr - 0.02)}
    monkeypatch.setattr(images, "learning", run)
    pairs = lambda every: [
        (r["lr"], r["seed"]) for r in images.tried(base, "full", 1, Runs(scale=FULL), (0.01, 0.02), every)
    ]
    assert pairs(False) == [(0.01, 0), (0.02, 0), (0.02, 1), (0.02, 2)]
    assert sorted(pairs(True)) == [(lr, seed) for lr in (0.01, 0.02) for seed in (0, 1, 2)]


def test_forgetting_is_matched_at_equal_error():
    run = lambda seed, old: {"seed": seed, "curve": {"loss": [1.0, 0.5, 0.2], "old_loss": [0.1, old, old + 0.1]}}
    kept = {"lora": [run(0, 0.1), run(1, 0.2)], "full": [run(0, 0.4), run(1, 0.5)]}
    found = matched(kept)
    assert [at["error"] for at in found["lora"]] == [at["error"] for at in found["full"]]
    last = found["lora"][-1]
    assert last["error"] == pytest.approx(0.2) and np.allclose(last["old"], [0.2, 0.3])


@pytest.mark.slow
def test_the_study_runs_to_its_end(base, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "load_vision", lambda name: base)
    rows = images.study_images(Runs(tmp_path, QUICK, progress=False))
    assert [(row["method"], row["examples"]) for row in rows] == [(m, n) for n in (1, 10) for m in METHODS]
    assert [bool(row["matched"]) for row in rows] == [False] * 5 + [True] * 3
