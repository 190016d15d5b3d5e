"""The loop: a step is the mathematics of a step, a seed is its bits, and trouble ends in words."""

import copy
import math
import re
import signal
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import tqdm
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import minilora as ml
from minilora.autograd import attention, long_attention
from minilora.autograd import rows as rows_of_things
from minilora.nn.architectures import find
from minilora.nn.layers import Embedding
from minilora.nn.module import Module
from minilora.training import backward, loop, parallel
from minilora.training.backward import loss_and_gradients
from minilora.training.checkpoint import load_checkpoint
from minilora.training.corpus import Corpus

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


PLACES = {  # every method that drops something out, beside the model's own: embeddings, attention, residuals
    "the model": None,
    "lora": ml.LoRAConfig(rank=2, target_modules="*", dropout=0.1, init="gaussian"),
    "dora": ml.DoRAConfig(rank=2, target_modules=("q_proj", "up_proj"), dropout=0.1),
    "prompt": ml.PromptConfig(tokens=3),
    "prefix": ml.PrefixConfig(tokens=3),
    "qlora": ml.LoRAConfig(rank=2, target_modules="*", dropout=0.1, init="gaussian"),
}


def with_dropout(make_model, place, dtype="float32"):
    model = make_model(dtype, dropout=0.1)
    if place == "qlora":
        ml.quantize_model(model, "nf4", block=16)
    return model if PLACES[place] is None else ml.add_adapter(model, PLACES[place], rng=1)


@pytest.mark.parametrize("place", PLACES)
def test_however_many_pieces_each_row_drops_out_the_same(make_model, place):
    """The same loss and gradients to rounding, and the same numbers drawn, so that the next batch is the same."""
    model = with_dropout(make_model, place, "float64")
    parameters = model.parameters(trainable=True)
    tokens, targets = batch(7, model.context)  # seven rows divide into no number of pieces
    rng = np.random.default_rng(3)
    loss, gradients = loss_and_gradients(model, parameters, tokens, targets, rng, pieces=1)
    assert loss != loss_and_gradients(model, parameters, tokens, targets, np.random.default_rng(4), pieces=1)[0]
    for pieces in (2, 3, 7, 16):
        other = np.random.default_rng(3)
        other_loss, gs = loss_and_gradients(model, parameters, tokens, targets, other, pieces=pieces)
        assert math.isclose(other_loss, loss, rel_tol=1e-13)
        for g, e in zip(gs, gradients, strict=True):
            assert np.abs(g - e).max() <= 1e-13 * max(np.abs(e).max(), 1e-3)
        assert other.bit_generator.state == rng.bit_generator.state


@pytest.mark.slow
def test_after_many_steps_any_number_of_cores_agrees(make_model, corpus, monkeypatch):
    """The relative distance of LoRA's weights, from rounding alone; another seed is a third of their length away."""

    def trained(count, seed=0):
        monkeypatch.setattr(backward, "cores", lambda: count)
        model = make_model(dropout=0.1, lora=ml.LoRAConfig(rank=4, dropout=0.1))
        run = run_of(model, corpus, steps=25, batch_size=16, lr=1e-2, seed=seed)
        ml.train(run, progress=False)
        return np.concatenate([p.data.ravel() for p in run.optimizer.parameters])

    one = trained(1)
    distance = lambda other: np.linalg.norm(other - one) / np.linalg.norm(one)
    assert max(distance(trained(count)) for count in (2, 5, 16)) < 5e-7
    assert distance(trained(1, seed=1)) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 4, 8, 16])
def test_a_fixed_number_of_pieces_gives_the_same_bits_on_any_number_of_cores(make_model, corpus, pieces, monkeypatch):
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(backward, "cores", lambda count=count: count)
        monkeypatch.setattr(parallel, "cores", lambda count=count: count)
        run = run_of(make_model(dropout=0.1, lora=LORA), corpus, batch_size=16, pieces=pieces)
        with threadpool_limits(count, "blas"):  # as BLAS has them there
            results.append(bits(ml.train(run, progress=False)))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("b", [1, 2])
def test_heads_of_a_long_text_are_shared_by_cores_that_are_free(b, make_model, monkeypatch):
    """A batch of one row is one piece: two cores share its heads, to the same bits. With two rows none is free."""
    monkeypatch.setattr(attention, "LONG", 8)
    monkeypatch.setattr(long_attention, "HEADS", 1)
    monkeypatch.setattr(backward, "LONG", 8)
    monkeypatch.setattr(backward, "cores", lambda: 2)
    model, lots = make_model(lora=LORA), []

    def watched(function, parts):
        lots.append(len(parts))
        return parallel.in_parallel(function, parts)

    monkeypatch.setattr(backward, "in_parallel", watched)
    shared = loss_and_gradients(model, model.parameters(), *batch(b))
    layers, heads = model.config.n_layer, model.config.n_head
    cut = [n for n in lots[1:] if n > 1]
    assert (lots[0], cut) == ((1, [heads] * 2 * layers) if b == 1 else (2, []))  # forward and backward
    monkeypatch.setattr(backward, "in_parallel", lambda function, parts: [function(*part) for part in parts])
    alone = loss_and_gradients(model, model.parameters(), *batch(b))
    assert shared[0] == alone[0]
    assert all(np.array_equal(a, b) for a, b in zip(shared[1], alone[1], strict=True) if a is not None)
    lots.clear()
    monkeypatch.setattr(backward, "in_parallel", watched)
    monkeypatch.setattr(backward, "LONG", 512)
    loss_and_gradients(model, model.parameters(), *batch(b))
    assert lots == [b]  # of a short text BLAS's own threads hold the cores


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_cut_into_parts_is_decided_by_sizes_where_pieces_are(count, make_model, monkeypatch):
    """Pieces that are given promise the same bits on any number of cores, also where these have parts to share."""
    sizes = ((rows_of_things, "WORK", 1), (rows_of_things, "LINES", 3), (rows_of_things, "SHARE", 16))
    for place, name, value in (*sizes, (attention, "LONG", 8), (backward, "LONG", 8)):
        monkeypatch.setattr(place, name, value)
    model, found = make_model(lora=LORA), []
    for there in (1, 2, 3):
        monkeypatch.setattr(backward, "cores", lambda there=there: there)
        monkeypatch.setattr(parallel, "cores", lambda there=there: there)
        found.append(loss_and_gradients(model, model.parameters(), *batch(2), pieces=count))
    for loss, gradients in found[1:]:
        assert loss == found[0][0]
        pairs = zip(gradients, found[0][1], strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs if a is not None)


def test_a_step_draws_two_words_whatever_the_batch(make_model):
    """As many as two pieces of two cores drew when the committed records were made: their batches come again."""
    model, expected = make_model(), np.random.default_rng(5)
    expected.integers(2**63, size=2)
    for b, pieces in ((1, None), (8, 2), (8, 5)):
        rng = np.random.default_rng(5)
        ml.train_step(model, ml.AdamW(model.parameters()), *batch(b), rng, pieces=pieces)
        assert rng.bit_generator.state == expected.bit_generator.state


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


def test_what_is_beside_a_merged_adapter_is_not_trained_without_it_unsaid(make_model):
    model = make_model(lora=LORA)
    model.ln_f.weight.requires_grad = True
    optimizer, alone = ml.AdamW(model.named_parameters()), ml.AdamW([model.ln_f.weight])
    ml.merge_lora(model)
    before = model.ln_f.weight.data.copy()
    with pytest.raises(
        ValueError, match=r"the adapter is merged, and blocks\.0\..*lora_A would not be trained; unmerge"
    ):
        ml.train_step(model, optimizer, *batch(4))
    np.testing.assert_array_equal(model.ln_f.weight.data, before)
    ml.train_step(model, alone, *batch(4))
    assert (model.ln_f.weight.data != before).any()
    ml.unmerge_lora(model)
    ml.train_step(model, optimizer, *batch(4))


def test_what_has_come_to_the_model_since_the_run_was_made_is_not_left_out_unsaid(make_model, corpus):
    model = make_model(lora=LORA)
    run = run_of(model, corpus)
    ml.add_lora(model, LORA, name="second")
    ml.set_adapter(model, ["default", "second"])
    with pytest.raises(
        ValueError, match=r"train: the model trains blocks\..*, and the run, .* does not; make another run"
    ):
        ml.train(run, progress=False)
    assert run.step == 0
    ml.set_adapter(model, "default")
    frozen = model.parameters(trainable=True)[0]
    frozen.requires_grad = False  # what has been frozen since is left alone
    before = frozen.data.copy()
    assert ml.train(run, progress=False).step == run.settings.steps
    np.testing.assert_array_equal(frozen.data, before)


# Targets that do not count, and padding


def some_ignored(targets, share, rng):
    """A copy in which about this share of the targets, and not the last, are -100."""
    ignored = np.random.default_rng(rng).random(targets.shape) < share
    ignored[-1, -1] = False
    return np.where(ignored, -100, targets)


@given(
    b=st.integers(1, 7), pieces=st.integers(1, 7), share=st.sampled_from([0.1, 0.5, 0.9, 1.0]), rng=st.integers(0, 99)
)
def test_however_many_pieces_the_mean_is_over_the_targets_that_count(b, pieces, share, rng):
    """A piece may have few of them, or none."""
    model = ml.GPT(ml.GPTConfig(96, 12, 1, 2, 8)).astype("float64")
    parameters = model.parameters()
    tokens, targets = batch(b, 5, rng)
    targets = some_ignored(targets, share, rng)
    whole = model.loss(tokens, targets)
    loss, gradients = loss_and_gradients(model, parameters, tokens, targets, pieces=pieces)
    assert math.isclose(loss, whole.item(), rel_tol=1e-13)
    for g, e in zip(gradients, ml.grad(whole, parameters), strict=True):
        assert np.abs(g - e).max() <= 1e-13 * max(np.abs(e).max(), 1e-3)


@pytest.mark.parametrize("b", [2, 3, 7])
def test_where_all_targets_count_a_piece_weighs_as_its_rows_to_the_bit(make_model, b):
    """As it did when the committed records were made."""
    model = make_model()
    parameters = model.parameters()
    tokens, targets = batch(b)
    expected, half = None, b // 2
    with threadpool_limits(1, "blas"):
        for rows in (slice(0, half), slice(half, b)):
            share = len(tokens[rows]) / b
            found = ml.autograd.tensor.grad(model.loss(tokens[rows], targets[rows]), parameters, cotangent=share)
            expected = found if expected is None else [e + g for e, g in zip(expected, found, strict=True)]
    _, gradients = loss_and_gradients(model, parameters, tokens, targets, pieces=2)
    assert [g.tobytes() for g in gradients] == [e.tobytes() for e in expected]


def padded(texts, to):
    """Texts of several lengths as a batch (B, T) with its targets: padding of a token that is none, on the right."""
    tokens, targets = np.full((len(texts), to), 7), np.full((len(texts), to), -100)
    for i, text in enumerate(texts):
        tokens[i, : len(text) - 1], targets[i, : len(text) - 1] = text[:-1], text[1:]
    return tokens, targets


def test_padding_changes_no_result(make_model):
    """The loss and gradients of a padded batch are those of each text alone, weighted by its tokens."""
    model = make_model("float64", lora=LORA)
    parameters, rng = model.parameters(trainable=True), np.random.default_rng(0)
    texts = [rng.integers(0, 96, n) for n in (3, 12, 2, 7, 9)]
    weights = np.array([len(text) - 1 for text in texts]) / sum(len(text) - 1 for text in texts)
    alone = [loss_and_gradients(model, parameters, t[None, :-1], t[None, 1:]) for t in texts]
    for to in (11, 12):
        loss, gradients = loss_and_gradients(model, parameters, *padded(texts, to))
        assert math.isclose(loss, sum(w * one for w, (one, _) in zip(weights, alone, strict=True)), rel_tol=1e-13)
        for i, g in enumerate(gradients):
            expected = sum(w * gs[i] for w, (_, gs) in zip(weights, alone, strict=True))
            assert np.abs(g - expected).max() <= 1e-13 * max(np.abs(expected).max(), 1e-3)


class Bag(Module):
    """logits = (x + the mean of the text's x) W^T: a model that reads to both sides, and so needs a mask."""

    def __init__(self):
        self.wte = Embedding(96, 8, np.random.default_rng(0))

    def loss(self, tokens, targets, rng=None, mask=None):
        x, counts = self.wte(tokens), np.ones(tokens.shape) if mask is None else mask  # (B, T, C)
        mean = (x * counts[..., None]).sum(axis=1, keepdims=True) / counts.sum(axis=1)[:, None, None]
        return ml.ops.cross_entropy(ml.ops.linear(x + mean, self.wte.weight), targets)


@pytest.mark.parametrize("kind", [bool, int, float, np.uint8])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_mask_goes_with_its_rows_and_padding_is_no_target(kind, pieces):
    model = Bag().astype("float64")
    texts = [np.random.default_rng(0).integers(0, 96, n) for n in (3, 9, 2, 5)]
    tokens, targets = padded(texts, 10)
    mask = (targets != -100).astype(kind)
    targets = np.where(mask == 1, targets, 9).astype(
        "u1" if kind is np.uint8 else "i8"
    )  # what stands there is no matter
    loss, (gradient,) = loss_and_gradients(model, model.parameters(), tokens, targets, pieces=pieces, mask=mask)
    total = sum(len(text) - 1 for text in texts)
    expected = [(model.loss(t[None, :-1], t[None, 1:]), (len(t) - 1) / total) for t in texts]
    assert math.isclose(loss, sum(one.item() * w for one, w in expected), rel_tol=1e-13)
    difference = gradient - sum(w * ml.grad(one, model.parameters())[0] for one, w in expected)
    assert np.abs(difference).max() < 1e-14


def test_odd_masks_change_nothing(make_model):
    model = Bag()
    optimizer, (tokens, targets) = ml.AdamW(model.parameters()), batch(2, 3)
    for mask in (np.ones((2, 2)), np.full((2, 3), 2), np.full((2, 3), -np.inf), np.ones((2, 3), complex)):
        with pytest.raises(ValueError, match=r"^train_step: mask is .*, expected \(2, 3\): 1 where a token counts"):
            ml.train_step(model, optimizer, tokens, targets, mask=mask)
    with pytest.raises(TypeError, match=r"^train_step: mask: got \[\[1\], \[1, 0\]\], expected"):
        ml.train_step(model, optimizer, tokens, targets, mask=[[1], [1, 0]])
    for ignored in ({"targets": np.full((2, 3), -100)}, {"targets": targets, "mask": np.zeros((2, 3))}):
        with pytest.raises(ValueError, match=r"^train_step: all 6 targets are -100 or padding: no loss counts$"):
            ml.train_step(model, optimizer, tokens, **ignored)
    gpt = make_model()
    with pytest.raises(TypeError, match=r"^train_step: GPT\.loss takes no mask; a causal model needs none"):
        ml.train_step(gpt, ml.AdamW(gpt.parameters()), tokens, targets, mask=np.ones((2, 3)))
    assert optimizer.steps == 0


# One step from several batches, one after the other


@pytest.mark.parametrize("place", ["the model", "lora"])
@pytest.mark.parametrize("b, accumulate", [(8, 2), (7, 3), (3, 8), (5, 1)])
def test_parts_one_after_the_other_are_the_whole_batch(make_model, b, accumulate, place):
    """With what each row drops out, and with targets of which the parts have unequal numbers."""
    model = with_dropout(make_model, place, "float64")
    parameters, (tokens, targets) = model.parameters(trainable=True), batch(b)
    targets = some_ignored(targets, 0.6, 1)
    loss, gradients = loss_and_gradients(model, parameters, tokens, targets, np.random.default_rng(3), pieces=1)
    rng = np.random.default_rng(3)
    other, gs = loss_and_gradients(model, parameters, tokens, targets, rng, accumulate=accumulate)
    assert math.isclose(other, loss, rel_tol=1e-13)
    for g, e in zip(gs, gradients, strict=True):
        assert np.abs(g - e).max() <= 1e-13 * max(np.abs(e).max(), 1e-3)
    expected = np.random.default_rng(3)
    expected.integers(2**63, size=2)
    assert rng.bit_generator.state == expected.bit_generator.state


@pytest.mark.parametrize("accumulate, pieces", [(2, 1), (3, 2), (6, 2), (4, 3)])
def test_the_same_pieces_give_the_same_bits_however_they_are_put_together(make_model, accumulate, pieces):
    model, (tokens, targets) = make_model(dropout=0.1), batch(12)
    call = (model, model.parameters(), tokens, targets)
    parts, whole = (
        loss_and_gradients(*call, np.random.default_rng(0), pieces=n, accumulate=m)
        for n, m in ((pieces, accumulate), (pieces * accumulate, 1))
    )
    assert parts[0] == whole[0]
    assert [g.tobytes() for g in parts[1]] == [g.tobytes() for g in whole[1]]


def test_parts_take_the_memory_of_one(make_model):
    model = ml.GPT(ml.GPTConfig(96, 64, 2, 2, 32))
    tokens, targets = batch(32, 64)

    def peak(accumulate, b=32):
        tracemalloc.start()
        try:
            loss_and_gradients(model, model.parameters(), tokens[:b], targets[:b], None, 1, accumulate=accumulate)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)
    assert peak(8) < 1.2 * peak(1, 4) < 0.4 * peak(1)


# Blocks computed again in the backward pass


def a_transformer(dtype, rng=0):
    a = replace(find("llama-2-7b"), vocab_size=96, width=16, layers=3, heads=2, kv_heads=1, head_dim=8, mlp_width=24)
    return ml.Transformer(a, rng).astype(dtype)


@pytest.mark.parametrize("place", [*(p for p in PLACES if p not in ("prompt", "prefix")), "a transformer"])
def test_blocks_computed_again_give_the_same_bits(make_model, place):
    """Each row's dropout as well, of the model and of adapters, in every piece."""
    results = []
    for again in (False, True):
        if place == "a transformer":
            model = ml.add_lora(a_transformer("float32"), ml.LoRAConfig(rank=2, dropout=0.1, init="gaussian"), rng=1)
        else:
            model = with_dropout(make_model, place)
        model.recompute_blocks = again
        rng, parameters = np.random.default_rng(3), model.parameters(trainable=True)
        loss, gradients = loss_and_gradients(model, parameters, *batch(5), rng, pieces=2)
        results.append((loss, [g.tobytes() for g in gradients]))
    assert results[0] == results[1]


def test_blocks_computed_again_are_not_kept():
    tokens, targets = batch(4, 64)
    peaks = []
    for again in (False, True):
        model = ml.add_lora(ml.GPT(ml.GPTConfig(96, 64, 8, 2, 32)), LORA)
        model.recompute_blocks = again
        call = (model, model.parameters(trainable=True), tokens, targets, None, 1)
        loss_and_gradients(*call)
        tracemalloc.start()
        loss_and_gradients(*call)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 0.5 * peaks[0]


def test_a_run_may_compute_its_blocks_again(make_model, corpus):
    make = lambda: make_model(dropout=0.1, lora=LORA)
    runs = [ml.train(run_of(make(), corpus, checkpoint_blocks=again), progress=False) for again in (False, True)]
    assert runs[1].model.recompute_blocks and not runs[0].model.recompute_blocks
    assert bits(runs[0]) == bits(runs[1])
    for model in (Bag(), ml.add_adapter(make_model(), ml.PrefixConfig(tokens=3))):
        with pytest.raises(
            ValueError, match=r"^Run: checkpoint_blocks = True, but the blocks cannot be computed again: "
        ):
            run_of(model, corpus, checkpoint_blocks=True)


# What the loss does not reach


def test_an_optimiser_of_another_model_is_refused(make_model):
    model, other = make_model(), make_model(rng=1)
    before = {**model.state_dict(), **{f"other.{k}": v for k, v in other.state_dict().items()}}
    message = r"train_step: the loss depends on no trainable parameter .* AdamW\(model\.parameters\(\)\) takes those"
    for optimizer in (ml.AdamW(other.parameters()), ml.SGD(other.named_parameters(), momentum=0.9)):
        with pytest.raises(ValueError, match=message):
            ml.train_step(model, optimizer, *batch(4))
        assert optimizer.steps == 0
    for name, array in {**model.state_dict(), **{f"other.{k}": v for k, v in other.state_dict().items()}}.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_run_whose_adapter_was_removed_is_refused(make_model, corpus):
    model = make_model(lora=LORA)
    run = run_of(model, corpus)
    ml.remove_lora(model)
    with pytest.raises(ValueError, match="train_step: the loss depends on no trainable parameter"):
        ml.train(run, progress=False)
    assert run.step == 0 and not run.history["step"]
    assert run.rng.bit_generator.state == np.random.default_rng(0).bit_generator.state  # the batch is still to come


def test_training_one_adapter_leaves_the_other_as_it_is(make_model):
    """Neither momentum nor decay moves it, and its own steps are counted apart."""
    model = make_model(lora=LORA)
    ml.add_lora(model, ml.LoRAConfig(rank=3), rng=2, name="b")
    b = [p for p in model.parameters(trainable=True)]
    ml.set_adapter(model, "default")
    a = [p for p in model.parameters(trainable=True)]
    for optimizer in (ml.AdamW([*a, *b], weight_decay=0.5), ml.SGD([*a, *b], momentum=0.9, weight_decay=0.5)):
        for i in range(3):
            ml.train_step(model, optimizer, *batch(4, rng=i))
        kept = [p.data.copy() for p in a], [s[: len(a)] for s in map(list, optimizer.state.values())]
        ml.set_adapter(model, "b")
        moved = [p.data.copy() for p in b]
        ml.train_step(model, optimizer, *batch(4))
        for p, before in zip(a, kept[0], strict=True):
            np.testing.assert_array_equal(p.data, before)
        assert any((p.data != before).any() for p, before in zip(b, moved, strict=True))
        assert optimizer.ages == [3] * len(a) + [1] * len(b)
        assert optimizer.steps == 4
        ml.set_adapter(model, "default")


class TwoTables(ml.nn.module.Module):
    """A loss whose even rows reach one table, and odd rows the other."""

    def __init__(self):
        self.even, self.odd = (ml.Tensor(np.ones(3), requires_grad=True) for _ in range(2))

    def loss(self, tokens, targets, rng=None):
        return sum((self.odd if row[0] % 2 else self.even)[row].sum() for row in tokens) / len(tokens)


def test_a_parameter_may_be_reached_in_one_piece_only():
    model = TwoTables()
    tokens = np.array([[0, 2], [1, 1], [2, 0], [1, 2]])
    for rows, reached in (([0, 1, 2, 3], (True, True)), ([0, 2], (True, False)), ([1, 3], (False, True))):
        for pieces in (1, 2, 4):
            _, gradients = loss_and_gradients(model, model.parameters(), tokens[rows], tokens[rows], pieces=pieces)
            expected = ml.grad(model.loss(tokens[rows], None), model.parameters(), unused="none")
            assert tuple(g is not None for g in gradients) == reached
            for g, e in zip(gradients, expected, strict=True):
                assert (g is None and e is None) or np.allclose(g, e, rtol=1e-15)
    optimizer = ml.AdamW(model.parameters(), weight_decay=0.5)
    ml.train_step(model, optimizer, tokens[[1, 3]], tokens[[1, 3]], max_norm=0.1, pieces=2)
    np.testing.assert_array_equal(model.even.data, np.ones(3))
    assert (model.odd.data != 1).all()


def test_what_was_frozen_since_the_optimiser_was_made_stays(make_model):
    model = make_model()
    optimizer = ml.AdamW(model.parameters(), weight_decay=0.5)
    model.wte.weight.requires_grad = False
    before = model.wte.weight.data.copy()
    ml.train_step(model, optimizer, *batch(4))
    np.testing.assert_array_equal(model.wte.weight.data, before)
    for p in model.parameters():
        p.requires_grad = False
    with pytest.raises(ValueError, match="no trainable parameter"):
        ml.train_step(model, optimizer, *batch(4))


# Interrupts


def snapshot(model, optimizer):
    state = {**model.state_dict(), **{f"optimizer.{k}": np.asarray(v) for k, v in optimizer.state_dict().items()}}
    return {name: array.tobytes() for name, array in state.items()}


@pytest.mark.parametrize("make", [ml.AdamW, lambda p: ml.SGD(p, momentum=0.9)], ids=["AdamW", "SGD"])
def test_an_update_interrupted_at_any_line_is_done_or_not_begun(make_model, make, interrupted_at_every_line):
    model = make_model(lora=LORA)
    optimizer = make(model.named_parameters())
    _, gradients = loss_and_gradients(model, optimizer.parameters, *batch(4))
    twin = copy.deepcopy((model, optimizer))
    copy.deepcopy(optimizer).step(gradients)  # lines that run once in a process, which begin a thread, are behind us
    states = [snapshot(*twin)]
    for _ in interrupted_at_every_line(lambda: optimizer.step(gradients)):
        now = snapshot(model, optimizer)
        if now != states[-1]:
            twin[1].step(gradients)
            states.append(snapshot(*twin))
        assert now == states[-1]
    assert len(states) > 3  # some were done, and some not begun


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_a_step_interrupted_at_random_is_done_or_not_begun(make_model, interrupted_at_random):
    model = make_model(lora=LORA)
    optimizer = ml.AdamW(model.named_parameters())
    tokens, targets = batch(4)
    twin = copy.deepcopy((model, optimizer))
    states = [snapshot(*twin)]
    for _ in interrupted_at_random(lambda: ml.train_step(model, optimizer, tokens, targets), 150, 4e-3):
        now = snapshot(model, optimizer)
        if now != states[-1]:
            ml.train_step(*twin, tokens, targets)
            states.append(snapshot(*twin))
        assert now == states[-1]
    ml.train_step(model, optimizer, tokens, targets)


# Arguments that make no sense


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"optimizer": [1, 2]}, TypeError, r"train_step: optimizer is a list, expected ml\.AdamW"),
        ({"optimizer": None}, TypeError, "train_step: optimizer is None"),
        ({"model": "base"}, TypeError, r"train_step: model is 'base', expected one such as ml\.load_model\('base'\)"),
        ({"rng": 3}, TypeError, r"train_step: rng = 3, expected a numpy\.random\.Generator; a seed would drop out the"),
        ({"rng": np.random.RandomState(0)}, TypeError, "train_step: rng = a RandomState, expected"),
        ({"max_norm": -1.0}, ValueError, r"train_step: max_norm = -1\.0, expected 0 or more"),
        ({"max_norm": "1"}, TypeError, "train_step: max_norm = '1'"),
        ({"max_norm": float("nan")}, ValueError, "train_step: max_norm = nan"),
        ({"pieces": 0}, ValueError, "train_step: pieces = 0, expected 1 or more, an integer"),
        ({"pieces": 2.0}, ValueError, "train_step: pieces = 2.0"),
        ({"accumulate": 0}, ValueError, "train_step: accumulate = 0, expected 1 or more, an integer"),
        ({"accumulate": None}, TypeError, "train_step: accumulate = None"),
        ({"pieces": True}, TypeError, "train_step: pieces = True"),
    ],
)
def test_wrong_arguments_of_a_step(make_model, change, error, message):
    model = make_model()
    tokens, targets = batch(4)
    arguments = {"model": model, "optimizer": ml.AdamW(model.parameters()), "tokens": tokens, "targets": targets}
    before = model.state_dict()
    with pytest.raises(error, match=message):
        ml.train_step(**{**arguments, **change})
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("odd", [None, 3, "unicode-names", ml.Tensor([1.0]), [1, 2], {}], ids=repr)
def test_odd_things_to_train_or_evaluate(make_model, corpus, odd):
    with pytest.raises(TypeError, match=r"train: got .*, expected a run: ml\.Run"):
        ml.train(odd)
    with pytest.raises(TypeError, match=r"evaluate: model is .*, expected one such as"):
        ml.evaluate(odd, corpus)
    if not isinstance(odd, str):
        with pytest.raises(TypeError, match=r"evaluate: corpus is .*, expected one such as ml\.load_corpus"):
            ml.evaluate(make_model(), odd)


@pytest.mark.parametrize("most", [0, -1, 2.5, True, "all", float("nan")])
def test_odd_numbers_of_windows(make_model, corpus, most):
    with pytest.raises((TypeError, ValueError), match=r"evaluate: most = .*, expected 1 or more, an integer"):
        ml.evaluate(make_model(), corpus, most)


def test_a_corpus_may_be_given_by_its_name(make_model, text_path, corpus):
    assert ml.evaluate(make_model(), str(text_path)) == ml.evaluate(make_model(), corpus)
    assert ml.evaluate(make_model(), text_path, np.int64(3)) == ml.evaluate(make_model(), corpus, 3)
    with pytest.raises(FileNotFoundError, match="no corpus and no file 'unicode'"):
        ml.evaluate(make_model(), "unicode")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_evaluating_what_is_not_finite_names_the_parameter(make_model, corpus, value):
    model = make_model(lora=LORA)
    model.blocks[1].attn.k_proj.lora_B.data[2, 1] = value
    with pytest.raises(FloatingPointError, match=r"the loss is nan; blocks\.1\.attn\.k_proj\.lora_B: entry \(2, 1\)"):
        ml.evaluate(model, corpus)


def test_a_folder_in_the_place_of_the_checkpoint_is_refused_before_anything_happens(make_model, corpus, tmp_path):
    run = run_of(make_model(), corpus)
    with pytest.raises(IsADirectoryError, match=r"train: checkpoint = .* is a folder"):
        ml.train(run, tmp_path, progress=False)
    assert run.step == 0


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


class SomeIgnored(Corpus):
    """A corpus of which most targets do not count, and in its first windows none."""

    def validation_windows(self, block_size, most=None):
        tokens, targets = super().validation_windows(block_size, most)
        targets = some_ignored(targets, 0.7, 0)
        targets[: loop.EVALUATION_BATCH] = -100
        return tokens, targets


def test_a_window_is_as_long_as_is_asked_for(make_model, corpus):
    """In training and in evaluation, and no longer than the context."""
    model, seen = make_model(), []
    seen_by = model.loss
    model.loss = lambda tokens, *more: seen.append(tokens.shape[1]) or seen_by(tokens, *more)
    settings = {"steps": 1, "batch_size": 2, "evaluation_windows": 2, "pieces": 1}
    ml.train(ml.Run(model, corpus, ml.Settings(**settings, window=3)), progress=False)
    assert {*seen} == {3}
    tokens, targets = corpus.validation_windows(3, 2)
    assert ml.evaluate(model, corpus, 2, window=3) == pytest.approx(seen_by(tokens, targets).item(), rel=1e-6)
    long = model.places + 1
    with pytest.raises(ValueError, match=rf"^evaluate: window = {long}, and the model's context is {long - 1} tokens$"):
        ml.evaluate(model, corpus, window=long)
    with pytest.raises(ValueError, match=rf"^train: window = {long}, and the model's context is {long - 1} tokens$"):
        ml.train(ml.Run(model, corpus, ml.Settings(**settings, window=long)), progress=False)


def test_evaluate_is_the_mean_over_the_targets_that_count(make_model, corpus):
    model, part = make_model("float64"), SomeIgnored(corpus.name, corpus.train, corpus.validation)
    tokens, targets = part.validation_windows(12)
    assert len(tokens) > 2 * loop.EVALUATION_BATCH
    assert ml.evaluate(model, part) == pytest.approx(model.loss(tokens, targets).item(), rel=1e-13)
    with pytest.raises(ValueError, match=r"^evaluate: all 60 targets of .*story.txt' are -100: no loss counts$"):
        ml.evaluate(model, SomeIgnored(corpus.name, corpus.train, corpus.validation[:61]))


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
def test_ctrl_c_saves_and_the_run_goes_on_bit_for_bit(make_model, corpus, tmp_path, lora, interrupted):
    path = tmp_path / "run.npz"
    whole = ml.train(run_of(make_model(lora=lora), corpus), progress=False)
    before = signal.getsignal(signal.SIGINT)
    stopped = run_of(make_model(lora=lora), Interrupting(corpus.name, corpus.train, corpus.validation))
    interrupted(stopped, path)
    assert stopped.interrupted and stopped.saved == 3
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


@pytest.mark.parametrize("failing", [{2}, {4}, {2, 4}, {6}, {2, 4, 6}])
def test_a_checkpoint_that_cannot_be_written_is_a_warning(make_model, corpus, tmp_path, monkeypatch, failing):
    """The training goes on, and the last good file stays."""
    path, save = tmp_path / "run.npz", ml.training.loop.save_checkpoint
    whole = ml.train(run_of(make_model(), corpus), progress=False)

    def full(run, place):
        if run.step in failing:
            raise OSError(28, "No space left on device (the file needs about 20,000 bytes)", str(place))
        return save(run, place)

    monkeypatch.setattr(ml.training.loop, "save_checkpoint", full)
    with pytest.warns(UserWarning, match=r"could not be saved at step \d: .*run\.npz: No space .* 20,000") as warned:
        run = ml.train(run_of(make_model(), corpus), path, progress=False)
    assert len(warned) == len(failing) and bits(run) == bits(whole)
    kept = {2, 4, 6} - failing
    assert run.saved == (max(kept) if kept else None)
    assert load_checkpoint(path).step == run.saved if kept else not path.exists()


def test_ctrl_c_in_the_last_step_is_not_swallowed(make_model, corpus, tmp_path, interrupted):
    """A loop over several runs stops, though this one is done."""
    stopped = run_of(make_model(), Interrupting(corpus.name, corpus.train, corpus.validation), steps=3)
    interrupted(stopped, tmp_path / "run.npz")
    assert not stopped.interrupted and stopped.step == stopped.saved == 3
    assert ml.train(load_checkpoint(tmp_path / "run.npz"), progress=False).step == 3


def test_the_progress_bar_is_as_wide_as_the_terminal(make_model, corpus, monkeypatch):
    """A wider one would take a line a step."""
    made = []
    bar = tqdm.tqdm
    monkeypatch.setattr(tqdm, "tqdm", lambda *args, **how: made.append(how) or bar(*args, **how))
    ml.train(run_of(make_model(), corpus))
    assert made[0]["dynamic_ncols"] and "ncols" not in made[0]


# Models of something else than texts


class Lines(Module):
    """One number from two arrays of a row each: what a model of pictures is to the loop."""

    def __init__(self):
        self.weight = ml.Tensor(np.random.default_rng(0).normal(size=3), requires_grad=True)

    def loss(self, x, scale, y, rng=None):
        difference = (ml.Tensor(x) * self.weight).sum(axis=-1) * scale - y
        return (difference * difference).mean()


def lines(rows):
    rng = np.random.default_rng(1)
    return (rng.normal(size=(rows, 3)), rng.normal(size=rows)), rng.normal(size=rows)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_batch_of_other_things_is_split_by_rows(rows):
    model = Lines()
    (x, scale), y = lines(rows)
    whole = model.loss(x, scale, y)
    expected = ml.grad(whole, [model.weight])[0]
    for pieces in (1, 2, 3):
        loss, (gradient,) = loss_and_gradients(model, [model.weight], (x, scale), y, pieces=pieces)
        assert math.isclose(loss, whole.item(), rel_tol=1e-13)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    before = model.weight.data.copy()
    ml.train_step(model, ml.SGD([model.weight], lr=0.1), (x, ml.Tensor(scale)), y)
    np.testing.assert_allclose(model.weight.data, before - 0.1 * expected, rtol=1e-12)


def test_what_is_no_batch_of_rows_is_refused():
    model, ((x, scale), y) = Lines(), lines(4)
    optimizer, before = ml.SGD([model.weight], lr=0.1), model.weight.data.copy()
    for batch, words in [
        (((x, scale[:3]), y), r"a batch of \(4, 3\) and \(3,\) and \(4,\), expected arrays of one length B"),
        (((x, scale), y[:0]), "expected arrays of one length B"),
        (((x, 1.0), y), r"\(4, 3\) and \(\) and \(4,\), expected arrays of one length B"),
        (((x, "abc"), y), "a part of the batch = 'abc', expected an array of numbers"),
        (((x, None), y), "a part of the batch = None, expected an array of numbers"),
        (((x, scale), np.full(4, -100)), "all 4 targets are -100 or padding"),
    ]:
        with pytest.raises((ValueError, TypeError), match=f"^train_step: .*{words}"):
            ml.train_step(model, optimizer, *batch)
    assert (model.weight.data == before).all()
