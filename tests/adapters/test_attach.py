"""Putting on, switching, disabling and taking out: what the issue's users met, several at once, and interrupts."""

import contextlib
import copy
import gc
import os
import sys
import time

import numpy as np
import pytest

import minilora as ml
from minilora.nn.layers import Linear
from minilora.nn.module import Module

CONFIG = ml.GPTConfig(vocab_size=7, block_size=5, n_layer=1, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 7, (2, 4))
LORA = ml.LoRAConfig(rank=2, alpha=3)


def base(dtype="float64"):
    model = ml.GPT(CONFIG).astype(dtype)
    rng = np.random.default_rng(3)
    for p in model.parameters():
        p.data[...] = rng.normal(0, 0.4, p.shape)
    return model


def shake(model, rng=5):
    rng = np.random.default_rng(rng)
    for p in model.parameters(trainable=True):
        p.data += rng.normal(0, 0.3, p.shape).astype(p.dtype)
    return model


def adapted(config=LORA, name="default", model=None, rng=5):
    return shake(ml.add_adapter(base() if model is None else model, config, name=name), rng)


def two():
    """a and b on the same places, and c on others; b is in use."""
    model = adapted(LORA, "a", rng=1)
    adapted(ml.PfeifferConfig(2), "c", model, 3)
    return adapted(ml.LoRAConfig(rank=3, alpha=2, rank_stabilized=True), "b", model, 2)


def logits(model):
    return model(TOKENS).data


# Inside lora_disabled


@pytest.mark.parametrize("merged", [False, True])
def test_what_is_carried_cannot_be_changed_while_disabled(tmp_path, merged):
    """Each of these, tried there, once lost the base or the adapter."""
    model, plain = adapted(), logits(base())
    path = ml.save_adapter(model, tmp_path / "adapter.npz")
    outputs = logits(model)
    if merged:
        ml.merge_lora(model)
        outputs = logits(model)
    tries = {
        "add_adapter": lambda: ml.add_lora(model, LORA, name="b"),
        "add_adapter, too large": lambda: ml.add_lora(model, ml.LoRAConfig(rank=99), name="b"),
        "load_adapter": lambda: ml.load_adapter(model, path),
        "load_adapter, beside": lambda: ml.load_adapter(model, path, "b"),
        "set_adapter": lambda: ml.set_adapter(model, None),
        "merge_adapter": lambda: ml.merge_lora(model),
        "unmerge_adapter": lambda: ml.unmerge_lora(model),
        "remove_adapter": lambda: ml.remove_lora(model),
        "remove_adapter, by name": lambda: ml.remove_adapter(model, "default"),
        "combine_adapters": lambda: ml.combine_adapters(model, {"default": 1}),
        "rows_use": lambda: ml.rows_use(model, ["default", None]).__enter__(),
        "requantize": lambda: ml.requantize(model),
    }
    with ml.lora_disabled(model):
        for name, operation in tries.items():
            with pytest.raises(ValueError, match=f"{name.partition(',')[0]}: the adapter is disabled"):
                operation()
            np.testing.assert_array_equal(logits(model), plain)
            assert list(model.adapters) == ["default"]
        with pytest.raises(ValueError, match="quantize_model: the model has an adapter"):
            ml.quantize_model(model)
    np.testing.assert_array_equal(logits(model), outputs)
    if merged:
        ml.unmerge_lora(model)
    ml.remove_lora(model)
    np.testing.assert_array_equal(logits(model), plain)
    assert all(p.requires_grad for p in model.parameters())


def test_saving_while_disabled_is_saving(tmp_path):
    model = adapted()
    with ml.lora_disabled(model):
        path = ml.save_adapter(model, tmp_path / "adapter.npz")
    np.testing.assert_array_equal(logits(ml.load_adapter(base(), path)), logits(model))


def test_blocks_may_end_in_any_order():
    model, plain = two(), logits(base())
    before = logits(model)
    one, rows, other = ml.lora_disabled(model), ml.rows_use(model, ["a", "b"]), ml.lora_disabled(model)
    rows.__enter__(), one.__enter__(), other.__enter__()
    for block in (rows, one):
        block.__exit__(None, None, None)
        np.testing.assert_array_equal(logits(model), plain)
    other.__exit__(None, None, None)
    np.testing.assert_array_equal(logits(model), before)

    outer, inner = ml.rows_use(model, ["a", "b"]), ml.rows_use(model, ["b", None])
    outer.__enter__(), inner.__enter__()
    within = logits(model)
    outer.__exit__(None, None, None)
    np.testing.assert_array_equal(logits(model), within)
    inner.__exit__(None, None, None)
    np.testing.assert_array_equal(logits(model), before)
    assert list(model.adapters) == ["a", "c", "b"]


def test_the_base_may_be_loaded_while_a_merged_adapter_is_disabled():
    """The update is folded into the weights that are there when the block ends."""
    model, other = adapted(), ml.GPT(CONFIG, rng=9).astype("float64")
    ml.merge_lora(model)
    with ml.lora_disabled(model):
        model.load_state_dict(other.state_dict())
    expected = adapted(model=other)
    np.testing.assert_allclose(logits(model), logits(expected), rtol=1e-12, atol=1e-13)
    ml.unmerge_lora(model)
    np.testing.assert_array_equal(logits(model), logits(expected))


def test_a_copy_made_inside_a_block_is_the_base_and_can_go_on():
    for merged in (False, True):
        model = adapted()
        before = logits(model)
        if merged:
            ml.merge_lora(model)
        with ml.lora_disabled(model):
            twin = copy.deepcopy(model)
        np.testing.assert_array_equal(logits(twin), logits(base()))
        ml.set_adapter(twin, "default")
        np.testing.assert_array_equal(logits(twin), before)
        ml.remove_lora(twin)
        np.testing.assert_array_equal(logits(twin), logits(base()))


# Several at once, and one by name


def test_several_at_once_are_the_sum_of_their_updates():
    model, w = two(), base().state_dict()
    each = {}
    for name in ("a", "b"):
        ml.set_adapter(model, name)
        each[name] = ml.delta_weights(model)
    ml.set_adapter(model, ["b", "a"])
    assert model.active_adapter == ("b", "a")
    summed = base()
    total = {path: each["a"][path] + each["b"][path] for path in each["a"]}
    summed.load_state_dict({k: v + total.get(k.removesuffix(".weight"), 0) for k, v in w.items()})
    np.testing.assert_allclose(logits(model), logits(summed), rtol=1e-11, atol=1e-12)
    for path, delta in ml.delta_weights(model).items():
        np.testing.assert_allclose(delta, total[path], rtol=1e-13, atol=1e-15)
    before = logits(model)
    ml.merge_adapter(model)
    np.testing.assert_allclose(logits(model), before, rtol=1e-11, atol=1e-12)
    ml.unmerge_adapter(model)
    np.testing.assert_array_equal(logits(model), before)
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(logits(model), logits(base()))
    ml.set_adapter(model, ["a", "c"])  # another place: both work there
    assert (logits(model) != before).any()


def test_several_at_once_are_trained_together():
    model = two()
    ml.set_adapter(model, ["a", "b"])
    assert model.count(trainable=True) == 2 * (2 + 3) * 16
    parameters = model.parameters(trainable=True)
    report = ml.gradcheck(lambda *_: model.loss(TOKENS, TOKENS), parameters, "directional")
    assert report.passed, str(report)
    values = [p.data.copy() for p in parameters]
    ml.SGD(parameters, lr=0.1).step(ml.grad(model.loss(TOKENS, TOKENS), parameters))
    ml.set_adapter(model, "a")
    held = {id(p) for p in model.parameters(trainable=True)}
    assert held < {id(p) for p in parameters}
    assert all((p.data != value).any() for p, value in zip(parameters, values, strict=True))


@pytest.mark.parametrize(
    "names, words",
    [
        (["a", "nobody"], "no adapter 'nobody'; there are a, c, b"),
        ([], r"got \[\], expected names, each once"),
        (["a", "a"], r"got \['a', 'a'\], expected names, each once"),
        (7, "no adapter 7"),
        ([["a"]], r"no adapter \['a'\]"),
        (["c", "d"], "'c' and 'd' both want blocks.0.mlp"),
        (["a", "e"], "'a' and 'e' both want blocks.0.attn.q_proj: .* cannot be added up"),
    ],
)
def test_what_cannot_be_switched_to_changes_nothing(names, words):
    model = two()
    adapted(ml.PfeifferConfig(1), "d", model)
    adapted(ml.LoRAConfig(rank=1, bias="lora_only"), "e", model)
    ml.set_adapter(model, "b")
    if isinstance(names, list) and names == ["a", "nobody"]:
        ml.remove_adapter(model, "d"), ml.remove_adapter(model, "e")
    before = logits(model)
    with pytest.raises(ValueError, match=f"set_adapter: {words}"):
        ml.set_adapter(model, names)
    assert model.active_adapter == "b"
    np.testing.assert_array_equal(logits(model), before)


def test_one_adapter_is_taken_out_by_its_name():
    model, plain = two(), logits(base())
    before = logits(model)
    ml.remove_adapter(model, "a")  # not in use
    np.testing.assert_array_equal(logits(model), before)
    assert list(model.adapters) == ["c", "b"]
    ml.merge_adapter(model)
    with pytest.raises(ValueError, match="remove_adapter: the adapter is merged"):
        ml.remove_adapter(model, "b")
    ml.unmerge_adapter(model)
    ml.remove_adapter(model, "b")
    np.testing.assert_array_equal(logits(model), plain)
    assert model.active_adapter is None
    for wrong in ("b", 3, ["c"], "nobody"):
        with pytest.raises(ValueError, match=r"remove_adapter: no adapter .*; there are c"):
            ml.remove_adapter(model, wrong)
    ml.remove_adapter(model, "c")
    assert not hasattr(model, "adapters")
    assert all(p.requires_grad for p in model.parameters())


def test_one_of_several_in_use_is_taken_out():
    model = two()
    before = logits(model)
    ml.set_adapter(model, ["a", "b"])
    ml.remove_adapter(model, "a")
    assert model.active_adapter == "b"
    np.testing.assert_array_equal(logits(model), before)


# Interrupts


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line that is run of the package's own files."""

    def __init__(self, n):
        self.left = n

    def trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(os.path.join(os.path.dirname(ml.__file__), "")):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace

    def during(self, operation):
        """Whether it came before the operation was done."""
        before = sys.gettrace()
        gc.disable()  # it would end generators of earlier tries, where an interrupt is raised to nobody
        sys.settrace(self.trace)
        try:
            operation()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
            gc.enable()
        assert self.left > 0, "a Ctrl-C was lost"
        return False


OPERATIONS = {
    "add": (lambda: adapted(), lambda m: ml.add_lora(m, ml.LoRAConfig(rank=1, bias="all"), name="new")),
    "add the first": (base, lambda m: ml.add_lora(m, LORA)),
    "set": (two, lambda m: ml.set_adapter(m, "a")),
    "set several": (two, lambda m: ml.set_adapter(m, ["a", "b"])),
    "merge": (lambda: adapted(ml.DoRAConfig(rank=1)), ml.merge_adapter),
    "merge several": (lambda: ml.set_adapter(m := two(), ["a", "b"]) or m, ml.merge_adapter),
    "merge copies": (lambda: adapted(ml.BitFitConfig()), ml.merge_adapter),
    "unmerge": (lambda: ml.merge_adapter(m := adapted(ml.BitFitConfig())) or m, ml.unmerge_adapter),
    "remove": (two, ml.remove_adapter),
    "remove merged": (lambda: ml.merge_adapter(m := adapted()) or m, ml.remove_adapter),
    "remove one": (two, lambda m: ml.remove_adapter(m, "b")),
    "combine": (two, lambda m: ml.combine_adapters(m, {"a": 1, "b": -1})),
    "disable": (two, lambda m: block(ml.lora_disabled(m))),
    "disable merged": (lambda: ml.merge_adapter(m := adapted()) or m, lambda m: block(ml.lora_disabled(m))),
    "rows": (two, lambda m: block(ml.rows_use(m, ["a", None]))),
    "quantise": (base, lambda m: ml.quantize_model(m, block=16)),
    "requantise": (lambda: adapted(model=ml.quantize_model(base(), block=16)), ml.requantize),
    "astype": (two, lambda m: m.astype("float32")),
}


def block(context):
    with context:
        pass


def seen(model):
    """What an operation may change."""
    held = [(name, p.data.dtype, p.data.tobytes(), p.requires_grad) for name, p in model.named_parameters()]
    adapters = getattr(model, "adapters", None)
    state = (list(adapters), model.active_adapter, adapters.merged) if adapters is not None else None
    return held, state, [(name, array.tobytes()) for name, array in model.named_buffers()], logits(model).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_interrupt_at_any_of_many_lines_leaves_the_operation_done_or_undone(name):
    check_every_line(name, 29)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_interrupt_at_some_lines_leaves_the_operation_done_or_undone(name):
    check_every_line(name, 97)


def check_every_line(name, step):
    from minilora.adapters.state import check

    make, operation = OPERATIONS[name]
    origin = make()
    before, done = seen(origin), copy.deepcopy(origin)
    operation(done)
    after, n, interrupted = seen(done), 1, True
    while interrupted:
        model = copy.deepcopy(origin)
        interrupted = Interrupt(n).during(lambda model=model: operation(model))
        check(model)
        assert seen(model) in (before, after), f"line {n}"
        if seen(model) == before:
            operation(model)  # it can be done now
        assert seen(model) == after, f"line {n}, then again"
        if hasattr(model, "adapters"):
            merged = model.adapters.merged
            ml.remove_adapter(model)
            quantised = any(True for _ in model.named_buffers())
            assert merged or quantised or all(p.requires_grad for p in model.parameters())
        n += step


# How long it takes


class Many(Module):
    def __init__(self, count):
        rng = np.random.default_rng(0)
        self.layers = [Linear(2, 2, False, rng) for _ in range(count)]


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_adding_takes_time_in_proportion_to_the_modules():
    """Listing all parameters once a module took four seconds for a thousand of them."""
    config = ml.LoRAConfig(rank=1, target_modules="*")
    few, many = (min(seconds(lambda n=n: ml.add_lora(Many(n), config)) for _ in range(3)) for n in (100, 800))
    assert many < 8 * few * 2.5


def test_switching_does_not_ask_the_adapters_that_are_aside():
    def switching(count):
        model = Many(2)
        for i in range(count):
            ml.add_lora(model, ml.LoRAConfig(rank=1, target_modules="*"), name=str(i))
        return min(seconds(lambda i=i: ml.set_adapter(model, str(i % count))) for i in range(20))

    assert switching(1000) < 5 * switching(10)


@contextlib.contextmanager
def unchanged(model):
    before = logits(model)
    yield
    np.testing.assert_array_equal(logits(model), before)


@pytest.mark.parametrize("name", [None, 3, "", ["a"], b"a"])
def test_a_name_is_a_text(name, tmp_path):
    model = adapted()
    path = ml.save_adapter(model, tmp_path / "a.npz")
    for function, operation in {
        "add_adapter": lambda: ml.add_lora(model, LORA, name=name),
        "load_adapter": lambda: ml.load_adapter(model, path, name=name),
        "combine_adapters": lambda: ml.combine_adapters(model, {"default": 1}, name=name),
    }.items():
        with unchanged(model), pytest.raises(ValueError, match=f"{function}: name = .*, expected a text"):
            operation()


def test_a_part_that_carries_adapters_of_its_own_is_refused_by_name():
    """An adapter on an adapted layer would take its matrices' names."""
    model = base()
    ml.add_lora(model.blocks[0], ml.LoRAConfig(rank=1))
    shake(model.blocks[0])
    for function, operation in {
        "add_adapter": lambda: ml.add_lora(model, LORA),
        "quantize_model": lambda: ml.quantize_model(model),
    }.items():
        with unchanged(model), pytest.raises(ValueError, match=rf"{function}: blocks\.0\.attn\.q_proj is an adapter's"):
            operation()
    ml.remove_lora(model.blocks[0])
    np.testing.assert_array_equal(logits(ml.add_lora(model, LORA)), logits(base()))


def test_what_a_model_carries_is_for_reading():
    model = adapted()
    for change in (
        lambda: model.adapters.__setitem__("a", None),
        lambda: model.adapters.pop("default"),
        lambda: setattr(model, "active_adapter", "a"),
    ):
        with unchanged(model), pytest.raises((TypeError, AttributeError)):
            change()
    assert repr(model.adapters) == "Adapters('default': lora (active))"


def test_a_merged_sum_writes_the_same_text_with_and_without_a_cache():
    model = two()
    ml.set_adapter(model, ["a", "b"])
    texts = [model.generate(TOKENS[:, :2], 6, temperature=0, use_cache=cached) for cached in (True, False)]
    ml.merge_adapter(model)
    texts += [model.generate(TOKENS[:, :2], 6, temperature=0, use_cache=cached) for cached in (True, False)]
    for text in texts[1:]:
        np.testing.assert_array_equal(text, texts[0])
