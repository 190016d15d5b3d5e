"""Adapters in another form of file, loaded by PEFT: its Delta W is the one that the first file had."""

import numpy as np
import pytest

import minilora as ml
from minilora.interop.convert import convert

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
TOKENS = np.arange(12)[None]


def llama():
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=64)).eval()


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"v_proj": 2}}])
@pytest.mark.parametrize("forget", [False, True])
def test_peft_loads_what_came_back_from_the_single_file(tmp_path, settings, forget):
    """By what our writer put beside the matrices, and without it, by the names of the base's modules."""
    model = peft.get_peft_model(
        llama(), peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], **settings)
    )
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    model.save_pretrained(tmp_path / "a")
    model.eval()
    expected = model(torch.tensor(TOKENS)).logits.detach().numpy()
    convert(tmp_path / "a", "kohya", tmp_path / "k.safetensors")
    base = None
    if forget:
        from safetensors.numpy import load_file, save_file

        save_file(load_file(tmp_path / "k.safetensors"), tmp_path / "k.safetensors")
        base = tmp_path / "base"
        llama().save_pretrained(base)
    convert(tmp_path / "k.safetensors", "peft", tmp_path / "b", base=base)
    again = peft.PeftModel.from_pretrained(llama(), tmp_path / "b").eval()
    np.testing.assert_allclose(again(torch.tensor(TOKENS)).logits.detach().numpy(), expected, atol=1e-6)


def test_minilora_s_adapter_of_a_llama_is_peft_s(tmp_path):
    """Over the base's folder, and back with its fingerprint."""
    llama().save_pretrained(tmp_path / "base")
    model = ml.add_lora(
        ml.load_pretrained(tmp_path / "base"), ml.LoRAConfig(rank=3, target_modules=("q_proj", "up_proj"))
    )
    rng = np.random.default_rng(0)
    for p in model.parameters(trainable=True):
        p.data = p.data + 0.1 * rng.normal(size=p.shape).astype("f")
    ml.save_adapter(model, tmp_path / "a.npz")
    convert(tmp_path / "a.npz", "peft", tmp_path / "peft", base=tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "peft").eval()
    np.testing.assert_allclose(theirs(torch.tensor(TOKENS)).logits.detach().numpy(), model(TOKENS).numpy(), atol=1e-5)
    convert(tmp_path / "peft", "minilora", tmp_path / "b.npz", base=tmp_path / "base")
    again = ml.load_adapter(ml.load_pretrained(tmp_path / "base"), tmp_path / "b.npz")
    np.testing.assert_allclose(again(TOKENS).numpy(), model(TOKENS).numpy(), atol=1e-6)
