"""The transformer: its start, its mathematics, its gradients as a whole, and the text it writes."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

import minilora as ml
from minilora.autograd import head
from minilora.nn.language_model import sample

CONFIG = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)


def model64(config: ml.GPTConfig = CONFIG, rng: int = 0, std: float = 0.3) -> ml.GPT:
    """A float64 model whose every parameter has been shaken: at the start many are 0 or 1, which hides mistakes."""
    model = ml.GPT(config).astype("float64")
    generator = np.random.default_rng(rng)
    for p in model.parameters():
        p.data += generator.normal(0, std, p.shape)
    return model


def batch(b: int, t: int, rng: int = 0, vocab_size: int = 11) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(rng).integers(0, vocab_size, (2, b, t)))


def plain_forward(state: dict, config: ml.GPTConfig, tokens: np.ndarray) -> np.ndarray:
    """GPT-2's formula written a second time, one sequence and one head at a time, with SciPy's softmax."""

    def norm(x, name):
        n = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return n * state[f"{name}.weight"] + state.get(f"{name}.bias", 0)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    logits = []
    for row in tokens:
        t, d = len(row), config.n_embd // config.n_head
        x = state["wte.weight"][row] + state["wpe.weight"][:t]
        future = np.triu(np.ones((t, t), bool), 1)
        for i in range(config.n_layer):
            h = norm(x, f"blocks.{i}.ln_1")
            q, k, v = (linear(h, f"blocks.{i}.attn.{p}_proj") for p in "qkv")
            heads = []
            for j in range(config.n_head):
                part = slice(j * d, (j + 1) * d)
                scores = np.where(future, -np.inf, q[:, part] @ k[:, part].T / math.sqrt(d))
                heads.append(scipy.special.softmax(scores, axis=1) @ v[:, part])
            x = x + linear(np.concatenate(heads, axis=1), f"blocks.{i}.attn.o_proj")
            u = linear(norm(x, f"blocks.{i}.ln_2"), f"blocks.{i}.mlp.up_proj")
            gelu = 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
            x = x + linear(gelu, f"blocks.{i}.mlp.down_proj")
        logits.append(norm(x, "ln_f") @ state["wte.weight"].T)
    return np.stack(logits)


# Mathematics


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("t", [1, 4, 6])
def test_logits_are_the_formula(bias, t):
    config = ml.GPTConfig(11, 6, 2, 2, 8, bias=bias)
    model = model64(config)
    tokens, _ = batch(3, t)
    logits = model(tokens)
    assert logits.shape == (3, t, 11)
    np.testing.assert_allclose(logits.data, plain_forward(model.state_dict(), config, tokens), rtol=1e-11, atol=1e-12)


def test_no_bias_means_no_bias_anywhere():
    model = ml.GPT(ml.GPTConfig(11, 6, 2, 2, 8, bias=False))
    assert not [name for name, _ in model.named_parameters() if "bias" in name]


def test_loss_is_scipys_cross_entropy():
    model = model64()
    tokens, targets = batch(3, 6)
    loss = model.loss(tokens, targets)
    log_p = scipy.special.log_softmax(model(tokens).data, axis=-1)
    expected = -np.mean([log_p[b, t, targets[b, t]] for b in range(3) for t in range(6)])
    assert loss.shape == ()
    assert abs(loss.item() - expected) <= 1e-13 * expected


@pytest.mark.filterwarnings("ignore:add_lora")
@pytest.mark.parametrize("adapted", [("q_proj", "v_proj"), ("wte", "q_proj"), None])
def test_many_logits_of_a_frozen_table_are_never_all_held_and_the_loss_is_the_same(adapted, monkeypatch):
    """A table that is trained, or has an update beside it, is asked for all logits."""
    model = ml.GPT(ml.GPTConfig(50, 8, 1, 2, 8)).astype("float64")
    if adapted:
        ml.add_lora(model, ml.LoRAConfig(2, target_modules=adapted))
    monkeypatch.setattr(head, "LOGITS", 100)
    rng, asked = np.random.default_rng(0), []
    tokens, targets = rng.integers(0, 50, (2, 2, 8))
    targets[0, :3] = -100
    plain = ml.ops.cross_entropy(model(tokens), targets)
    logits = model.wte.logits
    monkeypatch.setattr(model.wte, "logits", lambda x: asked.append(x) or logits(x), raising=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = model.loss(tokens, targets)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    for ours, theirs in zip(ml.grad(loss, trained), ml.grad(plain, trained), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert len(asked) == (adapted != ("q_proj", "v_proj"))


def test_a_new_model_knows_nothing():
    """Logits near zero at the start: the loss is log V, that of a guess."""
    model = ml.GPT(ml.GPTConfig(96, 16, 2, 2, 32))
    tokens, targets = batch(8, 16, vocab_size=96)
    assert abs(model.loss(tokens, targets).item() - math.log(96)) < 0.05


def test_the_head_is_tied_to_the_token_embedding():
    model = model64()
    tokens, targets = batch(2, 6)
    tokens = tokens % 10  # token 10 is never read ...
    before = model(tokens).data
    model.wte.weight.data[10] += 1
    after = model(tokens).data
    np.testing.assert_array_equal(after[..., :10], before[..., :10])
    assert (after[..., 10] != before[..., 10]).all()  # ... and its embedding still moves its logit
    (g,) = ml.grad(model.loss(tokens, targets), [model.wte.weight])
    assert (g[10] != 0).any()


@pytest.mark.parametrize("position", range(6))
def test_no_token_is_seen_by_positions_before_it(position):
    model = model64()
    tokens, _ = batch(2, 6)
    changed = tokens.copy()
    changed[:, position] = (changed[:, position] + 1) % 11
    before, after = model(tokens).data, model(changed).data
    np.testing.assert_array_equal(after[:, :position], before[:, :position])
    assert (after[:, position:] != before[:, position:]).any(axis=-1).all()  # and it is seen by every later one


def test_sequences_of_a_batch_do_not_mix():
    model = model64()
    tokens, _ = batch(3, 6)
    changed = tokens.copy()
    changed[1] = (changed[1] + 1) % 11
    before, after = model(tokens).data, model(changed).data
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], rtol=1e-12)
    assert not np.allclose(after[1], before[1])


# The start


def test_initial_weights_have_the_spread_that_gpt2_gives_them():
    config = ml.GPTConfig(vocab_size=96, block_size=64, n_layer=4, n_head=4, n_embd=64)
    for name, array in ml.GPT(config, rng=1).state_dict().items():
        if name.endswith("bias"):
            assert not array.any(), name
        elif "ln_" in name:
            assert (array == 1).all(), name
        else:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(2 * 4) if residual else 0.02
            # The spread of n normal numbers is within 4 standard errors, std / sqrt(2n), of the true one.
            assert abs(array.std() - std) < 4 * std / math.sqrt(2 * array.size), name
            assert abs(array.mean()) < 4 * std / math.sqrt(array.size), name
            assert scipy.stats.kstest(array.ravel() / std, "norm").pvalue > 1e-4, name


def test_no_two_matrices_start_alike():
    weights = [a.ravel()[:64] for name, a in ml.GPT(CONFIG).state_dict().items() if a.ndim == 2]
    assert len({w.tobytes() for w in weights}) == len(weights)


def test_a_seed_gives_the_same_bits():
    one, two, other = (ml.GPT(CONFIG, rng=rng).state_dict() for rng in (7, np.random.default_rng(7), 8))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
        assert one[name].dtype == np.float32
    assert (one["wte.weight"] != other["wte.weight"]).any()


# Dropout


def test_dropout_acts_only_where_a_generator_is_given():
    config = ml.GPTConfig(11, 6, 2, 2, 8, dropout=0.3)
    model, plain = ml.GPT(config), ml.GPT(CONFIG)
    tokens, _ = batch(2, 6)
    np.testing.assert_array_equal(model(tokens).data, plain(tokens).data)
    one, two, other = (model(tokens, rng=np.random.default_rng(seed)).data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    assert (one != model(tokens).data).any()
    np.testing.assert_array_equal(plain(tokens, rng=np.random.default_rng(1)).data, plain(tokens).data)


def test_dropout_does_not_let_the_future_through():
    model = model64(ml.GPTConfig(11, 6, 2, 2, 8, dropout=0.3))
    tokens, _ = batch(2, 6)
    changed = tokens.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    before, after = (model(t, rng=np.random.default_rng(0)).data for t in (tokens, changed))
    np.testing.assert_array_equal(after[:, :4], before[:, :4])


def test_dropout_reaches_embeddings_attention_and_both_branches():
    """With everything dropped but a hair, every source of the stream is cut: each place must draw its own mask."""
    model = model64(ml.GPTConfig(11, 6, 2, 2, 8, dropout=0.3))

    class Counting:
        """A generator that notes the shapes it is asked for."""

        def __init__(self):
            self.rng, self.shapes = np.random.default_rng(0), []

        def random(self, shape, *args, **kwargs):
            self.shapes.append(tuple(shape))
            return self.rng.random(shape, *args, **kwargs)

    rng = Counting()
    model(batch(3, 5)[0], rng=rng)
    stream, scores = (3, 5, 8), (3, 2, 5, 5)
    assert rng.shapes == [stream] + [scores, stream, stream] * 2


# Gradients of the whole model


def tiny(lora: bool, bias: bool = True) -> ml.GPT:
    model = model64(ml.GPTConfig(5, 3, 1, 2, 4, bias=bias))
    if lora:
        ml.add_lora(model, ml.LoRAConfig(rank=2, alpha=3, target_modules="*"))
        rng = np.random.default_rng(4)
        for p in model.parameters(trainable=True):  # B starts at zero, and then A has no gradient to check
            p.data += rng.normal(0, 0.3, p.shape)
    return model


@pytest.mark.parametrize("method", ["central", "complex-step", "directional"])
@pytest.mark.parametrize("lora", [False, True])
def test_every_gradient_of_the_whole_model(lora, method):
    model = tiny(lora)
    tokens, targets = batch(2, 3, vocab_size=5)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert len(named) == (12 if lora else len(model.parameters()))
    names, parameters = zip(*named, strict=True)
    report = ml.gradcheck(lambda *_: model.loss(tokens, targets), parameters, method=method, names=names)
    assert report.passed, str(report)
    for row in report.inputs:
        if row.name.endswith("k_proj.bias"):  # it adds q . b to every score of a row, which softmax does not see
            assert abs(row.tape) < 1e-15
        else:
            assert row.relative <= (1e-11 if method == "complex-step" else 1e-6), str(report)


def test_the_gradient_check_of_the_whole_model_can_fail():
    model = tiny(lora=True)
    tokens, targets = batch(2, 3, vocab_size=5)

    def wrong(*parameters):  # the tape sees one factor, the value another
        loss = model.loss(tokens, targets)
        return loss + 0.01 * loss.detach()

    assert not ml.gradcheck(wrong, model.parameters(trainable=True)).passed


def test_gradients_do_not_depend_on_what_else_is_trained():
    model = model64()
    tokens, targets = batch(2, 6)
    everything = dict(
        zip(
            (n for n, _ in model.named_parameters()),
            ml.grad(model.loss(tokens, targets), model.parameters()),
            strict=True,
        )
    )
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith(("blocks.1.attn", "blocks.0.ln_1"))
    some = [name for name, p in model.named_parameters() if p.requires_grad]
    for name, g in zip(some, ml.grad(model.loss(tokens, targets), model.parameters(trainable=True)), strict=True):
        np.testing.assert_allclose(g, everything[name], rtol=1e-12, atol=1e-15)


# Writing text


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (0.7, 3), (2.0, None), (0, None), (1.0, 1)])
@pytest.mark.parametrize("rows, prompt", [(1, 1), (3, 1), (2, 4), (1, 6), (2, 9)])
def test_cached_and_uncached_sampling_are_equal(seed, temperature, top_k, rows, prompt):
    """Over more new tokens than fit into the context (6), so that the window slides."""
    model = model64(rng=seed)
    tokens, _ = batch(rows, prompt, rng=seed)
    cached, uncached = (
        model.generate(tokens, 9, temperature, top_k, rng=seed, use_cache=cache) for cache in (True, False)
    )
    assert cached.shape == (rows, prompt + 9)
    np.testing.assert_array_equal(cached[:, :prompt], tokens)
    np.testing.assert_array_equal(cached, uncached)


def test_the_cache_saves_work():
    """After the first step the model is called with one new token, while the window does not slide."""
    model = model64()
    lengths = []
    embed = model.wte.__call__

    class Spy(type(model.wte)):
        """Notes how many tokens are embedded."""

        def __call__(self, tokens):
            lengths.append(tokens.shape[1])
            return embed(tokens)

    spy = Spy.__new__(Spy)
    spy.weight = model.wte.weight
    model.wte = spy
    model.generate(np.array([1, 2]), 5)
    assert lengths == [2, 1, 1, 1, 1]


def test_temperature_zero_is_greedy():
    model = model64()
    text = np.array([3])
    for _ in range(8):
        text = np.append(text, model(text[None, -6:]).data[0, -1].argmax())
    np.testing.assert_array_equal(model.generate(np.array([3]), 8, temperature=0), text)
    np.testing.assert_array_equal(model.generate(np.array([3]), 8, top_k=1, temperature=5.0, rng=3), text)


def test_one_sequence_and_a_batch_of_one():
    model = model64()
    one = model.generate([1, 2], 5, rng=1)
    assert one.shape == (7,)
    np.testing.assert_array_equal(model.generate([[1, 2]], 5, rng=1), one[None])
    np.testing.assert_array_equal(model.generate([1, 2], 0), [1, 2])


def test_the_seed_decides_and_a_generator_goes_on():
    model = model64()
    one, two, other = (model.generate([1], 20, rng=rng) for rng in (4, np.random.default_rng(4), 5))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    rng = np.random.default_rng(4)
    assert (model.generate([1], 20, rng=rng) != model.generate([1], 20, rng=rng)).any()


def test_generating_records_no_tape_and_drops_nothing_out():
    model = model64(ml.GPTConfig(11, 6, 2, 2, 8, dropout=0.5))
    np.testing.assert_array_equal(model.generate([1], 9, temperature=0, rng=0), model.generate([1], 9, 0, rng=1))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (0.5, None), (3.0, 4)])
def test_samples_follow_softmax_of_logits_over_temperature(temperature, top_k):
    logits = np.array([1.0, -0.5, 0.3, 2.0, 0.0, 1.4, -2.0, 0.9])
    n = 40_000
    draws = sample(np.tile(logits, (n, 1)), temperature, top_k, np.random.default_rng(0))
    kept = np.argsort(-logits)[:top_k]  # distinct logits: exactly the k likeliest
    p = scipy.special.softmax(logits[kept] / temperature)
    counts = np.bincount(draws, minlength=len(logits))
    assert counts[kept].sum() == n  # nothing else is ever drawn
    assert scipy.stats.chisquare(counts[kept], n * p).pvalue > 1e-3
    wrong = scipy.special.softmax(logits[kept] / (1.2 * temperature))  # the test would see a fifth more temperature
    assert scipy.stats.chisquare(counts[kept], n * wrong).pvalue < 1e-6


def test_rows_are_drawn_independently():
    draws = sample(np.zeros((20_000, 4)), 1.0, None, np.random.default_rng(0)).reshape(-1, 2)
    table = np.bincount(draws[:, 0] * 4 + draws[:, 1], minlength=16).reshape(4, 4)
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.filterwarnings("error")
def test_a_very_low_temperature_is_greedy_without_overflow():
    logits = np.array([[1.0, 5.0, 2.0], [700.0, -700.0, 0.0]])
    for temperature in (1e-3, 1e-100, 5e-324):
        np.testing.assert_array_equal(sample(logits, temperature, None, np.random.default_rng(0)), [1, 0])


# Errors


@pytest.mark.parametrize("name", ["vocab_size", "block_size", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize("value", [0, -3, 2.0, "4"])
def test_sizes_must_be_positive_integers(name, value):
    sizes = {"vocab_size": 11, "block_size": 6, "n_layer": 2, "n_head": 2, "n_embd": 8}
    with pytest.raises(ValueError, match=f"{name} = {value!r}, expected a positive integer"):
        ml.GPTConfig(**{**sizes, name: value})


def test_width_must_divide_into_heads():
    with pytest.raises(ValueError, match="n_embd = 8 is not divisible by n_head = 3"):
        ml.GPTConfig(11, 6, 2, 3, 8)


@pytest.mark.parametrize("dropout", [-0.1, 1, float("nan")])
def test_dropout_must_be_a_probability(dropout):
    with pytest.raises(ValueError, match=r"dropout = .*expected 0 <= dropout < 1"):
        ml.GPTConfig(11, 6, 2, 2, 8, dropout=dropout)


@pytest.mark.parametrize(
    "tokens, error, message",
    [
        (np.zeros((1, 7), int), ValueError, "7 tokens exceed the context of block_size = 6"),
        (np.array([[0, 11]]), ValueError, "tokens run from 0 to 11, expected 0 to 10"),
        (np.array([[-1, 3]]), ValueError, "tokens run from -1 to 3, expected 0 to 10"),
        (np.array([[0.0, 1.0]]), TypeError, "tokens have dtype float64, expected integers"),
        (np.array([1, 2]), ValueError, r"tokens have shape \(2,\), expected \(B, T\)"),
        (np.zeros((2, 0), int), ValueError, r"tokens have shape \(2, 0\), expected \(B, T\)"),
        (np.array([["a"]]), TypeError, "expected integers"),
    ],
)
def test_wrong_tokens(tokens, error, message):
    with pytest.raises(error, match=message):
        ml.GPT(CONFIG)(tokens)


@pytest.mark.parametrize(
    "targets, error, message",
    [
        (np.array([[1, 11]]), ValueError, "targets run from 1 to 11"),
        (np.array([[1.0, 2.0]]), TypeError, "targets have dtype float64"),
        (np.array([[1]]), ValueError, r"targets .*\(1, 1\)"),
    ],
)
def test_wrong_targets(targets, error, message):
    with pytest.raises(error, match=f"cross_entropy: .*{message}"):
        ml.GPT(CONFIG).loss(np.array([[1, 2]]), targets)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"temperature": -1}, ValueError, "temperature = -1"),
        ({"temperature": float("nan")}, ValueError, "temperature = nan"),
        ({"top_k": 0}, ValueError, "top_k = 0"),
        ({"top_k": 2.5}, ValueError, r"top_k = 2\.5"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens = -1"),
        ({"max_new_tokens": 1.5}, ValueError, r"max_new_tokens = 1\.5"),
        ({"tokens": []}, ValueError, r"prompt has shape \(0,\)"),
        ({"tokens": 3}, ValueError, r"prompt has shape \(\)"),
        ({"tokens": np.zeros((2, 2, 2), int)}, ValueError, r"prompt has shape \(2, 2, 2\)"),
        ({"tokens": [0.5]}, TypeError, "expected integers"),
        ({"tokens": [11]}, ValueError, "tokens run from 11 to 11"),
    ],
)
def test_wrong_arguments_to_generate(arguments, error, message):
    with pytest.raises(error, match=message):
        ml.GPT(CONFIG).generate(**{"tokens": [1], "max_new_tokens": 2, **arguments})
