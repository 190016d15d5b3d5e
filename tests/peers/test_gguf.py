"""gguf_file.py beside transformers: its models, written as llama.cpp writes them, opened here and by its own reader."""

import numpy as np
import pytest
from gguf_writing import write_gguf

from minilora.interop.pretrained import load_pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'minilora[peers]'")
gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'minilora[models]'")
pytestmark = pytest.mark.slow

SIZES = dict(
    vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GPT2 = dict(vocab_size=80, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
CONFIGS = {
    "gpt2": ("gpt2", GPT2),
    "llama": ("llama", SIZES | dict(rms_norm_eps=1e-5)),
    "llama tied": ("llama", SIZES | dict(tie_word_embeddings=True, head_dim=32)),
    "llama biases": ("llama", SIZES | dict(attention_bias=True)),
    "phi3": ("phi3", SIZES),
    "qwen2": ("qwen2", SIZES),
    "qwen3": ("qwen3", SIZES | dict(head_dim=32)),
    "gemma": ("gemma", SIZES | dict(head_dim=32)),
    "gemma3_text": ("gemma3_text", SIZES | dict(num_hidden_layers=7, head_dim=32, sliding_window=4,
                                                query_pre_attn_scalar=32)),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(3, 80, (2, 12))
BOTH = ("llama", "llama tied", "phi3", "qwen2")  # transformers reads these, whole, from GGUF


def peer(case):
    family, sizes = CONFIGS[case]
    config = transformers.CONFIG_MAPPING[family](**sizes, attn_implementation="eager")
    torch.manual_seed(len(case))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2)
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize(
    "case, kind",
    [(case, "Q4_1") for case in CONFIGS] + [("llama tied", k) for k in ("F32", "F16", "BF16", "Q8_0", "Q4_0")],
)
def test_a_file_has_the_logits_of_the_model_it_is_of(case, kind, tmp_path):
    theirs = peer(case)
    state = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    path = write_gguf(tmp_path / "m.gguf", theirs.config, state, kind)
    with torch.no_grad():  # what the file's few bits stand for
        for name, p in theirs.named_parameters():
            if p.ndim > 1:
                as_kind, turned = (
                    gguf.GGMLQuantizationType[kind],
                    ".c_" in name,
                )  # GPT-2's matrices are turned in the file
                raw = gguf.quants.quantize(np.ascontiguousarray((p.T if turned else p).numpy()), as_kind)
                read = torch.tensor(gguf.quants.dequantize(raw, as_kind))
                p.copy_(read.T if turned else read)
    expected = logits(theirs)
    for dtype in ("float32", "file"):
        ours = load_pretrained(path, dtype)
        np.testing.assert_allclose(ours(TOKENS).data, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("case", BOTH)
def test_transformers_reads_the_same_numbers_in_a_file(case, tmp_path):
    theirs = peer(case)
    state = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    path = write_gguf(tmp_path / "m.gguf", theirs.config, state, "Q8_0", {"tokenizer.ggml.padding_token_id": 0})
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", attn_implementation="eager", dtype=torch.float32
    )
    np.testing.assert_allclose(load_pretrained(path)(TOKENS).data, logits(read), rtol=1e-3, atol=2e-5)
