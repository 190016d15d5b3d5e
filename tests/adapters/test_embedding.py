"""LoRA on an embedding table and on an output head: derivatives, what names them, and a tie that is kept."""

import warnings

import numpy as np
import pytest
from adapters.test_adapter import CONFIG, TARGETS, TOKENS, assert_same, base, logits, shake, snapshot

import minilora as ml
from minilora.adapters.embedding import LoRAEmbedding
from minilora.adapters.state import adapter_parameters
from minilora.analysis import methods
from minilora.nn.layers import Embedding, Linear
from minilora.nn.module import Module


class Untied(Module):
    """A table, a layer and a head of its own."""

    def __init__(self, dtype="float64"):
        rng = np.random.default_rng(0)
        self.wte, self.proj = Embedding(11, 6, rng), Linear(6, 6, True, rng, std=1)
        self.head = Linear(6, 11, False, rng, std=1)
        self.astype(dtype)

    def __call__(self, tokens, rng=None):
        return self.head(ml.ops.tanh(self.proj(self.wte(tokens))))

    def loss(self, tokens, targets, rng=None):
        return ml.ops.cross_entropy(self(tokens, rng), targets)


WTE = ml.LoRAConfig(rank=2, alpha=3, target_modules="wte")
quiet = pytest.mark.filterwarnings("ignore:add_lora")


def on_table(model, config=WTE):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return shake(ml.add_lora(model, config))


@pytest.mark.parametrize("method", ["central", "complex-step", "directional"])
@pytest.mark.parametrize("make", [base, Untied])
def test_gradients(make, method):
    model = on_table(make())
    parameters = adapter_parameters(model)
    report = ml.gradcheck(lambda *_: model.loss(TOKENS, TARGETS), list(parameters.values()), method, max_entries=6)
    assert report.passed, str(report)


def test_the_derivatives_are_those_of_the_docstring():
    rng = np.random.default_rng(0)
    table = Embedding(5, 4, rng).astype("float64")
    layer = LoRAEmbedding(table, ml.LoRAConfig(2, 3), rng)
    layer.lora_A.data[...] = rng.normal(size=(2, 5))
    tokens, g = np.array([[1, 3, 1]]), rng.normal(size=(1, 3, 4))
    dA, dB = ml.grad((layer(tokens) * g).sum(), [layer.lora_A, layer.lora_B])
    s, A, B = 1.5, layer.lora_A.data, layer.lora_B.data
    np.testing.assert_allclose(dB, s * sum(np.outer(g[0, i], A[:, t]) for i, t in enumerate(tokens[0])), rtol=1e-12)
    np.testing.assert_allclose(dA[:, 1], s * B.T @ (g[0, 0] + g[0, 2]), rtol=1e-12)
    np.testing.assert_allclose(dA[:, 3], s * B.T @ g[0, 1], rtol=1e-12)
    assert not dA[:, [0, 2, 4]].any()  # tokens that do not occur
    np.testing.assert_allclose(layer(tokens).data, (table.weight.data + layer.delta())[tokens], rtol=1e-12)


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "pissa"])
def test_it_starts_at_the_base_model_and_is_taken_out(init):
    model = Untied("float32")
    before, plain = model.state_dict(), model(TOKENS).data
    ml.add_lora(model, ml.LoRAConfig(2, target_modules="wte", init=init))
    np.testing.assert_array_equal(model(TOKENS).data, plain)
    A, B = (model.wte.lora_A.data, model.wte.lora_B.data)
    assert A.shape == (2, 11) and B.shape == (6, 2)
    assert B.any() and bool(A.any()) == (init == "pissa")
    optimizer = ml.AdamW(model.named_parameters(), lr=0.05)
    losses = [ml.train_step(model, optimizer, TOKENS, TARGETS) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.01
    assert ml.delta_weights(model)["wte"].shape == (11, 6)
    ml.remove_lora(model)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("targets", [("wte",), ("head",), ("wte", "head", "proj")])
def test_an_untied_table_and_a_head_are_merged(targets):
    model = on_table(Untied(), ml.LoRAConfig(2, 3, target_modules=targets))
    assert {path for path in ml.delta_weights(model)} == set(targets)
    before = model(TOKENS).data
    ml.merge_lora(model)
    np.testing.assert_allclose(model(TOKENS).data, before, rtol=1e-11)
    ml.unmerge_lora(model)
    np.testing.assert_array_equal(model(TOKENS).data, before)


def test_a_tied_table_keeps_its_head_and_is_not_merged():
    """PEFT issue 2018: merged, an update of the one reaches the other."""
    model, plain = base(), base()
    with pytest.warns(UserWarning, match=r"wte.*tied head.*looking up alone"):
        ml.add_lora(model, WTE)
    shake(model)
    x = plain.hidden(ml.Tensor(plain.wte.weight.data[TOKENS] + model.wte.delta()[TOKENS]))
    expected = plain.ln_f(x).data @ plain.wte.weight.data.T  # the head is the base's
    np.testing.assert_allclose(logits(model), expected, rtol=1e-11, atol=1e-12)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"merge_adapter: wte: .*a tied head.*looking up alone"):
        ml.merge_lora(model)
    assert_same(model, before)
    assert not methods.plan(CONFIG, "lora", target_modules="wte", rank=2).mergeable


def test_a_tie_that_is_kept_outlives_a_merge():
    config = ml.LoRAConfig(2, 3, target_modules="wte", ensure_weight_tying=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = shake(ml.add_lora(base(), config))
    before, plain = logits(model), base()
    plain.wte.weight.data += model.wte.delta()
    np.testing.assert_allclose(before, logits(plain), rtol=1e-11, atol=1e-12)
    parameters = list(adapter_parameters(model).values())
    assert ml.gradcheck(lambda *_: model.loss(TOKENS, TARGETS), parameters, "complex-step", max_entries=6).passed
    ml.merge_lora(model)
    np.testing.assert_allclose(logits(model), before, rtol=1e-11, atol=1e-12)
    ml.unmerge_lora(model)
    np.testing.assert_array_equal(logits(model), before)
    tied = Untied()
    tied.head.weight = tied.wte.weight
    with pytest.raises(ValueError, match=r"ensure_weight_tying: wte\.weight is head\.weight, too, past the adapted"):
        ml.add_lora(tied, config)


def test_only_a_name_means_a_table_or_a_head():
    targets = lambda pattern, model: set(ml.delta_weights(on_table(model, ml.LoRAConfig(2, target_modules=pattern))))
    for pattern in ("*", ".*", "*proj", r"^.*$", ("w*", "proj"), "h*"):
        if pattern == "h*":
            with pytest.raises(ValueError, match="'h\\*' matches nothing; there are proj, head, wte"):
                targets(pattern, Untied())
        elif pattern == ("w*", "proj"):
            with pytest.raises(ValueError, match="'w\\*' matches nothing"):
                targets(pattern, Untied())
        else:
            assert targets(pattern, Untied()) == {"proj"}
    assert targets(r"(wte|proj)", Untied()) == {"wte", "proj"}
    assert targets(("*", "head"), Untied()) == {"head", "proj"}
    assert "wte" not in targets("*", base())


def test_a_table_that_nobody_looks_up_in_is_refused():
    model = base()
    before = snapshot(model)
    with pytest.raises(ValueError, match="wpe: GPT reads its weight and never calls it, so an update would do nothing"):
        ml.add_lora(model, ml.LoRAConfig(2, target_modules="wpe"))
    with pytest.raises(ValueError, match="dora: an embedding table is no target"):
        ml.add_lora(model, ml.DoRAConfig(2, target_modules="wte"))
    with pytest.raises(ValueError, match=r"rank 9 exceeds min\(d_in, d_out\) = 8 of wte"):
        on_table(model, ml.LoRAConfig(9, target_modules="wte"))
    assert_same(model, before)


@quiet
def test_files_sums_combinations_and_rows(tmp_path):
    config = ml.LoRAConfig(2, 3, target_modules=("wte", "q_proj"))
    model = shake(ml.add_lora(base(), config, name="a"))
    outputs = {"a": logits(model), None: logits(base())}
    ml.load_adapter(other := base(), ml.save_adapter(model, tmp_path / "a.npz"))
    np.testing.assert_array_equal(logits(other), outputs["a"])
    shake(ml.add_lora(model, ml.LoRAConfig(3, target_modules=("wte", "q_proj")), rng=1, name="b"), rng=9)
    outputs["b"] = logits(model)
    with ml.rows_use(model, ["a", None, "b"]):
        rows = logits(model)
    for i, name in enumerate(("a", None, "b")):
        np.testing.assert_allclose(rows[i], outputs[name][i], rtol=1e-11, atol=1e-12)
    ml.set_adapter(model, ["a", "b"])
    together = logits(model)
    with pytest.raises(ValueError, match=r"merge_adapter: wte: .*tied head"):
        ml.merge_lora(model)
    ml.combine_adapters(model, {"a": 1.0, "b": 1.0})
    np.testing.assert_allclose(logits(model), together, rtol=1e-11, atol=1e-12)


@quiet
def test_it_is_counted():
    config = ml.LoRAConfig(2, target_modules=("wte", "v_proj"), modules_to_save=("ln_f", "blocks.1.mlp"))
    model = ml.add_lora(base(), config)
    planned = methods.plan(CONFIG, "lora", rank=2, target_modules=("wte", "v_proj"), modules_to_save=("ln_f", "*1.mlp"))
    assert planned.trainable == {name: p.shape for name, p in adapter_parameters(model).items()}
    untied = dict(name="x", vocab_size=50, width=8, layers=1, heads=2, mlp_width=16, context=9, head="untied")
    architecture = ml.analysis.counting.Architecture(**untied)
    planned = methods.plan(architecture, "lora", rank=2, target_modules=("wte", "head"))
    assert planned.mergeable
    assert planned.added == {"wte.lora_A": (2, 50), "wte.lora_B": (8, 2), "head.lora_A": (2, 8), "head.lora_B": (50, 2)}
    plain, adapted = (
        ml.analysis.counting.operations(CONFIG, rank=2, target_modules=t) for t in ("v_proj", ("wte", "v_proj"))
    )
    assert (
        adapted["forward"] - plain["forward"] == 2 * CONFIG.block_size * 2 * CONFIG.n_embd
    )  # h B^T, no product at the head
