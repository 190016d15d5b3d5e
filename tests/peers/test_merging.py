"""Merging into a checkpoint's files beside PEFT's merge_and_unload, and what transformers opens of the result."""

import json

import numpy as np
import pytest

from minilora.interop.merging import merge

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
BAR = 1e-6
SIZES = {"vocab_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}


def gpt2():
    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def llama(**settings):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=64, **settings)
    return transformers.LlamaForCausalLM(config)


def phi3():
    config = transformers.Phi3Config(**SIZES, intermediate_size=64, pad_token_id=0)
    return transformers.Phi3ForCausalLM(config)


def distilbert():
    config = transformers.DistilBertConfig(vocab_size=96, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    return transformers.DistilBertForSequenceClassification(config)


QK = {"target_modules": ["q_proj", "k_proj"]}
CASES = {  # model, LoRA's settings
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2-dora": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "llama": (llama, {"target_modules": "all-linear", "use_rslora": True}),
    "llama-dora": (llama, {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "llama-bias": (lambda: llama(attention_bias=True), {"target_modules": ["q_proj"], "bias": "all"}),
    "llama-bias-of-b": (lambda: llama(attention_bias=True), {"target_modules": ["q_proj"], "lora_bias": True}),
    "llama-table": (llama, {"target_modules": ["q_proj", "embed_tokens"]}),
    "llama-table-dora": (llama, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "llama-norms": (llama, {"target_modules": ["v_proj"], "modules_to_save": ["norm", "lm_head", "lm_head"]}),
    "llama-ranks": (llama, {"rank_pattern": {"k_proj": 5}, "alpha_pattern": {"q_proj": 3}, **QK}),
    "llama-pissa": (llama, {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": "pissa"}),
    "gpt2-pissa": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "init_lora_weights": "pissa"}),
    "phi3": (phi3, {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "distilbert": (distilbert, {"target_modules": ["q_lin", "v_lin"], "task_type": "SEQ_CLS"}),
}  # fmt: skip


def trained(make, tmp_path, **config):
    """A base in a folder, an adapter of PEFT's whose numbers were moved, and the PEFT model."""
    torch.manual_seed(0)
    base = make().eval()
    base.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    model = peft.get_peft_model(base, peft.LoraConfig(**{"r": 3, "lora_alpha": 5, **config})).eval()
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    model.save_pretrained(tmp_path / "adapter")
    return model


@pytest.mark.parametrize("name", CASES)
def test_merged_tensors_are_peft_s(tmp_path, name):
    """Every tensor, through shards; transformers opens the folder, and its outputs are the adapter's."""
    make, config = CASES[name]
    model = trained(make, tmp_path, **config)
    tokens = torch.arange(12).reshape(1, 12)
    expected = model(tokens).logits.detach().numpy()
    found = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    merged = model.merge_and_unload()
    opened = type(merged).from_pretrained(tmp_path / "out").eval()
    state = opened.state_dict()
    for key, value in merged.state_dict().items():
        np.testing.assert_allclose(state[key], value, atol=BAR, err_msg=key)
    np.testing.assert_allclose(opened(tokens).logits.detach().numpy(), expected, atol=1e-4)
    assert found["kept"] == pytest.approx(1, abs=1e-5) and found["lost"] < 1e-5 * found["norm"]
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert {*index["weight_map"].values()} == {p.name for p in (tmp_path / "out").glob("*.safetensors")}


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_tied_head_is_untied(tmp_path, target):
    """Where one of the two is adapted the outputs are still the adapter's, which one tensor for both could not give."""
    tie = lambda: llama(tie_word_embeddings=True)
    model = trained(tie, tmp_path, target_modules=["q_proj", target])
    tokens = torch.arange(12).reshape(1, 12)
    expected = model(tokens).logits.detach().numpy()
    found = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert "lm_head.weight was tied" in found["notes"][0]
    opened = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_allclose(opened(tokens).logits.detach().numpy(), expected, atol=1e-5)
    assert opened.config.tie_word_embeddings is False


def test_tables_trained_as_one_stay_tied(tmp_path):
    tie = lambda: llama(tie_word_embeddings=True)
    model = trained(
        tie, tmp_path, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    tokens = torch.arange(12).reshape(1, 12)
    expected = model(tokens).logits.detach().numpy()
    assert merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")["notes"] == []
    opened = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_allclose(opened(tokens).logits.detach().numpy(), expected, atol=1e-5)
    assert opened.config.tie_word_embeddings is True


@pytest.mark.parametrize("bare", [False, True])
def test_a_head_for_labels_is_set_on_a_base_without_one(tmp_path, bare):
    """DistilBERT as it was pre-trained has none; the merged folder opens as the model that PEFT made of it."""
    model = trained(distilbert, tmp_path, target_modules=["q_lin"], task_type="SEQ_CLS")
    kind = transformers.DistilBertModel if bare else transformers.DistilBertForMaskedLM
    base = kind(model.config)
    base.load_state_dict({k.removeprefix("distilbert." if bare else ""): v for k, v in
                          distilbert_state(model).items()}, strict=False)  # fmt: skip
    base.save_pretrained(tmp_path / "masked")
    tokens = torch.arange(12).reshape(1, 12)
    expected = model(tokens).logits.detach().numpy()
    merge(tmp_path / "masked", tmp_path / "adapter", tmp_path / "out")
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_allclose(opened(tokens).logits.detach().numpy(), expected, atol=1e-5)


def distilbert_state(model):
    """The base's own parameters."""
    with model.disable_adapter():
        named = model.base_model.model.state_dict()
    return {
        k.replace(".base_layer", ""): v for k, v in named.items() if "lora_" not in k and "modules_to_save" not in k
    }
