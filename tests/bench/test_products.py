"""The products that are timed by themselves are those of a step."""

from minilora.bench import peers, products, rows
from minilora.bench.peers import Workload

TINY = (7, 8, 16, 2, 1, 2)  # V = 7, T = 8, C = 16, 1 block, B = 2


def test_the_products_of_a_full_step_are_three_for_each_matrix():
    found = products.products_of(Workload("x", "full", sizes=TINY))
    n = 16  # rows
    matrices = [(16, 16)] * 4 + [(64, 16), (16, 64), (7, 16)]  # (d_out, d_in)
    expected = {}
    for d_out, d_in in matrices:
        for product in (("nt", n, d_in, d_out), ("nn", n, d_out, d_in), ("tn", d_out, n, d_in)):
            expected[product] = expected.get(product, 0) + 1
    assert found == expected


def test_lora_has_its_thin_products_and_none_for_frozen_weights():
    found = products.products_of(Workload("x", "lora", sizes=TINY))
    r, n = peers.RANK, 16
    assert found["nt", n, 16, r] == 2 and found["nt", n, r, 16] == 2  # h = x A^T, h B^T of q and v
    assert found["tn", r, n, 16] == 2 and found["tn", 16, n, r] == 2  # dA, dB
    assert not any(how == "tn" and r not in (a, c) for how, a, _, c in found)
    linear = Workload("x", "lora", sizes=TINY).operations()
    assert 0.7 < sum(2 * a * b * c * times for (_, a, b, c), times in found.items()) / linear < 1  # the rest: attention


def test_the_head_is_among_them_where_it_is_one_with_its_loss():
    found = products.products_of(Workload("x", "lora", sizes=(300, 8, 16, 2, 1, 2)))
    assert found["nt", 16, 16, 300] == found["nn", 16, 300, 16] == 1  # logits, and their cotangent's way back


def test_bars_follow_the_blas():
    told = lambda blas: rows.row(rows.LORA, "tiny", rows.EAGER, "s", {"ours": 1.0}, blas=blas).bar
    assert (told(None), told(1.2), told(0.9)) == (1.0, 1.0, 0.85)
    assert rows.row(rows.FULL, "tiny", rows.EAGER, "s", {"ours": 1.0}, blas=0.9).bar == 1.1
