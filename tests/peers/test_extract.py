"""An adapter out of two checkpoints, loaded by PEFT: it makes the tuned model of the base."""

import numpy as np
import pytest

from minilora.interop.extract import extract

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
SIZES = {"vocab_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}


def gpt2():
    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, intermediate_size=64))


def phi3():
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**SIZES, intermediate_size=64, pad_token_id=0))


@pytest.mark.parametrize("make", [gpt2, llama, phi3])
@pytest.mark.parametrize("how", [{"rank": 32}, {"energy": 1.0}, {"rank": 2}])
def test_peft_makes_the_tuned_model_of_the_base(tmp_path, make, how):
    """Conv1D turned and fused, qkv fused; a change of rank 2 comes back at rank 2."""
    torch.manual_seed(0)
    base, tuned = make().eval(), make().eval()
    tuned.load_state_dict(base.state_dict())
    for name, p in tuned.named_parameters():
        if p.ndim == 2 and any(part in name for part in ("attn", "mlp")):
            p.data += 0.1 * torch.randn(len(p), 2) @ torch.randn(2, p.shape[1])
    base.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    tuned.save_pretrained(tmp_path / "tuned")
    found = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", **how)
    assert found["beside"] == [] and found["energy"] == pytest.approx(1)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    tokens = torch.arange(12).reshape(1, 12)
    expected, there = tuned(tokens).logits.detach().numpy(), model(tokens).logits.detach().numpy()
    np.testing.assert_allclose(there, expected, atol=2e-5)
