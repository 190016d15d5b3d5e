"""Counts: closed formulas against walking real parameters, the papers' formulas, and memory as it is measured."""

import gc
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import minilora as ml
from minilora.adapters.prefix import PrefixConfig
from minilora.adapters.prompt import PromptConfig
from minilora.analysis import costs, counting, paper

METHODS = {
    "lora": ml.LoRAConfig, "dora": ml.DoRAConfig, "prompt": PromptConfig, "prefix": PrefixConfig,
    "houlsby": ml.HoulsbyConfig, "pfeiffer": ml.PfeifferConfig, "bitfit": ml.BitFitConfig,
    "last-blocks": ml.LastBlocksConfig,
}  # fmt: skip
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")

configs = st.builds(
    lambda vocab, block, layers, heads, dim, bias: ml.GPTConfig(vocab, block, layers, heads, heads * dim, bias=bias),
    *(st.integers(1, 40), st.integers(1, 20), st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.booleans()),
)


@given(configs)
def test_every_shape_of_our_own_model(config):
    model = ml.GPT(config)
    walked = {name: p.shape for name, p in model.named_parameters()}
    assert counting.parameters(counting.find(model)) == walked
    record = counting.count(config, "full")
    assert record.total_parameters == record.trainable_parameters == model.count()
    assert record.checkpoint_bytes == counting.count_model(model).checkpoint_bytes


@given(configs, st.data())
def test_lora_counts_equal_a_walk_over_the_adapted_model(config, data):
    rank = data.draw(st.integers(1, config.n_embd))
    targets = tuple(data.draw(st.sets(st.sampled_from(ALL), min_size=1)))
    model = ml.add_lora(ml.GPT(config), ml.LoRAConfig(rank=rank, target_modules=targets))
    walked, record = counting.count_model(model), counting.count(model, "lora", rank=rank, target_modules=targets)
    for key in walked:
        assert record[key] == walked[key]
    added = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert counting.plan(model, "lora", rank=rank, target_modules=targets).trainable == added


def test_the_shipped_model():
    assert counting.count("base", "full").total_parameters == 822_016
    assert counting.find("base").bits == 32


@pytest.mark.slow
@pytest.mark.parametrize("name", counting.MODELS)
@pytest.mark.parametrize("method", counting.METHODS)
def test_layers_and_matrices_add_up(name, method):
    if method == "bitfit" and not any(n.endswith(".bias") for n in counting.parameters(counting.find(name))):
        with pytest.raises(ValueError, match="no biases"):
            counting.count(name, method)
        return
    if name.startswith("vit") and method in ("prompt", "prefix"):
        with pytest.raises(
            ValueError, match=f"^count: {method}: virtual tokens stand before a text; {name} reads pict"
        ):
            counting.count(name, method)
        return
    record = counting.count(name, method)
    for groups in (counting.by_layer(name, method), counting.by_matrix(name, method)):
        assert sum(g["total"] for g in groups.values()) == record.total_parameters
        assert sum(g["trainable"] for g in groups.values()) == record.trainable_parameters
    assert record.trainable_fraction == record.trainable_parameters / record.total_parameters
    assert max(map(len, counting.table(name, method).splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("name", counting.MODELS)
def test_a_comparison_fits_80_columns(name):
    assert max(map(len, counting.compare(name).splitlines())) <= 80


def test_a_vision_transformer_is_counted_as_it_is_adapted():
    config = ml.ViTConfig(image_size=8, patch_size=4, channels=3, n_layer=2, n_head=2, n_embd=8, labels=3, mlp_width=20)
    there = {name: p.shape for name, p in ml.ViT(config).named_parameters()}
    assert counting.parameters(config.blocks) == there
    for targets in (("q_proj", "v_proj"), ("*",), ("patch_proj", "classifier")):
        model = ml.add_lora(ml.ViT(config), ml.LoRAConfig(2, target_modules=targets))
        added = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
        assert counting.plan(config.blocks, "lora", rank=2, target_modules=targets).trainable == added
    with pytest.raises(ValueError, match=r"wpe"):  # which its model reads whole and never looks up
        counting.plan(config.blocks, "lora", target_modules=("wpe",))
    with pytest.raises(ValueError, match=r"^count: length = 9, but vit makes 5 tokens of each picture"):
        counting.count(config.blocks, length=9)
    assert counting.by_layer(config.blocks)["embeddings"]["total"] == 8 + 8 * 48 + 8 + 5 * 8
    assert {"prompt", "prefix"}.isdisjoint(record.method for record in counting.compare_records(config.blocks))


def test_the_formulas_of_section_5_1():
    """Hu et al. 2021: 2 L d r for each target; L (2 d r + r + d) for adapters; d l for a prompt."""
    d, layers = 12288, 96
    trained = lambda method, **o: counting.count("gpt3-175b", method, **o).trainable_parameters
    assert trained("lora", rank=4) == 2 * layers * 2 * d * 4 == 18_874_368
    assert trained("lora", rank=3, target_modules=("q_proj",)) == layers * 2 * d * 3
    assert trained("dora", rank=4) == trained("lora", rank=4) + 2 * layers * d
    assert trained("houlsby", bottleneck=8) == 2 * layers * (2 * d * 8 + 8 + d)
    assert trained("pfeiffer", bottleneck=8) == layers * (2 * d * 8 + 8 + d)
    assert trained("prompt", tokens=7) == 7 * d
    assert trained("prefix", tokens=7) == 2 * layers * 7 * d
    assert trained("bitfit") == layers * (9 * d + 2 * d) + d
    assert trained("last-blocks", blocks=3) == 3 * (12 * d * d + 13 * d)
    first = counting.plan("gpt2", "lora", target_modules=("blocks.0.*", "v_proj")).trainable
    assert {n.split(".")[1] for n in first if "up_proj" in n} == {"0"} and len(first) == 2 * (6 + 11)


def test_the_keys_of_a_count():
    record = counting.count("gpt3-175b", method="lora", rank=4, target_modules=("q_proj", "v_proj"))
    assert list(record) == [
        "model",
        "method",
        "rank",
        "target_modules",
        "total_parameters",
        "trainable_parameters",
        "trainable_fraction",
        "checkpoint_bytes",
        "training_memory_bytes",
    ]
    assert list(record.training_memory_bytes) == ["weights", "gradients", "optimizer_state", "activations"]
    assert json.loads(json.dumps(record)) == record
    assert record.checkpoint_bytes == 2 * record.trainable_parameters
    assert counting.count("gpt2", "bitfit")["rank"] is None


def test_ranks_and_targets_are_told_as_they_were_given():
    """Rank 4 on q and v where nothing is said; None for a method that has neither."""
    said = lambda method="lora", **o: (
        (c := counting.count("gpt2", method, **o)).rank,
        c.target_modules,
        c.trainable_parameters,
    )
    one = lambda r: 12 * r * 2 * 768  # one square matrix a block
    assert said() == said(rank=4, target_modules=("q_proj", "v_proj")) == (4, ["q_proj", "v_proj"], 2 * one(4))
    assert said(rank=3, target_modules="o_proj") == (3, ["o_proj"], one(3))
    assert said("dora", rank=7, target_modules=["k_proj", "o_proj"]) == (
        7,
        ["k_proj", "o_proj"],
        2 * (one(7) + 12 * 768),
    )
    for method in ("full", "last-blocks", "bitfit", "prompt", "prefix", "houlsby", "pfeiffer"):
        assert said(method, rank=5, target_modules=("k_proj",))[:2] == (None, None)


def test_layers_and_matrices_have_their_names():
    blocks = [f"blocks.{i}" for i in range(12)]
    assert list(counting.by_layer("gpt2", "lora")) == ["embeddings", *blocks, "head"]
    assert list(counting.by_layer("gpt2", "prompt", tokens=3)) == ["embeddings", *blocks, "head", "front"]
    assert counting.by_layer("gpt2", "prefix", tokens=3)["front"] == {"total": 2 * 12 * 3 * 768} | {
        "trainable": 2 * 12 * 3 * 768
    }
    layers, c = counting.by_layer("roberta-base", "last-blocks", blocks=1), 768
    assert layers["embeddings"] == {"total": (50265 + 514 + 1 + 2) * c, "trainable": 0}  # and the norm of their sum
    assert layers["head"] == {"total": c * c + c, "trainable": 0}  # the pooler
    assert layers["blocks.11"] == {"total": 12 * c * c + 13 * c, "trainable": 12 * c * c + 13 * c}
    assert layers["blocks.10"]["trainable"] == 0
    for accounts in (counting.by_layer, counting.by_matrix, counting.operations, counting.table):  # LoRA on q and v
        assert accounts("gpt2") == accounts("gpt2", "lora", rank=4, target_modules=("q_proj", "v_proj"))
    head = counting.by_layer("deberta-v2-xxlarge", "full")["head"]["total"]
    assert head == 512 * 1536 + 2 * 1536 + 3 * 1536**2 + 3 * 1536
    matrices = counting.by_matrix("gpt2", "lora", rank=2, target_modules=("v_proj",))
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert list(matrices) == ["wte", "wpe", "ln_1", *projections, "ln_2", "up_proj", "down_proj", "ln_f"]
    assert matrices["v_proj"] == {"total": 12 * (c * c + c + 4 * c), "trainable": 12 * 4 * c}
    assert matrices["q_proj"] == {"total": 12 * (c * c + c), "trainable": 0}
    assert list(counting.by_matrix("gpt2", "prefix"))[-2:] == ["front.keys", "front.values"]
    adapters = counting.by_matrix("gpt2", "houlsby", bottleneck=1)
    assert (
        adapters["attn.adapter"] == adapters["mlp.adapter"] == {"total": 12 * 3 * c + 12, "trainable": 12 * 3 * c + 12}
    )


def test_the_papers_columns():
    """Every row within its print, but for those marked; and what the marks say is so."""
    rows = paper.paper_rows()
    assert [len(paper.paper_rows(t)) for t in (2, 3, 4)] == [14, 12, 8]
    for row in rows:
        assert row["agrees"] or row["note"], row["row"]
        assert float(row["printed"]) * 1e6 == pytest.approx(row["formula"], rel=0.2)
    by_row = {(r["table"], r["row"], r["printed"]): r for r in rows}
    assert [r["row"] for r in rows if r["method"] == "lora" and not r["agrees"]] == ["GPT-2 M (LoRA)", "GPT-2 L (LoRA)"]
    assert by_row[3, "GPT-2 M (LoRA)", "0.35"]["formula"] == 393_216
    assert by_row[4, "GPT-3 (LoRA)", "37.7"]["formula"] == 37_748_736
    for name in ("Adpt^P", "Adpt^H"):
        row = next(r for r in rows if name in r["row"] and not r["agrees"])
        assert f"{row['formula'] / 2**20:.1f}" == row["printed"]  # "if a million is 2^20"
    text = counting.paper_table()
    assert max(map(len, text.splitlines())) <= 80
    assert "0.39     0.35 *" in text


def test_the_savings_for_gpt3():
    rows = {r["what"]: r for r in counting.savings()}
    assert rows["checkpoint, full fine-tuning"]["formula"] == "349.2 GB"  # 2 bytes x 174,604,259,328
    assert rows["checkpoint, LoRA"]["formula"] == "37.7 MB"
    assert rows["memory, LoRA"]["formula"] == "349.5 GB"
    assert rows["memory, full, all in 16 bits"]["formula"] == "1.40 TB"


def test_memory_of_weights_gradients_and_state():
    """ZeRO's 16 bytes a parameter; frozen weights cost theirs alone; NF4's 4.127 bits a weight."""
    n = counting.count("llama-2-7b", "full")
    parts = n.training_memory_bytes
    assert parts["weights"] + parts["gradients"] + parts["optimizer_state"] == 16 * n.total_parameters
    single = counting.count("llama-2-7b", "full", bits=32).training_memory_bytes
    assert [single[k] // n.total_parameters for k in ("weights", "gradients", "optimizer_state")] == [4, 4, 8]
    assert counting.count("gpt2", "full", optimizer="sgd", bits=32).training_memory_bytes["optimizer_state"] == 0
    blocks = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = n.total_parameters - blocks
    adapter = 2 * counting.count("llama-2-7b").trainable_parameters
    weights = lambda bits: counting.count("llama-2-7b", bits=bits).training_memory_bytes["weights"]
    assert weights(16) == 2 * n.total_parameters + adapter
    assert weights(4) == pytest.approx(blocks * 4.127 / 8 + 2 * rest + adapter, rel=1e-4)
    assert weights(8) == blocks + 4 * 32 * (5 * 4096 + 2 * 11008) + 2 * rest + adapter


def test_activations_are_korthikantis():
    """s b h (34 + 5 a s / h) a block, in parts (section 4.1, eq. 1): ours are those that remain without dropout."""
    a = counting.Architecture("one block", 10, 64, 1, 4, 256, 32)
    b, s, h = 3, 32, 64
    walk = costs.Walk(counting.plan(a, "full"), b, s, costs.PYTORCH)
    block = sum(v for k, v in walk.kept.items() if k.startswith("blocks.0")) - 2 * b * s  # less the norms' factors
    n, squares = s * b * h, 4 * s * s * b  # entries of x, and of all four heads' weights
    attention = {"x of q, k, v": 2 * n, "q and k": 4 * n, "v": 2 * n, "x of o": 2 * n, "softmax": 2 * squares}
    others = {"x of up": 2 * n, "x of gelu": 8 * n, "x of down": 8 * n, "x of two norms": 4 * n}
    masks = {"of the weights": squares, "after attention": n, "after the MLP": n}
    dropped = {"the weights with dropout": 2 * squares}  # without it, they are what softmax kept already
    parts = [sum(part.values()) for part in (attention, others, masks, dropped)]
    assert sum(parts) == n * 34 + 5 * squares  # eq. 1
    assert sum(parts) - sum(masks.values()) == n * 32 + 4 * squares  # without its masks alone
    assert 2 * block == parts[0] + parts[1] == n * 32 + 2 * squares  # without its copy of the weights, too


def test_operations_by_hand():
    """One matrix of LoRA: what each product of its forward and backward pass costs."""
    a = counting.Architecture("small", 10, 8, 2, 2, 32, 16, qkv_bias=False)
    n, c, r = 2 * 16, 8, 3
    matrices = 12 * c * c
    attention = 2 * 2 * n * 16 * c
    base = 2 * (2 * n * matrices + attention) + 2 * n * c * 10
    full = counting.operations(a, "full", batch=2, length=16)
    assert (full["forward"], full["training"], full["overhead"]) == (base, 3 * base, 0)
    lora = counting.operations(a, "lora", batch=2, length=16, rank=r, target_modules=("blocks.1.attn.q_proj",))
    extra = 2 * n * r * (c + c)
    assert lora["forward"] == base + extra and lora["overhead"] == extra and lora["overhead_merged"] == 0
    # backward: the head, then block 1 down to its attention (its k and v stand before nothing trained), then A and B
    backward = 2 * n * c * 10 + 2 * n * (c * c + 8 * c * c) + 2 * attention + 2 * n * r * (2 * c + c)
    assert lora["training"] == base + extra + backward
    assert counting.operations(a, "prompt", batch=2, length=12, tokens=4)["forward"] == base
    assert counting.operations(a, "prefix", tokens=4, length=4)["overhead"] == 2 * 2 * 2 * 4 * 4 * c
    # our own way: the prompt goes through the blocks once, sees itself alone, and leaves no logits
    ours = costs.Walk(counting.plan(a, "prompt", tokens=4), 2, 12, costs.MINILORA)
    rows, pairs = 2 * 12 + 4, 2 * 12 * 16 + 4 * 4
    assert ours.forward == 2 * (2 * rows * matrices + 2 * 2 * pairs * c) + 2 * (2 * 12) * c * 10
    houlsby = counting.operations(a, "houlsby", batch=2, length=16, bottleneck=5)
    assert houlsby["overhead"] == houlsby["overhead_merged"] == 2 * 2 * (2 * 2 * n * c * 5)


def test_kaplans_six_operations_a_parameter():
    """6 N a token, plus attention, for a long and wide model (Kaplan et al. 2020, section 2.1)."""
    full = counting.operations("gpt3-175b", "full", length=2048)
    assert full["training"] / 2048 / 174_604_259_328 == pytest.approx(6, rel=0.03)


def measured_memory(config, method, batch, length, **options):
    """Bytes that one training step takes at its peak, on one thread: weights, state, and what tracemalloc sees."""
    model = ml.GPT(config)
    if method != "full":
        ml.add_adapter(model, METHODS[method](**options))
    optimizer = ml.AdamW(model.named_parameters())
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(batch, length))

    def step():
        optimizer.step(ml.grad(model.loss(tokens, tokens), optimizer.parameters))

    step()  # the optimiser's state is made at the first step
    gc.collect()
    tracemalloc.start()
    try:
        loss = model.loss(tokens, tokens)
        kept = tracemalloc.get_traced_memory()[0]
        del loss
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        step()
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    state = sum(array.nbytes for arrays in optimizer.state.values() for array in arrays)
    return sum(p.data.nbytes for p in model.parameters()) + state + peak, kept


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(96, 128, 4, 4, 128), (256, 64, 6, 4, 64)])
@pytest.mark.parametrize(
    "method, options",
    [
        ("full", {}),
        ("lora", {"rank": 8, "target_modules": ("q_proj", "v_proj")}),
        ("lora", {"rank": 8, "target_modules": ALL}),
        ("prompt", {"tokens": 20}),
        ("prefix", {"tokens": 20}),
        ("dora", {"rank": 8}),
        ("houlsby", {"bottleneck": 16}),
        ("houlsby", {"bottleneck": 1, "adapter_norm": True}),
        ("pfeiffer", {"bottleneck": 64, "adapter_norm": True}),
        ("bitfit", {}),
        ("last-blocks", {"blocks": 3}),
    ],
)
def test_predicted_memory_is_what_tracemalloc_measures(sizes, method, options):
    """Within 10 % for the step, and within 2 % for what the tape holds between forward and backward."""
    config = ml.GPTConfig(*sizes)
    length = config.block_size - options.get("tokens", 0)
    with threadpool_limits(1):
        measured, kept = measured_memory(config, method, 8, length, **options)
    record = counting.count(config, method, batch=8, length=length, **options)
    assert sum(record.training_memory_bytes.values()) == pytest.approx(measured, rel=0.1)
    walk = costs.Walk(counting.plan(config, method, **options), 8, length, costs.MINILORA)
    assert 4 * (sum(walk.kept.values()) + walk.rows * config.vocab_size) == pytest.approx(kept, rel=0.02)


BAD = {
    "model": (
        lambda: counting.count("gpt2-medum"),
        "unknown model 'gpt2-medum' .did you mean 'gpt2-medium'.*llama-2-7b",
    ),
    "no model": (lambda: counting.count(3), "unknown model '3'; there are base, gpt2"),
    "method": (lambda: counting.count("gpt2", "lor"), "unknown method 'lor' .did you mean 'lora'.*houlsby"),
    "target": (
        lambda: counting.count("gpt2", target_modules=("c_attn",)),
        "'c_attn' matches nothing; there are q_proj",
    ),
    "no target": (lambda: counting.count("gpt2", target_modules=()), "target_modules is empty"),
    "rank 0": (lambda: counting.count("gpt2", rank=0), "rank = 0, expected a positive integer"),
    "rank 1.5": (lambda: counting.count("gpt2", rank=1.5), "rank = 1.5, expected a positive integer"),
    "rank too large": (
        lambda: counting.count("gemma-2b", rank=257, target_modules=("k_proj",)),
        "rank 257 exceeds .* = 256 of blocks.0.attn.k_proj",
    ),
    "length": (lambda: counting.count("gpt2", length=1025), "length = 1025 exceeds the context of gpt2, 1024"),
    "no room": (
        lambda: counting.count("gpt2", "prompt", tokens=1024),
        "prompt: 1024 virtual tokens leave no room for a text in the context of gpt2, 1024",
    ),
    "no room for a prefix": (lambda: counting.plan("gpt2", "prefix", tokens=2000), "prefix: 2000 virtual tokens leave"),
    "less room": (
        lambda: counting.count("gpt2", "prefix", tokens=4, length=1021),
        "length = 1021 and 4 virtual tokens exceed the context of gpt2, 1024",
    ),
    "layers": (lambda: counting.count(ml.GPTConfig(9, 8, 10**9, 2, 8)), "layers = 1000000000, expected at most 2,000"),
    "batch": (lambda: counting.count("gpt2", batch=0), "batch = 0"),
    "length 0": (lambda: counting.count("gpt2", length=0), "count: length = 0, expected a positive integer"),
    "bits": (lambda: counting.count("gpt2", bits=5), "5 bits a weight, expected 32, 16, 8 or 4"),
    "4 bits trained": (lambda: counting.count("gpt2", "full", bits=4), "full trains .* cannot be held in 4 bits"),
    "optimizer": (lambda: counting.count("gpt2", optimizer="lion"), "unknown optimizer 'lion'; there are adamw"),
    "engine": (lambda: counting.count("gpt2", engine="jax"), "unknown engine 'jax'; there are pytorch"),
    "blocks": (lambda: counting.count("gpt2", "last-blocks", blocks=13), "blocks = 13, but gpt2 has 12"),
    "bottleneck": (lambda: counting.count("gpt2", "houlsby", bottleneck=0), "bottleneck = 0"),
    "family": (lambda: counting.from_hugging_face({"model_type": "lama"}), "unknown model_type 'lama' .did you mean"),
    "no family": (lambda: counting.from_hugging_face({}), "unknown model_type 'None'; there are bert"),
    "heads": (lambda: counting.Architecture("x", 1, 10, 1, 3, 4, 5), "width 10 is not divisible by 3 heads"),
    "kv heads": (lambda: counting.Architecture("x", 1, 8, 1, 4, 4, 5, kv_heads=3), "4 heads do not divide into 3"),
    "width": (lambda: counting.Architecture("x", 1, 0, 1, 4, 4, 5), "width = 0, expected a positive integer"),
    "head": (lambda: counting.Architecture("x", 1, 8, 1, 4, 4, 5, head="loose"), "head = 'loose'"),
    "paper": (lambda: counting.paper_rows(5), "table 5, expected 2, 3 or 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(case):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_config_json_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        counting.count(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not a config"):
        counting.count(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list, expected an object"):
        counting.count(tmp_path / "config.json")


def test_comparison_leaves_out_what_a_model_cannot_have_and_quantises_what_is_frozen():
    methods = [r.method for r in counting.compare_records("llama-2-7b", bits=4)]
    assert methods == [m for m in counting.METHODS if m != "bitfit"]
    records = {r.method: r for r in counting.compare_records("gpt2", bits=4)}
    assert set(records) == set(counting.METHODS)
    assert records["full"].training_memory_bytes["weights"] == 2 * 124_439_808
    assert records["lora"].training_memory_bytes["weights"] < 124_439_808
    single = {r.method: r for r in counting.compare_records("gpt2", bits=32)}
    assert single["full"].training_memory_bytes["weights"] == 4 * 124_439_808
    with pytest.raises(ValueError, match="exceeds the context"):
        counting.compare("gpt2", length=5000)


def test_our_own_model_is_counted_in_our_own_engine_and_precision():
    """32 bits and what the tape keeps, where nothing is said; any other model in 16 bits on PyTorch's reckoning."""
    said = lambda name, **o: counting.count(name, "full", batch=2, length=9, **o).training_memory_bytes
    assert said("base") == said("base", bits=32, engine="minilora") != said("base", engine="pytorch")
    assert said("gpt2") == said("gpt2", bits=16, engine="pytorch") != said("gpt2", engine="minilora")
    assert (
        counting.count("base", "full").training_memory_bytes
        == counting.count("base", "full", length=128).training_memory_bytes
    )
    long = counting.Architecture("long", 10, 8, 1, 2, 32, 4096)
    assert counting.count(long) == counting.count(long, length=2048) and counting.count(
        long, length=4096
    ) != counting.count(long)
    assert counting.count("base").checkpoint_bytes == 4 * counting.count("base").trainable_parameters


def test_virtual_tokens_take_their_positions_from_the_text():
    """The same text for every method that is compared, and the longest that fits where none is asked for."""
    a = counting.Architecture("small", 10, 8, 2, 2, 32, 16)
    costs_of = lambda method, **o: counting.operations(a, method, **o)["forward"]
    for method in ("prompt", "prefix"):
        assert (
            costs_of(method, tokens=4) == costs_of(method, tokens=4, length=12) > costs_of(method, tokens=4, length=11)
        )
        assert counting.plan(a, method, tokens=15).virtual == 15
    assert counting.plan(a, "lora").virtual == 0
    bare = {r.method: r for r in counting.compare_records(a, tokens=4)}
    assert bare["full"] == counting.count(a, "full", length=12) and bare["prompt"].trainable_parameters == 4 * 8
    assert "on texts of 12 tokens" in counting.compare(a, tokens=4)
    for options in ({"tokens": 16}, {"tokens": 4, "length": 13}):  # nothing that fits: left out, as bitfit is
        assert {*bare} - {r.method for r in counting.compare_records(a, **options)} == {"prompt", "prefix"}
    assert "on texts of 16 tokens" in (text := counting.compare(a, tokens=16, blocks=3))
    assert "cannot have, in these sizes: last-blocks, prompt, prefix\n" in text
    assert "cannot have" not in counting.compare(a, tokens=4)
    with pytest.raises(ValueError, match="tokens = '4', expected a positive integer"):
        counting.compare(a, tokens="4")
    full = counting.table(a, "prompt", tokens=4).splitlines()  # beside full fine-tuning on the same text
    assert (
        next(line for line in full if line.startswith("activations")).split()[3]
        == counting._mib(counting.count(a, "full", length=12).training_memory_bytes["activations"]).split()[0]
    )


SMALL = counting.Architecture("small", 1000, 64, 2, 4, 256, 32, positions=32)
TABLE = """\
small: lora, rank 4 on q_proj, v_proj

parameters                        168,192
trainable                           2,048   1.2177%
stored for each task                4,096 bytes   0.004 MiB

matrix, all layers             parameters            trainable
wte                                64,000                    0
wpe                                 2,048                    0
ln_1                                  256                    0
q_proj                              9,344                1,024
k_proj                              8,320                    0
v_proj                              9,344                1,024
o_proj                              8,320                    0
ln_2                                  256                    0
up_proj                            33,280                    0
down_proj                          32,896                    0
ln_f                                  128                    0

a training step: batch 2, length 32, 16-bit weights, adamw
memory                               lora                 full
weights                         0.321 MiB            0.317 MiB
gradients                       0.004 MiB            0.317 MiB
optimizer state                 0.023 MiB              1.9 MiB
activations                     0.434 MiB            0.542 MiB
sum                             0.782 MiB              3.1 MiB
operations                           lora                 full
forward                        2.2086e+07           2.1823e+07
training                       4.3844e+07           6.5470e+07
added to forward               2.6214e+05   1.201%, none after merging"""


def test_a_table_letter_by_letter():
    """Its numbers are those of the records, which have tests of their own."""
    assert counting.table(SMALL, rank=4, batch=2) == TABLE
    record, full = counting.count(SMALL, rank=4, batch=2), counting.count(SMALL, "full", batch=2)
    assert 168_192 == record.total_parameters == full.total_parameters + 2048 and record.checkpoint_bytes == 4096
    for memory, shown in ((record, "0.782"), (full, "3.1")):
        assert f"{sum(memory.training_memory_bytes.values()) / 2**20:.{len(shown) - 2}f}" == shown
    eight = counting.table(SMALL, "houlsby", bottleneck=4, bits=8, optimizer="sgd").splitlines()
    assert "a training step: batch 1, length 32, 8-bit weights, sgd" in eight
    state = counting.count(SMALL, "full", optimizer="sgd").training_memory_bytes["optimizer_state"]
    assert next(line.split() for line in eight if line.startswith("optimizer"))[4] == f"{state / 2**20:.3f}"
    assert eight[-1].endswith("%, cannot be merged")
    held, whole = next(line.split() for line in eight if line.startswith("weights"))[1:4:2]
    assert f"{counting.count(SMALL, 'full').training_memory_bytes['weights'] / 2**20:.3f}" == whole
    assert (
        f"{counting.count(SMALL, 'houlsby', bottleneck=4, bits=8).training_memory_bytes['weights'] / 2**20:.3f}" == held
    )
    flash = counting.table(SMALL, engine="flash", length=7)
    assert (
        f"{counting.count(SMALL, 'full', engine='flash', length=7).training_memory_bytes['activations'] / 2**20:.3f}"
        in flash
    )


def test_a_comparison_line_by_line():
    options = dict(tokens=4, length=8, batch=64, bits=8, rank=2)
    lines = counting.compare(SMALL, **options).splitlines()
    assert lines[0] == "small: 166,144 parameters" and lines[2].split() == [
        "method",
        "trainable",
        "share",
        "stored",
        "memory",
        "added",
    ]
    end = 3 + len(counting.METHODS)
    for line, record in zip(lines[3:end], counting.compare_records(SMALL, **options), strict=True):
        method, trainable, share, stored, _, memory, _, added = line.replace("*", " ").split()
        assert (method, trainable, share) == (
            record.method, f"{record.trainable_parameters:,}", f"{record.trainable_fraction:.4%}",
        )  # fmt: skip
        whole = sum(record.training_memory_bytes.values())
        assert (stored, memory) == (f"{record.checkpoint_bytes / 2**20:.3f}", f"{whole / 2**20:.1f}")
        sizes = {k: v for k, v in options.items() if k != "bits"}
        assert added == f"{counting.operations(SMALL, method, **sizes)['overhead_fraction']:.3%}"
        assert line.endswith("*") == (method in ("prompt", "prefix", "houlsby", "pfeiffer"))
        assert record == counting.count(
            SMALL, method, **{**options, "bits": 16 if method in ("full", "last-blocks") else 8}
        )
    assert lines[end] == "" and len(lines) == end + 3
