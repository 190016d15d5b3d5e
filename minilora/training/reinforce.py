"""REINFORCE: a model learns from rewards for what it writes itself, which need no examples and no derivative.

A model writes a text y with probability pi(y) = prod_t pi(y_t | y_<t), and a rule gives R(y). What should rise is the
mean reward J = E[R] = sum_y pi(y) R(y). The rule has no derivative; the probabilities have, grad pi = pi grad log pi:

    grad J = sum_y R(y) grad pi(y) = sum_y pi(y) R(y) grad log pi(y) = E[R grad log pi],

a mean that samples estimate (Williams 1992, "Simple statistical gradient-following algorithms for connectionist
reinforcement learning"). A baseline b that does not depend on y leaves the mean as it is, for

    E[b grad log pi] = b sum_y grad pi(y) = b grad 1 = 0,

and takes noise away. Of n texts, each is measured by the mean of the others (REINFORCE leave-one-out: Ahmadian et al.
2024, "Back to Basics", arXiv 2402.14740):

    R_i - b_i = R_i - sum_{j != i} R_j / (n - 1) = (R_i - mean R) n / (n - 1).

So the mean of all n as the baseline, which does depend on y_i, has the same direction, and is shorter by (n - 1) / n.
Where all rewards are equal, nothing is learned: a reward that is never given teaches nothing.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import ops
from ..autograd.backend import Array, to_numpy
from ..autograd.fused import IGNORED
from ..autograd.signatures import checked, is_real, shown
from ..autograd.tensor import Tensor
from ..nn.checks import generator
from ..nn.language_model import as_tokens
from .backward import add_up
from .checks import NORM, described, integer, number
from .loop import diagnosis
from .memory import keep_freed_memory
from .optim import Optimizer, clip_gradients
from .stopping import stop_at_signals

BASELINES: dict[str, Callable[[np.ndarray], Any]] = {  # b_i of the rewards (n,)
    "others": lambda rewards: (rewards.sum() - rewards) / (len(rewards) - 1),
    "mean": lambda rewards: rewards.mean(),
    "none": lambda rewards: 0.0,
}


@dataclass(frozen=True, eq=False)
class Episodes:
    """Texts that a model wrote after a prompt, up to and with the token that ends one.

    tokens, targets: (n, T), targets one ahead, and -100 where the model chose nothing: in the prompt and after the end.
    """

    tokens: np.ndarray
    targets: np.ndarray
    texts: tuple[str, ...]


@checked
def write_episodes(
    model: Any, prompt: Any, samples: int = 32, longest: int = 32, stop: Collection[int] = (), rng: Any = 0
) -> Episodes:
    """Let a model write texts after a prompt, each token with the probability that it gives it.

    prompt: (P,) integers, at least one; longest: tokens that a text may have; stop: tokens that end one. Raises
    ValueError for a prompt and texts that do not fit into the context, TypeError for a model without a tokenizer.
    """
    if not hasattr(model, "generate") or isinstance(model, type):
        raise TypeError(f"write_episodes: model is {described(model)}, expected one such as ml.load_model('base')")
    if getattr(model, "tokenizer", None) is None:
        raise TypeError("write_episodes: the model has no tokenizer, which a rule about texts needs: model.tokenizer")
    prompt = to_numpy(as_tokens(prompt, "write_episodes: prompt"))
    samples, longest = (
        integer(f"write_episodes: {name}", value, 1) for name, value in (("samples", samples), ("longest", longest))
    )
    if prompt.ndim != 1 or not prompt.size:
        raise ValueError(f"write_episodes: prompt has shape {prompt.shape}, expected (P,): ml.encode('a text')")
    if len(prompt) + longest > model.context:
        came = f"a prompt of {len(prompt):,} and texts of {longest:,}"
        raise ValueError(f"write_episodes: {came} tokens, and the model's context is {model.context:,}")
    text = model.generate(np.tile(prompt, (samples, 1)), longest, rng=rng, stop=stop)  # (n, P + T)
    chosen = text[:, len(prompt) :]  # (n, T)
    ends = np.isin(chosen, list(stop))
    counts = ends.cumsum(axis=1) - ends == 0  # none has ended before
    targets = np.full_like(text[:, 1:], IGNORED)
    targets[:, len(prompt) - 1 :] = np.where(counts, chosen, IGNORED)
    texts = tuple(model.tokenizer.decode(row[kept]) for row, kept in zip(chosen, counts, strict=True))
    return Episodes(text[:, :-1], targets, texts)


def weighted_loss(model: Any, tokens: Array, targets: Array, weights: np.ndarray) -> Tensor:
    """-sum_i w_i log pi(y_i): a step down it makes texts of positive weight likelier.   tokens: (n, T), w: (n,) -> ()

    Without dropout: the probabilities are those that the texts were drawn by.
    """
    row, column = (targets != IGNORED).nonzero()
    log_pi = ops.log_softmax(model(tokens))[row, column, targets[row, column]]  # of each token that was chosen
    return -(log_pi * weights[row].astype(log_pi.dtype)).sum()


def policy_gradient(
    model: Any, parameters: list, episodes: Episodes, weights: np.ndarray
) -> tuple[float, list[Array | None]]:
    """(1/n) sum_i w_i log pi(y_i) with a minus before it, and its gradients, computed on every core.

    The pieces of the batch are added up in a fixed order, so the same call gives the same bits.
    """
    n = len(weights)

    def loss_of(start: int, stop: int) -> tuple[Tensor, float]:
        rows = slice(start, stop)
        return weighted_loss(model, episodes.tokens[rows], episodes.targets[rows], weights[rows]), 1 / n

    return add_up(loss_of, parameters, [(0, n)])


def rewards_of(texts: Collection[str], reward: Callable[[str], float]) -> np.ndarray:
    """What a rule gives each text: (n,). Raises ValueError, with the text, for what is no finite number."""
    if not callable(reward):
        raise TypeError(f"reinforce: reward = {shown(reward)}, expected a function of a text: lambda text: 1.0")
    found = [reward(text) for text in texts]
    for text, value in zip(texts, found, strict=True):
        if not (is_real(value) or isinstance(value, bool | np.bool_)) or not math.isfinite(value):
            raise ValueError(f"reinforce: reward({shown(text)}) = {shown(value)}, expected a finite number")
    return np.array(found, dtype=np.float64)


@checked
def reinforce_step(
    model: Any,
    optimizer: Any,
    reward: Callable[[str], float],
    prompt: Any,
    rng: np.random.Generator,
    samples: int = 32,
    longest: int = 32,
    stop: Collection[int] = (),
    baseline: str = "others",
    max_norm: float | None = 1.0,
) -> float:
    """One step of REINFORCE: write, reward, and make likelier what was above the baseline. Returns the mean reward.

    The gradient of J is estimated by (1/n) sum_i (R_i - b_i) grad log pi(y_i). reward: a function of a text, which ends
    with the token that ended it where one did. prompt, samples (n), longest, stop: as in `write_episodes`. baseline:
    "others", the mean reward of the other texts; "mean", of all; or "none". max_norm: clip. Dropout is off. Raises
    ValueError where the model's texts depend on no trainable parameter, and FloatingPointError for gradients that are
    not finite; the parameters are then as they were.
    """
    keep_freed_memory()
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"reinforce_step: optimizer is {described(optimizer)}, expected ml.AdamW(model.parameters())")
    if baseline not in BASELINES:
        raise ValueError(f"reinforce_step: baseline = {shown(baseline)}, expected one of {', '.join(BASELINES)}")
    if max_norm is not None:
        max_norm = number("reinforce_step: max_norm", max_norm, NORM)
    if integer("reinforce_step: samples", samples, 1) < 2 and baseline != "none":
        raise ValueError(f"reinforce_step: samples = {samples}: one text has no others to be measured by; 2 or more")
    episodes = write_episodes(model, prompt, samples, longest, stop, rng)
    rewards = rewards_of(episodes.texts, reward)
    weights = rewards - BASELINES[baseline](rewards)  # (n,)
    loss, gradients = policy_gradient(model, optimizer.parameters, episodes, weights)
    if all(g is None for g in gradients):
        raise ValueError(
            "reinforce_step: the texts depend on no trainable parameter of this optimizer (adapter merged?)"
        )
    norm = clip_gradients(gradients, max_norm) if max_norm is not None else 0.0
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(diagnosis(model, optimizer, gradients, loss))
    optimizer.step(gradients)
    return float(rewards.mean())


@checked
def reinforce(
    model: Any,
    optimizer: Any,
    reward: Callable[[str], float],
    prompt: Any,
    steps: int = 100,
    rng: Any = 0,
    samples: int = 32,
    longest: int = 32,
    stop: Collection[int] = (),
    baseline: str = "others",
    max_norm: float | None = 1.0,
    progress: bool = True,
) -> list[float]:
    """Steps of REINFORCE, as `reinforce_step` takes them: -> the mean reward of each.

    rng: a seed, or a Generator that goes on. Ctrl-C, SIGTERM and SIGHUP end it after the step it is in, with
    KeyboardInterrupt; the model is then as far as it is.

    >>> import minilora as ml
    >>> model = ml.GPT(ml.GPTConfig(vocab_size=96, block_size=8, n_layer=1, n_head=2, n_embd=16))
    >>> vowels = lambda text: sum(letter in "aeiou" for letter in text)
    >>> rewards = ml.reinforce(model, ml.AdamW(model.parameters(), lr=1e-2), vowels, [0], longest=4, progress=False)
    >>> rewards[0] < 0.5 < 3 < rewards[-1] <= 4
    True
    """
    from tqdm import tqdm  # here, so that `import minilora` stays quick

    steps, rng = integer("reinforce: steps", steps, 0), generator(rng, "reinforce")
    found: list[float] = []
    with (
        tqdm(total=steps, disable=not progress, unit="step", dynamic_ncols=True, leave=False) as bar,
        stop_at_signals() as interrupt,
    ):
        while len(found) < steps and not interrupt.is_set():
            found.append(
                reinforce_step(model, optimizer, reward, prompt, rng, samples, longest, stop, baseline, max_norm)
            )
            bar.set_postfix(reward=f"{found[-1]:.3f}")
            bar.update()
    if interrupt.is_set():
        raise KeyboardInterrupt
    return found
