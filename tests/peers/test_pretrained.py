"""pretrained.py beside transformers: folders that it wrote are opened here, and ours there, with the same logits."""

import json

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.quantization import Half
from minilora.interop.config_out import CLASSES
from minilora.interop.pretrained import load_pretrained, save_pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'minilora[peers]'")
pytest.importorskip("safetensors", reason="needs safetensors: pip install 'minilora[models]'")
pytestmark = pytest.mark.slow

COMMON = dict(
    vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GPT2 = dict(vocab_size=67, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
GROUPED = COMMON | dict(num_key_value_heads=2)
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16,
    rope_theta=5e5,
)  # fmt: skip
CONFIGS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2 untied": ("gpt2", GPT2 | dict(n_inner=40, tie_word_embeddings=False)),
    "llama": ("llama", GROUPED | dict(rms_norm_eps=1e-5)),
    "llama 3": ("llama", GROUPED | dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "llama biases": ("llama", GROUPED | dict(attention_bias=True, mlp_bias=True, head_dim=16)),
    "llama linear": ("llama", GROUPED | dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4))),
    "mistral": ("mistral", GROUPED | dict(sliding_window=5)),
    "phi3": ("phi3", GROUPED | dict(sliding_window=None)),
    "qwen2": ("qwen2", GROUPED | dict(tie_word_embeddings=True)),
    "qwen3": ("qwen3", GROUPED | dict(head_dim=16)),
    "qwen3 window": ("qwen3", GROUPED | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "gemma": ("gemma", GROUPED | dict(head_dim=8)),
    "gemma3_text": ("gemma3_text", GROUPED | dict(head_dim=8, sliding_window=4, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"], query_pre_attn_scalar=16)),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(3, 67, (2, 12))


@pytest.fixture(scope="module")
def peers():
    """peers(case): transformers' model of a configuration, its weights drawn so that all matter."""

    def build(case, dtype=torch.float32):
        family, sizes = CONFIGS[case]
        config = transformers.CONFIG_MAPPING[family](**sizes, attn_implementation="eager")
        for rate in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
            setattr(config, rate, 0.0)
        torch.manual_seed(len(case))
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p) * 0.2)
        return model.to(dtype)

    return build


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


@pytest.mark.parametrize("case", CONFIGS)
def test_a_folder_of_transformers_opens_with_its_logits_and_is_written_as_it_was(case, peers, tmp_path):
    theirs = peers(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    np.testing.assert_allclose(ours(TOKENS).data, logits(theirs), rtol=1e-4, atol=1e-5)
    save_pretrained(ours, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(again) is type(theirs)
    for (name, p), (their_name, q) in zip(again.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == their_name and torch.equal(p, q)
    np.testing.assert_array_equal(logits(again), logits(theirs))
    np.testing.assert_array_equal(load_pretrained(tmp_path / "ours")(TOKENS).data, ours(TOKENS).data)


def test_every_family_that_is_written_is_tried():
    tried = {(family, "") for family, _ in CONFIGS.values()} | {(family, head) for family in ENCODERS for head in HEADS}
    assert tried == {*CLASSES.values()}


ENCODERS = {
    "bert": COMMON, "roberta": COMMON | dict(type_vocab_size=1, pad_token_id=1),
    "distilbert": dict(vocab_size=67, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64),
}  # fmt: skip
HEADS = {"none": "AutoModel", "masked": "AutoModelForMaskedLM", "labels": "AutoModelForSequenceClassification"}


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("head", HEADS)
def test_encoders_open_and_are_written_with_each_head(family, head, tmp_path):
    config = transformers.CONFIG_MAPPING[family](**ENCODERS[family], num_labels=3)
    torch.manual_seed(0)
    theirs = getattr(transformers, HEADS[head]).from_config(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    out = lambda model: next(iter(model(torch.tensor(TOKENS)).values())).detach().numpy()
    ours = load_pretrained(tmp_path / "theirs")
    np.testing.assert_allclose(ours(TOKENS).data, out(theirs), rtol=1e-4, atol=1e-5)
    save_pretrained(ours, tmp_path / "ours")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for (name, p), (their_name, q) in zip(again.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == their_name and torch.equal(p, q)
    assert again.config.num_labels == (3 if head == "labels" else 2)


def test_a_bert_as_it_came_from_its_pre_training_opens(tmp_path):
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**COMMON)).eval()
    theirs.save_pretrained(tmp_path)
    expected = theirs(torch.tensor(TOKENS)).prediction_logits.detach().numpy()
    np.testing.assert_allclose(load_pretrained(tmp_path)(TOKENS).data, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["gpt2", "phi3", "llama"])
def test_shards_are_read_as_one_file(case, peers, tmp_path):
    theirs = peers(case)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 2 and (tmp_path / "model.safetensors.index.json").exists()
    np.testing.assert_allclose(load_pretrained(tmp_path)(TOKENS).data, logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["gpt2", "llama", "phi3"])
def test_a_bare_model_opens_where_it_has_all_that_is_needed(case, peers, tmp_path):
    theirs = peers("llama 3" if case == "llama" else case)
    if case == "phi3":
        theirs.model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"missing lm_head.weight"):
            load_pretrained(tmp_path)
        return
    theirs.base_model.save_pretrained(tmp_path)
    np.testing.assert_allclose(load_pretrained(tmp_path)(TOKENS).data, logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["gpt2", "llama", "phi3"])
def test_16_bits_stay_16_bits_and_come_back_bit_for_bit(case, dtype, peers, tmp_path):
    theirs = peers(case, getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs")
    exact = logits(theirs.float())
    for held_as in ("file", dtype):
        ours = load_pretrained(tmp_path / "theirs", held_as)
        kinds = {m.quantized.kind for _, m in ours.named_modules() if hasattr(m, "quantized")}
        assert kinds == {dtype} and isinstance(ours.wte.quantized, Half)
        assert not any(p.requires_grad for p in ours.parameters())
        np.testing.assert_allclose(ours(TOKENS).data, exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(load_pretrained(tmp_path / "theirs")(TOKENS).data, exact, rtol=1e-4, atol=1e-5)
    save_pretrained(ours, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert again.dtype == getattr(torch, dtype)
    for p, q in zip(again.float().parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_gpt_of_ours_is_a_gpt2(randomize, tmp_path):
    ours = randomize(ml.GPT(ml.GPTConfig(67, 16, 2, 4, 32)), np.random.default_rng(0))
    save_pretrained(ours, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    np.testing.assert_allclose(logits(theirs), ours(TOKENS).data, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(load_pretrained(tmp_path)(TOKENS).data, ours(TOKENS).data, rtol=1e-5, atol=1e-6)


def test_a_gemma_that_also_sees_opens_as_its_language_model(tmp_path):
    text = GROUPED | dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=16)
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8,
                  patch_size=4)  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, pad_token_id=0)
    torch.manual_seed(0)
    theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    np.testing.assert_allclose(load_pretrained(tmp_path)(TOKENS).data, logits(theirs), rtol=1e-4, atol=1e-5)
