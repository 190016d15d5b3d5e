"""Rounding to 16 bits beside NumPy's and the package's own; at random, by its mean; the formula, by drawing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.adapters.quantization import half
from minilora.analysis import rounding
from minilora.interop.edits import Arrived

NUMBERS = st.floats(-6e4, 6e4, width=32)


@given(st.lists(NUMBERS, min_size=1, max_size=8))
def test_the_nearest_is_what_numpy_and_the_package_round_to(values):
    array = np.array(values, np.float32)
    for kind in ("bfloat16", "float16"):
        np.testing.assert_array_equal(rounding.rounded(array, kind), half(array, kind).dequantize(float))
    np.testing.assert_array_equal(rounding.rounded(array, "float16"), array.astype(np.float16))
    np.testing.assert_array_equal(rounding.rounded(array, "float32"), array)


@given(NUMBERS, st.sampled_from(["bfloat16", "float16"]), st.integers(0, 2**32))
def test_at_random_it_is_one_of_the_two_neighbours(value, kind, seed):
    result, step = float(rounding.rounded(value, kind, seed)), float(rounding.ulp(value, kind))
    assert abs(result - value) < step
    assert rounding.rounded(result, kind) == result  # a number of the format
    if rounding.rounded(value, kind) == value:
        assert result == value  # what the format has stays as it is


def test_at_random_the_mean_is_right_where_the_nearest_loses_everything():
    values = np.full(200_000, 1 + 2.0**-12)  # a sixteenth of half a step of bfloat16
    assert np.all(rounding.rounded(values, "bfloat16") == 1)
    drawn = rounding.rounded(values, "bfloat16", 0)
    assert set(drawn) == {1.0, 1 + 2.0**-7}
    assert drawn.mean() - 1 == pytest.approx(2.0**-12, rel=0.05)


def test_an_ulp_is_the_distance_to_the_next_number():
    for value in (0.0, 1e-7, 6e-5, 0.3, 1.0, 1.999, 1000.0):
        here = np.float16(value)
        assert rounding.ulp(float(here), "float16") == float(np.nextafter(here, np.float16(np.inf))) - float(here)
        assert rounding.ulp(value, "float32") == float(np.spacing(np.float32(value)))


@pytest.mark.parametrize("size", [0.1, 0.01, 0.001])
def test_what_arrives_is_counted_as_the_merge_of_files_counts_it(size):
    rng = np.random.default_rng(0)
    W, delta = rng.normal(size=(64, 48)), size * rng.normal(size=(64, 48))
    added = rounding.arrived(W, delta, "bfloat16")
    told, counted = rounding.kept(delta, added), Arrived()
    counted.count(delta.copy(), added)
    assert told["gone"] == pytest.approx(1 - counted.changed / counted.entries)
    assert told["error"] == pytest.approx((counted.missing / counted.asked) ** 0.5)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("ratio", [0.3, 0.03, 0.003, 0.0003])
def test_the_formula_is_what_gaussian_matrices_give(ratio, kind):
    rng = np.random.default_rng(1)
    W = rounding.rounded(rng.normal(size=400_000), kind)
    delta = ratio * rng.normal(size=W.shape)
    drawn, told = rounding.kept(delta, rounding.arrived(W, delta, kind)), rounding.predicted(ratio, kind)
    for number in ("gone", "along", "error"):
        assert told[number] == pytest.approx(drawn[number], abs=0.015), number


def test_float16_keeps_what_bfloat16_keeps_of_a_change_eight_times_as_large():
    for ratio in (1e-2, 1e-3):
        one, other = rounding.predicted(ratio, "float16"), rounding.predicted(8 * ratio, "bfloat16")
        assert one == pytest.approx(other, abs=1e-6)


def test_bad_arguments_are_one_line():
    with pytest.raises(ValueError, match="kind = 'int8', expected one of bfloat16, float16, float32"):
        rounding.rounded([1.0], "int8")
    with pytest.raises(ValueError, match=r"rounded: 70000\.0 is too large for float16"):
        rounding.rounded([1.0, 7e4], "float16")
    with pytest.raises(ValueError, match="rounded: 1 of 1 entries are not finite"):
        rounding.rounded(np.nan, "bfloat16")
    with pytest.raises(ValueError, match="ratio = 0, expected"):
        rounding.predicted(0, "bfloat16")
