"""The study of fonts: what is shown and asked, how pictures are judged and measured, adapters mixed by blocks."""

from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.nn.diffusion import DiT, DiTConfig
from minilora.studies import style
from minilora.studies.runs import QUICK, Runs
from minilora.studies.style import StyleRuns, StyleSpec, judged, mixed, pixel_error, shown
from minilora.training.glyphs import CHARACTERS, FONTS, draw_glyphs

TINY = replace(QUICK, name="tiny", steps=2)


class Judge:
    """Says the same of every picture, or what a list says."""

    def __init__(self, labels, answers):
        self.labels, self.answers = labels, answers

    def predict(self, images):
        return np.resize(self.answers, len(images))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A tiny base in the place of the package's, and judges that answer in turns."""
    base = ml.save_diffusion(DiT(DiTConfig(n_layer=3, n_head=1, n_embd=8), rng=4), tmp_path / "letters.npz")
    monkeypatch.setattr(style, "load_diffusion", lambda name: ml.load_diffusion(base))
    judges = {"characters": Judge(tuple(CHARACTERS), [10, 11]), "fonts": Judge(FONTS, [FONTS.index("STIX"), 0, 0])}
    monkeypatch.setattr(style, "load_vision", judges.__getitem__)
    return StyleRuns(Runs(tmp_path / "runs", TINY, progress=False))


def test_a_seed_shows_more_of_the_same_characters():
    few, more = shown(StyleSpec(examples=10, seed=1)), shown(StyleSpec(examples=26, seed=1))
    assert more.startswith(few) and len(set(more)) == 26 and more != shown(StyleSpec(seed=2))


def test_a_pixel_error_is_of_the_move_that_fits_best():
    true = draw_glyphs("STIX", "AB", jitter=0).images
    assert pixel_error(true, true) == 0
    moved = np.roll(np.roll(true, 1, axis=1), -1, axis=2)
    assert pixel_error(moved, true) == pytest.approx(0, abs=1e-6)
    assert pixel_error(1 - true, true) > 0.5
    grey = np.full_like(true, 0.1)
    assert pixel_error(np.zeros_like(true), np.zeros_like(true) + grey) == pytest.approx(0.1, rel=0.1)


def test_only_characters_that_were_not_shown_are_asked_for_and_judged(small):
    spec = small.spec_of(0, font="STIX", examples=52)
    asked = style.rest_of(spec)
    assert not set(asked) & set(shown(spec)) and len(set(asked)) == 10 and len(asked) == 80
    found = judged(np.zeros((80, 16, 16)), spec)
    right, font = np.array(asked) == np.resize(["A", "B"], 80), np.resize([True, False, False], 80)
    assert found["character"] == right.mean() and found["font"] == font.mean()
    assert found["both"] == (right & font).mean()
    assert found["fonts"] == {FONTS[0]: 53, "STIX": 27}
    assert judged(np.zeros((80, 16, 16)), spec, FONTS[0])["font"] == pytest.approx(53 / 80)


def test_true_glyphs_stand_in_the_order_in_which_they_are_asked_for(small):
    spec = small.spec_of(0, examples=52)
    true, each = style.true_of(spec, "STIX", 0), draw_glyphs("STIX", style.rest_of(spec)[:10], jitter=0).images
    np.testing.assert_array_equal(true, np.concatenate([each] * 8))
    assert pixel_error(style.true_of(spec, "STIX", 1.0), true) > 0


def test_adapters_are_mixed_by_blocks(small):
    keep = {"lr": 0.05, "keep": True}
    one, two = small.spec_of(0, **keep), small.spec_of(0, font="STIX", **keep)
    alone = ml.delta_weights(small.model(one))
    both = mixed(small, {"one": one, "two": two}, {"one": 1.0, "two": 1.0}, lambda name, i: (name == "one") == (i < 1))
    found, other = ml.delta_weights(both), ml.delta_weights(small.model(two))
    for path, delta in found.items():
        first = path.startswith(("blocks.0", "patch_proj", "time_mlp"))
        np.testing.assert_allclose(delta, (alone if first else other)[path], atol=1e-6)
    mean = ml.delta_weights(mixed(small, {"one": one, "two": two}, {"one": 0.5, "two": 0.5}))
    np.testing.assert_allclose(mean[path], (alone[path] + other[path]) / 2, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["style", "style-blocks", "style-mixed"])
def test_a_study_in_quick_form_draws_its_figures(small, name, tmp_path, monkeypatch):
    from minilora.pictures.figures import FIGURES
    from minilora.studies.studies import STUDIES, run_study

    path = run_study(name, TINY, tmp_path / "data", tmp_path / "runs", progress=False)
    records = ml.studies.studies.load_records(name, path.parent)
    assert "LoRA" in STUDIES[name].__doc__ or "Adapters" in STUDIES[name].__doc__
    for needed, function in FIGURES.values():
        if needed == (name,):
            assert function(records).get_suptitle()


def test_the_best_rate_is_that_of_the_least_error_on_another_font(small, monkeypatch):
    def record(self, spec):
        taken.append((spec.lr, spec.seed, spec.font))
        error = {3e-3: 0.3, 1e-2: 0.2, 3e-2: 0.25, 1e-1: 0.4}[spec.lr]
        error = error if spec.font == style.CHOOSING else 1 - error
        return {"spec": vars(spec), "trainable": 7, "error": error, "pictures": style.packed(np.zeros((1, 2, 2)))}

    taken: list = []
    said = {"character": 0.9, "font": 0.5, "both": 0.4, "error": 0.1}
    monkeypatch.setattr(StyleRuns, "record", record)
    monkeypatch.setattr(style, "judged", lambda pictures, spec: said | {"both": 0.4 + spec.seed / 10})
    small.quick, small.scale = False, replace(TINY, seeds=(0, 1, 2))
    row = style.row_of(small, "lora", rank=16)
    assert row["lr"] == 1e-2 and row["both"] == pytest.approx(0.5) and row["both_spread"] == pytest.approx(0.1)
    assert row["each"] == {"character": [0.9] * 3, "font": [0.5] * 3}
    assert row["rates"] == {"0.003": 0.3, "0.01": 0.2, "0.03": 0.25, "0.1": 0.4} and row["fonts"] == list(style.TAUGHT)
    assert taken[:4] == [(rate, 0, style.CHOOSING) for rate in (3e-3, 1e-2, 3e-2, 1e-1)]
    assert taken[4:] == [(1e-2, seed, font) for seed, font in enumerate(style.TAUGHT)]
    assert style.CHOOSING not in style.TAUGHT
    assert row["rank"] == 16 and small.spec_of(0, rank=16).alpha == 32


def test_every_two_blocks_are_trained_together_and_none_in_a_quick_study(small, monkeypatch):
    taken: list = []
    monkeypatch.setattr(style, "row_of", lambda learners, name, **changes: taken.append(changes.get("targets")) or {})
    runs = Runs(small.folder, replace(TINY, seeds=(0, 1, 2)), progress=False)
    rows = style.study_style_blocks(runs)
    sets = [[], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]]
    assert [row["blocks"] for row in rows] == sets
    assert taken == [None, *(tuple(f"blocks.{i}.*" for i in blocks) for blocks in sets[1:])]
    rows = style.study_style_blocks(Runs(small.folder, TINY, progress=False))
    assert [row["blocks"] for row in rows] == [[], [0], [1], [2], [0, 1, 2]]
