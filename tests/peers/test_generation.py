"""Greedy texts beside transformers' generate, token for token: prompts padded on the left, windows, tokens that end.

And who may be drawn with top-p, beside transformers' own warpers.
"""

import numpy as np
import pytest

import minilora as ml
from minilora.nn.language_model import sample

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers: pip install 'minilora[peers]'")

V = 37
SIZES = dict(
    vocab_size=V, hidden_size=24, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
    intermediate_size=29, max_position_embeddings=64, pad_token_id=0, eos_token_id=None, bos_token_id=None,
)  # fmt: skip
CONFIGS = {
    "gpt2": (dict(vocab_size=V, n_embd=24, n_layer=3, n_head=3, n_positions=64, eos_token_id=None, bos_token_id=None)),
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": 5},
    "phi3": SIZES,
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 8},
    "gemma": {**SIZES, "head_dim": 8},
    "gemma3_text": {**SIZES, "head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention"] * 2
                    + ["full_attention"]},
}  # fmt: skip
PROMPTS = [[3, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 30, 5, 36]]
TOKENS = np.array([[0] * (11 - len(prompt)) + prompt for prompt in PROMPTS])
MASK = np.array([[0] * (11 - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])


def both(family, folder):
    """transformers' model with drawn weights, and ours, from its folder; float32, where its padding gives no NaN."""
    config = transformers.AutoConfig.for_model(family, attn_implementation="eager", **CONFIGS[family])
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * 0.4 if p.ndim > 1 else p + torch.randn_like(p) * 0.05)
    theirs.save_pretrained(folder)
    return theirs, ml.load_pretrained(folder)


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_texts_are_transformers_own(family, tmp_path):
    theirs, ours = both(family, tmp_path)
    given = dict(input_ids=torch.tensor(TOKENS), attention_mask=torch.tensor(MASK), max_new_tokens=24, do_sample=False)
    whole = theirs.generate(**given, pad_token_id=0).numpy()
    np.testing.assert_array_equal(ours.generate(TOKENS, 24, temperature=0, mask=MASK), whole)
    for text, row, prompt in zip(ours.generate(PROMPTS, 24, temperature=0), whole, PROMPTS, strict=True):
        np.testing.assert_array_equal(text, row[11 - len(prompt) :])
    assert len(np.unique(whole[:, 11:])) > 3
    stop = [int(whole[0, 14]), int(whole[1, 20])]
    stopped = theirs.generate(**given, pad_token_id=0, eos_token_id=stop).numpy()
    text = ours.generate(TOKENS, 24, temperature=0, mask=MASK, stop=stop)
    assert text.shape == stopped.shape
    for row, other in zip(text[:, 11:], stopped[:, 11:], strict=True):
        ends = np.flatnonzero(np.isin(row, stop))
        end = ends[0] + 1 if len(ends) else len(row)
        np.testing.assert_array_equal(row[:end], other[:end])  # what stands behind the end is padding there


@pytest.mark.parametrize(
    "top_k, top_p, temperature", [(None, 0.5, 1.0), (None, 0.9, 0.7), (7, 0.8, 1.3), (3, 0.999, 2.0)]
)
def test_who_may_be_drawn_is_who_transformers_warpers_leave(top_k, top_p, temperature):
    logits = np.random.default_rng(0).normal(0, 2, (5, V))
    warped = torch.tensor(logits) / temperature
    if top_k:
        warped = transformers.TopKLogitsWarper(top_k)(None, warped)
    p = transformers.TopPLogitsWarper(top_p)(None, warped).softmax(dim=-1).numpy()
    steps = 4000

    class Even:
        def random(self, shape):
            return ((np.arange(steps) + 0.5) / steps).reshape(shape)

    for row, expected in zip(logits, p, strict=True):
        drawn = sample(np.tile(row, (steps, 1)), temperature, top_k, Even(), top_p)
        np.testing.assert_allclose(np.bincount(drawn, minlength=V) / steps, expected, atol=1e-3)
