"""The fetched model, SmolLM2-135M-Instruct in 4 bits, beside transformers reading the same file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minilora.interop.names import gguf_names
from minilora.interop.pretrained import load_pretrained
from minilora.nn.architectures import MODELS, parameters

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'minilora[peers]'")
pytestmark = [pytest.mark.model, pytest.mark.slow]

TEXT = (Path(__file__).parent.parent.parent / "LICENSE").read_text("utf-8") * 2
STEP = """
import re, sys, numpy as np, minilora as ml
model = ml.load_pretrained(sys.argv[1], sys.argv[2])
ml.add_lora(model, ml.LoRAConfig(rank=8), rng=0)
optimizer = ml.AdamW(model.named_parameters(), lr=1e-4)
tokens = np.random.default_rng(0).integers(3, 49152, (1, 257))
losses = [ml.train_step(model, optimizer, tokens[:, :-1], tokens[:, 1:]) for _ in range(2)]
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(peak, losses[-1])
"""


@pytest.fixture(scope="module")
def theirs(smollm2):
    """transformers' model of the same file."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def test_logits_are_those_of_transformers_reading_the_same_file(smollm2, theirs):
    ours = load_pretrained(smollm2)
    tokens = ours.tokenizer.encode(TEXT[:4000])[:256][None]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    logits = ours(tokens).data
    assert logits.shape == (1, 256, 49152)
    error = np.abs(logits - expected).max()  # float32's own: each is some 8e-5 from what float64 gives
    assert error <= 2e-4 and error <= 1e-5 * np.abs(expected).max()
    for name, p in theirs.state_dict().items():  # and the weights are the same, bit for bit
        if name == "model.layers.7.self_attn.k_proj.weight":
            np.testing.assert_array_equal(ours.blocks[7].attn.k_proj.weight.data, p.numpy())
    held = load_pretrained(smollm2, "file")
    assert np.abs(held(tokens).data - logits).max() <= 2e-4
    assert {m.quantized.kind for _, m in held.named_modules() if hasattr(m, "quantized")} == {"Q4_1", "Q8_0"}
    np.testing.assert_allclose(held.loss(tokens, tokens).item(), ours.loss(tokens, tokens).item(), rtol=1e-5)


def test_the_file_holds_every_parameter_that_is_counted_and_no_other(smollm2):
    """The sizes of `count smollm2-135m`, typed by hand, against the file's own list of tensors."""
    gguf = pytest.importorskip("gguf", reason="this test needs gguf: pip install 'minilora[models]'")
    a = MODELS["smollm2-135m"]
    counted = {}
    for name, shape in parameters(a).items():
        path, _, kind = name.rpartition(".")
        counted[f"{gguf_names(a)[path].module}.{kind}"] = shape
    held = {t.name: tuple(map(int, t.shape[::-1])) for t in gguf.GGUFReader(smollm2).tensors}  # the last axis first
    assert held == counted and sum(map(np.prod, held.values())) == 134_515_008


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says the peak")
def test_a_step_on_the_4_bits_takes_half_of_the_memory(smollm2):
    told = {}
    for dtype in ("float32", "file"):
        done = subprocess.run([sys.executable, "-c", STEP, smollm2, dtype], capture_output=True, text=True, check=True)
        told[dtype] = [float(word) for word in done.stdout.split()]
    (floats, loss), (bits, same) = told["float32"], told["file"]
    assert abs(loss - same) < 1e-3 and bits <= 0.5 * floats, told
