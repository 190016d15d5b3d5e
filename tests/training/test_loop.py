"""The loop: a step is the mathematics of a step, a seed is its bits, and trouble ends in words."""

import math
import re
import signal

import numpy as np
import pytest

import minilora as ml
from minilora.training.checkpoint import load_checkpoint
from minilora.training.corpus import Corpus
from minilora.training.loop import loss_and_gradients

LORA = ml.LoRAConfig(rank=2, target_modules="*")
FAST = {"steps": 6, "batch_size": 4, "evaluate_every": 3, "evaluation_windows": 4, "checkpoint_every": 2, "warmup": 2}


def batch(b, t=12, rng=0):
    tokens = np.random.default_rng(rng).integers(0, 96, (b, t + 1))
    return tokens[:, :-1], tokens[:, 1:]


def run_of(model, corpus, **settings):
    return ml.Run(model, corpus, ml.Settings(**{**FAST, **settings}))


def bits(run):
    state = {f"optimizer.{k}": v for k, v in run.optimizer.state_dict().items()} | run.model.state_dict()
    return {name: np.asarray(value).tobytes() for name, value in state.items()}, run.history, run.validation


# One step


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("b", [1, 2, 3, 5, 8, 17])
def test_the_gradient_is_that_of_the_whole_batch_at_once(make_model, b, lora):
    model = make_model("float64", lora=lora)
    parameters = model.parameters(trainable=True)
    tokens, targets = batch(b)
    whole = model.loss(tokens, targets)
    expected = ml.grad(whole, parameters)
    loss, gradients = loss_and_gradients(model, parameters, tokens, targets)
    assert math.isclose(loss, whole.item(), rel_tol=1e-14)
    for g, e in zip(gradients, expected, strict=True):
        assert np.abs(g - e).max() <= 1e-14 * max(np.abs(e).max(), 1e-3)


@pytest.mark.parametrize("b", [1, 2, 5])
def test_a_step_is_p_minus_lr_times_the_gradient(make_model, b):
    model = make_model("float64")
    tokens, targets = batch(b)
    loss = model.loss(tokens, targets)
    before = [p.data.copy() for p in model.parameters()]
    gradients = ml.grad(loss, model.parameters())
    taken = ml.train_step(model, ml.SGD(model.parameters(), lr=0.5), tokens, targets)
    assert isinstance(taken, float)
    assert math.isclose(taken, loss.item(), rel_tol=1e-14)  # the loss before the update
    for p, start, g in zip(model.parameters(), before, gradients, strict=True):
        np.testing.assert_allclose(p.data, start - 0.5 * g, rtol=1e-13, atol=1e-15)
        assert p.grad is None


def test_a_step_clips(make_model):
    model = make_model("float64")
    before = [p.data.copy() for p in model.parameters()]
    ml.train_step(model, ml.SGD(model.parameters(), lr=1.0), *batch(4), max_norm=0.01)
    moved = math.sqrt(sum(((p.data - b) ** 2).sum() for p, b in zip(model.parameters(), before, strict=True)))
    assert moved == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_step_gives_the_same_bits(make_model, dropout):
    states = []
    for _ in range(2):
        model = make_model(dropout=dropout)
        optimizer, rng = ml.AdamW(model.named_parameters()), np.random.default_rng(3)
        losses = [ml.train_step(model, optimizer, *batch(5, rng=i), rng=rng if dropout else None) for i in range(4)]
        states.append((losses, [p.data.tobytes() for p in model.parameters()]))
    assert states[0] == states[1]


def test_pieces_of_a_batch_drop_out_differently(make_model):
    """Two equal rows: one mask for both would give two equal losses, and a mean equal to that of one row alone."""
    model = make_model("float64", dropout=0.5)
    tokens, targets = (np.repeat(a, 2, axis=0) for a in batch(1))
    parameters = model.parameters()
    both, _ = loss_and_gradients(model, parameters, tokens, targets, np.random.default_rng(0))
    one, _ = loss_and_gradients(model, parameters, tokens[:1], targets[:1], np.random.default_rng(0))
    assert both != one


def test_dropout_needs_a_generator(make_model):
    for model in (make_model(dropout=0.1), make_model(lora=ml.LoRAConfig(rank=2, dropout=0.1))):
        optimizer = ml.AdamW(model.named_parameters())
        with pytest.raises(ValueError, match=r"dropout, which needs a generator: rng=numpy\.random\.default_rng\(0\)"):
            ml.train_step(model, optimizer, *batch(4))
        assert optimizer.steps == 0


def test_a_merged_or_disabled_adapter_leaves_nothing_to_train(make_model):
    model = make_model(lora=LORA)
    optimizer = ml.AdamW(model.named_parameters())
    with ml.lora_disabled(model), pytest.raises(ValueError, match=r"no trainable parameter \(adapter merged"):
        ml.train_step(model, optimizer, *batch(4))
    ml.merge_lora(model)
    with pytest.raises(ValueError, match=r"no trainable parameter \(adapter merged or disabled\?\)"):
        ml.train_step(model, optimizer, *batch(4))
    ml.unmerge_lora(model)
    assert optimizer.steps == 0
    ml.train_step(model, optimizer, *batch(4))


@pytest.mark.parametrize(
    "tokens, targets, error, message",
    [
        (np.zeros((2, 13), int), np.zeros((2, 13), int), ValueError, "13 tokens exceed the context"),
        (np.full((2, 4), 96), np.zeros((2, 4), int), ValueError, "tokens run from 96 to 96"),
        (np.zeros((2, 4)), np.zeros((2, 4), int), TypeError, "tokens have dtype float64"),
        (np.zeros((4, 3), int), np.zeros((5, 3), int), ValueError, r"\(4, 3\).*\(5, 3\)"),
        (np.zeros((4, 3), int), np.zeros((4, 2), int), ValueError, r"\(4, 3\).*\(4, 2\)"),
        (np.zeros(4, int), np.zeros(4, int), ValueError, r"expected \(B, T\)"),
        (np.zeros((0, 4), int), np.zeros((0, 4), int), ValueError, r"\(0, 4\)"),
    ],
)
def test_wrong_batches_change_nothing(make_model, tokens, targets, error, message):
    model = make_model()
    optimizer, before = ml.AdamW(model.parameters()), [p.data.copy() for p in model.parameters()]
    with pytest.raises(error, match=message):
        ml.train_step(model, optimizer, tokens, targets)
    assert optimizer.steps == 0
    for p, b in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.data, b)


# A loss that is not finite


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_loss_that_is_not_finite_names_the_step_and_the_parameter(make_model, value, max_norm):
    model = make_model()
    optimizer = ml.AdamW(model.named_parameters())
    for i in range(3):
        ml.train_step(model, optimizer, *batch(4, rng=i))
    model.blocks[1].mlp.up_proj.weight.data[0, 0] = value
    before, state = model.state_dict(), optimizer.state_dict()
    message = r"diverged at step 4: the loss is nan, the first parameter affected blocks\.1\.mlp\.up_proj\.weight"
    with pytest.raises(FloatingPointError, match=message):
        ml.train_step(model, optimizer, *batch(4), max_norm=max_norm)
    assert optimizer.steps == 3
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_parameters_that_are_finite_but_too_large(make_model):
    """No parameter is infinite yet, but a loss computed from them is: the gradient tells where."""
    model = make_model()
    model.wte.weight.data *= 100
    model.ln_f.weight.data *= 3e38
    with pytest.raises(FloatingPointError, match=r"at step 1: the loss is (nan|inf), .* affected [a-z]+[\w.]*\.weight"):
        ml.train_step(model, ml.AdamW(model.named_parameters()), *batch(4))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_in_a_run_keeps_the_last_good_checkpoint(make_model, text_path, tmp_path):
    corpus = ml.load_corpus(text_path)
    path = tmp_path / "run.npz"
    run = run_of(make_model(), corpus)

    class Poisoned(Corpus):
        """The third batch finds a broken parameter."""

        def batch(self, *args):
            if run.step == 2:
                run.model.ln_f.weight.data[3] = np.nan
            return super().batch(*args)

    run.corpus = Poisoned(corpus.name, corpus.train, corpus.validation)
    with pytest.raises(FloatingPointError, match=r"step 3: .*affected ln_f\.weight"):
        ml.train(run, path, progress=False)
    kept = load_checkpoint(path)
    assert kept.step == 2
    assert all(np.isfinite(a).all() for a in kept.model.state_dict().values())
    assert ml.train(kept, path, progress=False).step == 6


# Runs


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_loss_falls(make_model, corpus, lora):
    run = run_of(make_model(lora=lora), corpus, steps=60, batch_size=8, lr=1e-2, evaluate_every=30)
    assert ml.train(run, progress=False) is run
    assert run.history["step"] == list(range(1, 61))
    assert run.validation["step"] == [0, 30, 60]
    fall = run.validation["loss"][0] - run.validation["loss"][-1]
    assert fall > (1.0 if lora is None else 0.03)  # beside a base of random weights LoRA can say little
    assert not run.interrupted


def test_what_the_curves_hold_is_what_happened(make_model, corpus):
    model, twin = make_model(), make_model()
    run = run_of(model, corpus, steps=1, lr=0.01, warmup=0, max_norm=1.0)
    rng = np.random.default_rng(run.settings.seed)
    start = ml.evaluate(twin, corpus, 4)
    loss = ml.train_step(twin, ml.AdamW(twin.parameters(), 0.01, (0.9, 0.99)), *corpus.batch(4, 12, rng), max_norm=1.0)
    ml.train(run, progress=False)
    assert run.history["loss"] == [round(loss, 5)]
    assert run.validation == {"step": [0, 1], "loss": [round(start, 5), round(ml.evaluate(twin, corpus, 4), 5)]}
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_seed_gives_the_same_bits_and_another_seed_others(make_model, corpus, dropout):
    one, two, other = (
        bits(ml.train(run_of(make_model(dropout=dropout), corpus, seed=seed), progress=False)) for seed in (1, 1, 2)
    )
    assert one == two
    assert one[0] != other[0]


def test_the_schedule_reaches_the_optimizer(make_model, corpus):
    run = run_of(make_model(), corpus, steps=6, lr=1.0, warmup=2, floor=0.1)
    rates = []

    class Watching(Corpus):
        """Every batch is drawn after the rate of its step is set."""

        def batch(self, *args):
            rates.append(run.optimizer.lr)
            return super().batch(*args)

    run.corpus = Watching(corpus.name, corpus.train, corpus.validation)
    run.settings.lr = 1e-3
    ml.train(run, progress=False)
    assert rates[:2] == [0.5e-3, 1e-3]
    assert rates[2] == 1e-3
    assert (np.diff(rates[2:]) < 0).all()
    assert rates[-1] >= 1e-4


@pytest.mark.parametrize("most", [None, 1, 7, 20])
def test_evaluate_is_the_mean_over_windows(make_model, corpus, most):
    model = make_model("float64")
    tokens, targets = corpus.validation_windows(12, most)
    single = [model.loss(t[None], y[None]).item() for t, y in zip(tokens, targets, strict=True)]
    assert math.isclose(ml.evaluate(model, corpus, most), np.mean(single), rel_tol=1e-13)


def test_evaluation_drops_nothing_out_and_changes_nothing(make_model, corpus):
    model = make_model(dropout=0.5)
    before = model.state_dict()
    assert ml.evaluate(model, corpus) == ml.evaluate(model, corpus) == ml.evaluate(make_model(), corpus)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_a_corpus_too_short_is_refused_before_anything_happens(make_model, tmp_path):
    (tmp_path / "short.txt").write_text("a few words only " * 5)
    run = run_of(make_model(), ml.load_corpus(tmp_path / "short.txt"))
    with pytest.raises(ValueError, match="too short"):
        ml.train(run, tmp_path / "run.npz", progress=False)
    assert not (tmp_path / "run.npz").exists()
    with pytest.raises(ValueError, match="too short"):
        ml.evaluate(run.model, run.corpus)


def test_a_folder_that_cannot_be_written_to(make_model, corpus, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        ml.train(run_of(make_model(), corpus), tmp_path / "file" / "run.npz", progress=False)


def test_the_progress_bar_shows_the_loss(make_model, corpus, capsys):
    run = ml.train(run_of(make_model(), corpus))
    shown = capsys.readouterr().err
    assert re.search(r"loss=\d\.\d{3}", shown)
    assert f"{run.validation['loss'][-1]:.3f}" in shown
    ml.train(run_of(make_model(), corpus), progress=False)
    assert not capsys.readouterr().err


# Ctrl-C


class Interrupting(Corpus):
    """A corpus whose third batch comes with Ctrl-C, as often as `times` says."""

    def batch(self, *args):
        object.__setattr__(self, "drawn", getattr(self, "drawn", 0) + 1)
        if self.drawn == 3:
            for _ in range(getattr(self, "times", 1)):
                signal.raise_signal(signal.SIGINT)
        return super().batch(*args)


@pytest.mark.parametrize("lora", [None, LORA])
def test_ctrl_c_saves_and_the_run_goes_on_bit_for_bit(make_model, corpus, tmp_path, lora):
    path = tmp_path / "run.npz"
    whole = ml.train(run_of(make_model(lora=lora), corpus), progress=False)
    before = signal.getsignal(signal.SIGINT)
    stopped = run_of(make_model(lora=lora), Interrupting(corpus.name, corpus.train, corpus.validation))
    ml.train(stopped, path, progress=False)
    assert stopped.interrupted
    assert stopped.step == 3  # the step it was in is finished
    assert signal.getsignal(signal.SIGINT) is before
    resumed = ml.train(load_checkpoint(path), path, progress=False)
    assert not resumed.interrupted
    assert bits(resumed) == bits(whole)


def test_a_second_ctrl_c_ends_at_once(make_model, corpus, tmp_path):
    insisting = Interrupting(corpus.name, corpus.train, corpus.validation)
    object.__setattr__(insisting, "times", 2)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        ml.train(run_of(make_model(), insisting), tmp_path / "run.npz", progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(tmp_path / "run.npz", corpus).step == 2  # what was saved on the way is still there
