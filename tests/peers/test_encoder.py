"""Encoders beside transformers' own: drawn tiny configurations, random weights copied, padding and segments."""

import dataclasses

import numpy as np
import pytest
from test_transformer import BOUND, close, with_precision

import minilora as ml
from minilora.interop.names import module_names
from minilora.nn.architectures import from_hugging_face, parameters
from minilora.nn.encoder import Encoder

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers: pip install 'minilora[peers]'")

V, L = 37, 3
NAMES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
HEADS = {"none": "Model", "masked": "ForMaskedLM", "labels": "ForSequenceClassification"}
OF_HEADS = {  # our module -> theirs, where files of heads are not this project's affair
    "bert": {"head": "cls.predictions", "head.dense": "cls.predictions.transform.dense",
             "head.norm": "cls.predictions.transform.LayerNorm", "classifier": "classifier"},
    "roberta": {"head": "lm_head", "head.dense": "lm_head.dense", "head.norm": "lm_head.layer_norm",
                "classifier.dense": "classifier.dense", "classifier.out_proj": "classifier.out_proj"},
    "distilbert": {"head": "vocab_projector", "head.dense": "vocab_transform", "head.norm": "vocab_layer_norm",
                   "classifier.dense": "pre_classifier", "classifier.out_proj": "classifier"},
}  # fmt: skip


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
    places = {name: known.pop(place(family, a, name, head)) for name, _ in ours.named_parameters()}
    assert not known, f"not ours: {list(known)}"
    ours.load_state_dict({name: p.detach().numpy().astype(dtype) for name, p in places.items()})
    return theirs, ours, places


def place(family, a, name, head):
    path, _, last = name.rpartition(".")
    if path in OF_HEADS[family]:
        return f"{OF_HEADS[family][path]}.{last}"
    bare = module_names(dataclasses.replace(a, head="none", labels=0))[path].module
    return f"{bare if head != 'none' else bare.split('.', 1)[1]}.{last}"


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
        close(y.data[keep], found.detach().numpy()[keep], dtype, "output")
        if head == "none":
            value = (y[real] * y[real]).mean()
            value = value if pooled is None else value + ours.pooled(y).mean()
        else:
            value = ours.loss(tokens, targets, mask=mask, token_types=types_of)
        close(value.data, loss.item(), dtype, "loss")
        for (name, _), g in zip(ours.named_parameters(), ml.grad(value, ours.parameters()), strict=True):
            p = places[name].grad
            close(g, np.zeros(g.shape) if p is None else p, dtype, f"{family} {head} {seed} {name}")
