"""The judges: what the shipped ones get right, that training is the same again, and what is refused."""

import numpy as np
import pytest

import minilora as ml
from minilora.nn.vision import OURS
from minilora.training import judges
from minilora.training.glyphs import CHARACTERS, FONTS, HELD_OUT, draw_glyphs
from minilora.training.judges import SEEN, accuracy, report, train_judge, worn


def test_the_judge_of_characters_reads_fonts_that_it_never_saw():
    judge = ml.load_vision("characters")
    assert judge.labels == tuple(CHARACTERS) and not {*SEEN} & {*HELD_OUT} and len(SEEN) == 15
    assert accuracy(judge, draw_glyphs(HELD_OUT, copies=2, rng=7), "characters") >= 0.95
    assert accuracy(judge, draw_glyphs(HELD_OUT, jitter=0), "characters") >= 0.95


def test_the_judge_of_fonts_knows_all_fonts():
    judge = ml.load_vision("fonts")
    assert judge.labels == FONTS
    assert accuracy(judge, draw_glyphs(copies=1, rng=7), "fonts") >= 0.8


def test_shipped_files_are_small():
    assert all(path.stat().st_size < 2**20 for path in OURS.values())


def test_worn_glyphs_are_glyphs_still():
    images = draw_glyphs("STIX").images
    rng = np.random.default_rng(0)
    found = worn(images, rng)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    assert 0.01 < np.abs(found - images).mean() < 0.2
    assert (worn(images, rng, by=0.0) == images).all()
    assert np.abs(worn(images, np.random.default_rng(0), by=0.5) - images).mean() < np.abs(found - images).mean()


@pytest.mark.slow
@pytest.mark.parametrize("what", OURS)
def test_training_is_the_same_again(what, monkeypatch):
    monkeypatch.setattr(judges, "COPIES", 1)
    fonts = ("STIX", "DejaVu Sans")
    first, again, other = (train_judge(what, steps=3, seed=seed, fonts=fonts) for seed in (0, 0, 1))
    assert all(np.array_equal(p.data, q.data) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not np.array_equal(p.data, q.data) for p, q in zip(first.parameters(), other.parameters(), strict=True))
    assert first.labels == (fonts if what == "fonts" else tuple(CHARACTERS))


@pytest.mark.slow
def test_what_is_written_is_what_was_trained(tmp_path, monkeypatch, capsys):
    trained = {
        what: ml.ViT(ml.ViTConfig(n_embd=8, n_layer=1, labels=62 if what == "characters" else 20)) for what in OURS
    }
    monkeypatch.setattr(judges, "train_judge", trained.get)
    judges.main(tmp_path)
    for what, path in OURS.items():
        written = ml.load_vision(tmp_path / path.name)
        assert np.allclose(written.class_token.data, trained[what].class_token.data, atol=1e-4)
    assert "characters: {'fresh': " in capsys.readouterr().out


def test_a_report_says_what_was_held_out():
    model = ml.ViT(ml.ViTConfig(n_embd=8, n_layer=1))
    assert report(model, "characters").keys() == {"fresh", "held out"}


def test_another_judge_is_refused():
    with pytest.raises(ValueError, match=r"^train_judge: what = 'sizes', expected one of characters, fonts"):
        train_judge("sizes")
