"""Prompts, and what they share with prefixes: where they start, positions, sampling, training, saving, refusing."""

import contextlib
import copy

import numpy as np
import pytest
import scipy.stats

import minilora as ml
from minilora.adapters.attach import add_adapter, remove_adapter
from minilora.adapters.merge import merge_adapter
from minilora.adapters.prefix import PrefixConfig
from minilora.adapters.prompt import PromptConfig
from minilora.adapters.state import adapter_parameters
from minilora.analysis import counting
from minilora.nn.decode import Decoder
from minilora.nn.language_model import Cache
from minilora.nn.layers import Linear
from minilora.nn.storage import load_arrays, save_arrays
from minilora.training.backward import loss_and_gradients
from minilora.training.checkpoint import load_checkpoint, save_checkpoint
from minilora.training.corpus import Corpus
from minilora.training.optim import cosine_schedule
from minilora.training.run import Run, Settings

CONFIG = ml.GPTConfig(vocab_size=11, block_size=9, n_layer=2, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6))
TARGETS = np.random.default_rng(1).integers(0, 11, (3, 6))
KINDS = {
    "prompt": PromptConfig(3),
    "random prompt": PromptConfig(3, init="random"),
    "prefix": PrefixConfig(3),
    "prefix of real tokens": PrefixConfig(3, init="vocabulary"),
    "prefix with a network": PrefixConfig(3, hidden=5),
}
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


def base(dtype: str = "float64", dropout: float = 0.0) -> ml.GPT:
    """A GPT whose logits are not tiny, so that a change shows."""
    model = ml.GPT(ml.GPTConfig(11, 9, 2, 2, 8, dropout=dropout))
    for p in model.parameters():
        p.data *= 8
    return model.astype(dtype)


def adapted(config, dtype: str = "float64", rng: int = 5, **settings) -> ml.GPT:
    """A model with virtual tokens that are no longer where they started."""
    model = add_adapter(base(dtype, **settings), config)
    generator = np.random.default_rng(rng)
    for p in adapter_parameters(model).values():
        p.data += generator.normal(0, 0.5, p.shape)
    return model


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@contextlib.contextmanager
def without_front(model: ml.GPT):
    """The virtual tokens alone are away; other methods stay."""
    front, model.front = model.front, None
    yield front
    model.front = front


def concatenated(model: ml.GPT, tokens: np.ndarray) -> ml.Tensor:
    """The paper's form: [prompt; wte[tokens]] through the whole model, less the prompt's own logits."""
    with without_front(model) as front:
        rows = ml.ops.concatenate([front.prompt.reshape(1, front.length, -1)] * len(tokens), axis=0)  # (B, P, C)
        x = model.hidden(ml.ops.concatenate([rows, model.wte(tokens)], axis=1))  # (B, P + T, C)
        return ml.ops.linear(model.ln_f(x), model.wte.weight)[:, front.length :]  # (B, T, V)


# Where they start


@pytest.mark.parametrize("kind", [PromptConfig, PrefixConfig])
@pytest.mark.parametrize("text, stands", [((4, 9, 2), (4, 9, 2)), ((7,), (7, 7, 7)), ((1, 2, 3, 4), (1, 2, 3))])
def test_started_from_a_text_it_is_the_base_model_after_that_text(kind, text, stands):
    """A text shorter than the prompt is repeated, a longer one cut."""
    model = base()
    told = model(np.hstack([np.tile(stands, (3, 1)), TOKENS])).data[:, 3:]
    add_adapter(model, kind(3, init="vocabulary", text=text))
    np.testing.assert_allclose(model(TOKENS).data, told, rtol=1e-12, atol=1e-12)


def test_a_prompt_starts_from_rows_of_the_vocabulary():
    model = base("float32")
    prompt = add_adapter(model, PromptConfig(8), rng=3).front.prompt.data
    drawn = [int(np.flatnonzero((model.wte.weight.data == row).all(axis=1)).item()) for row in prompt]
    assert drawn == list(np.random.default_rng(3).integers(11, size=8))
    assert not np.shares_memory(prompt, model.wte.weight.data)


def test_a_random_prompt_is_uniform():
    """U(-0.5, 0.5): Lester et al. 2021, section 3.2."""
    model = ml.GPT(ml.GPTConfig(5, 200, 1, 1, 32))
    prompt = add_adapter(model, PromptConfig(100, init="random")).front.prompt.data.ravel()
    assert scipy.stats.kstest(prompt, scipy.stats.uniform(-0.5, 1).cdf).pvalue > 1e-3


@every_kind
def test_a_seed_gives_the_same_bits(config):
    one, two, other = (adapter_parameters(add_adapter(base(), config, rng=rng)) for rng in (3, 3, 4))
    for name, p in one.items():
        np.testing.assert_array_equal(p.data, two[name].data)
        assert (p.data != other[name].data).any()


# A prompt is the concatenation


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("methods", [[], [ml.LoRAConfig(rank=2, target_modules="*")]], ids=["alone", "with LoRA"])
def test_a_prompt_is_the_concatenation_of_embeddings(tokens, length, methods):
    """Run once and kept in the cache, or run in front of every text: logits and gradients are the same."""
    model = adapted([*methods, PromptConfig(tokens)])
    text, targets = TOKENS[:, :length], TARGETS[:, :length]
    parameters = list(adapter_parameters(model).values())
    cached, whole = model(text), concatenated(model, text)
    assert cached.shape == (3, length, 11)
    np.testing.assert_allclose(cached.data, whole.data, rtol=1e-12, atol=1e-12)
    losses = (ml.ops.cross_entropy(logits, targets) for logits in (cached, whole))
    ours, theirs = (ml.grad(loss, parameters) for loss in losses)
    largest = max(np.abs(g).max() for g in theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert other.any()
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * largest)


# Derivatives


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("method", ["central", "complex-step", "directional"])
def test_gradients(config, method):
    model = adapted(config)
    own = adapter_parameters(model)
    report = ml.gradcheck(lambda *_: model.loss(TOKENS, TARGETS), list(own.values()), method, names=list(own))
    assert report.passed, str(report)


@pytest.mark.slow
@every_kind
def test_dropout_has_gradients_and_its_own_generator(config):
    model = adapted(config, dropout=0.3)
    assert (model(TOKENS).data == model(TOKENS).data).all()
    one, two, other = (model(TOKENS, np.random.default_rng(seed)).data for seed in (1, 1, 2))
    assert (one == two).all() and (one != other).any()
    loss = lambda *_: model.loss(TOKENS, TARGETS, np.random.default_rng(0))
    report = ml.gradcheck(loss, list(adapter_parameters(model).values()), "complex-step")
    assert report.passed, str(report)


def test_dropout_acts_on_the_prompts_own_pass():
    """The first block's keys are computed from the prompt's embeddings alone, some of which are dropped."""
    model = adapted(PromptConfig(3), dropout=0.5)
    plain, dropped = (
        model.front.fill(model, Cache(), 1, rng).pairs[0][0].data for rng in (None, np.random.default_rng(0))
    )
    assert (plain != dropped).any()


@every_kind
def test_a_step_moves_the_virtual_tokens_alone(config):
    model = add_adapter(base("float32"), config)
    state, own = model.state_dict(), adapter_parameters(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(own)
    ml.train_step(model, ml.AdamW(model.named_parameters(), lr=0.01), TOKENS, TARGETS)
    for name, array in model.state_dict().items():
        assert array.dtype == np.float32
        assert (array != state[name]).any() == (name in own), name


@every_kind
def test_a_batch_split_over_the_cores_has_the_gradients_of_the_whole(config):
    model = adapted(config)
    parameters = list(adapter_parameters(model).values())
    loss, gradients = loss_and_gradients(model, parameters, TOKENS, TARGETS)
    assert loss == pytest.approx(model.loss(TOKENS, TARGETS).item(), rel=1e-12)
    for one, other in zip(gradients, ml.grad(model.loss(TOKENS, TARGETS), parameters), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
@every_kind
def test_virtual_tokens_learn(config):
    model = add_adapter(base("float32"), config)
    optimizer = ml.AdamW(model.named_parameters(), lr=0.05)
    losses = [ml.train_step(model, optimizer, TOKENS, TARGETS) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]


# Positions, windows, sampling


@every_kind
def test_the_context_is_what_the_virtual_tokens_leave(config):
    model = adapted(config)
    assert model.context == 6
    with pytest.raises(ValueError, match=r"10 tokens \(3 of them virtual\) exceed the context of block_size = 9"):
        model(np.zeros((1, 7), int))
    model.loss(TOKENS, TARGETS)  # six are allowed


@every_kind
def test_training_cuts_windows_that_fit_and_evaluation_scores_the_ends_of_whole_ones(config):
    model = adapted(config, "float32")
    text = np.random.default_rng(0).integers(0, 11, 200)
    corpus = Corpus("drawn", text, text[:50])
    settings = Settings(steps=2, batch_size=2, evaluate_every=2)
    run = ml.train(Run(model, corpus, settings), progress=False)
    assert run.step == 2 and np.isfinite(run.validation["loss"]).all()
    tokens, targets = (rows[:, 3:] for rows in corpus.validation_windows(9))  # as the base model's, less what is taken
    assert tokens.shape == (5, 6)
    assert ml.evaluate(model, corpus) == pytest.approx(model.loss(tokens, targets).item(), rel=1e-5)


@every_kind
@pytest.mark.parametrize("prompt", [1, 5, 8])
def test_sampling_with_and_without_the_cache(config, prompt):
    """Also beyond the context, where the window slides and the virtual tokens stay in front of it."""
    model = adapted(config)
    text = np.random.default_rng(2).integers(0, 11, (2, prompt))
    for temperature in (0.0, 1.0):
        cached, uncached = (model.generate(text, 9, temperature, rng=4, use_cache=use) for use in (True, False))
        np.testing.assert_array_equal(cached, uncached)
        np.testing.assert_array_equal(cached[:, :prompt], text)


@every_kind
def test_the_cache_reads_each_token_once(config, monkeypatch):
    """Until the window is full, each step after the first reads one token, and the virtual tokens are there already."""
    model, read = adapted(config), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda x, *rest: read.append(x.shape[1]) or hidden(x, *rest))
    one_more = Decoder.__call__
    monkeypatch.setattr(Decoder, "__call__", lambda self, tokens: read.append(len(tokens)) or one_more(self, tokens))
    model.generate(TOKENS[0, :2], 5)
    assert read == ([3] if isinstance(config, PromptConfig) else []) + [2, 1, 1, 1, 1]


def test_sampling_takes_the_likeliest_token_of_the_concatenation():
    model = adapted(PromptConfig(3))
    text = TOKENS[:, :2]
    for _ in range(9):
        text = np.hstack([text, concatenated(model, text[:, -6:]).data[:, -1].argmax(axis=1)[:, None]])
    np.testing.assert_array_equal(model.generate(TOKENS[:, :2], 9, temperature=0), text)


@every_kind
def test_a_text_in_two_parts_through_one_cache(config):
    """The virtual tokens come once, before the first part."""
    model, cache = adapted(config), Cache()
    parts = [model(TOKENS[:, :2], cache=cache).data, model(TOKENS[:, 2:], cache=cache).data]
    np.testing.assert_allclose(np.hstack(parts), model(TOKENS).data, rtol=1e-12, atol=1e-12)
    assert cache.length == 9


@pytest.mark.parametrize("kind", [PromptConfig, PrefixConfig])
def test_room_for_one_token_is_enough(kind):
    model = add_adapter(base(), kind(8))
    assert model(TOKENS[:, :1]).shape == (3, 1, 11)
    cached, uncached = (model.generate(TOKENS[0], 4, rng=0, use_cache=use) for use in (True, False))
    np.testing.assert_array_equal(cached, uncached)


# What is trained, and the interface


@pytest.mark.parametrize("kind, config", [("prompt", PromptConfig(3)), ("prefix", PrefixConfig(3))])
def test_names_shapes_and_counts_are_the_formulas(kind, config):
    model = add_adapter(base("float32"), config)
    plan = counting.plan(model, kind, tokens=3)
    assert {name: p.shape for name, p in model.named_parameters() if p.requires_grad} == plan.trainable == plan.added
    walked, record = counting.count_model(model), counting.count(model, kind, tokens=3)
    assert {key: record[key] for key in walked} == walked


@every_kind
def test_disabled_removed_and_switched(config):
    model = base("float32")
    state, logits, names = model.state_dict(), model(TOKENS).data, sorted(vars(model))
    add_adapter(model, config, rng=1, name="one")
    one = model(TOKENS).data
    add_adapter(model, PromptConfig(2, init="random"), rng=2, name="two")
    two = model(TOKENS).data
    assert (one != logits).any() and (two != one).any()
    assert model.context == 7
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(model(TOKENS).data, logits)
        assert model.context == 9
    for name, expected in (("one", one), (None, logits), ("two", two)):
        ml.set_adapter(model, name)
        np.testing.assert_array_equal(model(TOKENS).data, expected)
    remove_adapter(model)
    np.testing.assert_array_equal(model(TOKENS).data, logits)
    assert_same(model.state_dict(), state)
    assert sorted(vars(model)) == names and all(p.requires_grad for p in model.parameters())


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saved_and_loaded_they_give_the_same_bits(config, dtype, tmp_path):
    model = adapted(config, dtype)
    path = ml.save_adapter(model, tmp_path / "adapter.npz")
    loaded = ml.load_adapter(base(dtype), path)
    np.testing.assert_array_equal(loaded(TOKENS).data, model(TOKENS).data)
    assert loaded(TOKENS).dtype == dtype
    np.testing.assert_array_equal(loaded.generate(TOKENS[0], 6), model.generate(TOKENS[0], 6))


@every_kind
def test_a_checkpoint_goes_on_where_it_stopped(config, tmp_path):
    text = np.random.default_rng(0).integers(0, 11, 200)
    corpus = Corpus("drawn", text, text[:50])
    settings = Settings(steps=4, batch_size=2)
    whole = ml.train(Run(add_adapter(base("float32"), config), corpus, settings), progress=False)
    half = Run(add_adapter(base("float32"), config), corpus, settings)
    for _ in range(4):
        if half.step == 2:
            half = load_checkpoint(save_checkpoint(half, tmp_path / "half.npz"), corpus)
        half.optimizer.lr = cosine_schedule(half.step, 4, settings.lr, 20, 0.1 * settings.lr)
        batch = corpus.batch(2, half.model.context, half.rng)
        ml.train_step(half.model, half.optimizer, *batch, half.rng, settings.max_norm)
    assert_same(half.model.state_dict(), whole.model.state_dict())


@every_kind
def test_a_base_checkpoint_loads_beneath_them(config):
    model = adapted(config)
    own = {name: p.data.copy() for name, p in adapter_parameters(model).items()}
    state = ml.GPT(CONFIG, rng=9).astype("float64").state_dict()
    model.load_state_dict(state)
    assert_same(model.state_dict(), {**state, **own})


@every_kind
def test_a_deep_copy_is_independent(config):
    model = adapted(config)
    logits = model(TOKENS).data
    twin = copy.deepcopy(model)
    np.testing.assert_array_equal(twin(TOKENS).data, logits)
    for p in twin.parameters():
        p.data += 1
    np.testing.assert_array_equal(model(TOKENS).data, logits)


def test_a_prompt_beside_lora():
    """One adapter of two methods: the prompt goes through the adapted layers."""
    model = add_adapter(base(), [ml.LoRAConfig(rank=2), PromptConfig(3)])
    generator = np.random.default_rng(0)
    for p in adapter_parameters(model).values():
        p.data[...] = generator.normal(0, 0.3, p.shape)
    own = adapter_parameters(model)
    assert {name.rpartition(".")[2] for name in own} == {"lora_A", "lora_B", "prompt"}
    report = ml.gradcheck(lambda *_: model.loss(TOKENS, TARGETS), list(own.values()), "complex-step")
    assert report.passed, str(report)


# Refusals, each of which leaves the model as it was


def assert_refused(model, call, message):
    state, names, trained = model.state_dict(), sorted(vars(model)), [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert_same(model.state_dict(), state)
    assert sorted(vars(model)) == names and [p.requires_grad for p in model.parameters()] == trained


@pytest.mark.parametrize("config, reason", [(KINDS["prompt"], "more positions"), (KINDS["prefix"], "more keys")])
def test_they_cannot_be_merged(config, reason):
    model = adapted(config)
    logits = model(TOKENS).data
    assert_refused(model, lambda: merge_adapter(model), f"merge_adapter: front: .*{reason}")
    both = add_adapter(base(), [ml.LoRAConfig(rank=2), config])
    assert_refused(both, lambda: merge_adapter(both), reason)
    np.testing.assert_array_equal(model(TOKENS).data, logits)


@pytest.mark.parametrize("kind", [PromptConfig, PrefixConfig])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tokens": 0}, "tokens = 0, expected a positive integer"),
        ({"tokens": 2.0}, r"tokens = 2\.0, expected"),
        ({"tokens": True}, "tokens = True"),
        ({"init": "zeros"}, "init = 'zeros', expected 'vocabulary' or 'random'"),
        ({"text": (), "init": "vocabulary"}, r"text = \(\), expected at least one token"),
        ({"text": "read this", "init": "vocabulary"}, "text = 'read this', expected .* each an integer"),
        ({"text": (1, 2), "init": "random"}, "with a text, init is 'vocabulary'"),
    ],
)
def test_wrong_settings(kind, settings, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*{message}|{kind.__name__}: {message}"):
        kind(**settings)


def test_settings_may_be_numpys():
    config = PromptConfig(np.int64(2), text=np.array([3, 4, 5]))
    assert config.text == (3, 4, 5) and type(config.text[0]) is int
    assert PromptConfig(2, text=[3, 4]) == PromptConfig(2, text=(3, 4))


@pytest.mark.parametrize("kind", [PromptConfig, PrefixConfig])
def test_what_does_not_fit_the_model(kind):
    model = base()
    no_room = f"{kind.__name__}: 9 virtual tokens leave no room for a text in a context of block_size = 9"
    assert_refused(model, lambda: add_adapter(model, kind(9)), no_room)
    beyond = kind(2, init="vocabulary", text=(3, 11))
    assert_refused(
        model, lambda: add_adapter(model, beyond), r"Config\.text: tokens run from 3 to 11, expected 0 to 10"
    )
    layer = Linear(3, 3, True, np.random.default_rng(0))
    assert_refused(layer, lambda: add_adapter(layer, kind(2)), "stand before the text of a GPT; this is a Linear")


def test_a_prompt_and_a_prefix_want_the_same_place():
    model = base()
    assert_refused(
        model,
        lambda: add_adapter(model, [PromptConfig(2), PrefixConfig(2)]),
        "prompt and prefix both want the place of front",
    )


def test_an_adapter_of_another_method_is_refused(tmp_path):
    """A file says its method: a prompt's numbers cannot be taken for a prefix's."""
    path = ml.save_adapter(adapted(PromptConfig(3)), tmp_path / "adapter.npz")
    arrays, header = load_arrays(path, "adapter")
    header["methods"][0] = {"kind": "prefix", "config": {"tokens": 3}}
    save_arrays(path, arrays, header)
    model = base()
    assert_refused(model, lambda: ml.load_adapter(model, path), "adapts front.prompt, which this model does not have")
