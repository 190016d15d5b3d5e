"""Files of one adapter and of all: what they hold, and what is refused before anything is written."""

import numpy as np
import pytest
from adapters.test_attach import LORA, adapted, base, logits, shake, two

import minilora as ml
from minilora.adapters.files import adapters_state, put_adapters
from minilora.adapters.state import adapter_parameters
from minilora.nn.storage import load_arrays, save_arrays
from minilora.training.checkpoint import load_checkpoint, save_checkpoint
from minilora.training.corpus import Corpus


def test_one_of_several_is_saved_by_its_name(tmp_path):
    model, outputs = two(), {}
    for name in ("a", "b", "c"):
        ml.set_adapter(model, name)
        outputs[name] = logits(model)
    for active in ("a", ["a", "b"], None):
        ml.set_adapter(model, active)
        for name in ("a", "b", "c"):
            loaded = ml.load_adapter(base(), ml.save_adapter(model, tmp_path / f"{name}.npz", name=name))
            np.testing.assert_array_equal(logits(loaded), outputs[name])
    with pytest.raises(ValueError, match="save_adapter: the model has no active adapter"):
        ml.save_adapter(model, tmp_path / "none.npz")
    ml.set_adapter(model, ["a", "b"])
    with pytest.raises(ValueError, match=r"save_adapter: a, b are in use together; say which: name=\.\.\."):
        ml.save_adapter(model, tmp_path / "none.npz")
    for wrong in ("nobody", 3, ["a"]):
        with pytest.raises(ValueError, match=r"save_adapter: no adapter .*; there are a, c, b"):
            ml.save_adapter(model, tmp_path / "none.npz", name=wrong)
    assert not (tmp_path / "none.npz").exists()


def test_what_is_trained_beside_the_adapter_is_not_lost_without_a_word(tmp_path):
    model, path = adapted(), tmp_path / "a.npz"
    model.ln_f.weight.requires_grad = True
    with pytest.raises(ValueError, match=r"ln_f\.weight is trained beside the adapter.*modules_to_save=\('ln_f'"):
        ml.save_adapter(model, path)
    assert not path.exists()
    model = adapted(ml.LoRAConfig(rank=2, modules_to_save=("ln_f",)))
    arrays, _ = load_arrays(ml.save_adapter(model, path), "adapter")
    assert {"ln_f.weight", "ln_f.bias"} < arrays.keys()
    np.testing.assert_array_equal(logits(ml.load_adapter(base(), path)), logits(model))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name_and_place(tmp_path, value):
    model = adapted(ml.LoRAConfig(rank=2, bias="lora_only"))
    path = ml.save_adapter(model, tmp_path / "good.npz")
    for name, p in adapter_parameters(model).items():
        before, place = p.data.copy(), tuple(n - 1 for n in p.shape)
        p.data[place] = value
        words = rf"{name}: entry \({', '.join(map(str, place))},?\) is {value}"
        with pytest.raises(ValueError, match=f"save_adapter: {words}"):
            ml.save_adapter(model, tmp_path / "bad.npz")
        outputs = {id(p): p.data for p in model.parameters()}
        with pytest.raises(ValueError, match=r"merge_adapter: blocks.*, with the update .*: entry \(\d+,.*\) is"):
            ml.merge_adapter(model)
        assert all(outputs[id(p)] is p.data for p in model.parameters())
        arrays, header = load_arrays(path, "adapter")
        bad = save_arrays(tmp_path / "bad file.npz", {**arrays, name: p.data}, header)
        with pytest.raises(ValueError, match=rf"bad file\.npz: {words}"):
            ml.load_adapter(base(), bad)
        p.data[...] = before
    assert not (tmp_path / "bad.npz").exists()


def test_an_update_too_large_for_the_base_is_not_merged():
    model = base("float16")
    ml.add_lora(model, LORA)
    for p in model.parameters(trainable=True):
        p.data[...] = 300.0
    with pytest.raises(ValueError, match=r"merge_adapter: .*q_proj.*: entry \(0, 0\) is .*, too large for float16"):
        ml.merge_adapter(model)
    assert not model.adapters.merged
    with np.errstate(over="ignore"):
        ml.merge_adapter(model, safe=False)
    assert np.isinf(model.blocks[0].attn.q_proj.weight.data).all()


def test_all_adapters_come_back_from_one_state():
    model = two()
    ml.add_adapter(model, ml.PrefixConfig(1, hidden=3), name="d")
    frozen = next(iter(adapter_parameters(model).values()))
    frozen.requires_grad = False
    for active in ("a", ("a", "b"), None, "d"):
        ml.set_adapter(model, active)
        header, arrays = adapters_state(model)
        twin = base()
        put_adapters(twin, header, {name: value.copy() for name, value in arrays.items()})
        assert list(twin.adapters) == list(model.adapters)
        assert twin.active_adapter == model.active_adapter == active
        for name in (active, "a", "b", "c", "d", None):
            ml.set_adapter(model, name), ml.set_adapter(twin, name)
            np.testing.assert_array_equal(logits(twin), logits(model))
            ours, theirs = ({n: p.requires_grad for n, p in m.named_parameters()} for m in (model, twin))
            assert ours == theirs
    with ml.lora_disabled(two()), pytest.raises(ValueError, match="adapters_state: the adapter is disabled"):
        ml.set_adapter(model, "a")
        with ml.lora_disabled(model):
            adapters_state(model)
    with ml.rows_use(model, ["a", "b"]), pytest.raises(ValueError, match="adapters_state: the rows of a batch use"):
        adapters_state(model)


@pytest.mark.parametrize("active", ["a", ["a", "b"], None])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_checkpoint_of_several_adapters(tmp_path, active, dtype):
    """Only the one in use once came back, and the base of 16 bits in 32."""
    text = Corpus("text", np.arange(200) % 7, np.arange(60) % 7)
    model = base(dtype)
    for name, config in {
        "a": LORA,
        "b": ml.LoRAConfig(rank=1, init="pissa"),
        "c": ml.PrefixConfig(1, hidden=3),
    }.items():
        shake(ml.add_adapter(model, config, name=name))
    ml.set_adapter(model, active)
    if active is None:
        model.ln_f.bias.requires_grad = True
    run = ml.Run(model, text, ml.Settings(steps=2, batch_size=2, evaluation_windows=2))
    again = load_checkpoint(save_checkpoint(run, tmp_path / "run.npz"), text)
    assert again.model.active_adapter == model.active_adapter
    assert list(again.model.adapters) != []
    for name in (active, "a", "b", "c", None):
        ml.set_adapter(model, name), ml.set_adapter(again.model, name)
        np.testing.assert_array_equal(logits(again.model), logits(model))
        ours, theirs = ({n: (p.dtype, p.requires_grad) for n, p in m.named_parameters()} for m in (model, again.model))
        assert ours == theirs


def test_a_checkpoint_inside_a_block_is_refused_and_not_written(tmp_path):
    text = Corpus("text", np.arange(200) % 7, np.arange(60) % 7)
    model = adapted()
    run, path = ml.Run(model, text, ml.Settings(steps=2)), tmp_path / "run.npz"
    with ml.lora_disabled(model), pytest.raises(ValueError, match="save_checkpoint: the adapter is disabled"):
        save_checkpoint(run, path)
    with ml.rows_use(model, ["default", None]), pytest.raises(ValueError, match="save_checkpoint: the rows of a batch"):
        save_checkpoint(run, path)
    ml.merge_lora(model)
    with pytest.raises(ValueError, match="save_checkpoint: the adapter is merged"):
        save_checkpoint(run, path)
    assert not path.exists()
