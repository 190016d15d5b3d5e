"""Costs by hand: every array that is kept and every product that is computed, for small shapes with every part."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.analysis import costs, counting
from minilora.analysis.costs import FLASH, MINILORA, PYTORCH, Walk
from minilora.nn.architectures import Architecture, size

B, T, C, H, K, D, F, V = 2, 3, 8, 4, 2, 2, 6, 11
N = B * T  # rows
DECODER = Architecture("decoder", V, C, 1, H, F, 5, kv_heads=K, gated=True, head="untied")
ENCODER = Architecture(
    "encoder", V, C, 2, H, F, 5, positions=5, head="none", final_norm=False, embedding_norm=True, token_types=2,
    pooler=True, relative_positions=10, conv_kernel=3, causal=False,
)  # fmt: skip
NORM = N * (C + 1)  # the normed rows, and one factor a row
ATTENTION = {"q": N * H * D, "kv": 2 * N * K * D, "scores": H * N * T}


def walk(architecture, method, engine=PYTORCH, **options):
    return Walk(counting.plan(architecture, method, **options), B, T, engine)


def named(prefix, numbers):
    return {f"{prefix}.{name}": number for name, number in numbers.items()}


def computed(w):
    """{name: (forward, backward)}"""
    assert len({o.name for o in w.operations}) == len(w.operations)
    return {o.name: (o.forward, o.backward) for o in w.operations}


def test_a_gated_decoder_trained_whole():
    w = walk(DECODER, "full")
    assert w.kept == {
        **named("blocks.0", {"ln_1.normed": NORM, "ln_1.out": N * C, **ATTENTION, "attn.out": N * H * D}),
        **named("blocks.0", {"ln_2.normed": NORM, "ln_2.out": N * C}),
        **named("blocks.0.mlp", {"inside": N * F, "gated": 2 * N * F, "act": N * F}),
        **{"ln_f.normed": NORM, "ln_f.out": N * C},
    }
    q, kv, mlp, attn = 2 * N * C * H * D, 2 * N * C * K * D, 2 * N * C * F, 2 * 2 * H * N * T * D
    forward = {"attn.q_proj": q, "attn.k_proj": kv, "attn.v_proj": kv, "attn": attn, "attn.o_proj": q}
    forward |= {"mlp.gate_proj": mlp, "mlp.up_proj": mlp, "mlp.down_proj": mlp}
    expected = named("blocks.0", forward) | {"head": 2 * N * C * V}
    assert computed(w) == {name: (number, 2 * number) for name, number in expected.items()}
    assert (w.forward, w.training) == (sum(expected.values()), 3 * sum(expected.values()))


def test_flash_attention_keeps_one_sum_a_row_and_its_output():
    kept, flash = walk(DECODER, "full").kept, walk(DECODER, "full", FLASH).kept
    assert flash.items() - kept.items() == {("blocks.0.sums", N * H), ("blocks.0.o", N * H * D)}
    assert kept.items() - flash.items() == {("blocks.0.scores", H * N * T)}


def test_what_nothing_trained_stands_before_keeps_nothing():
    """Attention's arrays are kept from the first trained parameter on, be it a prefix or of rank 1."""
    attention = {f"blocks.0.{name}" for name in ("q", "kv", "scores", "sums", "o")}
    for engine in (PYTORCH, FLASH, MINILORA):
        assert not attention & walk(DECODER, "pfeiffer", engine, bottleneck=1).kept.keys()
    w = walk(DECODER, "prefix", tokens=2)
    kept = {"q": N * H * D, "kv": 2 * B * (T + 2) * K * D, "scores": H * N * (T + 2)}
    kept |= {"ln_2.normed": NORM, "mlp.inside": N * F, "mlp.gated": 2 * N * F}
    assert w.kept == {**named("blocks.0", kept), "ln_f.normed": NORM}
    assert computed(w)["blocks.0.attn"] == (4 * H * N * (T + 2) * D, 8 * H * N * (T + 2) * D)
    one = walk(DECODER, "lora", rank=1, target_modules=("down_proj",))
    assert one.kept == {"blocks.0.mlp.act": N * F, "blocks.0.mlp.down_proj.h": N, "ln_f.normed": NORM}
    assert computed(one)["blocks.0.mlp.down_proj.lora"] == (2 * N * (F + C), 2 * N * (F + 2 * C))


def test_our_own_engine_has_a_workspace():
    """Two arrays as wide as the MLP at the peak, where anything is trained; the loss keeps 32-bit probabilities."""
    plan = counting.plan(DECODER, "full")
    kept = sum(walk(DECODER, "full", MINILORA).kept.values())
    assert kept == sum(walk(DECODER, "full").kept.values()) + N * H * D  # and attention's output
    assert costs.activation_bytes(plan, B, T, 32, "minilora") == 4 * (kept + 2 * N * F) + 4 * N * V
    assert costs.activation_bytes(plan, B, T, 16, "minilora") == 2 * (kept + 2 * N * F) + 4 * N * V
    whole = costs.activation_bytes(plan, B, T, 16, "pytorch")
    assert whole == 2 * sum(walk(DECODER, "full").kept.values()) + 4 * N * V
    encoder = counting.plan(ENCODER, "full")  # no head, no loss over a vocabulary
    assert costs.activation_bytes(encoder, B, T, 32, "pytorch") == 4 * sum(walk(ENCODER, "full").kept.values())


def test_dora_on_one_matrix():
    """W's norm is of every row, no gradient goes through it; the direction is kept for the magnitude's gradient."""
    r, out = 3, K * D
    w = walk(DECODER, "dora", rank=r, target_modules=("v_proj",))
    assert w.kept == {
        **named("blocks.0", {"ln_1.out": N * C, "attn.v_proj.h": N * r, "attn.v_proj.direction": N * out}),
        **named("blocks.0", {**ATTENTION, "ln_2.normed": NORM, "mlp.inside": N * F, "mlp.gated": 2 * N * F}),
        "ln_f.normed": NORM,
    }
    down, up = 2 * N * r * C, 2 * N * r * out
    steps = computed(w)
    assert steps["blocks.0.attn.v_proj.lora"] == (down + up, down + 2 * up)  # nothing trained stands before it
    assert steps["blocks.0.attn.v_proj.norm"] == (2 * out * r * C + 2 * out * C, 0)
    assert steps["blocks.0.attn.v_proj"] == (2 * N * C * out, 0)
    assert steps["blocks.0.attn.o_proj"] == (2 * N * C * H * D, 2 * N * C * H * D)
    lora = walk(DECODER, "lora", rank=r, target_modules=("v_proj",))
    assert w.kept.items() - lora.kept.items() == {("blocks.0.attn.v_proj.direction", N * out)}
    later = computed(walk(DECODER, "lora", rank=r, target_modules=("up_proj", "v_proj")))
    assert later["blocks.0.mlp.up_proj.lora"] == (2 * N * r * (C + F), 2 * 2 * N * r * (C + F))  # dx as well


def test_methods_that_train_no_a_do_not_keep_its_input():
    """Of v_proj, before which nothing is trained, and of down_proj, behind it."""
    r, out, d_in = 3, K * D, F
    for method, products in {"lora-fa": 2, "miss": 1, "vera": 2}.items():
        w = walk(DECODER, method, rank=r, target_modules=("v_proj", "down_proj"))
        kept = {name: n for name, n in w.kept.items() if "v_proj" in name or "down_proj" in name}
        scaled = {"blocks.0.attn.v_proj.out": N * out, "blocks.0.mlp.down_proj.out": N * C} if method == "vera" else {}
        assert kept == {"blocks.0.attn.v_proj.h": N * r, "blocks.0.mlp.down_proj.h": N * r, **scaled}
        assert "blocks.0.ln_1.out" not in w.kept and "blocks.0.mlp.act" not in w.kept
        steps, name = computed(w), "miss" if method == "miss" else "lora"
        down, up = 2 * N * r * C * (products - 1), 2 * N * r * out
        assert steps[f"blocks.0.attn.v_proj.{name}"] == (down + up, up)  # dB or dD; of VeRA d's, through B
        down, up = 2 * N * r * d_in * (products - 1), 2 * N * r * C
        assert steps[f"blocks.0.mlp.down_proj.{name}"] == (down + up, up * (1 + (method != "vera")) + down)  # dx, too


def test_ia3_keeps_what_it_stretches_and_multiplies_no_matrix():
    w, full = walk(DECODER, "ia3"), walk(DECODER, "full")
    kept = {name: n for name, n in w.kept.items() if name.endswith(".stretched")}
    assert kept == {"blocks.0.attn.k_proj.stretched": N * K * D, "blocks.0.attn.v_proj.stretched": N * K * D,
                    "blocks.0.mlp.down_proj.stretched": N * F}  # fmt: skip
    assert w.forward == full.forward and "blocks.0.ln_1.out" not in w.kept


def test_veras_pair_takes_memory_and_is_no_parameter():
    plan = counting.plan(DECODER, "vera", rank=7, target_modules="*")
    widest = [max(sizes) for sizes in zip(*DECODER.matrices.values(), strict=True)]
    assert plan.drawn == 7 * sum(widest) and not plan.frozen
    without = size(plan.base) + size(plan.added)
    assert costs.weight_bytes(plan, 32) == 4 * (without + plan.drawn)
    assert counting.count(DECODER, "vera", rank=7, target_modules="*").total_parameters == without
    fa = counting.count(DECODER, "lora-fa", rank=2)
    assert fa.total_parameters == counting.count(DECODER, "lora", rank=2).total_parameters
    assert fa.checkpoint_bytes == counting.count(DECODER, "lora", rank=2).checkpoint_bytes  # A is stored, too
    assert counting.plan(DECODER, "lora").drawn == 0


@pytest.mark.parametrize("b", [1, 5])
def test_bottlenecks_of_any_width_and_their_norms(b):
    w = walk(DECODER, "houlsby", bottleneck=b, adapter_norm=True)
    inside = {"norm.normed": NORM, "down.in": N * C, "up.in": N * b, "inside": N * b}
    assert w.kept == {
        **named("blocks.0.attn.adapter", inside),
        **named("blocks.0", {"ln_2.normed": NORM, "mlp.inside": N * F, "mlp.gated": 2 * N * F}),
        **named("blocks.0.mlp.adapter", inside),
        "ln_f.normed": NORM,
    }
    product = 2 * N * b * C
    steps = computed(w)
    for place in ("blocks.0.attn.adapter", "blocks.0.mlp.adapter"):
        assert steps[f"{place}.down"] == steps[f"{place}.up"] == (product, 2 * product)
    assert steps["blocks.0.attn"][1] == 0 and steps["blocks.0.mlp.up_proj"][1] == 2 * N * C * F
    plain = walk(DECODER, "pfeiffer", bottleneck=b)
    assert not any("attn" in name or "norm.normed" in name for name in plain.kept)
    steps = computed(plain)
    assert steps["blocks.0.mlp.adapter.down"] == (product, product)  # nothing trained before the first
    assert steps["blocks.0.mlp.adapter.up"] == (product, 2 * product)
    assert counting.count(DECODER, "houlsby", bottleneck=b).trainable_parameters == 2 * (2 * C * b + b + C)


def test_an_encoder_trained_whole():
    """The norm of the embeddings, DeBERTa's scores between content and distances, its convolution, and the pooler."""
    w = walk(ENCODER, "full")
    attention = ATTENTION | {"kv": 2 * N * H * D}  # as many heads of keys and values
    block = {"ln_1.out": N * C, **attention, "attn.out": N * C, "ln_1.normed": NORM}
    block |= {"ln_2.out": N * C, "mlp.inside": N * F, "mlp.act": N * F, "ln_2.normed": NORM}
    assert w.kept == {
        "ln_embedding.normed": NORM,
        **named("blocks.0", block),
        **named("blocks.1", block),
        **{"conv.in": N * C, "ln_conv.normed": NORM, "pooler.in": B * C},
    }
    square, mlp, r = 2 * N * C * C, 2 * N * C * F, 10
    steps = {"attn.q_proj": square, "attn.k_proj": square, "attn.v_proj": square, "attn": 2 * 2 * H * N * T * D}
    steps |= {f"attn.{m}.relative": 2 * r * C * C + 2 * N * r * C for m in ("q_proj", "k_proj")}
    steps |= {"attn.o_proj": square, "mlp.up_proj": mlp, "mlp.down_proj": mlp}
    expected = named("blocks.0", steps) | named("blocks.1", steps)
    expected |= {"conv": 2 * N * C * C * 3, "pooler": 2 * B * C * C}
    assert computed(w) == {name: (number, 2 * number) for name, number in expected.items()}


PLAIN = replace(ENCODER, relative_positions=0, conv_kernel=0, layers=1)
L = 7


def end(w):
    """What comes after the blocks: its arrays and its operations."""
    kept = {name: n for name, n in w.kept.items() if not name.startswith(("blocks", "ln_emb"))}
    return kept, {name: both for name, both in computed(w).items() if not name.startswith("blocks")}


def test_a_masked_head():
    """C x C, gelu, a norm, and the table: on every token; its biases need no input."""
    masked = replace(PLAIN, head="masked", pooler=False)
    dense, table = 2 * N * C * C, 2 * N * C * V
    kept, steps = end(walk(masked, "full"))
    assert kept == {"head.in": N * C, "head.inside": N * C, "head.norm.normed": NORM, "head.out": N * C}
    assert steps == {"head.dense": (dense, 2 * dense), "wte": (table, 2 * table)}
    kept, steps = end(walk(masked, "lora", rank=2))
    assert kept == {"head.inside": N * C, "head.norm.normed": NORM}
    assert steps == {"head.dense": (dense, dense), "wte": (table, table)}
    kept, steps = end(walk(masked, "lora", rank=2, target_modules=("head.dense",)))  # nothing trained stands before
    low = 4 * N * 2 * C
    assert kept == {"head.in": N * C, "head.dense.h": N * 2, "head.inside": N * C, "head.norm.normed": NORM}
    assert steps == {"head.dense": (dense, 0), "head.dense.lora": (low, low * 3 // 2), "wte": (table, table)}


def test_a_head_for_labels_reads_one_token_of_a_text():
    square, last = 2 * B * C * C, 2 * B * C * L
    for head, pooler, kept, names in (
        ("bert", True, {"pooler.in": B * C, "pooler.out": B * C}, ("pooler", "classifier")),
        (
            "roberta",
            False,
            {"classifier.in": B * C, "classifier.inside": B * C},
            ("classifier.dense", "classifier.out_proj"),
        ),
    ):
        a = replace(PLAIN, head="labels", labels=L, pooler=pooler, family=head)
        assert end(walk(a, "full")) == (kept, {names[0]: (square, 2 * square), names[1]: (last, 2 * last)})
        beside = walk(a, "lora", rank=2, target_modules=("q_proj",), modules_to_save=("classifier",))
        assert end(beside)[1][names[1]] == (last, 2 * last)
        plan = counting.plan(a, "full")
        kept = sum(Walk(plan, B, T).kept.values())
        assert costs.activation_bytes(plan, B, T, 32, "pytorch") == 4 * kept + 4 * B * L


def test_a_decoders_head_for_labels_takes_the_place_of_its_own():
    w = walk(DECODER, "lora", labels=L, modules_to_save=("classifier",))
    assert computed(w)["classifier"] == (2 * N * C * L, 4 * N * C * L) and "head" not in computed(w)
    kept = 4 * sum(w.kept.values())
    assert costs.activation_bytes(w.plan, B, T, 32, "pytorch") == kept + 4 * N * L


def test_an_encoders_prompt_goes_with_every_text_and_its_attention_is_whole():
    masked = replace(PLAIN, head="masked", pooler=False, context=1000)
    plan = counting.plan(masked, "prompt", tokens=3)
    ours, theirs = Walk(plan, B, T, MINILORA), Walk(plan, B, T, PYTORCH)
    both = [computed(w) for w in (ours, theirs)]
    assert both[0]["blocks.0.mlp.up_proj"] == both[1]["blocks.0.mlp.up_proj"] == 2 * (2 * B * (T + 3) * C * F,)
    assert ours.kept["blocks.0.scores"] == theirs.kept["blocks.0.scores"] == H * B * (T + 3) ** 2
    assert [steps["wte"][0] for steps in both] == [2 * B * T * C * V, 2 * B * (T + 3) * C * V]
    long = 3 * MINILORA.queries
    whole = Walk(counting.plan(masked, "full"), B, long, MINILORA)
    assert whole.kept["blocks.0.scores"] == H * B * long**2
    prefix = Walk(counting.plan(masked, "prefix", tokens=3), B, T, MINILORA)
    assert prefix.kept["blocks.0.scores"] == H * B * T * (T + 3)


def test_our_own_loss_of_many_logits_keeps_the_gradient_of_its_input():
    for a in (replace(DECODER, vocab_size=10**6), replace(PLAIN, head="masked", pooler=False, vocab_size=10**6)):
        plan = counting.plan(a, "full")
        kept = sum(Walk(plan, B, T, MINILORA).kept.values())
        assert costs.activation_bytes(plan, B, T, 32, "minilora") == 4 * (kept + 2 * N * F) + 4 * N * C
        assert costs.activation_bytes(plan, B, T, 32, "pytorch") > 4 * N * 10**6


def test_an_encoders_last_block():
    """Norms stand behind what they norm, so nothing trained stands before the last block's attention."""
    w = walk(ENCODER, "last-blocks", blocks=1)
    steps = computed(w)
    assert all(backward == 0 for name, (_, backward) in steps.items() if name.startswith("blocks.0") or name == "conv")
    forward = lambda name: steps[f"blocks.1.{name}"][0]
    for name in ("attn.q_proj", "attn.k_proj", "attn.v_proj"):
        assert steps[f"blocks.1.{name}"] == (forward(name), forward(name))  # dW, no dx
    for name in ("attn", "attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        assert steps[f"blocks.1.{name}"] == (forward(name), 2 * forward(name))
    project, scores = 2 * 10 * C * C, 2 * N * 10 * C
    assert steps["blocks.1.attn.q_proj.relative"] == (project + scores, project + 2 * scores)  # W, not the table
    assert steps["pooler"] == (2 * B * C * C, 2 * B * C * C)
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in w.kept} == {"blocks.1"}


def test_an_encoders_biases():
    """Bias gradients need no input: what is kept is what nonlinear steps need, from the embeddings' norm on."""
    w = walk(ENCODER, "bitfit")
    assert "ln_embedding.normed" not in w.kept and "conv.in" not in w.kept and "blocks.0.ln_1.out" not in w.kept
    assert w.kept["blocks.0.ln_1.normed"] == w.kept["ln_conv.normed"] == NORM
    steps = computed(w)
    project, scores = 2 * 10 * C * C, 2 * N * 10 * C
    assert steps["blocks.0.attn.q_proj.relative"] == (project + scores, project + 2 * scores)  # the table's norm
    assert all(steps[name] == 2 * (steps[name][0],) for name in ("conv", "pooler", "blocks.0.mlp.up_proj"))


def test_lora_adapts_what_projects_the_distances_too():
    r, rank = 10, 3
    steps = computed(walk(ENCODER, "lora", rank=rank, target_modules=("blocks.1.attn.q_proj",)))
    project, low, scores = 2 * r * C * C, 2 * r * rank * C, 2 * N * r * C
    assert steps["blocks.1.attn.q_proj.relative"] == (project + 2 * low + scores, 3 * low + 2 * scores)
    assert steps["blocks.1.attn.k_proj.relative"] == (project + scores, 2 * scores)
    assert steps["blocks.0.attn.q_proj.relative"] == (project + scores, 0)

    plan = counting.plan(ENCODER, "lora", rank=rank, target_modules=("blocks.0.attn.q_proj",))
    both = Walk(replace(plan, trained={"relative.weight": (r, C)}), B, T)  # and the table itself
    assert computed(both)["blocks.0.attn.q_proj.relative"] == (
        project + 2 * low + scores,
        project + 4 * low + 2 * scores,
    )


def test_roberta_norms_its_embeddings_as_deberta_does():
    for name in ("roberta-base", "deberta-v2-xxlarge"):
        plan = counting.plan(name, "full")
        n, c = 2 * 7, plan.architecture.width
        assert Walk(plan, 2, 7).kept["ln_embedding.normed"] == n * (c + 1)
        assert counting.parameters(plan.architecture)["ln_embedding.bias"] == (c,)
    assert "ln_embedding.normed" not in Walk(counting.plan("gpt2", "full"), 2, 7).kept


def test_latency_of_one_token_by_default():
    """One text of one token on PyTorch's reckoning: every matrix once, and one score a head."""
    r = 3
    plan = counting.plan(DECODER, "lora", rank=r)
    base = 2 * (2 * C * H * D + 2 * C * K * D + 3 * C * F) + 2 * 2 * H * D + 2 * C * V
    added = 2 * r * (C + H * D) + 2 * r * (C + K * D)
    expected = {"base": base, "added": added, "added_merged": 0, "share": added / base}
    assert costs.latency(plan) == costs.latency(plan, 1, 1, PYTORCH) == expected
    longer = costs.latency(plan, 5, 4)
    assert longer["added"] == 20 * added and longer["base"] == 20 * base + 20 * 3 * 2 * 2 * H * D
    houlsby = costs.latency(counting.plan(DECODER, "houlsby", bottleneck=1))
    assert houlsby["added"] == houlsby["added_merged"] == 2 * 2 * 2 * C
    prompt = counting.plan(
        DECODER, "prompt", tokens=2
    )  # PyTorch's prompt goes through everything, ours as far as it must
    both = [costs.latency(prompt, 1, 2, engine)["added"] for engine in (PYTORCH, MINILORA)]
    matrices = base - 2 * 2 * H * D - 2 * C * V
    assert both[0] == 2 * matrices + 2 * 2 * H * D * (16 - 4) + 2 * 2 * C * V
    assert both[1] == 2 * matrices + 2 * 2 * H * D * (2 * 4 + 2 * 2 - 4)


@given(st.integers(1, 300), st.integers(0, 70))
def test_what_blocks_of_queries_leave_out(length, queries):
    """Counted one by one: query i and key j are computed unless j lies behind the end of i's block."""
    end = lambda i: (i // queries + 1) * queries if queries else length
    assert costs._left_out(length, queries) == sum(max(0, length - end(i)) for i in range(length))


def test_a_long_text_is_counted_at_once():
    assert costs._left_out(10**9, 64) > 0
    assert counting.count(Architecture("x", V, C, 1, H, F, 10**9, bits=32), length=10**9).model == "x"


def test_bytes_of_weights_and_of_the_optimizers_state():
    plan = counting.plan(DECODER, "lora", rank=1)
    n, added = counting.size(plan.base), counting.size(plan.added)
    held = 2 * C * H * D + 2 * C * K * D + 3 * C * F
    rows = 2 * C + 2 * K * D + 2 * F + C  # one scale each: q, o, k, v, gate, up, down
    assert [costs.weight_bytes(plan, bits) for bits in (32, 16)] == [4 * (n + added), 2 * (n + added)]
    assert costs.weight_bytes(plan, 8) == held + 4 * rows + 2 * (n - held + added)
    assert costs.weight_bytes(plan, 4) == int(held * (4 + 8 / 64 + 32 / 16384) / 8) + 2 * (n - held + added)
    states = {(o, bits): costs.optimizer_bytes(o, bits) for o in costs.OPTIMIZERS for bits in (32, 16, 4)}
    assert states == {
        ("adamw", 32): 8, ("adamw", 16): 12, ("adamw", 4): 12, ("adamw-16bit", 32): 4, ("adamw-16bit", 16): 4,
        ("adamw-16bit", 4): 4, ("sgd", 32): 0, ("sgd", 16): 4, ("sgd", 4): 4,
    }  # fmt: skip
    assert costs.training_memory(plan, B, T, 32, "sgd")["gradients"] == 4 * added
    assert costs.training_memory(plan, B, T, 16)["gradients"] == 2 * added


def test_blocks_of_queries_and_a_prompt_for_the_whole_batch():
    """Our own engine never computes the weights behind a block's end, and reads a prompt once for all rows."""
    long, q = Architecture("long", V, C, 1, H, F, 1000), MINILORA.queries
    length = 2 * q + 3
    kept = Walk(counting.plan(long, "full"), B, length, MINILORA).kept["blocks.0.scores"]
    assert kept == H * B * (q * q + q * 2 * q + 3 * length) < H * B * length**2
    plan = counting.plan(long, "prompt", tokens=5)
    ours, theirs = Walk(plan, B, T, MINILORA), Walk(plan, B, T, PYTORCH)
    forward = lambda w: next(o.forward for o in w.operations if o.name == "blocks.0.mlp.up_proj")
    assert (forward(ours), forward(theirs)) == (2 * (B * T + 5) * C * F, 2 * B * (T + 5) * C * F)
    assert theirs.kept["blocks.0.scores"] == H * B * (T + 5) ** 2
    assert ours.kept["blocks.0.scores"] == H * (B * T * (T + 5) + 5 * 5)
    assert ours.kept["blocks.0.kv"] == 2 * (B * (T + 5) + 5) * C and theirs.kept["blocks.0.kv"] == 2 * B * (T + 5) * C


def test_four_bits_are_four_and_an_eighth_and_a_little():
    """4 bits, an 8-bit scale for 64 weights, and a 32-bit one for 256 of those: 4.127 (QLoRA, section 3)."""
    plan = counting.plan("gpt2", "lora", rank=1)
    held = 12 * 12 * 768**2
    rest = 2 * (counting.size(plan.base) - held + counting.size(plan.added))
    assert (costs.weight_bytes(plan, 4) - rest) * 8 / held == pytest.approx(4 + 1 / 8 + 1 / 512, abs=1e-6)
    assert list(costs.training_memory(plan, 1, 2, 16)) == ["weights", "gradients", "optimizer_state", "activations"]
