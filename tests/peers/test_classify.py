"""Labels beside transformers' GPT2ForSequenceClassification: the same head on the same token, loss and gradients."""

import os

import numpy as np
import pytest

import minilora as ml
from minilora.training.examples import padded
from minilora.training.loop import loss_and_gradients

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'minilora[peers]'")

LABELS, PAD = ("red", "green", "blue"), 0
CONFIG = ml.GPTConfig(vocab_size=23, block_size=12, n_layer=2, n_head=2, n_embd=16)


def test_loss_scores_and_gradients_are_transformers(transformers_gpt2, as_gpt2, relative_error):
    """Texts of several lengths: theirs finds the last token that is no padding, ours is told where the label stands."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    model, rng = ml.add_classifier(ml.GPT(CONFIG, rng=1).astype("float64"), LABELS), np.random.default_rng(0)
    model.classifier.weight.data[...] = rng.normal(size=(3, 16))
    model.classifier.bias = None  # theirs has none
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
