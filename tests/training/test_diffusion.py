"""Noise and what is left of a picture, one step of DDIM, guidance, training that helps, and what is refused."""

import numpy as np
import pytest

import minilora as ml
from minilora.nn.diffusion import LETTERS, DiT, DiTConfig
from minilora.training import diffusion
from minilora.training.diffusion import add_noise, ddim_step, draw_letters, guided, kept, make_letters, train_diffusion
from minilora.training.glyphs import CHARACTERS, draw_glyphs

TINY = DiTConfig(image_size=8, patch_size=4, classes=62, n_layer=1, n_head=2, n_embd=16)


def trained_a_bit(steps=1):
    model = DiT(TINY)
    train_diffusion(model, draw_glyphs("DejaVu Sans", "abc", size=8), steps, batch_size=8, rng=1)
    return model


def test_the_schedule_is_the_cosine_down_to_nearly_nothing():
    a, t = kept(), np.array([0, 250, 500, 999])
    f = np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(a[t], f / f[0], rtol=1e-12)
    assert len(a) == 1001 and (np.diff(a) < 0).all() and 0 < a[-1] < 1e-8
    assert a[-1] / a[-2] == pytest.approx(0.001)  # where the cosine would leave nothing


def test_noise_keeps_the_variance_and_v_gives_picture_and_noise_back():
    rng, times = np.random.default_rng(0), np.array([1, 400, 1000])
    images, noise = rng.choice([-1.0, 1.0], (3, 64, 64)), rng.standard_normal((3, 64, 64))
    noisy, v = add_noise(images, noise, times)
    np.testing.assert_allclose((noisy**2).mean((1, 2)), 1, atol=0.05)
    a, b = (np.sqrt(share)[:, None, None] for share in (kept()[times], 1 - kept()[times]))
    np.testing.assert_allclose(a * noisy - b * v, images, atol=1e-5)
    np.testing.assert_allclose(b * noisy + a * v, noise, atol=1e-5)


@pytest.mark.parametrize("now, then", [(1000, 950), (500, 20), (50, 0)])
def test_a_step_with_the_true_v_goes_to_the_same_picture_and_noise_at_the_earlier_time(now, then):
    rng = np.random.default_rng(0)
    images, noise = rng.uniform(-1, 1, (2, 8, 8)), rng.standard_normal((2, 8, 8))
    noisy, v = add_noise(images, noise, now)
    np.testing.assert_allclose(ddim_step(noisy, v, now, then), add_noise(images, noise, then)[0], atol=1e-5)


def test_a_picture_out_of_bounds_is_cut_and_what_is_left_over_is_noise():
    x, v = np.full((1, 8, 8), 3.0), np.zeros((1, 8, 8))
    assert (ddim_step(x, v, 100, 0) == 1).all()
    a, s = kept()[100], kept()[50]
    noise = (3 - np.sqrt(a)) / np.sqrt(1 - a)
    np.testing.assert_allclose(ddim_step(x, v, 100, 50), np.sqrt(s) + np.sqrt(1 - s) * noise, rtol=1e-5)


def test_guidance_is_a_line_through_what_the_model_says_with_and_without_a_class():
    model, x = trained_a_bit(5), np.random.default_rng(0).standard_normal((2, 8, 8), dtype="float32")
    named, unnamed = model(x, 700, [1, 2]).data, model(x, 700).data
    assert np.abs(named - unnamed).max() > 1e-4
    np.testing.assert_array_equal(guided(model, model, x, 700, np.array([1, 2]), 0.0), named)
    both = guided(model, model, x, 700, np.array([1, 2]), 2.0)
    np.testing.assert_allclose(both, 3 * named - 2 * unnamed, rtol=1e-5, atol=1e-6)


def test_what_is_led_away_from_may_be_another_model_s_picture_without_a_class():
    model, base, classes = trained_a_bit(5), DiT(TINY, rng=3), np.array([1, 2])
    base.head.weight.data += 0.1
    x = np.random.default_rng(3).standard_normal((2, 8, 8), dtype="float32")
    v = 2 * model(x, 1000, classes).data - base(x, 1000).data
    drawn = draw_letters(model, "12", steps=1, guidance=1.0, rng=3, away_from=base)
    np.testing.assert_allclose(drawn, (ddim_step(x, v, 1000, 0) / 2 + 0.5).clip(0, 1), atol=1e-5)
    plain = draw_letters(model, "12", steps=3, rng=3)
    assert np.abs(draw_letters(model, "12", steps=3, rng=3, away_from=base) - plain).max() > 1e-3
    np.testing.assert_array_equal(draw_letters(model, "12", steps=3, rng=3, away_from=model), plain)


def test_letters_are_drawn_again_from_the_same_seed_each_from_noise_of_its_own():
    model = trained_a_bit()
    way = draw_letters(model, "aab", steps=4, rng=3, on_the_way=True)
    assert way.shape == (5, 3, 8, 8) and way.min() >= 0 and way.max() <= 1
    np.testing.assert_array_equal(draw_letters(model, ["a", "a", "b"], steps=4, rng=3), way[-1])
    assert np.abs(way[-1, 0] - way[-1, 1]).max() > 1e-3
    noise = np.random.default_rng(3).standard_normal((3, 8, 8), dtype="float32")
    np.testing.assert_allclose(way[0], (noise / 2 + 0.5).clip(0, 1))
    assert draw_letters(model, "", rng=np.random.default_rng(0)).shape == (0, 8, 8)


def test_training_repeats_and_leaves_what_is_frozen(monkeypatch):
    glyphs = draw_glyphs("DejaVu Sans", "abc", size=8)
    one, two = DiT(TINY), DiT(TINY)
    losses = train_diffusion(one, glyphs, steps=3, batch_size=8, rng=2, pieces=1)
    assert losses == train_diffusion(two, glyphs, steps=3, batch_size=8, rng=np.random.default_rng(2), pieces=1)
    ml.add_lora(one, ml.LoRAConfig(rank=2, target_modules="*"))
    train_diffusion(one, glyphs, steps=2, batch_size=8)
    assert any(delta.any() for delta in ml.delta_weights(one).values())
    ml.remove_lora(one)
    for name, value in one.state_dict().items():
        np.testing.assert_array_equal(value, two.state_dict()[name])


def test_some_pictures_lose_their_class_and_each_has_its_own_time(monkeypatch):
    seen = []
    monkeypatch.setattr(diffusion, "train_step", lambda model, opt, inputs, v, **rest: seen.append((*inputs, v)) or 1.0)
    model, rng = DiT(TINY), np.random.default_rng(0)
    diffusion.diffusion_step(model, None, np.zeros((2000, 8, 8)), np.full(2000, 7), rng)
    noisy, times, classes, v = seen[0]
    assert times.min() == 1 and times.max() == 1000 and set(classes) == {7, model.none}
    assert 0.07 < (classes == model.none).mean() < 0.13
    a = kept()[times]
    np.testing.assert_allclose(
        v, np.sqrt(a / (1 - a))[:, None, None] * noisy, rtol=1e-3, atol=1e-5
    )  # of a grey picture


@pytest.mark.slow
def test_a_model_learns_to_draw_three_letters():
    """Each drawn letter is nearer to its own true picture, moved by a pixel at most, than to any other's."""
    model = DiT(DiTConfig(image_size=8, patch_size=4, n_layer=2, n_head=2, n_embd=32))
    glyphs = draw_glyphs("DejaVu Sans Bold", "ILO", size=8, copies=8, jitter=0.5)
    losses = train_diffusion(model, glyphs, steps=250, batch_size=32, lr=5e-3)
    assert np.mean(losses[-20:]) < 0.35 * np.mean(losses[:5])
    drawn, own = draw_letters(model, "ILO" * 4, guidance=1.0), glyphs.images.reshape(3, 8, -1)
    errors = ((drawn.reshape(12, 1, 1, -1) - own) ** 2).mean(-1).min(-1)  # (12, 3)
    assert (errors.argmin(1) == np.tile([0, 1, 2], 4)).mean() >= 0.9


@pytest.mark.slow
def test_the_package_s_model_is_made_by_one_call(tmp_path):
    model = make_letters(tmp_path / "a.npz", steps=1, progress=False)
    assert model.config == DiTConfig() and (tmp_path / "a.npz").stat().st_size < 2e6


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: draw_letters(m, "aé"), "draw_letters: the model cannot draw 'é'; it knows 0123"),
        (lambda m: draw_letters(m, ["ab"]), "draw_letters: the model cannot draw 'ab'"),
        (lambda m: draw_letters(m, "a", guidance=-1), "draw_letters: guidance = -1, expected 0 or more"),
        (lambda m: draw_letters(m, "a", guidance=float("nan")), "draw_letters: guidance = nan, expected 0 or more"),
        (lambda m: draw_letters(m, "a", away_from=DiT(DiTConfig())), "away_from draws 16 x 16 pixels, expected 8 x 8"),
        (lambda m: draw_letters(m, "a", away_from="letters"), "draw_letters: away_from = 'letters', expected a DiT"),
        (lambda m: draw_letters(m, "a", steps=0), "draw_letters: steps = 0, expected 1 or more"),
        (lambda m: draw_letters(m, 3), "draw_letters: characters = 3, expected a text"),
        (lambda m: draw_letters("letters", "a"), "draw_letters: model = 'letters', expected a DiT"),
        (lambda m: train_diffusion(m, draw_glyphs("STIX", "a", size=16)), r"DiT: images \(.*16, 16\).*\(B, 8, 8\)"),
        (lambda m: train_diffusion(m, draw_glyphs("STIX", "é", size=8)), "train_diffusion: the model cannot draw 'é'"),
        (lambda m: train_diffusion(m, draw_glyphs("STIX", "a", size=8)[:0]), "train_diffusion: .*no pictures"),
        (lambda m: train_diffusion(m, np.zeros((3, 8, 8))), "train_diffusion: glyphs = .*expected a Glyphs"),
        (lambda m: train_diffusion(m, draw_glyphs("STIX", "a", size=8), steps=0), "train_diffusion: steps = 0"),
        (lambda m: train_diffusion(m, draw_glyphs("STIX", "a", size=8), lr=-1.0), "lr = -1.0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as error:
        call(DiT(TINY))
    assert "\n" not in str(error.value)


def test_a_model_of_fewer_classes_knows_the_first_of_the_characters():
    model = DiT(DiTConfig(image_size=8, patch_size=4, classes=10, n_layer=1, n_head=1, n_embd=4))
    assert draw_letters(model, "09", steps=1).shape == (2, 8, 8)
    with pytest.raises(ValueError, match=r"cannot draw 'A'; it knows 0123456789$"):
        draw_letters(model, "A")


@pytest.mark.slow
def test_the_package_s_model_draws_what_is_asked_for():
    """The judge of characters reads at least 90 % of all 62, in 20 steps."""
    assert LETTERS.stat().st_size < 2e6
    judge = ml.load_vision("characters")
    says = judge.predict(draw_letters(ml.load_diffusion(), CHARACTERS, guidance=2.0))
    assert np.mean([judge.labels[said] == asked for said, asked in zip(says, CHARACTERS, strict=True)]) >= 0.9
