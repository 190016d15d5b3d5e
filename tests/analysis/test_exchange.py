"""The model of messages: its rounds and bytes are those of sums that are played, node by node."""

import numpy as np
import pytest

from minilora.analysis import counting, exchange
from minilora.analysis.exchange import NETWORKS, Network, allreduce_seconds, fitted


def ring(values: np.ndarray) -> tuple[np.ndarray, int, float]:
    """Every node's sum, played round by round: -> the sums, rounds, and bytes that a node sends.   values: (p, n)"""
    p = len(values)
    parts = [list(np.split(row.copy(), p)) for row in values]  # node, part
    rounds, sent = 0, 0.0
    for gathering in (False, True):
        for r in range(p - 1):
            passed = [(k, (k - r + gathering) % p) for k in range(p)]
            messages = [parts[k][part].copy() for k, part in passed]
            for (k, part), message in zip(passed, messages, strict=True):
                to = parts[(k + 1) % p]
                to[part] = message if gathering else to[part] + message
            rounds, sent = rounds + 1, sent + messages[0].nbytes
    return np.array([np.concatenate(row) for row in parts]), rounds, sent


def halving(values: np.ndarray) -> tuple[np.ndarray, int, float]:
    """The same, by halves that are exchanged with ever nearer nodes, and doubled on the way back."""
    sums, p, rounds, sent = values.copy(), len(values), 0, 0.0
    reach = [(0, values.shape[1])] * p
    far = p // 2
    steps = []
    while far:
        before, old = sums.copy(), list(reach)
        for k in range(p):
            start, stop = old[k]
            middle = (start + stop) // 2
            reach[k] = (start, middle) if not k & far else (middle, stop)
            own = slice(*reach[k])
            sums[k, own] = before[k, own] + before[k ^ far, own]
        sent, rounds = sent + 8 * (reach[0][1] - reach[0][0]), rounds + 1
        steps.append((far, old))
        far //= 2
    for far, wider in reversed(steps):
        before = sums.copy()
        for k in range(p):
            other = slice(*reach[k ^ far])
            sums[k, other] = before[k ^ far, other]
        sent, rounds = sent + 8 * (reach[0][1] - reach[0][0]), rounds + 1
        reach = list(wider)
    return sums, rounds, sent


@pytest.mark.parametrize("p", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["ring", "halving"])
def test_the_seconds_are_the_rounds_and_bytes_of_a_sum_that_is_played(name: str, p: int) -> None:
    values = np.random.default_rng(0).normal(size=(p, 24 * p))
    sums, rounds, sent = {"ring": ring, "halving": halving}[name](values)
    np.testing.assert_allclose(sums, np.tile(values.sum(axis=0), (p, 1)))
    network = Network(alpha=3.0, rate=0.5)
    assert allreduce_seconds(values[0].nbytes, p, network, name) == pytest.approx(3 * rounds + sent / 0.5)


def test_alpha_and_beta_are_found_again_over_seven_powers_of_ten() -> None:
    sizes = 4.0 ** np.arange(2, 13)
    alpha, beta = fitted(sizes, 5e-6 + 2e-9 * sizes)
    assert (alpha, beta) == (pytest.approx(5e-6), pytest.approx(2e-9))
    noisy = (5e-6 + 2e-9 * sizes) * np.random.default_rng(0).uniform(0.9, 1.1, len(sizes))
    assert fitted(sizes, noisy) == (pytest.approx(5e-6, rel=0.1), pytest.approx(2e-9, rel=0.1))  # large ones drown none


def test_a_step_by_hand() -> None:
    network = NETWORKS["10 Gbit/s"]
    full, lora = (exchange.exchange("gpt3-175b", m, 64, network, **o) for m, o in (("full", {}), ("lora", {"rank": 4})))
    assert lora["bytes"] == 2 * 18_874_368 and full["bytes"] == 2 * counting.count("gpt3-175b", "full").total_parameters
    assert full["exchange"] == pytest.approx(2 * 63 * 20e-6 + 2 * 63 / 64 * full["bytes"] / 1.25e9)
    assert full["compute"] == pytest.approx(6 * 174.6e9 * 2048 / 1e14, rel=0.03)
    assert full["ratio"] == full["exchange"] / full["compute"]
    assert full["exchange"] > 8000 * lora["exchange"] and 1.4 < full["compute"] / lora["compute"] < 1.5


def test_full_fine_tuning_waits_alike_at_every_size_and_lora_less_the_wider_the_model() -> None:
    ratios = {m: [exchange.exchange(name, m)["ratio"] for name in ("llama-2-7b", "llama-2-70b", "gpt3-175b")]
              for m in ("full", "lora")}  # fmt: skip
    assert max(ratios["full"]) / min(ratios["full"]) < 1.05
    assert ratios["lora"][0] > 2 * ratios["lora"][1] and ratios["lora"][1] > ratios["lora"][2]


def test_a_short_context_is_the_text() -> None:
    assert exchange.exchange("gpt2")["compute"] == exchange.exchange("gpt2", length=1024)["compute"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: allreduce_seconds(1.0, 3, NETWORKS["1 Gbit/s"], "halving"), "nodes = 3, expected a power of 2"),
        (lambda: allreduce_seconds(1.0, 0, NETWORKS["1 Gbit/s"]), "nodes = 0, expected an integer of 1 or more"),
        (lambda: allreduce_seconds(-1.0, 2, NETWORKS["1 Gbit/s"]), "size = -1.0, expected bytes, 0 or more"),
        (lambda: allreduce_seconds(1.0, 2, NETWORKS["1 Gbit/s"], "tree"), "algorithm = 'tree', expected 'ring' or"),
        (lambda: fitted([1.0, 1.0], [1.0, 2.0]), "two or more sizes"),
        (lambda: fitted([1.0, 2.0], [1.0]), "two or more sizes"),
        (lambda: fitted([1.0, 2.0], [1.0, 0.0]), "a time above 0 for each"),
        (lambda: exchange.exchange("gpt2", rate=0.0), "rate = 0.0, expected operations a second"),
        (lambda: exchange.exchange("gpt2", bits=0), "bits = 0, expected an integer"),
        (lambda: exchange.exchange("gpt9"), "gpt9"),
    ],
)
def test_what_makes_no_sense_is_one_line(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        call()  # type: ignore[operator]
    assert "\n" not in str(error.value)
