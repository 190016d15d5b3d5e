"""REINFORCE: its gradient is that of the mean reward over every text there is; what is written, rewarded, refused."""

import itertools
import math
import signal

import numpy as np
import pytest

import minilora as ml
from minilora.autograd import ops
from minilora.nn.module import Module
from minilora.training import backward
from minilora.training.reinforce import BASELINES, Episodes, policy_gradient, rewards_of, weighted_loss

END, LONGEST = 0, 3
PROMPT = np.array([1, 2])


class Digits:
    """A tokenizer of digits."""

    def decode(self, tokens):
        return "".join(str(int(token)) for token in tokens)


def reward(text):
    """Something that no derivative can be taken of, and that a text which has not ended gets less of."""
    return text.count("2") ** 2 - 1.5 * text.startswith("1") + 0.25 * text.endswith("0")


@pytest.fixture
def model():
    """A GPT of three tokens, with LoRA that is not idle."""
    gpt = ml.GPT(ml.GPTConfig(vocab_size=3, block_size=8, n_layer=1, n_head=2, n_embd=8), rng=0).astype("float64")
    gpt.tokenizer = Digits()
    rng = np.random.default_rng(1)
    for name, p in gpt.named_parameters():
        p.data[...] = rng.normal(1 if "ln_" in name and name.endswith("weight") else 0, 0.3, p.shape)
    ml.add_lora(gpt, ml.LoRAConfig(rank=2, target_modules="*"), rng=2)
    for p in gpt.parameters(trainable=True):
        p.data[...] = rng.normal(0, 0.3, p.shape)
    return gpt


def every_text():
    """All texts of at most LONGEST tokens that end with END, and those that are cut: 1 + 2 + 4 + 8."""
    whole = [(*body, END) for n in range(LONGEST) for body in itertools.product((1, 2), repeat=n)]
    return whole + list(itertools.product((1, 2), repeat=LONGEST))


def as_episodes(texts):
    """Texts as a model would have written them after PROMPT, with an END repeated behind their ends."""
    rows = np.array([[*PROMPT, *text, *[END] * (LONGEST - len(text))] for text in texts])
    targets = np.full_like(rows[:, 1:], -100)
    for row, text in zip(targets, texts, strict=True):
        row[len(PROMPT) - 1 : len(PROMPT) - 1 + len(text)] = text
    return Episodes(rows[:, :-1], targets, tuple("".join(map(str, text)) for text in texts))


def probability(model, text):
    """pi(text) by the definition, a token at a time, in plain NumPy."""
    total, before = 1.0, list(PROMPT)
    for token in text:
        with ml.no_grad():
            z = model(np.array([before])).numpy()[0, -1]
        total *= (np.exp(z) / np.exp(z).sum())[token]
        before.append(token)
    return total


def mean_reward(model):
    return sum(probability(model, text) * reward("".join(map(str, text))) for text in every_text())


def test_the_probabilities_of_all_texts_add_up_to_one(model):
    assert math.isclose(sum(probability(model, text) for text in every_text()), 1, rel_tol=1e-12)


@pytest.mark.parametrize("b", [0.0, 0.7])
def test_the_expected_step_is_the_gradient_of_the_mean_reward(model, b):
    """sum_y pi(y) (R(y) - b) grad log pi(y), over every text, against differences of J = sum_y pi(y) R(y)."""
    episodes, parameters = as_episodes(every_text()), model.parameters(trainable=True)
    pi = np.array([probability(model, text) for text in every_text()])
    R = np.array([reward(text) for text in episodes.texts])
    _, gradients = policy_gradient(model, parameters, episodes, len(pi) * pi * (R - b))
    rng, h = np.random.default_rng(3), 1e-6
    for _ in range(3):
        directions, ends = [rng.normal(size=p.shape) for p in parameters], []
        for step in (h, -2 * h, h):  # there, to the other side, and back
            for p, direction in zip(parameters, directions, strict=True):
                p.data += step * direction
            ends.append(mean_reward(model))
        slope = sum((-g * direction).sum() for g, direction in zip(gradients, directions, strict=True))
        assert math.isclose(slope, (ends[0] - ends[1]) / (2 * h), rel_tol=1e-6)


def test_the_weighted_loss_passes_gradcheck(model):
    episodes, weights = as_episodes(every_text()), np.linspace(-1, 2, 15)
    A = model.blocks[0].attn.q_proj.lora_A

    def loss(value):
        A.data = value.data if isinstance(value, ml.Tensor) else value
        model.blocks[0].attn.q_proj.lora_A = value
        return weighted_loss(model, episodes.tokens, episodes.targets, weights)

    assert ml.gradcheck(loss, [A.data.copy()])


class Bandit(Module):
    """One choice of V, whatever came before: pi = softmax(w). By hand, d log pi(k) / dw = onehot(k) - pi."""

    tokenizer, context, labels = Digits(), 8, ()

    def __init__(self, w):
        self.w = ml.Tensor(np.array(w), requires_grad=True)

    def __call__(self, tokens):
        return ops.broadcast_to(self.w, (*np.shape(tokens), len(self.w.data)))

    def generate(self, tokens, longest, rng=0, stop=()):
        pi = np.exp(self.w.data) / np.exp(self.w.data).sum()
        return np.concatenate(
            [tokens, np.random.default_rng(rng).choice(len(pi), (len(tokens), longest), p=pi)], axis=1
        )


W, GIVEN = [0.3, -0.5, 1.0], np.array([2.0, -1.0, 0.5])


def test_a_step_is_what_a_hand_computes():
    bandit, n = Bandit(W), 5
    written = ml.write_episodes(bandit, [0], n, 1, rng=7)
    chosen = written.targets[:, 0]
    R = GIVEN[chosen]
    mean = ml.reinforce_step(
        bandit, ml.SGD([bandit.w], lr=0.1), lambda text: GIVEN[int(text)], [0], np.random.default_rng(7), n, 1,
        max_norm=None,
    )  # fmt: skip
    pi = np.exp(W) / np.exp(W).sum()
    step = sum((R[i] - (R.sum() - R[i]) / (n - 1)) * (np.eye(3)[chosen[i]] - pi) for i in range(n)) / n
    assert math.isclose(mean, R.mean())
    np.testing.assert_allclose(bandit.w.data, W + 0.1 * step, rtol=1e-13)


@pytest.mark.parametrize(("baseline", "share"), [("none", 1), ("others", 1), ("mean", 1 / 2)])
def test_which_baselines_leave_the_mean_as_it_is(baseline, share):
    """Over all nine pairs of texts: the mean of both, which depends on the text itself, halves the gradient of two."""
    bandit = Bandit(W)
    pi = np.exp(W) / np.exp(W).sum()
    expected = np.zeros(3)
    for pair in itertools.product(range(3), repeat=2):
        R = GIVEN[list(pair)]
        targets = np.array(pair)[:, None]
        episodes = Episodes(np.zeros_like(targets), targets, tuple(map(str, pair)))
        _, [g] = policy_gradient(bandit, [bandit.w], episodes, R - BASELINES[baseline](R))
        expected -= pi[pair[0]] * pi[pair[1]] * g
    np.testing.assert_allclose(expected, share * pi * (GIVEN - pi @ GIVEN), rtol=1e-12)  # d/dw sum_k pi_k R_k


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(model, monkeypatch):
    episodes, weights = as_episodes(every_text()), np.linspace(-1, 2, 15)
    parameters, found = model.parameters(trainable=True), []
    for cores in (1, 4):
        monkeypatch.setattr(backward, "cores", lambda n=cores: n)
        found.append(policy_gradient(model, parameters, episodes, weights))
    assert math.isclose(found[0][0], found[1][0], rel_tol=1e-13)
    for a, b in zip(*(gradients for _, gradients in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


# What is written


def test_an_episode_ends_with_the_token_that_ends_it(model):
    written = ml.write_episodes(model, PROMPT, samples=64, longest=5, stop=[END], rng=0)
    text = np.concatenate([written.tokens, np.full((64, 1), -1)], axis=1)
    assert any(len(t) < 5 for t in written.texts) and any(not t.endswith("0") for t in written.texts)
    for row, targets, said in zip(text, written.targets, written.texts, strict=True):
        assert row[:2].tolist() == [1, 2] and said.find("0") in (-1, len(said) - 1)
        counted = targets[targets != -100]
        assert "".join(map(str, counted)) == said and targets[0] == -100  # the prompt is nobody's choice
        assert (targets[1 : 1 + len(said)] != -100).all() and (targets[1 + len(said) :] == -100).all()
        assert row[2 : 1 + len(said)].tolist() == counted[:-1].tolist()  # each token is read where the next is chosen


def test_the_words_of_a_real_model_and_a_seed_are_the_same_again():
    base, line = ml.load_model("base"), ml.encode("\n")
    one, two, other = (ml.write_episodes(base, line, 4, 12, line.tolist(), rng) for rng in (0, 0, 1))
    assert one.texts == two.texts != other.texts and np.array_equal(one.targets, two.targets)


# Learning


def test_rewards_rise_and_a_seed_repeats_them(model):
    state, histories = model.state_dict(), []
    for seed in (0, 0, 1):
        model.load_state_dict(state)
        optimizer = ml.AdamW(model.parameters(trainable=True), lr=0.1)
        histories.append(ml.reinforce(model, optimizer, reward, PROMPT, 25, seed, 16, LONGEST, [END], progress=False))
    assert histories[0] == histories[1] != histories[2]
    assert np.mean(histories[0][-5:]) > np.mean(histories[0][:5]) + 1


def test_where_all_rewards_are_equal_nothing_is_learned(model):
    before = model.state_dict()
    optimizer = ml.SGD(model.parameters(trainable=True), lr=1.0)
    assert ml.reinforce_step(model, optimizer, lambda text: 3.0, PROMPT, np.random.default_rng(0), 8, 3) == 3
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


def test_the_frozen_base_stays_and_a_clipped_step_is_as_long_as_asked(model):
    before, parameters = model.state_dict(), model.parameters(trainable=True)
    optimizer = ml.SGD(parameters, lr=1.0)
    ml.reinforce_step(model, optimizer, reward, PROMPT, np.random.default_rng(0), 8, 3, [END], max_norm=1e-3)
    moved = {name for name, value in model.state_dict().items() if not np.array_equal(before[name], value)}
    assert moved and all(".lora_" in name for name in moved)
    length = math.sqrt(sum(((before[n] - model.state_dict()[n]) ** 2).sum() for n in moved))
    assert math.isclose(length, 1e-3, rel_tol=1e-5)


def test_ctrl_c_ends_it_after_the_step_it_is_in(model):
    optimizer, seen = ml.SGD(model.parameters(trainable=True), lr=0.1), []

    def rule(text):
        seen.append(text)
        if len(seen) == 9:  # the first text of the second step
            signal.raise_signal(signal.SIGINT)
        return float(len(text))

    with pytest.raises(KeyboardInterrupt):
        ml.reinforce(model, optimizer, rule, PROMPT, 5, 0, 8, 3, [END], progress=False)
    assert optimizer.steps == 2 and len(seen) == 16


# Refused


def refused(model, kind, words, **changes):
    given = {"model": model, "reward": reward, "prompt": PROMPT, "samples": 4, "longest": 3, "stop": [END]}
    given["rng"] = np.random.default_rng(0)
    if "optimizer" not in changes:
        given["optimizer"] = ml.SGD(model.parameters(trainable=True), lr=1.0)
    before = model.state_dict()
    with pytest.raises(kind, match=words) as error:
        ml.reinforce_step(**given | changes)
    assert "\n" not in str(error.value)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


def test_what_makes_no_sense_is_refused_and_changes_nothing(model):
    refused(model, TypeError, "optimizer is 3, expected", optimizer=3)
    refused(model, TypeError, "expected a numpy Generator", rng=0)
    refused(model, ValueError, "baseline = 'value', expected one of others, mean, none", baseline="value")
    refused(model, ValueError, "samples = 1: one text has no others", samples=1)
    refused(model, ValueError, "samples = 0, expected 1 or more", samples=0)
    refused(model, ValueError, "a prompt of 2 and texts of 9 tokens, and the model's context is 8", longest=9)
    refused(model, ValueError, r"prompt has shape \(1, 2\), expected \(P,\)", prompt=PROMPT[None])
    refused(model, TypeError, "prompt: got the text '12'", prompt="12")
    refused(model, ValueError, r"reward\('.*'\) = nan, expected a finite number", reward=lambda text: math.nan)
    refused(model, ValueError, r"reward\('.*'\) = None, expected a finite number", reward=lambda text: None)
    refused(model, TypeError, "reward = 1.0, expected a function", reward=1.0)
    refused(model, ValueError, "max_norm = -1", max_norm=-1)


def test_a_model_that_cannot_be_read_or_trained_is_refused(model):
    optimizer = ml.SGD(model.parameters(trainable=True), lr=1.0)
    with ml.lora_disabled(model):
        refused(model, ValueError, "depend on no trainable parameter", optimizer=optimizer)
    model.tokenizer = None
    refused(model, TypeError, "the model has no tokenizer")
    with pytest.raises(TypeError, match="model is a GPTConfig"):
        ml.write_episodes(model.config, PROMPT)


def test_what_counts_as_a_reward():
    assert rewards_of(["a", "b"], lambda text: text == "a").tolist() == [1.0, 0.0]
    assert rewards_of(["a"], lambda text: np.float32(0.5)).tolist() == [0.5]
