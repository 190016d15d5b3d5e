"""The same source on another device: results there are NumPy's, and no array crosses where the code does not say so.

Each test computes twice, with NumPy and on the device, and compares. On the stand-in of `strict.py`, which any machine
has, results have NumPy's very bits. On a GPU (`pytest -m gpu`) sums are taken in another order: 1e-4 of the largest
entry in float32, 1e-10 in float64.
"""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from strict import FUNCTIONS, METHODS, UFUNCS, WITH_AT, StrictArray, signatures, strict

import minilora as ml
from minilora.adapters import combine
from minilora.adapters.adapter import METHODS as ADAPTERS
from minilora.adapters.combine import combine_adapters
from minilora.analysis import rank
from minilora.autograd import backend, fused, ops
from minilora.autograd.examples import EXAMPLES
from minilora.commands.main import main
from minilora.training import backward, loop, optim
from minilora.training.checkpoint import load_checkpoint
from minilora.training.corpus import Corpus

TOLERANCE = {np.dtype("float32"): 1e-4, np.dtype("float64"): 1e-10}  # on a GPU
EVERY_LAYER = ml.LoRAConfig(rank=2, target_modules=("*",))
VARIANTS = {  # beside every method as it is by default
    "lora everywhere": EVERY_LAYER,
    "pissa": ml.LoRAConfig(rank=2, init="pissa"),
    "lora with dropout": ml.LoRAConfig(rank=2, dropout=0.3),
    "dora, exact norm": ml.DoRAConfig(rank=2, exact_norm=True),
    "dora with dropout": ml.DoRAConfig(rank=2, dropout=0.3, init="gaussian"),
    "prompt at random": ml.PromptConfig(tokens=3, init="random"),
    "prompt of a text": ml.PromptConfig(tokens=3, text=(4, 2)),
    "prefix with a network": ml.PrefixConfig(tokens=3, hidden=5),
    "prefix from the vocabulary": ml.PrefixConfig(tokens=3, init="vocabulary"),
    "houlsby with norms": ml.HoulsbyConfig(bottleneck=3, adapter_norm=True, activation="relu"),
}
SMALL = {"lora": {"rank": 2}, "dora": {"rank": 2}, "prompt": {"tokens": 3}, "prefix": {"tokens": 3},
         "last-blocks": {"blocks": 1}, "lora-fa": {"rank": 2}, "miss": {"rank": 3}, "vera": {"rank": 5}}  # fmt: skip
CONFIGS = {name: kind(**SMALL.get(name, {})) for name, kind in ADAPTERS.items()} | VARIANTS


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """NumPy's steps in one piece, as a device takes them: only then have both the same bits."""
    monkeypatch.setattr(backward, "cores", lambda: 1)


@pytest.fixture(params=["strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """The name of a backend that is not NumPy."""
    monkeypatch.setitem(backend.BACKENDS, "strict", lambda: strict)
    if request.param == "cupy":
        try:
            with ml.use_backend("cupy"):
                pass
        except ValueError as error:
            pytest.skip(str(error))
    return request.param


@pytest.fixture
def stand_in(monkeypatch):
    """The stand-in as the current backend."""
    monkeypatch.setitem(backend.BACKENDS, "strict", lambda: strict)
    with ml.use_backend("strict"):
        yield strict


def assert_same(device, compute):
    """compute() gives arrays, Tensors, numbers and words; on the device they are NumPy's, and arrays are there."""
    with ml.use_backend("numpy"):
        wanted = [x.data if isinstance(x, ml.Tensor) else x for x in compute()]
    with ml.use_backend(device):
        got = [x.data if isinstance(x, ml.Tensor) else x for x in compute()]
        there = backend._current.ndarray
    known = [TOLERANCE[x.dtype] for x in wanted if getattr(x, "dtype", None) in TOLERANCE]
    tolerance = 0 if device == "strict" else max(known, default=0)
    for a, b in zip(got, wanted, strict=True):
        assert type(a) is (there if type(b) is np.ndarray else type(b))
        if isinstance(b, str):
            assert a == b
            continue
        a, b = ml.to_numpy(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        assert_near(a, b, tolerance)


def assert_near(a, b, tolerance):
    """Apart by no more than this share of the largest entry; 0: the same numbers."""
    a, b = ml.to_numpy(a), ml.to_numpy(b)
    assert abs(a - b).max(initial=0) <= tolerance * abs(b).max(initial=0)


def exact(device, *results):
    """Results that rounding may turn over: for the stand-in alone.

    Adam divides a gradient by its own size. Where it is all but zero, as for the bias of the keys, which attention does
    not feel, its rounding becomes a whole step of that parameter, and no step of the model's outputs.
    """
    return results if device == "strict" else ()


def make_model(dtype="float64", dropout=0.0):
    """A small GPT whose biases and norms are away from where they start."""
    model = ml.GPT(ml.GPTConfig(11, 8, 2, 2, 8, dropout=dropout), rng=0).astype(dtype)
    rng = np.random.default_rng(1)
    model.load_state_dict({n: ml.to_numpy(p) + rng.normal(0, 0.1, p.shape) for n, p in model.named_parameters()})
    return model


def batches(count, seed=2, length=5):
    """Windows and targets, in NumPy, as a corpus gives them."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 11, (2, 3, length)) for _ in range(count)]


def train(model, steps):
    """The losses of some steps, with clipping and with dropout where there is any."""
    optimizer, rng = ml.AdamW(model.parameters(trainable=True), lr=1e-2), np.random.default_rng(3)
    return [ml.train_step(model, optimizer, *batch, rng=rng, max_norm=0.5) for batch in batches(steps)]


def a_corpus():
    """Tokens with nothing in them to learn."""
    rng = np.random.default_rng(4)
    return Corpus("noise", rng.integers(0, 11, 300), rng.integers(0, 11, 90))


# --- autograd


@pytest.mark.parametrize("name", EXAMPLES)
def test_primitives(name, device):
    def compute():
        example = EXAMPLES[name]
        inputs = [ml.Tensor(x, requires_grad=True) for x in example.inputs(np.random.default_rng(0))]
        if name == "linear_on_demand":
            weight = backend.new_array(example.inputs(np.random.default_rng(1))[0][0, :1].repeat(5, 0))  # (5, 4)
            output = ops.linear_on_demand(inputs[0], weight.astype, inputs[1])
        elif name == "linear_cross_entropy_on_demand":
            weight, targets = backend.new_array(np.arange(20.0).reshape(5, 4)), np.array([[0, 3, 1], [3, 2, 3]])
            output = ops.linear_cross_entropy_on_demand(
                inputs[0], lambda part, dtype: weight[part], targets, 5, inputs[1]
            )
        else:
            output = example.function(ops.PRIMITIVES[name])(*inputs)
        yield output
        yield from ml.grad(output, inputs, cotangent=np.random.default_rng(2).standard_normal(output.shape))

    assert_same(device, compute)


def test_tensors_of_arrays_lists_and_numbers(device):
    def compute():
        x = ml.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
        y = (2.0 - x) * [1.0, 2.0, 3.0] / np.float64(3) + x[np.array([0, 0])] ** 2 + x[0, 1] - ml.Tensor(4.0).detach()
        y[:, None, [0, 2]].sum().backward()
        yield from (y, x.grad, float(y[1, 1]), y.sum().item(), f"{y.sum():.3f}", repr(x), str(bool((x > -1).all())))

    assert_same(device, compute)


def test_gradients_that_add_up_and_gradients_of_nothing(device):
    def compute():
        x, y = (ml.Tensor(np.full((2, 2), value), requires_grad=True) for value in (2.0, 3.0))
        for _ in range(2):
            (x * x).sum().backward()
        optimizer = ml.SGD([x], lr=0.1, momentum=0.5)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        yield from (x, x.grad, *optimizer.state["v"], *ml.grad(x.sum(), [y]))

    assert_same(device, compute)


@pytest.mark.parametrize("method", ["central", "complex-step", "directional"])
def test_gradcheck(method, device):
    def compute():
        rng = np.random.default_rng(0)
        inputs = [rng.standard_normal(shape) for shape in ((4, 6), (5, 6), (5,), (2, 6), (5, 2))]
        report = ml.gradcheck(lambda *tensors: ml.ops.lora_linear(*tensors, 2.0), inputs, method)
        assert report
        x = backend.new_array(inputs[0])
        assert ml.gradcheck(ml.ops.softmax, x, method)  # one array of the device, not one a row
        yield from (x, *exact(device, str([row.where for row in report.inputs])))

    assert_same(device, compute)


# --- the transformer and its training


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forward_and_gradients(dtype, device):
    def compute():
        model = make_model(dtype)
        tokens, targets = batches(1)[0]
        yield model(tokens)
        loss = model.loss(tokens, targets)
        gradients = ml.grad(loss, model.parameters())
        xp = backend.array_module(*gradients)
        yield from (loss, xp.concatenate([g.reshape(-1) for g in gradients]), *exact(device, *gradients))

    assert_same(device, compute)


def test_a_step_waits_for_the_device_nowhere_before_its_loss(stand_in, monkeypatch):
    """Each question that NumPy must answer (a number, a yes or no) holds up the processor until the GPU is done."""
    model = ml.add_lora(make_model("float32"), EVERY_LAYER)

    asked = []
    for question in ("__bool__", "__int__", "__float__", "__complex__", "__format__", "item", "get", "tolist"):
        right = getattr(StrictArray, question)
        spied = lambda self, *rest, right=right, question=question: asked.append(question) or right(self, *rest)
        monkeypatch.setattr(StrictArray, question, spied)
    ml.grad(model.loss(*batches(1)[0]), model.parameters(trainable=True))
    assert asked == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("config", [None, EVERY_LAYER], ids=["all weights", "lora"])
def test_training_steps(config, dtype, device):
    def compute():
        model = make_model(dtype)
        model = ml.add_lora(model, config, rng=5) if config else model
        losses = train(model, 3 if device == "strict" else 20)
        assert losses[0] != losses[-1]
        yield from (model(batches(1)[0][0]), *losses, *exact(device, *model.parameters()))

    assert_same(device, compute)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tokens_that_are_on_the_device_already(dtype, device):
    def compute():
        model, (tokens, targets) = make_model(dtype), map(backend.new_array, batches(1)[0])
        optimizer = ml.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        for _ in range(3 if device == "strict" else 20):
            yield ml.train_step(model, optimizer, tokens, ml.Tensor(targets))
        yield from model.parameters()
        yield str(model.generate(tokens, 2, temperature=0))

    assert_same(device, compute)


@pytest.mark.parametrize("kind", [None, "nf4"], ids=["lora", "qlora"])
def test_runs_checkpoints_and_evaluation(kind, device, tmp_path):
    def adapted():
        model = make_model("float32" if kind else "float64", dropout=0.2)
        return ml.add_lora(ml.quantize_model(model, kind, block=8) if kind else model, EVERY_LAYER)

    def compute():
        settings = ml.Settings(steps=4, batch_size=3, warmup=1, evaluate_every=2, checkpoint_every=2)
        whole = ml.Run(adapted(), a_corpus(), settings)
        ml.train(whole, progress=False)
        path = tmp_path / "run.npz"
        half = ml.Run(adapted(), a_corpus(), ml.Settings(**vars(settings)))
        half.settings.steps = 2
        ml.train(half, path, progress=False)
        half.settings.steps = 4
        loop.save_checkpoint(half, path)
        again = load_checkpoint(path, a_corpus())
        tokens = batches(1)[0][0]
        yield from (half.model(tokens), *exact(device, *again.model.parameters(), *again.optimizer.state["m"]))
        ml.train(again, progress=False)
        yield from (again.model(tokens), ml.evaluate(again.model, a_corpus(), 7), str(again.step))
        yield from exact(device, *again.model.parameters(), *whole.history["loss"])

    assert_same(device, compute)


def test_training_that_diverges(device):
    with ml.use_backend(device):
        model = make_model()
        model.blocks[1].mlp.up_proj.weight.data[0, 0] = float("nan")
        with pytest.raises(FloatingPointError, match=r"first parameter affected blocks\.1\.mlp\.up_proj\.weight"):
            train(model, 1)


def test_generation(device):
    def compute():
        model = make_model()
        for options in ({"temperature": 0}, {"top_k": 3}, {"use_cache": False, "temperature": 0}):
            yield from model.generate(batches(1)[0][0], 9, rng=1, **options).tolist()

    assert_same(device, lambda: map(str, compute()))


def test_models_cross_in_files_and_in_state_dicts(device, tmp_path):
    here = make_model("float32")
    with ml.use_backend(device):
        there = ml.load_model(ml.save_model(here, tmp_path / "model.npz"))
        assert type(there.wte.weight.data) is backend._current.ndarray
        ml.save_model(there, tmp_path / "back.npz", dtype="float16")
        other = make_model("float32").astype("float64")
        other.load_state_dict(here.state_dict())
    back = ml.load_model(tmp_path / "back.npz")
    back.load_state_dict(other.state_dict())
    for name, p in back.named_parameters():
        assert type(p.data) is np.ndarray
        np.testing.assert_array_equal(p.data, dict(here.named_parameters())[name].data)


# --- adapters


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_adapters(name, device, tmp_path):
    """Trained, disabled, saved, taken out, loaded, merged where that can be, and unmerged."""
    tolerance = 0 if device == "strict" else 1e-10

    def compute():
        tokens, path = batches(1)[0][0], tmp_path / "adapter.npz"
        model = ml.add_adapter(make_model(), CONFIGS[name], rng=5)
        losses = train(model, 3)
        trained = model(tokens)
        yield from (trained, *losses, *exact(device, *model.parameters()))
        with ml.adapter_disabled(model):
            yield model(tokens)
        ml.save_adapter(model, path)
        ml.remove_adapter(model)
        ml.load_adapter(model, path)
        assert_near(model(tokens), trained, tolerance)
        if not any(module.cannot_merge for module in model.adapters["default"].modules.values()):
            ml.merge_adapter(model)
            yield model(tokens)
            with ml.adapter_disabled(model):
                yield model(tokens)
            ml.unmerge_adapter(model)
        assert_near(model(tokens), trained, tolerance)

    assert_same(device, compute)


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "int4", "int8"])
def test_quantised_bases(kind, double, device, tmp_path):
    tolerance = 0 if device == "strict" else 1e-4

    def compute():
        model = ml.quantize_model(make_model("float32"), kind, block=12, double=double)
        yield from (model(batches(1)[0][0]), *(array for _, array in model.named_buffers()))
        layer = model.blocks[0].mlp.up_proj
        yield from (layer.weight, layer.quantized.error_bound(), layer.quantized.dequantize("float64"))
        ml.add_lora(model, EVERY_LAYER)
        losses, tokens = train(model, 3), batches(1)[0][0]
        yield from (model(tokens), *losses, *exact(device, *model.parameters()))
        other = ml.quantize_model(make_model("float32"), kind, block=12, double=double)
        ml.load_adapter(other, ml.save_adapter(model, tmp_path / "adapter.npz"))
        assert_near(other(tokens), model(tokens), tolerance)
        ml.merge_adapter(model)
        yield model(tokens)
        ml.unmerge_adapter(model)
        yield from exact(device, *(array for _, array in ml.requantize(model).named_buffers()))

    assert_same(device, compute)


def test_what_cannot_be_quantised_is_named(device):
    with ml.use_backend(device), pytest.raises(ValueError, match=r"entry \(1, 2\) is inf, expected finite numbers"):
        ml.quantize(ml.Tensor([[0.0, 1.0, 2.0], [3.0, 4.0, np.inf]]).data)


def test_lora_on_plain_arrays(device):
    def compute():
        rng = np.random.default_rng(0)
        shapes = ((4, 6), (5, 6), (5,), (2, 6), (5, 2), (4, 5))
        x, W, b, A, B, g = (backend.new_array(rng.standard_normal(shape)) for shape in shapes)
        y, h = ml.lora_forward(x, W, b, A, B, 0.5)
        yield from (y, h, *ml.lora_backward(g, x, h, W, A, B, 0.5))

    assert_same(device, compute)


def test_several_adapters(device):
    def compute():
        model, tokens = make_model(), batches(1)[0][0]
        for seed, name in enumerate(("one", "two")):
            ml.add_lora(model, EVERY_LAYER, rng=seed, name=name)
            train(model, 2)
        for how in combine.HOW:
            combine_adapters(model, {"one": 0.7, "two": 0.5}, how, name=how)
            yield model(tokens)
        yield from exact(device, *ml.delta_weights(model).values())
        with ml.rows_use(model, ["one", None, "two"]):
            yield model(tokens)
        yield from exact(device, *(p for group in ml.lora_plus(model, 16) for p in group["params"]))

    assert_same(device, compute)


def test_a_prefix_folds(device):
    def compute():
        model = ml.add_adapter(make_model(), ml.PrefixConfig(tokens=3, hidden=5))
        train(model, 2)
        yield from (ml.fold_prefix(model)(batches(1)[0][0]), *exact(device, *model.parameters()))

    assert_same(device, compute)


# --- analysis: spectra are taken in NumPy, in float64, of matrices from anywhere


def test_rank_analysis(device):
    def compute():
        model = make_model("float32")
        before = model.state_dict()
        ml.add_lora(model, EVERY_LAYER)
        train(model, 3)
        delta, weight = ml.delta_weights(model)["blocks.0.mlp.up_proj"], before["blocks.0.mlp.up_proj.weight"]
        layer = model.blocks[0].mlp.up_proj
        yield from (rank.effective_rank(weight), rank.stable_rank(weight), rank.energy_rank(weight))
        yield from (rank.amplification(weight, delta, 2), rank.subspace_similarity(weight, layer.lora_A, 3, 2))
        yield from (float(ml.to_numpy(x).sum()) for x in rank.best_approximation(weight, 3))
        yield from (float(s) for s in rank.product_svd(layer.lora_B, layer.lora_A, 2.0)[1])
        yield from rank.projection_table(weight, delta, 2).values()
        yield from (row["norm"] for row in rank.summaries(ml.delta_weights(model)))
        yield from map(float, rank.best_cosines(weight, weight + delta, 4))
        ml.merge_adapter(model)
        after = ml.remove_adapter(model).state_dict()
        model.load_state_dict(rank.truncate_update(before, after, 1))
        yield from model.parameters()

    assert_same(device, compute)


# --- the command line


def test_the_command_line(device, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("story.txt").write_text("the cat sat on the mat and ate a rat. " * 60)
    on_device = ["--backend", device]
    sizes = ["--layers", "1", "--heads", "2", "--width", "8", "--context", "12"]
    pretrain = ["pretrain", "--corpus", "story.txt", *sizes, "--steps", "3", "--output", "base.npz", *on_device]
    seen = spy(monkeypatch)
    assert main(pretrain) == 0
    finetune = ["finetune", "--model", "base.npz", "--corpus", "story.txt", "--steps", "3", "--output", "a.npz"]
    assert main([*finetune, "--rank", "2", *on_device]) == 0
    assert main(["merge", "--model", "base.npz", "--adapter", "a.npz", "--output", "m.npz", *on_device]) == 0
    written = capsys.readouterr().out
    assert main(["generate", "--model", "m.npz", "--tokens", "9", "--temperature", "0", *on_device]) == 0
    there = capsys.readouterr().out
    assert seen == {device}
    assert "saved" in written and backend._current is np
    assert main(["generate", "--model", "m.npz", "--tokens", "9", "--temperature", "0"]) == 0
    assert there == capsys.readouterr().out


def spy(monkeypatch):
    """A set of the backends that models compute on from now on."""
    seen, right = set(), ml.GPT.hidden

    def hidden(model, x, *rest):
        seen.add(backend.array_module(x.data).__name__)
        return right(model, x, *rest)

    monkeypatch.setattr(ml.GPT, "hidden", hidden)
    return seen


@pytest.mark.slow
def test_the_demo(device, tmp_path, monkeypatch, capsys):
    seen = spy(monkeypatch)
    assert main(["demo", "--steps", "1", "--output", str(tmp_path), "--backend", device]) == 0
    assert seen == {device}
    there = capsys.readouterr().out
    assert "every bit as before" in there and len(list(tmp_path.iterdir())) == 6


def test_an_unknown_backend_is_named(capsys):
    assert main(["generate", "--backend", "cupi"]) == 2
    assert re.search(r"--backend: got 'cupi'; did you mean 'cupy'\?", capsys.readouterr().err)


# --- what the stand-in finds: mistakes that NumPy alone would never show


def train_once():
    """A model on the current backend, and a step of its training."""
    return train(ml.add_lora(make_model(), EVERY_LAYER), 1)


REFUSAL = "on an array of the device|Implicit conversion|Unsupported type|belongs on one backend|as CuPy has it"


@pytest.mark.parametrize("module", [fused, optim, loop, combine], ids=lambda module: module.__name__.split(".")[-1])
def test_numpy_functions_on_device_data_fail(module, stand_in, monkeypatch):
    """array_module(x).sqrt(x) written as np.sqrt(x), in the primitives, the optimiser, the loop and an SVD."""

    def compute():
        model = ml.add_lora(make_model(), EVERY_LAYER)
        optimizer = ml.AdamW(model.parameters(trainable=True))
        loop.diagnosis(model, optimizer, [p.data for p in optimizer.parameters], 1.0)
        train(model, 1)
        combine_adapters(model, {"default": 0.5}, "svd")

    compute()
    monkeypatch.setattr(module, "array_module", lambda *arrays: np)
    with pytest.raises(TypeError, match=REFUSAL):
        compute()


def test_a_numpy_constant_in_a_primitive_fails(stand_in, monkeypatch):
    """A table, a mask or a bias that was made with `np.` and never taken over."""
    right = fused.gelu.__wrapped__
    monkeypatch.setattr(ops, "gelu", ops.primitive(lambda x: right(x * np.ones(x.shape[-1]))))
    with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy.ndarray'>"):
        train_once()


def test_a_result_brought_back_by_accident_fails(stand_in, monkeypatch):
    """np.asarray(logits) where to_numpy was meant; on NumPy the two are the same."""
    monkeypatch.setattr("minilora.nn.language_model.to_numpy", np.asarray)
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        make_model().generate([1, 2], 1)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: np.exp(x), lambda x: np.add(x, x), lambda x: np.add.at(x, 0, x[0]), lambda x: np.sum(x),
        lambda x: np.concatenate([x, x]), lambda x: np.linalg.svd(x), lambda x: np.where(x > 0, x, 0),
        lambda x: np.array(x), lambda x: np.asarray([x, x]), lambda x: np.zeros(2).dot(x), lambda x: np.equal(x, 1),
        lambda x: np.zeros(2) + x, lambda x: x + np.zeros(2), lambda x: x * np.array(2.0), lambda x: x == np.zeros(2),
        lambda x: x.__iadd__(np.zeros(2)), lambda x: x[np.array([0])], lambda x: x.__setitem__(0, np.zeros(2)),
        lambda x: strict.exp(np.zeros(2)), lambda x: strict.concatenate([x, np.zeros((2, 2))]),
        lambda x: x.max(initial=0), lambda x: x.sum(where=x > 0), lambda x: strict.sqrt(x, where=x > 0),
        lambda x: x + ml.Tensor(1.0), lambda x: np.asarray(ml.Tensor(x)), lambda x: np.zeros(2)[x],
    ],
)  # fmt: skip
def test_what_the_stand_in_refuses(use, stand_in):
    with pytest.raises((TypeError, IndexError), match=f"{REFUSAL}|arrays used as indices"):
        use(strict.ones((2, 2)))


def test_what_cupy_does_not_have_the_stand_in_does_not_have(stand_in):
    x = strict.ones((2, 2))
    for use in (lambda: strict.testing, lambda: strict.linalg.multi_dot, lambda: x.setflags, lambda: x.ctypes):
        with pytest.raises(AttributeError):
            use()


def test_what_the_stand_in_takes(stand_in):
    x = strict.asarray(np.ones((2, 2), np.float32))
    for y in (x + 1, 1.0 - x, x * np.float32(2), np.float32(2) * x, x @ x, x.sum(), x[0, 0], strict.exp(x), -x, x > 0):
        assert type(y) is StrictArray
    assert float(x[0, 0]) == 1.0 and x.sum().item() == 4 and f"{x.sum():.1f}" == "4.0" and bool((x == 1).all())


def test_two_memories(stand_in):
    """What is on the device shares nothing with what is not."""
    host = np.zeros(3)
    there = strict.asarray(host)
    there += 1
    back = there.get()
    back += 1
    assert host.tolist() == [0, 0, 0] and there.get().tolist() == [1, 1, 1]


def test_every_name_and_option_is_cupys():
    """Needs CuPy, and no GPU: its functions can be asked for their parameters anywhere."""
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    for name, parameters in signatures(FUNCTIONS).items():
        owner = cupy.linalg if name.startswith("linalg.") else cupy
        wanted = inspect.signature(eval(f"lambda {parameters}: None")).parameters
        assert wanted.keys() <= inspect.signature(getattr(owner, name.removeprefix("linalg."))).parameters.keys(), name
    for name, parameters in signatures(METHODS).items():
        told = getattr(cupy.ndarray, name).__doc__.splitlines()[0]  # compiled: the first line is the signature
        for parameter in inspect.signature(eval(f"lambda {parameters}: None")).parameters:
            assert re.search(rf"\b{parameter}\b", told), (name, parameter)
    assert all(type(getattr(cupy, name)).__name__ == "ufunc" for name in UFUNCS)
    assert all(hasattr(getattr(cupy, name), "at") for name in WITH_AT)
