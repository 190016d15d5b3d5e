"""From logits to a token: who may be drawn, how often, and what is refused."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import minilora as ml
from minilora.nn.language_model import sample

CONFIG = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
ENDS = [0.0, 0.25, 0.5, 0.75, 1 - 2**-53]  # the ends of what a generator gives, among others


class Given:
    """A generator that gives what it was given."""

    def __init__(self, numbers):
        self.numbers = np.asarray(numbers)

    def random(self, shape):
        return self.numbers.reshape(shape)


def drawn(logits: np.ndarray, temperature: float, top_k: int | None, steps: int = 2000) -> np.ndarray:
    """How often each token is drawn, over numbers that are evenly spread."""
    u = (np.arange(steps) + 0.5) / steps
    tokens = sample(np.tile(logits, (steps, 1)), temperature, top_k, Given(u))
    return np.bincount(tokens, minlength=len(logits)) / steps


few = st.sampled_from([-np.inf, -2.0, 0.0, 0.5, 1.0, 3e38])  # so that there are ties
row = arrays(np.float64, st.integers(1, 9), elements=few).filter(lambda z: z.max() > -np.inf)


@given(row, st.integers(1, 12), st.sampled_from([0.3, 1.0, 2.5, 1e-300, 1e300, np.inf]))
def test_the_k_likeliest_are_k(logits, k, temperature):
    """As many as are asked for, with the lowest numbers among equals, in softmax's proportions."""
    likeliest = np.argsort(-logits, kind="stable")[:k]
    z = np.full(len(logits), -np.inf)
    z[likeliest] = logits[likeliest] - logits.max()
    with np.errstate(over="ignore", invalid="ignore"):
        p = scipy.special.softmax(np.where(z > -np.inf, z / temperature, -np.inf))
    np.testing.assert_allclose(drawn(logits, temperature, k), p, atol=2e-3)
    ends = sample(np.tile(logits, (len(ENDS), 1)), temperature, k, Given(ENDS))
    assert (p[ends] > 0).all()  # not even the smallest number draws what has no probability


@given(row, st.integers(1, 12))
def test_one_alone_is_the_argmax(logits, steps):
    rng = np.random.default_rng(steps)
    for temperature in (0, 1.0, np.inf):
        token = sample(logits[None], temperature, 1, rng)
        np.testing.assert_array_equal(token, [logits.argmax()])
    np.testing.assert_array_equal(sample(logits[None], 0, steps, rng), [logits.argmax()])


@given(row, st.floats(0.01, 1), st.none() | st.integers(1, 5))
def test_the_likeliest_that_together_are_probable(logits, top_p, top_k):
    """The fewest that reach it, the lowest numbers among equals; at least one, whatever is asked for."""
    steps = 500
    u = (np.arange(steps) + 0.5) / steps
    with np.errstate(over="ignore"):
        p = scipy.special.softmax(logits - logits.max())
    order = np.argsort(-p, kind="stable")[:top_k]
    p = p[order] / p[order].sum()
    reach = np.cumsum(p) - p
    if np.abs(reach - top_p).min() < 1e-9:  # too near to say who is the last
        return
    kept = order[reach < top_p]
    tokens = sample(np.tile(logits, (steps, 1)), 1.0, top_k, Given(u), top_p)
    expected = np.zeros(len(logits))
    expected[kept] = p[reach < top_p] / p[reach < top_p].sum()
    np.testing.assert_allclose(np.bincount(tokens, minlength=len(logits)) / steps, expected, atol=5e-3)


def test_a_text_ends_with_a_token_that_ends_one():
    model = ml.GPT(CONFIG)
    whole = model.generate([[1], [2], [3]], 20, rng=4)  # (3, 21)
    stop = {int(whole[0, 5])}
    first = [next((i for i in range(1, 21) if row[i] in stop), 20) for row in whole]
    ended = model.generate([[1], [2], [3]], 20, rng=4, stop=stop)
    assert ended.shape == (3, 1 + max(first))
    for row, full, n in zip(ended, whole, first, strict=True):
        np.testing.assert_array_equal(row[: n + 1], full[: n + 1])
        assert (row[n:] == row[n]).all()  # which repeats while others go on
    alone = model.generate([1], 20, rng=4, stop=range(11))
    assert len(alone) == 2  # any token ends it
    assert len(model.generate([5], 3, temperature=0, stop=[5])) <= 4  # the prompt's own tokens end nothing


def test_all_tokens_alike():
    np.testing.assert_array_equal(drawn(np.zeros(5), 1.0, 2), [0.5, 0.5, 0, 0, 0])
    np.testing.assert_array_equal(drawn(np.zeros(5), 1.0, 1), [1, 0, 0, 0, 0])
    np.testing.assert_allclose(drawn(np.array([1.0, 9.0, 5.0, 5.0]), np.inf, 3), [0, 1 / 3, 1 / 3, 1 / 3], atol=1e-3)
    assert drawn(np.zeros(5), 1.0, 7).tolist() == drawn(np.zeros(5), 1.0, None).tolist() == [0.2] * 5


@pytest.mark.parametrize("row", [[0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf], [np.nan, np.inf]])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_rows_from_which_nothing_can_be_drawn(row, temperature):
    with pytest.raises(ValueError, match=r"^sample: the largest logit of a row is (nan|inf|-inf), expected a number$"):
        sample(np.array([[0.0, 1.0], row]), temperature, None, np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [name for name, _ in ml.GPT(CONFIG).named_parameters()])
@pytest.mark.filterwarnings("error")
def test_a_model_with_a_number_that_is_none_writes_no_text(name, value, dtype):
    """Wherever it stands: an error that says where, or text that the number has no part in, and never blanks."""
    model = ml.GPT(CONFIG).astype(dtype)
    p = dict(model.named_parameters())[name]
    place = (2, 3) if p.ndim == 2 else (3,)
    p.data[place] = value
    words = rf"^generate: the logits are not finite; {name}: entry {place} is {value}$".replace("(", r"\(")
    with pytest.raises(ValueError, match=words.replace(")", r"\)")):
        model.generate([1, 2, 3], 4, temperature=0)


@pytest.mark.parametrize("what", ["LoRA", "a prefix", "scales"])
def test_the_number_may_stand_in_an_adapter_or_a_buffer(what):
    model = ml.GPT(CONFIG)
    if what == "LoRA":
        ml.add_lora(model, ml.LoRAConfig(rank=2)).blocks[0].attn.q_proj.lora_A.data[1, 2] = np.nan
    elif what == "a prefix":
        ml.add_adapter(model, ml.PrefixConfig(2)).front.values.data[0, 1, 2] = np.inf
    else:
        ml.quantize_model(model, block=16, double=False).blocks[1].mlp.up_proj.quantized.scales[3] = np.nan
    with pytest.raises(ValueError, match=r"^generate: the logits are not finite; \S+: entry \(.*\) is (nan|inf)$"):
        model.generate([1], 3)


def test_weights_that_are_too_large_for_their_precision():
    model = ml.GPT(CONFIG)
    model.ln_f.weight.data[...] = 3e30
    model.wte.weight.data[...] *= 1e15
    with pytest.raises(ValueError, match=r"^generate: the logits are not finite; .* too large for float32$"):
        model.generate([1], 3)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"temperature": t} for t in (-1, -1e-300, float("nan"), "1", None, True, [1.0], np.ones(1), 1j)),
        *({"top_k": k} for k in (0, -1, 2.5, 1.0, True, False, "3", [3], np.array([1]))),
        *({"top_p": p} for p in (0, -0.1, 1.1, float("nan"), "0.5", True, [0.5])),
        *({"stop": s} for s in (3, "end", [1.5], [True], None, [[1]])),
        *({"max_new_tokens": n} for n in (-1, 1.5, True, None, "3", [1])),
        *({"rng": rng} for rng in (-1, "a", 1.5, np.random.Generator)),
        *({"tokens": t} for t in ("abc", None, [], 3, [[1], [2, 3.5]], {1}, [0.5], [True], [11], [-1], [1] * 9 + [12])),
        {"tokens": np.ma.masked_array([1, 2], [True, False])},
    ],
)
@pytest.mark.parametrize("n", [0, 2])
def test_what_generate_refuses_at_the_door(arguments, n):
    """Also where no token is to be written."""
    with pytest.raises((ValueError, TypeError), match=r"^generate: [^\n]*$"):
        ml.GPT(CONFIG).generate(**{"tokens": [1], "max_new_tokens": n, **arguments})


@pytest.mark.parametrize("temperature", [5e-324, 1e308, np.inf, np.float32(0.5), np.int64(1)])
@pytest.mark.parametrize("top_k", [None, 1, 11, 10**9, np.int8(3)])
@pytest.mark.filterwarnings("error")
def test_what_generate_takes(temperature, top_k):
    text = ml.GPT(CONFIG).generate([1], 3, temperature, top_k)
    assert text.shape == (4,) and (text >= 0).all() and (text < 11).all()
