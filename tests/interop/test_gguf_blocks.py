"""gguf_blocks.py: bit for bit what llama.cpp's own package makes of the same bytes."""

import numpy as np
import pytest

from minilora.interop.gguf_blocks import KINDS, STRETCH, Blocks

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'minilora[models]'")


def drawn(kind, rows, blocks, seed=0):
    """Blocks whose every byte is drawn, but for scales that are numbers."""
    record = KINDS[kind].record
    raw = np.random.default_rng(seed).integers(0, 256, (rows, blocks * record.itemsize), np.uint8)
    records = raw.view(record)
    for name in {"d", "m"} & {*record.names}:
        records[name] = np.random.default_rng(seed + 1).normal(0, 0.1, records.shape)
    return Blocks(kind, raw)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows, blocks", [(1, 1), (3, 2), (5, 0), (0, 2), (2 * STRETCH // 256 + 3, 1)])
def test_blocks_are_what_gguf_reads(kind, rows, blocks):
    held = drawn(kind, rows, blocks)
    assert held.shape == (rows, blocks * KINDS[kind].weights) and held.size == held.shape[0] * held.shape[1]
    if held.size:
        theirs = gguf.quants.dequantize(held.blocks, gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(held.dequantize(), theirs, strict=True)
        np.testing.assert_array_equal(held.dequantize("float64"), theirs.astype("float64"), strict=True)
    assert held.dequantize().shape == held.shape


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole(kind):
    held = drawn(kind, 7, 2)
    whole = held.dequantize()
    for index in (slice(2, 5), np.array([[6, 0], [3, 3]]), np.array(4), [1], np.zeros((0, 2), int)):
        np.testing.assert_array_equal(held.rows(index), whole[index], strict=True)


def test_bits_a_weight_are_those_of_the_format():
    bits = {kind: drawn(kind, 2, 1).bits_per_weight for kind in KINDS}
    assert bits == {"Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5.0, "Q4_K": 4.5, "Q6_K": 6.5625}
    with pytest.raises(ValueError, match="Q4_K is read from GGUF files and not written; merge_lora"):
        drawn("Q4_K", 2, 1).again(np.zeros((2, 256)))
