"""Quantization: the levels, the nearest of them, the bytes, and an error bound that holds for whatever is drawn."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minilora.adapters import qlora, quantization
from minilora.adapters.quantization import LEVELS, PIECE, Half, Quantized, half, quantize

KINDS = ("nf4", "int4", "int8")
# Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", appendix E
PUBLISHED_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
HALF_GAP = {"nf4": (1 - 0.6961928) / 2, "int4": 1 / 14, "int8": 1 / 254}
LARGEST, SMALLEST = float(np.finfo(np.float32).max), 2.0**-149  # of float32; the smallest is subnormal


# Levels


def test_the_levels_of_nf4_are_the_published_ones():
    np.testing.assert_allclose(LEVELS["nf4"], PUBLISHED_NF4, rtol=0, atol=1e-6)


def test_the_levels_of_nf4_are_normal_quantiles():
    """By SciPy: 8 and 7 equal steps of probability, above and below the middle, up to the outermost one."""
    above = scipy.stats.norm.ppf(np.linspace(0.5, 0.9677083, 9))
    below = scipy.stats.norm.ppf(np.linspace(0.5, 0.9677083, 8))
    expected = np.concatenate([-below[:0:-1] / below[-1], above / above[-1]])
    np.testing.assert_allclose(LEVELS["nf4"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind, count", [("nf4", 16), ("int4", 15), ("int8", 255)])
def test_every_kind_ascends_from_minus_one_to_one_with_an_exact_zero(kind, count):
    levels = LEVELS[kind]
    assert levels.shape == (count,)
    assert levels.dtype == np.float32
    assert levels[0] == -1 and levels[-1] == 1 and 0 in levels
    assert (np.diff(levels) > 0).all()


def test_on_normal_weights_nf4_errs_less_than_int4():
    w = np.random.default_rng(0).standard_normal((400, 640))
    errors = {kind: float(np.square(quantize(w, kind).dequantize() - w).mean()) for kind in KINDS}
    assert 100 * errors["int8"] < errors["nf4"] < 0.8 * errors["int4"]


# The nearest level


@given(
    w=hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e3, 1e3, width=32)), kind=st.sampled_from(KINDS)
)
def test_every_weight_gets_the_nearest_level(w, kind):
    got = quantize(w, kind, block=64).dequantize().astype(np.float64)
    for start in range(0, len(w), 64):
        part = w[start : start + 64].astype(np.float64)
        s = np.abs(part).max()
        nearest = np.abs(part[:, None] - s * LEVELS[kind].astype(np.float64)).min(axis=1)
        assert (np.abs(part - got[start : start + 64]) <= nearest + 1e-6 * s + SMALLEST).all()


@pytest.mark.parametrize("kind, most", [("int4", 7), ("int8", 127)])
def test_the_integers_are_those_of_rounding(kind, most):
    """round(127 w / s), the paper's formula."""
    w = np.random.default_rng(1).standard_normal((30, 64))
    s = np.abs(w).max(axis=1, keepdims=True)
    np.testing.assert_allclose(quantize(w, kind).dequantize(), np.rint(most * w / s) / most * s, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.3, -7.0, LARGEST, -SMALLEST])
def test_constant_blocks_come_back_exactly(kind, value):
    w = np.full((5, 29), value, np.float32)
    for double in (False, True):  # equal scales are their own mean
        np.testing.assert_array_equal(quantize(w, kind, 8, double).dequantize(), w)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True])
def test_zeros_stay_zeros(kind, double):
    w = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    w[::3] = 0  # whole blocks of them
    w[:, ::7] = 0  # and some among others
    assert (quantize(w, kind, 25, double).dequantize()[w == 0] == 0).all()
    zeros = np.zeros(70, np.float32)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(quantize(zeros, kind, double=double).dequantize(), zeros)


@given(w=hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(-8, 8, width=16)), kind=st.sampled_from(KINDS))
def test_quantizing_again_changes_nothing(w, kind):
    once = quantize(w, kind, 16)
    again = quantize(once.dequantize(), kind, 16)
    np.testing.assert_array_equal(again.codes, once.codes)
    np.testing.assert_array_equal(again.scales, once.scales)


# The bound


@st.composite
def weights(draw):
    """Arrays of every length and size: subnormal, huge, zero and plain numbers, mixed or alone."""
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    most = min(LARGEST, float(np.finfo(dtype).max))
    tiny = [2.0**-24, -(2.0**-20)] if dtype == np.float16 else [SMALLEST, -3 * SMALLEST, 2.0**-130]
    pools = [
        st.sampled_from([0.0, -0.0]),
        st.sampled_from([most, -most, most / 2, most * 0.999]),
        st.sampled_from(tiny),
        st.floats(-1, 1, width=16),
        st.floats(-most, most, width=64).map(lambda x: float(np.asarray(x).astype(dtype))),
    ]  # fmt: skip
    chosen = draw(st.lists(st.sampled_from(pools), min_size=1, max_size=3))
    shape = draw(
        st.one_of(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9), st.tuples(st.integers(0, 700)))
    )
    array = draw(hnp.arrays(dtype, shape, elements=st.one_of(chosen)))
    return array[..., ::-1].T if draw(st.booleans()) and array.ndim else array


@pytest.mark.slow
@settings(max_examples=200)
@given(w=weights(), kind=st.sampled_from(KINDS), block=st.sampled_from([1, 2, 3, 16, 64]), double=st.booleans())
@example(w=np.array([LARGEST] * 3 + [1.0, -LARGEST]), kind="int8", block=1, double=True)
@example(w=np.array([SMALLEST, 5 * SMALLEST, 1e-300], np.float64), kind="nf4", block=2, double=True)
def test_no_error_exceeds_the_bound(w, kind, block, double):
    before = w.copy()
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        q = quantize(w, kind, block, double)
        got, bound = q.dequantize(), q.error_bound()
    np.testing.assert_array_equal(w, before)
    assert got.shape == bound.shape == w.shape
    assert got.dtype == np.float32
    assert (np.abs(got.astype(np.float64) - w) <= bound).all()

    # The bound itself, from the weights: no more than half a gap times the block's largest, and for scales that are
    # quantised, too, what an 8-bit step of the spread of the scales adds.
    flat, h = np.abs(w.astype(np.float64)).reshape(-1), HALF_GAP[kind]
    s = np.array([flat[i : i + block].max() for i in range(0, flat.size, block)])
    s_of_each = np.repeat(s, block)[: flat.size].reshape(w.shape)
    spread = np.abs(s - s.mean()).max(initial=0) if double and s.size else 0.0
    rounding = 1e-6 * s.max(initial=0) + 8 * SMALLEST
    assert (bound <= h * s_of_each + (1 + 2 * h) * spread / 254 + rounding).all()


def test_the_bound_is_reached():
    """A weight in the middle of the widest gap errs by half of it: a smaller bound would be wrong."""
    for kind, h in HALF_GAP.items():
        w = np.array([1.0, -1 + h * (1 - 1e-5)])
        q = quantize(w, kind)
        assert abs(float(q.dequantize()[1]) - w[1]) >= 0.9999 * q.error_bound()[1]


# Bytes


@pytest.mark.parametrize("kind, per_byte", [("nf4", 2), ("int4", 2), ("int8", 1)])
@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 1001])
def test_what_is_held(kind, per_byte, n):
    q = quantize(np.random.default_rng(0).standard_normal(n), kind)
    blocks = math.ceil(n / 64)
    assert q.codes.dtype == np.uint8
    assert q.codes.nbytes == math.ceil(n / per_byte)
    assert q.scales.dtype == np.float32
    assert q.nbytes == math.ceil(n / per_byte) + 4 * blocks
    double = quantize(np.zeros(n), kind, double=True)
    assert double.nbytes == math.ceil(n / per_byte) + blocks + 4 * math.ceil(blocks / 256) + 4  # and their mean


def test_two_codes_lie_in_a_byte_the_first_in_the_high_half():
    q = quantize(np.array([1.0, -1.0, 0.0]), "nf4")
    assert q.codes.tolist() == [15 * 16 + 0, 7 * 16]


def test_bits_per_weight():
    w = np.ones((768, 3072), np.float32)
    bits = {(kind, double): quantize(w, kind, 64, double).bits_per_weight for kind in KINDS for double in (False, True)}
    assert bits["nf4", False] == bits["int4", False] == 4.5
    assert bits["int8", False] == 8.5
    assert bits["nf4", True] == 4 + 8 / 64 + 32 / (64 * 256) + 32 / w.size  # the paper's 4.127, and the mean
    assert round(bits["nf4", True], 3) == 4.127
    assert quantize(w[:0]).bits_per_weight == 0


def test_nothing_but_the_arrays_is_counted_or_held():
    q = quantize(np.ones(1000), double=True)
    assert set(q.arrays()) == {"codes", "scales.codes", "scales.scales", "mean"}
    assert isinstance(q.scales, Quantized)
    assert q.nbytes == sum(array.nbytes for array in q.arrays().values())
    assert all(array.base is None for array in q.arrays().values())  # a view would keep a larger array alive


# Shapes, layouts, precisions


def test_order_is_that_of_the_rows_whatever_the_layout():
    w = np.random.default_rng(0).standard_normal((33, 70)).astype(np.float32)
    expected = quantize(w, "nf4", 64, True).dequantize()
    for layout in (np.asfortranarray(w), np.repeat(w, 2, axis=1)[:, ::2], w[::-1].copy()[::-1]):
        np.testing.assert_array_equal(quantize(layout, "nf4", 64, True).dequantize(), expected)
    np.testing.assert_array_equal(quantize(w.reshape(-1), "nf4", 64, True).dequantize().reshape(33, 70), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_longer_than_are_read_at_a_time(kind):
    w = np.random.default_rng(0).standard_normal(2 * PIECE + 77)
    whole = quantize(w, kind).dequantize()
    start = PIECE // 64 * 64  # blocks do not see each other
    np.testing.assert_array_equal(whole[start:], quantize(w[start:], kind).dequantize())


def test_the_same_numbers_in_every_precision():
    q = quantize(np.random.default_rng(0).standard_normal((9, 50)), double=True)
    double = q.dequantize("float64")
    assert double.dtype == np.float64
    np.testing.assert_array_equal(double, q.dequantize())


def test_the_result_is_new_each_time():
    q = quantize(np.ones(10))
    q.dequantize()[...] = 5
    assert (q.dequantize() == 1).all()


# Errors


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weights_that_are_not_finite_are_named(bad, dtype):
    w = np.ones((3, 40), dtype)
    w[1, 7] = bad
    with pytest.raises(ValueError, match=rf"quantize: entry \(1, 7\) is {bad}, expected finite numbers"):
        quantize(w)


def test_numbers_beyond_float32_are_named():
    with pytest.raises(ValueError, match=r"entry \(2,\) is 1e\+39, .* at most 3\.4e\+38, float32's largest"):
        quantize(np.array([1.0, 2.0, 1e39]))
    with pytest.raises(ValueError, match=r"entry \(\) is nan"):
        quantize(np.array(np.nan))


@pytest.mark.parametrize("dtype", [int, np.uint8, bool, complex])
def test_only_floating_point_numbers_are_quantized(dtype):
    with pytest.raises(TypeError, match=f"quantize: got dtype {np.dtype(dtype)}, expected floating-point numbers"):
        quantize(np.ones(4, dtype))


@pytest.mark.parametrize("block", [0, -1, 2.5, "64", True, None])
def test_block_must_be_a_positive_integer(block):
    with pytest.raises(ValueError, match=f"quantize: block = {block!r}, expected a positive integer"):
        quantize(np.ones(4), block=block)


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="quantize: kind = 'fp4', expected one of nf4, int4, int8"):
        quantize(np.ones(4), kind="fp4")


# --- 16 bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:invalid value")  # of NaNs, which are among the 65,536
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_number_of_16_bits_is_held_as_it_is(kind):
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    finite = (bits & 0x7C00) != 0x7C00 if kind == "float16" else (bits & 0x7F80) != 0x7F80
    held = Half(bits.view("float16") if kind == "float16" else bits)
    assert (held.kind, held.shape, held.size, held.bits_per_weight) == (kind, (256, 256), 2**16, 16)
    expected = bits.view(kind if kind == "float16" else pytest.importorskip("ml_dtypes").bfloat16).astype("float64")
    np.testing.assert_array_equal(held.dequantize("float64"), expected)
    again = half(np.where(finite, held.dequantize(), 0), kind)
    np.testing.assert_array_equal(again.bits[finite], held.bits[finite])
    np.testing.assert_array_equal(held.rows([[3, 0]], "float64"), expected[[[3, 0]]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_16_bits_round_to_the_nearest_even(dtype):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    rng = np.random.default_rng(0)
    values = rng.normal(0, 10.0 ** rng.integers(-40, 38, 4000), 4000).astype("float32")
    values[:2000].view(np.uint32)[:] &= 0xFFFF8000  # ties, exactly
    values = values.astype(dtype).reshape(40, 100)
    np.testing.assert_array_equal(half(values, "bfloat16").dequantize(), values.astype(bfloat16).astype("float32"))
    np.testing.assert_array_equal(half(values % 1, "float16").dequantize(), (values % 1).astype("float16"))


def test_16_bits_refuse_what_is_too_large():
    with pytest.raises(ValueError, match=r"entry \(0, 1\) is 70000.0, too large for float16"):
        half(np.array([[1, 7e4]]), "float16")
    with pytest.raises(ValueError, match=r"entry \(1,\) is 3.4e\+38, too large for bfloat16"):
        half(np.array([1, 3.4e38]), "bfloat16")
    with pytest.raises(ValueError, match=r"entry \(0,\) is nan"):
        half(np.array([np.nan]), "bfloat16")


@pytest.mark.parametrize("kind", ["nf4", "int4", "int8"])
@pytest.mark.parametrize("shape, block", [((7, 64), 64), ((33, 96), 32), ((1, 128), 128)])
@pytest.mark.parametrize("stretch", [128, 2**17])
def test_a_product_by_blocks_is_that_with_the_array(kind, shape, block, stretch, monkeypatch):
    """Whether rows are taken all at once or a few at a time; the scales plain or quantised."""
    monkeypatch.setattr(quantization, "STRETCH", stretch)
    rng = np.random.default_rng(0)
    W, x = rng.normal(size=shape), rng.normal(size=(3, shape[1])).astype("float32")
    for double in (False, True):
        q = quantize(W, kind, block, double)
        exact = x.astype(float) @ q.dequantize("float64").T
        for rows in (1, 3):
            np.testing.assert_allclose(q.times(x[:rows]), exact[:rows], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(qlora.by_stretches(q, x[:rows]), exact[:rows], rtol=1e-5, atol=1e-5)


def test_four_codes_in_one_look_are_those_of_one_after_the_other():
    """An even number of bytes is read two at a time, an odd one byte by byte: the same levels."""
    codes = np.random.default_rng(0).integers(256, size=101).astype("uint8")
    for kind in ("nf4", "int4"):
        levels = LEVELS[kind]
        one = [levels[min(half, len(levels) - 1)] for byte in codes for half in (byte >> 4, byte & 15)]
        for n in (101, 100):
            q = Quantized(kind, 2 * n, (2 * n,), codes[:n], np.ones(1, "float32"))
            np.testing.assert_array_equal(q.dequantize(), one[: 2 * n])
