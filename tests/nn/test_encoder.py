"""Encoders: what they are made of, what padding and segments change, adapters on them, and what is refused."""

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest

import minilora as ml
from minilora import ops
from minilora.autograd import head
from minilora.nn.architectures import find, parameters
from minilora.nn.classifier import with_classifier
from minilora.nn.encoder import Encoder
from minilora.training.corpus import Corpus

SMALL = dict(vocab_size=23, width=8, layers=2, heads=2, mlp_width=12, context=10)
NAMES = ("bert-base", "roberta-base", "distilbert-base")


def encoder(name="bert-base", head="none", **other):
    a = find(name)
    rows = SMALL["context"] + (a.pad_id + 1 if a.family == "roberta" else 0)
    labels = 3 if head == "labels" else 0
    pooler = a.pooler and not (head == "masked" or (head == "labels" and a.family == "roberta"))
    a = dataclasses.replace(a, **SMALL, positions=rows, head=head, labels=labels, pooler=pooler)
    return ml.Transformer(dataclasses.replace(a, **other)).astype("float64")


def spread(model):
    """Every parameter away from where it starts."""
    rng = np.random.default_rng(5)
    for p in model.parameters():
        p.data = p.data + rng.normal(0, 0.3, p.shape)
    return model


TOKENS = np.array([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


@pytest.mark.parametrize("head", ["none", "masked", "labels"])
@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_are_those_that_are_counted(name, head):
    model = encoder(name, head)
    assert isinstance(model, Encoder) and isinstance(model, ml.Transformer)
    assert {name: p.shape for name, p in model.named_parameters()} == parameters(model.architecture)
    shape = {"none": (2, 5, 8), "masked": (2, 5, 23), "labels": (2, 3)}[head]
    assert model(TOKENS).shape == shape


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    model, a = spread(encoder(name)), find(name)
    alone = model(TOKENS).data
    tokens = np.full((2, 9), a.pad_id)
    left = a.family == "roberta"  # whose positions are of real tokens alone
    places = slice(4, None) if left else slice(0, 5)
    tokens[:, places] = TOKENS
    mask = np.zeros((2, 9), int)
    mask[:, places] = 1
    np.testing.assert_allclose(model(tokens, mask=mask).data[:, places], alone, rtol=1e-10)
    assert np.abs(model(tokens).data[:, places] - alone).max() > 1e-3  # seen, padding would change it


def test_each_token_sees_those_after_it_and_segments_count():
    model = spread(encoder())
    before, other = model(TOKENS).data, TOKENS.copy()
    other[:, -1] = 1
    assert np.abs(model(other).data[:, 0] - before[:, 0]).max() > 1e-3
    segments = np.array([[0, 0, 1, 1, 1]] * 2)
    assert np.abs(model(TOKENS, token_types=segments).data - before).max() > 1e-3
    np.testing.assert_array_equal(model(TOKENS, token_types=segments * 0).data, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", ["masked", "labels"])
def test_gradients_by_the_complex_step_and_a_step_that_helps(name, head):
    model = spread(encoder(name, head))
    targets = np.array([1, 2]) if head == "labels" else np.where(TOKENS % 2, TOKENS, -100)
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])

    def loss(table):
        model.wte.weight = table
        return model.loss(TOKENS, targets, mask=mask)

    report = ml.gradcheck(loss, [model.wte.weight.data], "directional")
    assert report.passed, str(report)


def test_lora_on_an_encoder():
    model = spread(encoder("roberta-base", "labels"))
    before = model(TOKENS).data
    ml.add_lora(model, ml.LoRAConfig(rank=2, target_modules=("q_proj", "v_proj"), modules_to_save=("classifier",)))
    np.testing.assert_array_equal(model(TOKENS).data, before)
    trained = [p for p in model.parameters(trainable=True)]
    assert len(trained) == 2 * 2 * 2 + 4
    optimizer = ml.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model.loss(TOKENS, np.array([0, 2]))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        for p in trained:
            p.grad = None
    assert losses[-1] < losses[0] / 2
    adapted = model(TOKENS).data
    ml.merge_lora(model)
    np.testing.assert_allclose(model(TOKENS).data, adapted, rtol=1e-9)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    "head, targets", [("masked", np.where(TOKENS % 2, TOKENS, -100)), ("labels", np.array([0, 2]))]
)
def test_a_training_step_is_the_gradient_of_the_whole_batch(head, targets, again):
    """In pieces, with padding, blocks computed again or not."""
    model = spread(encoder("bert-base", head))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = ml.grad(model.loss(TOKENS, targets, mask=mask), model.parameters())
    model.recompute_blocks = again
    before = [p.data.copy() for p in model.parameters()]
    there = model.loss(TOKENS, targets, mask=mask).item()
    loss = ml.train_step(model, ml.SGD(model.parameters(), lr=1.0), TOKENS, targets, mask=mask)
    assert loss == pytest.approx(there, rel=1e-12)
    for p, was, g in zip(model.parameters(), before, expected, strict=True):
        np.testing.assert_allclose(was - p.data, g, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("head", ["none", "masked", "labels"])
def test_lora_on_the_table_of_an_encoder(head):
    """Only a masked-language head reads the table as well: there the tie is kept, or merging is refused."""
    for tying in (False, True):
        model = spread(encoder("distilbert-base", head))
        config = ml.LoRAConfig(rank=2, target_modules=("wte",), ensure_weight_tying=tying)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ml.add_lora(model, config)
        for p in model.parameters(trainable=True):
            p.data = p.data + 0.1
        adapted = model(TOKENS).data
        if head == "masked" and not tying:
            with pytest.raises(ValueError, match="a tied head"):
                ml.merge_lora(model)
            continue
        ml.merge_lora(model)
        np.testing.assert_allclose(model(TOKENS).data, adapted, rtol=1e-9)


@pytest.mark.parametrize("config", [ml.PromptConfig(3), ml.PrefixConfig(3)], ids=["prompt", "prefix"])
@pytest.mark.parametrize("name", NAMES)
def test_virtual_tokens_move_the_text_and_padding_changes_nothing(name, config):
    model = spread(encoder(name, "masked"))
    plain = model(TOKENS).data
    ml.add_adapter(model, config)
    alone = model(TOKENS).data
    assert alone.shape == plain.shape and np.abs(alone - plain).max() > 1e-3
    assert model.context == 7
    padded, mask = np.full((2, 7), model.architecture.pad_id), np.array([[1] * 5 + [0] * 2] * 2)
    padded[:, :5] = TOKENS
    np.testing.assert_allclose(model(padded, mask=mask).data[:, :5], alone, rtol=1e-10)
    assert np.abs(model(padded).data[:, :5] - alone).max() > 1e-4  # seen, padding would change it
    with pytest.raises(ValueError, match=r"Encoder: 11 tokens \(3 of them virtual\) exceed the context = 10"):
        model(np.zeros((1, 8), int))
    with ml.adapter_disabled(model):
        np.testing.assert_array_equal(model(TOKENS).data, plain)


def test_a_prompt_of_tokens_is_a_text_with_these_in_front():
    """Where the positions are one after another, and so the virtual tokens' states are first."""
    model = spread(encoder("bert-base", "none"))
    text = np.array([[1, 2], [1, 2]])
    whole = model(np.concatenate([text, TOKENS], axis=1), token_types=np.array([[0] * 2 + [1] * 5] * 2))
    ml.add_adapter(model, ml.PromptConfig(2, text=(1, 2)))
    ones = np.ones_like(TOKENS)
    np.testing.assert_allclose(model.states(TOKENS, token_types=ones).data, whole.data, rtol=1e-12)
    np.testing.assert_allclose(model(TOKENS, token_types=ones).data, whole.data[:, 2:], rtol=1e-12)
    np.testing.assert_allclose(model.last(TOKENS, mask=ones, token_types=ones).data, whole.data[:, 2:], rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_of_tokens_is_keys_and_values_of_those(name):
    """Those that the last block computes of the states before it, for them alone."""
    model = spread(encoder(name))
    before = encoder(name, layers=1)
    before.load_state_dict({path: p.data for path, p in model.named_parameters() if "blocks.1." not in path})
    states, last = before(np.array([[2, 5, 6]])), model.blocks[1].attn
    ml.add_adapter(model, ml.PrefixConfig(3, init="vocabulary", text=(2, 5, 6)))
    np.testing.assert_allclose(model.front.keys.data[1], last.k_proj(states).data[0], rtol=1e-12)
    np.testing.assert_allclose(model.front.values.data[1], last.v_proj(states).data[0], rtol=1e-12)


@pytest.mark.parametrize("kind", [ml.PromptConfig, ml.PrefixConfig])
def test_training_computes_blocks_again_beside_virtual_tokens(kind):
    model = ml.add_adapter(spread(encoder("roberta-base", "masked")), kind(2))
    trained = model.parameters(trainable=True)
    expected = ml.grad(model.loss(TOKENS, TOKENS), trained)
    model.recompute_blocks = True
    for g, h in zip(ml.grad(model.loss(TOKENS, TOKENS), trained), expected, strict=True):
        np.testing.assert_array_equal(g, h)


def test_the_loss_of_a_masked_head_never_holds_all_logits(monkeypatch):
    """In stretches of the vocabulary, bias and all: value and every gradient."""
    model, targets = spread(encoder("bert-base", "masked")), np.where(TOKENS % 2, TOKENS, -100)
    parameters = model.parameters()
    plain = ops.cross_entropy(model(TOKENS), targets)
    expected = ml.grad(plain, parameters)
    monkeypatch.setattr(head, "LOGITS", 8)
    monkeypatch.setattr(type(model.wte), "logits", None)
    loss = model.loss(TOKENS, targets)
    np.testing.assert_allclose(loss.item(), plain.item(), rtol=1e-13)
    for g, h in zip(ml.grad(loss, parameters), expected, strict=True):
        np.testing.assert_allclose(g, h, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("head", ["none", "masked"])
@pytest.mark.parametrize("name", NAMES)
def test_a_head_for_labels_takes_the_place_of_another(name, head):
    """Its family's, on the first token; all labels are alike at first, and a target counts wherever it stands."""
    model = ml.add_classifier(spread(encoder(name, head)), ["yes", "no"])
    assert {name: p.shape for name, p in model.named_parameters()} == parameters(model.architecture)
    assert model.labels == ("yes", "no") and model.architecture.labels == 2 and model(TOKENS).shape == (2, 2)
    np.testing.assert_allclose(model.loss(TOKENS, np.where(TOKENS % 5 == 3, 1, -100)).item(), np.log(2))
    last = model.classifier if name == "bert-base" else model.classifier.out_proj
    last.weight.data = last.weight.data + np.random.default_rng(0).normal(size=(2, 8))
    mask, targets = np.array([[1, 1, 1, 0, 0], [1] * 5]), np.full((2, 5), -100)
    targets[0, 2], targets[1, 4] = 1, 0
    found, expected = model.loss(TOKENS, targets, mask=mask), model.loss(TOKENS, np.array([1, 0]), mask=mask)
    assert found.item() == expected.item() != pytest.approx(np.log(2))
    scores = model.scores_of_texts(TOKENS, mask.astype(bool)).data
    np.testing.assert_array_equal(scores, model(TOKENS, mask=mask).data)
    assert np.abs(scores - model(TOKENS).data).max() > 1e-6  # the mask is not forgotten
    with pytest.raises(ValueError, match=r"a row of targets has two labels; one counts, and the others are -100"):
        model.loss(TOKENS, TOKENS * 0)
    with pytest.raises(ValueError, match="the model has a head for other labels: yes, no"):
        ml.add_classifier(model, ["a", "b"])


def test_a_head_that_is_there_stays_and_what_fails_changes_nothing():
    model = encoder("roberta-base", "labels")
    head = model.classifier
    with pytest.raises(ValueError, match="add_classifier: 2 labels, but roberta-base has a head for 3"):
        ml.add_classifier(model, ["a", "b"])
    assert ml.add_classifier(model, ["a", "b", "c"]).classifier is head and model.labels == ("a", "b", "c")
    adapted = ml.add_lora(encoder(), ml.LoRAConfig(2))
    with pytest.raises(ValueError, match="the encoder has an adapter; give it the head first"):
        ml.add_classifier(adapted, ["a", "b"])
    masked = encoder("bert-base", "masked")
    names = [name for name, _ in masked.named_parameters()]
    with pytest.raises(ZeroDivisionError), with_classifier(masked, ["a", "b"]):
        1 / 0  # noqa: B018
    assert not masked.labels and [name for name, _ in masked.named_parameters()] == names


def test_an_encoder_is_not_trained_to_guess_what_it_sees():
    model = encoder("bert-base", "masked")
    corpus = Corpus("text", np.arange(40) % 23, np.arange(40) % 23)
    for use in (lambda: ml.evaluate(model, corpus), lambda: ml.train(ml.Run(model, corpus), progress=False)):
        with pytest.raises(ValueError, match="'text' asks for the next token, and bert-base is an encoder, which sees"):
            use()


def test_it_is_copied_and_pickled():
    model = spread(encoder())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is Encoder
        np.testing.assert_array_equal(other(TOKENS).data, model(TOKENS).data)


WRONG = [
    (
        lambda: encoder()(TOKENS, token_types=TOKENS),
        ValueError,
        "Encoder: token_types run from 3 to 12, expected 0 to 1",
    ),
    (
        lambda: encoder()(TOKENS, token_types=TOKENS[0]),
        ValueError,
        r"token_types have shape \(5,\), the tokens \(2, 5\)",
    ),
    (lambda: encoder("distilbert-base")(TOKENS, token_types=TOKENS * 0), ValueError, "has no segments"),
    (lambda: encoder()(TOKENS, mask=TOKENS), ValueError, r"Encoder: mask is .*, expected \(2, 5\)"),
    (lambda: encoder()(np.zeros((1, 11), int)), ValueError, "11 tokens exceed the context = 10"),
    (lambda: encoder()(TOKENS[0]), ValueError, r"expected \(B, T\)"),
    (lambda: encoder()(TOKENS * 1.0), TypeError, "expected integers"),
    (lambda: encoder().loss(TOKENS, TOKENS), ValueError, "has no head, and hidden states have no loss"),
    (lambda: encoder().generate(TOKENS, 2), ValueError, "generate: bert-base is an encoder"),
    (lambda: encoder("distilbert-base").pooled(encoder()(TOKENS)), ValueError, "has no pooler"),
    (lambda: encoder(head="none", labels=2), ValueError, "labels = 2 with head = 'none'"),
    (lambda: ml.Transformer("deberta-v2-xxlarge"), ValueError, "counted and not run"),
]


@pytest.mark.parametrize("call, kind, message", WRONG)
def test_what_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
