"""Merging, as the tape and other steps see it."""

import numpy as np
import pytest
from adapters.test_attach import LORA, TOKENS, adapted, base, logits, two

import minilora as ml


@pytest.mark.parametrize("config", [LORA, ml.DoRAConfig(rank=2)])
def test_a_derivative_from_before_is_refused_after(config):
    """It needs the weights that were there in the forward pass."""
    model = adapted(config)
    for change in (ml.merge_adapter, ml.unmerge_adapter):
        x = ml.Tensor(np.random.default_rng(0).standard_normal((2, 8)), requires_grad=True)
        y = model.blocks[0].attn.q_proj(x).sum()
        change(model)
        with pytest.raises(ValueError, match=r"backward: .*linear needs its .* as it was in the forward pass"):
            y.backward()
    loss = model.loss(TOKENS, TOKENS)
    with ml.lora_disabled(model):  # no value changes
        logits(model)
    loss.backward()


def test_what_was_trained_while_merged_is_not_undone_without_a_word():
    model = adapted()
    ml.merge_lora(model)
    weight = model.blocks[0].attn.q_proj.weight
    weight.requires_grad = True
    ml.SGD([weight], lr=0.1).step(ml.grad(model.loss(TOKENS, TOKENS), [weight]))
    before = logits(model)
    with pytest.raises(ValueError, match=r"unmerge_adapter: a weight \(8, 8\) was trained while merged.*remove_lora"):
        ml.unmerge_lora(model)
    np.testing.assert_array_equal(logits(model), before)
    with pytest.raises(ValueError, match="was trained while merged"), ml.lora_disabled(model):
        pass
    np.testing.assert_array_equal(logits(model), before)
    ml.remove_lora(model)
    np.testing.assert_array_equal(logits(model), before)


def test_counts_hold_while_merged_disabled_and_quantised():
    """A weight in codes is as many numbers as before; fractions follow."""
    plain = base().count()
    added = 2 * 2 * 2 * 8
    for model in (base(), ml.quantize_model(base("float32"))):
        assert model.count() == plain
        ml.add_lora(model, LORA)
        assert (model.count(), model.count(trainable=True)) == (plain + added, added)
        ml.merge_lora(model)
        assert model.count() == plain + added
        with ml.lora_disabled(model):
            assert model.count() == plain
        ml.remove_lora(model)
        assert model.count() == plain


def test_a_sum_on_codes_merges_and_leaves_floats_behind():
    model = ml.quantize_model(base("float32"), block=16)
    for i, name in enumerate("ab"):
        adapted(ml.LoRAConfig(rank=1 + i, target_modules="*"), name, model, i)
    ml.set_adapter(model, ["a", "b"])
    before, codes = logits(model), {n: a.copy() for n, a in model.named_buffers()}
    ml.merge_adapter(model)
    np.testing.assert_allclose(logits(model), before, rtol=1e-4, atol=1e-4)
    ml.unmerge_adapter(model)
    np.testing.assert_array_equal(logits(model), before)
    assert all((codes[name] == array).all() for name, array in model.named_buffers())
    ml.merge_adapter(model)
    merged = logits(model)
    ml.remove_adapter(model)
    assert not list(model.named_buffers())
    np.testing.assert_array_equal(logits(model), merged)


def test_adapters_aside_do_not_hinder():
    model = two()
    before = logits(model)
    ml.merge_adapter(model)
    for refused in (lambda: ml.set_adapter(model, "a"), lambda: ml.add_lora(model, LORA, name="new")):
        with pytest.raises(ValueError, match="the adapter is merged into the weights"):
            refused()
    ml.remove_adapter(model, "a")  # one that is aside may go
    ml.unmerge_adapter(model)
    np.testing.assert_array_equal(logits(model), before)


def test_an_update_that_is_not_finite_is_refused_unless_asked_for():
    model = adapted()
    before = model.state_dict()
    model.blocks[0].attn.q_proj.lora_B.data[0, 0] = np.nan
    for merge in (ml.merge_adapter, ml.merge_lora):
        with pytest.raises(
            ValueError, match=r"merge_adapter: blocks\.0\.attn\.q_proj\.weight, with the update folded in"
        ):
            merge(model)
    assert not model.adapters.merged
    np.testing.assert_array_equal(model.blocks[0].attn.q_proj.weight.data, before["blocks.0.attn.q_proj.weight"])
    ml.merge_adapter(model, safe=False)
    assert np.isnan(model.blocks[0].attn.q_proj.weight.data).any()
    ml.unmerge_adapter(model)
    np.testing.assert_array_equal(model.blocks[0].attn.q_proj.weight.data, before["blocks.0.attn.q_proj.weight"])
    with pytest.raises((TypeError, ValueError), match="merge_adapter: safe = 1"):
        ml.merge_adapter(model, safe=1)


def shared(target_modules, same):
    """LoRA on a model whose two q_proj are one tensor; its updates in both places are the same, or are not."""
    model = ml.GPT(ml.GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8))
    model.blocks[1].attn.q_proj.weight = model.blocks[0].attn.q_proj.weight
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules=target_modules))
    for i, block in enumerate(model.blocks):
        layer = block.attn.q_proj
        for p in (layer.lora_A, layer.lora_B) if hasattr(layer, "lora_A") else ():
            p.data[...] = np.random.default_rng(0 if same else i).standard_normal(p.shape)
    return model


def test_a_weight_in_two_places_is_merged_once_or_refused():
    """Equal updates are folded in once; different ones, or a place that is not adapted, would be wrong for one."""
    model = shared(("q_proj",), same=True)
    before = logits(model)
    ml.merge_lora(model)
    merged = logits(model)
    np.testing.assert_allclose(merged, before, rtol=1e-4, atol=1e-5)
    with ml.lora_disabled(model):  # the base is there inside, and the same update after
        off = logits(model)
    np.testing.assert_array_equal(logits(model), merged)
    ml.unmerge_lora(model)
    with ml.lora_disabled(model):
        np.testing.assert_array_equal(logits(model), off)
    np.testing.assert_array_equal(logits(model), before)
    alone = r"is blocks\.1\.attn\.q_proj\.weight, too, which is not adapted"
    for wanted, words in (("q_proj", "are one tensor, and their updates differ"), ("blocks.0.attn.q_proj", alone)):
        model = shared(wanted, same=False)
        before = logits(model)
        with pytest.raises(ValueError, match=f"merge_adapter: .*{words}"):
            ml.merge_lora(model)
        np.testing.assert_array_equal(logits(model), before)
