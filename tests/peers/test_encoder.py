"""Encoders beside transformers' own: drawn tiny configurations, random weights copied, padding and segments."""

import dataclasses

import numpy as np
import pytest
from test_transformer import BOUND, error, pairs, with_precision

import minilora as ml
from minilora.nn.architectures import from_hugging_face, parameters
from minilora.nn.encoder import Encoder

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers: pip install 'minilora[peers]'")

pytest.importorskip("safetensors.torch")  # which reads torch.float32 once: before `in_double` makes another of it

V, L = 37, 3
NAMES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
HEADS = {"none": "Model", "masked": "ForMaskedLM", "labels": "ForSequenceClassification"}


def drawn(family, rng):
    heads = int(rng.choice([1, 2, 3]))
    width, layers, inner = heads * 4, int(rng.choice([1, 3])), int(rng.integers(5, 30))
    common = dict(vocab_size=V, max_position_embeddings=24, pad_token_id=int(rng.choice([0, 1, 5])))
    if family == "distilbert":
        sizes = dict(
            dim=width, n_layers=layers, n_heads=heads, hidden_dim=inner, activation=str(rng.choice(["gelu", "relu"]))
        )
        return dict(**common, **sizes, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner)
    own = dict(type_vocab_size=int(rng.choice([1, 2, 3])), layer_norm_eps=float(rng.choice([1e-12, 1e-5])))
    gelu = dict(hidden_act=str(rng.choice(["gelu", "gelu_new", "relu", "silu"])))
    return dict(**common, **sizes, **own, **gelu, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def both(family, head, seed, dtype):
    """transformers' model with every parameter drawn, ours with the same, and {our parameter: theirs}."""
    rng = np.random.default_rng(seed)
    config = getattr(transformers, NAMES[family] + "Config")(
        **drawn(family, rng), num_labels=L, attn_implementation="eager"
    )
    theirs = getattr(transformers, NAMES[family] + HEADS[head])(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.tensor((p.ndim == 1) + rng.normal(0, 0.15, p.shape)))
    known = dict(theirs.named_parameters())
    pooler = any("pooler" in name for name in known)
    a = from_hugging_face(config.to_dict())
    a = dataclasses.replace(a, head=head, labels=L if head == "labels" else 0, pooler=pooler)
    ours = ml.Transformer(a).astype(dtype)
    prefix = f"{family}." if head == "none" else ""  # which a file of the bare model leaves out
    places = {name: p for name, (p, _) in pairs(ours, {prefix + name: p for name, p in known.items()}).items()}
    assert {id(p) for p in places.values()} == {id(p) for p in known.values()}
    ours.load_state_dict({name: p.detach().numpy().astype(dtype) for name, p in places.items()})
    return theirs, ours, places


def batch(ours, seed, head):
    """Tokens with padding on the right of a text, and on the left where no head reads the first; segments; targets."""
    rng, a = np.random.default_rng(100 + seed), ours.architecture
    tokens = rng.integers(V, size=(3, 11))
    tokens[tokens == a.pad_id] = 7  # transformers keeps the gradient from the rows of padding
    mask = np.ones((3, 11), int)
    mask[1, 7:], mask[2, : 3 if head == "masked" else 0] = 0, 0
    tokens[mask == 0] = a.pad_id
    types_of = rng.integers(a.token_types, size=(3, 11)) if a.token_types else None
    targets = (
        rng.integers(L, size=3)
        if head == "labels"
        else np.where(rng.random((3, 11)) < 0.4, rng.integers(V, size=(3, 11)), -100)
    )
    return tokens, mask, types_of, targets if head == "labels" else np.where(mask, targets, -100)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", NAMES)
def test_outputs_loss_and_every_gradient(family, head, dtype):
    for seed in range(4):
        with with_precision(dtype):
            theirs, ours, places = both(family, head, seed, dtype)
            tokens, mask, types_of, targets = batch(ours, seed, head)
            real = mask.astype(bool)
            more = {} if types_of is None else {"token_type_ids": torch.tensor(types_of)}
            more |= {} if head == "none" else {"labels": torch.tensor(targets)}
            out = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask), **more)
            found = out.last_hidden_state if head == "none" else out.logits
            loss = (found[torch.tensor(real)] ** 2).mean() if head == "none" else out.loss
            pooled = out.pooler_output if head == "none" and "pooler.weight" in places else None
            loss = loss if pooled is None else loss + pooled.mean()
            loss.backward()
        assert isinstance(ours, Encoder)
        assert {name: p.shape for name, p in ours.named_parameters()} == parameters(ours.architecture)
        y = ours(tokens, mask=mask, token_types=types_of)
        keep = slice(None) if head == "labels" else real
        assert error(y.data[keep], found.detach().numpy()[keep]) < BOUND[dtype]
        if head == "none":
            value = (y[real] * y[real]).mean()
            value = value if pooled is None else value + ours.pooled(y).mean()
        else:
            value = ours.loss(tokens, targets, mask=mask, token_types=types_of)
        assert error(value.data, loss.item()) < BOUND[dtype]
        for (name, _), g in zip(ours.named_parameters(), ml.grad(value, ours.parameters()), strict=True):
            p = places[name].grad
            assert error(g, np.zeros(g.shape) if p is None else p) < BOUND[dtype], f"{name}, seed {seed}"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", NAMES)
def test_files_both_ways(family, head, tmp_path):
    """transformers' folder opened here, head and all; written again and opened there, with nothing missing or left."""
    theirs, _, _ = both(family, head, 1, "float32")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ml.load_pretrained(tmp_path / "theirs")
    assert ours.architecture.head == head and ours.architecture.labels == (L if head == "labels" else 0)
    tokens = np.array([[9, 8, 7, 6], [11, 12, 13, 14]])
    expected = theirs(torch.tensor(tokens))[0].detach().numpy()
    assert error(ours(tokens).data, expected) < BOUND["float32"]
    ml.save_pretrained(ours, tmp_path / "ours")
    again, said = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(said[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_allclose(again.eval()(torch.tensor(tokens))[0].detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_files_of_the_first_berts(tmp_path):
    """With the guess at the next sentence beside the masked-language head."""
    config = transformers.BertConfig(**drawn("bert", np.random.default_rng(0)))
    theirs = transformers.BertForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, tokens = ml.load_pretrained(tmp_path), np.array([[9, 8, 7, 6]])
    out = theirs(torch.tensor(tokens))
    assert error(ours(tokens).data, out.prediction_logits.detach().numpy()) < BOUND["float32"]
