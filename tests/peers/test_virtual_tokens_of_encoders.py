"""Prompts and prefixes on encoders beside PEFT: outputs, gradients, padding and segments, and files both ways.

PEFT 0.21 reads and trains them where it is told of the task: SEQ_CLS for a prompt under a head for labels, which it
trains too, and FEATURE_EXTRACTION, which leaves the model's own output alone. SEQ_CLS with a prefix it refuses beside
transformers 5.24 ("does not support past key values"), and in DistilBERT it drops a prefix without a word: there
DistilBERT is held to what it is, a BERT without segments.
"""

import dataclasses

import numpy as np
import pytest
from test_peft_files import ENCODERS, encoder_of

import minilora as ml
from minilora.adapters.state import adapter_parameters
from minilora.interop.names import module_names

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
load_file = pytest.importorskip("safetensors.numpy").load_file

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
P, BAR = 3, 1e-10
TOKENS = np.random.default_rng(0).integers(31, size=(3, 7))  # a 1 among them, RoBERTa's padding
MASK = np.array([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5])
CASES = [
    (family, head, kind)
    for family in ENCODERS
    for head in ("none", "masked", "labels")
    for kind in ("prompt", "prefix")
    if (family, kind) != ("distilbert", "prefix")
]


def with_peft(peer, head, kind):
    """PEFT's model, with every number drawn that it trains."""
    task = "SEQ_CLS" if (head, kind) == ("labels", "prompt") else "FEATURE_EXTRACTION"
    make = peft.PromptTuningConfig if kind == "prompt" else peft.PrefixTuningConfig
    sizes = dict(token_dim=16, num_attention_heads=4, num_layers=2)  # which it does not find in DistilBERT's words
    peer = peft.get_peft_model(peer, make(task_type=task, num_virtual_tokens=P, **sizes)).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in peer.parameters():
            if p.requires_grad:
                p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return peer


def outputs_of(peer, head, mask=None, **more):
    """What it says of the text's tokens, without what it says of the prompt's."""
    y = peer(torch.tensor(TOKENS), attention_mask=None if mask is None else torch.tensor(mask), **more)[0]
    return y if head == "labels" else y[:, -TOKENS.shape[1] :]


def value(y):
    return (y * y * y).mean() + y.mean()


@pytest.mark.parametrize("family, head, kind", CASES)
def test_outputs_and_gradients_and_files(family, head, kind, tmp_path, relative_error):
    peer, model = encoder_of(family, head)
    plain, peer = model(TOKENS).data, with_peft(peer, head, kind)
    peer.save_pretrained(tmp_path / "theirs")
    ml.load_adapter(model, tmp_path / "theirs")
    for mask in (None, MASK):
        counts = np.ones_like(MASK) if mask is None else mask
        real = slice(None) if head == "labels" else counts.astype(bool)
        expected, y = outputs_of(peer, head, mask)[real], model(TOKENS, mask=mask)[real]
        assert relative_error(y.data, expected.detach().numpy()) <= BAR
        peer.zero_grad()
        value(expected).backward()
        trained = {name: p for name, p in adapter_parameters(model).items() if p.requires_grad}
        gradients = dict(zip(trained, ml.grad(value(y), list(trained.values())), strict=True))
        theirs = peer.prompt_encoder["default"].embedding.weight.grad.numpy()
        if kind == "prefix":
            keys, values = theirs.reshape(P, 2, 2, 16).transpose(2, 1, 0, 3)
            assert relative_error(gradients.pop("front.keys"), keys) <= BAR
            assert relative_error(gradients.pop("front.values"), values) <= BAR
        else:
            assert relative_error(gradients.pop("front.prompt"), theirs) <= BAR
        assert bool(gradients) == ((head, kind) == ("labels", "prompt"))
        for name, g in gradients.items():  # of a head for labels, which PEFT trains beside
            path, _, last = name.rpartition(".")
            known = peer.base_model.named_parameters()
            there = module_names(model.architecture)[path].module
            inside = lambda at: at.replace(".modules_to_save.default", "")
            [found] = [p for at, p in known if p.requires_grad and inside(at) == f"{there}.{last}"]
            assert relative_error(g, found.grad.numpy()) <= BAR, name
    expected = outputs_of(peer, head).detach().numpy()
    assert relative_error(plain, expected) > 1e-3
    ml.save_adapter(model, tmp_path / "ours", format="peft")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    again = peft.PeftModel.from_pretrained(encoder_of(family, head)[0], tmp_path / "ours").double().eval()
    assert relative_error(outputs_of(again, head).detach().numpy(), expected) == 0


def test_segments_and_virtual_tokens(relative_error, tmp_path):
    """The prompt's tokens are of the first segment."""
    peer, model = encoder_of("bert", "labels")
    peer, segments = with_peft(peer, "labels", "prompt"), (TOKENS % 2)
    peer.save_pretrained(tmp_path)
    ml.load_adapter(model, tmp_path)
    expected = outputs_of(peer, "labels", MASK, token_type_ids=torch.tensor(segments)).detach().numpy()
    assert relative_error(model(TOKENS, mask=MASK, token_types=segments).data, expected) <= BAR
    assert relative_error(model(TOKENS, mask=MASK).data, expected) > 1e-4


@pytest.mark.parametrize("head", ["none", "masked"])
def test_a_prefix_on_distilbert_is_that_of_a_bert_without_segments(head, relative_error, tmp_path):
    peer, bert = encoder_of("bert", head)
    with torch.no_grad():
        peer.get_submodule("bert" if head == "masked" else "").embeddings.token_type_embeddings.weight.zero_()
    peer = with_peft(peer, head, "prefix")
    peer.save_pretrained(tmp_path)
    a = dataclasses.replace(bert.architecture, family="distilbert", token_types=0, pooler=False)
    model = ml.Transformer(a).astype("float64")
    held = bert.state_dict()
    model.load_state_dict({name: held[name] for name in model.state_dict()})
    ml.load_adapter(model, tmp_path)
    for mask in (None, MASK):
        real = slice(None) if mask is None else mask.astype(bool)
        expected = outputs_of(peer, head, mask).detach().numpy()
        assert relative_error(model(TOKENS, mask=mask).data[real], expected[real]) <= BAR


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("config", [ml.PromptConfig(P), ml.PrefixConfig(P, hidden=4)], ids=["prompt", "prefix"])
@pytest.mark.parametrize("saved", [(), ("classifier",)])
def test_ours_are_read_by_peft(family, config, saved, tmp_path, relative_error):
    """The head for labels trained beside or not, which PEFT is told by the task."""
    if family == "distilbert" and isinstance(config, ml.PrefixConfig):
        pytest.skip("PEFT drops a prefix there")
    peer, model = encoder_of(family, "labels")
    ml.add_adapter(model, dataclasses.replace(config, modules_to_save=saved))
    rng = np.random.default_rng(3)
    for p in adapter_parameters(model).values():
        if p.requires_grad:
            p.data = p.data + rng.normal(0, 0.3, p.shape)
    ml.save_adapter(model, tmp_path, format="peft")
    again = peft.PeftModel.from_pretrained(peer, tmp_path).double().eval()
    there = outputs_of(again, "labels").detach().numpy()
    assert relative_error(model(TOKENS).data, there) <= 1e-6  # PEFT reads virtual tokens as float32
    ml.load_adapter(other := encoder_of(family, "labels")[1], tmp_path)
    np.testing.assert_array_equal(other(TOKENS).data, model(TOKENS).data)
