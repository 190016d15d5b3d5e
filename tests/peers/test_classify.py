"""Labels beside transformers' GPT2ForSequenceClassification: the same head on the same token, loss and gradients."""

import os

import numpy as np
import pytest

import minilora as ml
from minilora.interop.names import module_names
from minilora.interop.sources import shares
from minilora.training.backward import loss_and_gradients
from minilora.training.classify import _likeliest
from minilora.training.examples import padded

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'minilora[peers]'")

LABELS, PAD = ("red", "green", "blue"), 0
CONFIG = ml.GPTConfig(vocab_size=23, block_size=12, n_layer=2, n_head=2, n_embd=16)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert"])
def test_an_encoder_with_its_head_is_transformers(kind, relative_error, tmp_path):
    """Opened from their folder: names of labels, scores, loss and every gradient of a padded batch, in pieces."""
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 20, "seq_classif_dropout": 0.0} if (
        kind == "DistilBert"
    ) else {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=23, max_position_embeddings=20, pad_token_id=PAD, id2label=dict(enumerate(LABELS)), **sizes
    )
    peer = getattr(transformers, f"{kind}ForSequenceClassification")(config).double().eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    peer.save_pretrained(tmp_path / "theirs")
    model = ml.load_pretrained(tmp_path / "theirs", "float64")
    assert model.labels == LABELS

    rng = np.random.default_rng(1)
    texts, labels = [rng.integers(1, 23, n) for n in (3, 12, 1, 7, 9)], rng.integers(3, size=5)
    rows = [(t, np.r_[np.full(len(t) - 1, -100), y]) for t, y in zip(texts, labels, strict=True)]
    tokens, targets, mask = padded(rows)
    attended = torch.tensor(mask.astype(int))
    theirs = peer(torch.tensor(tokens), attention_mask=attended, labels=torch.tensor(labels))
    theirs.loss.backward()
    assert relative_error(model.scores_of_texts(tokens, mask).data, theirs.logits) <= 1e-9
    assert _likeliest(model, rows) == theirs.logits.argmax(dim=1).tolist()
    loss, gradients = loss_and_gradients(model, model.parameters(), tokens, targets, pieces=3, mask=mask)
    assert relative_error(np.array(loss), theirs.loss) <= 1e-9
    expected = {name: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for name, p in peer.named_parameters()}
    ours, _ = shares(model.architecture, module_names(model.architecture))
    for (name, p), g in zip(model.named_parameters(), gradients, strict=True):
        wanted = ours[name].of(expected.pop(ours[name].tensor))
        if "k_proj.bias" in name:  # which softmax does not depend on
            assert max(np.abs(g).max(), np.abs(wanted).max()) < 1e-12
        else:
            assert relative_error(np.zeros(p.shape) if g is None else g, wanted) <= 1e-8, name
    assert not expected

    ml.save_pretrained(model, tmp_path / "ours")
    again = type(peer).from_pretrained(tmp_path / "ours").double().eval()
    assert again.config.id2label == dict(enumerate(LABELS))
    with torch.no_grad():
        assert relative_error(again(torch.tensor(tokens), attention_mask=attended).logits, theirs.logits) <= 1e-9


def test_loss_scores_and_gradients_are_transformers(transformers_gpt2, as_gpt2, relative_error):
    """Texts of several lengths: theirs finds the last token that is no padding, ours is told where the label stands."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    model, rng = ml.add_classifier(ml.GPT(CONFIG, rng=1).astype("float64"), LABELS), np.random.default_rng(0)
    model.classifier.weight.data[...] = rng.normal(size=(3, 16))
    texts = [rng.integers(1, 23, n) for n in (3, 12, 1, 7, 9)]
    labels = rng.integers(3, size=len(texts))
    tokens, targets, mask = padded(
        [(t, np.r_[np.full(len(t) - 1, -100), y]) for t, y in zip(texts, labels, strict=True)]
    )

    base = transformers_gpt2(ml.GPT(CONFIG, rng=1).astype("float64"))
    base.config.num_labels, base.config.pad_token_id = 3, PAD
    peer = transformers.GPT2ForSequenceClassification(base.config).double()
    peer.transformer.load_state_dict(base.transformer.state_dict())
    peer.score.weight.data = torch.tensor(model.classifier.weight.data)
    attended = torch.tensor(mask.astype(int))
    theirs = peer(torch.tensor(tokens), attention_mask=attended, labels=torch.tensor(labels))
    theirs.loss.backward()

    own = model.scores(tokens).numpy()[np.arange(5), mask.sum(axis=1) - 1]
    assert relative_error(own, theirs.logits) <= 1e-9
    loss, gradients = loss_and_gradients(model, model.parameters(), tokens, targets, pieces=3)
    assert relative_error(np.array(loss), theirs.loss) <= 1e-9
    named = as_gpt2(dict(zip((name for name, _ in model.named_parameters()), gradients, strict=True)))
    named["score.weight"] = named.pop("transformer.classifier.weight")
    expected = {name: p.grad for name, p in peer.named_parameters()}
    assert relative_error(named, expected) <= 1e-9
