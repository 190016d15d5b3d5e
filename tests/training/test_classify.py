"""Labels: a head that starts at nothing, texts with labels, and how many are right."""

import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from letters import Letters

import minilora as ml
from minilora.nn.architectures import find
from minilora.nn.characters import CHARACTERS
from minilora.training.checkpoint import load_checkpoint
from minilora.training.classify import Share, accuracy, classify, load_labels, unicode_categories

CONFIG = ml.GPTConfig(96, 24, 2, 2, 16)
COLOURS = ["red", "green", "blue"]
HEAD = ml.LoRAConfig(rank=2, target_modules="*", modules_to_save=("classifier",))


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def texts(n=40):
    """The label is in the text's first word, which the last token has to remember."""
    rng = np.random.default_rng(0)
    return [
        {"text": f"{COLOURS[i % 3]} {''.join(rng.choice(list('abc'), 5))}", "label": COLOURS[i % 3]} for i in range(n)
    ]


@pytest.fixture
def labelled(tmp_path):
    return load_labels(write(tmp_path / "colours.jsonl", *texts()), CHARACTERS)


def test_the_head_starts_with_all_labels_alike_and_reads_the_last_token():
    model = ml.add_classifier(ml.GPT(CONFIG), COLOURS)
    tokens, targets = np.arange(10)[None], np.full((1, 10), -100)
    targets[0, 6] = 1
    assert model.loss(tokens, targets).item() == pytest.approx(np.log(3), rel=1e-6)
    assert model.scores(tokens).shape == (1, 10, 3) and model(tokens).shape == (1, 10, 96)
    model.classifier.weight.data[...] = np.random.default_rng(0).normal(size=(3, 16))
    hidden = model.ln_f(model.hidden(model.wte(tokens))).numpy()[0, 6]
    scores = model.classifier.weight.data @ hidden
    np.testing.assert_allclose(model.scores(tokens).numpy()[0, 6], scores, rtol=1e-5)
    assert model.loss(tokens, targets).item() == pytest.approx(np.log(np.exp(scores).sum()) - scores[1], rel=1e-5)


def test_a_transformers_head_reads_its_last_token_too():
    a = replace(find("llama-2-7b"), vocab_size=96, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=24)
    model = ml.add_classifier(ml.Transformer(a), COLOURS)
    model.classifier.weight.data[...] = np.random.default_rng(0).normal(size=(3, 16))
    tokens, targets = np.arange(12).reshape(2, 6), np.full((2, 6), -100)
    targets[:, -1] = 2, 0
    expected = ml.ops.cross_entropy(model.classifier(model.last(tokens))[:, -1], targets[:, -1])
    assert model.loss(tokens, targets).item() == pytest.approx(expected.item(), rel=1e-6)
    assert ml.add_lora(model, HEAD).count(trainable=True) > 3 * 16


def test_odd_heads():
    model = ml.add_classifier(ml.GPT(CONFIG), COLOURS)
    assert ml.add_classifier(model, COLOURS) is model
    with pytest.raises(ValueError, match="the model has a head for other labels: red, green, blue"):
        ml.add_classifier(model, COLOURS[:2])
    for labels in ([], ["a"], ["a", "a"], [1, 2]):
        with pytest.raises((ValueError, TypeError), match=r"^add_classifier: labels = "):
            ml.add_classifier(ml.GPT(CONFIG), labels)
    with pytest.raises(ValueError, match=r"^classify: the model has no labels; ml\.add_classifier\(model, labels\)"):
        classify(ml.GPT(CONFIG), ["a"])
    with pytest.raises(ValueError, match=r"classify: got '' among the texts, expected a text that is not empty"):
        classify(model, ["a", ""])


def test_texts_with_labels_from_a_file(labelled):
    assert labelled.labels == ("blue", "green", "red") and (len(labelled.train), len(labelled.validation)) == (36, 4)
    tokens, targets = labelled.train[0]
    assert CHARACTERS.decode(tokens) == texts()[0]["text"]
    assert targets[-1] == 2 and (targets[:-1] == -100).all()
    assert "36 texts, 4 held out; " in repr(labelled)


WRONG = {  # a line -> what is said of it
    "{": r"line 2 is no JSON: ",
    "[1]": r"line 2: got \[1\], expected \{\"text\": ",
    '{"text": "a"}': r"line 2: got \{'text': 'a'\}, expected",
    '{"text": "", "label": "red"}': r"line 2: text is '', expected one that is not empty",
    '{"text": 3, "label": "red"}': r"line 2: text is 3, expected one",
    '{"text": "a", "label": true}': r"line 2: label is True, expected a text, or a whole number",
    '{"text": "a", "label": null}': r"line 2: label is None, expected",
    '{"text": "a", "label": "pink"}': r"line 2: the label 'pink' is unknown; there are red, green, blue$",
}


@pytest.mark.parametrize("line, message", WRONG.items(), ids=range(len(WRONG)))
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", texts(1)[0], line)
    with pytest.raises(ValueError, match=message) as error:
        load_labels(path, CHARACTERS, COLOURS)
    assert str(error.value).startswith(f"load_labels: {path}, line 2") and "\n" not in str(error.value)


def test_numbers_are_labels_too_and_long_texts_are_cut_and_said(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "abcdef", "label": 1}, {"text": "b", "label": 0})
    with pytest.warns(UserWarning, match=r"a\.jsonl: 1 of 2 texts are longer than 4 tokens and lost their end$"):
        found = load_labels(path, CHARACTERS, longest=4)
    assert found.labels == ("0", "1") and max(len(t) for t, _ in found.train + found.validation) == 4
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no texts$"):
        load_labels(write(tmp_path / "empty.jsonl", ""), CHARACTERS)
    with pytest.raises(TypeError, match="load_labels: tokenizer is None, expected a model's own"):
        load_labels(path, None)


@pytest.mark.slow
def test_categories_of_names_are_unicodes_and_no_name_is_in_both_parts():
    found = unicode_categories(Letters(), 128)
    name = lambda row: Letters().decode(row[0])
    for part in (found.train, found.validation):
        for row in part[::17]:
            assert found.labels[row[1][-1]] == unicodedata.category(unicodedata.lookup(name(row)))
    parts = [set(map(name, part)) for part in (found.train, found.validation)]
    assert parts[0].isdisjoint(parts[1]) and 0.09 < len(parts[1]) / len(parts[0] | parts[1]) < 0.11
    assert {"Lu", "Ll", "Nd", "Sm"} <= set(found.labels)
    counts = np.bincount([row[1][-1] for row in found.train])
    assert counts.min() > 150 and counts.max() <= 360
    with pytest.warns(UserWarning, match=r"^unicode-categories: 4,\d+ of 4,\d+ texts are longer than 2 tokens") as said:
        unicode_categories(Letters(), 2)
    assert len(said) == 1
    assert unicode_categories(Letters(), 128).digest == found.digest != unicode_categories(Letters(), 128, 1).digest


@pytest.mark.slow
def test_lora_and_its_head_learn_labels_are_saved_together_and_go_on(labelled, tmp_path):
    run = ml.Run(ml.add_lora(ml.add_classifier(ml.GPT(CONFIG), labelled.labels), HEAD, rng=1), labelled,
                 ml.Settings(steps=60, batch_size=12, lr=2e-2, evaluate_every=30, checkpoint_every=50))  # fmt: skip
    assert {name.rpartition(".")[2] for name, p in run.model.named_parameters() if p.requires_grad} == {
        "lora_A", "lora_B", "weight"}  # fmt: skip
    ml.train(run, tmp_path / "run.npz", progress=False)
    assert run.validation["loss"][0] == pytest.approx(np.log(3), abs=1e-4)
    share = accuracy(run.model, labelled)
    assert (share.right, share.total) == (4, 4)
    rows = texts()
    asked = [row["text"] for row in rows]
    found = classify(run.model, asked)
    assert np.mean([a == row["label"] for a, row in zip(found, rows, strict=True)]) > 0.9
    assert classify(run.model, asked[3:4]) == found[3:4]  # padding changes nothing

    ml.save_adapter(run.model, tmp_path / "a.npz")
    again = ml.load_adapter(ml.GPT(CONFIG), tmp_path / "a.npz")
    assert again.labels == labelled.labels and classify(again, asked) == found
    other = ml.GPT(CONFIG, rng=1)
    with pytest.raises(ValueError, match="trained on another base model"):
        ml.load_adapter(other, tmp_path / "a.npz")
    assert not other.labels and other.classifier is None
    resumed = load_checkpoint(tmp_path / "run.npz")
    assert resumed.model.labels == labelled.labels and classify(resumed.model, asked) == found
    with pytest.raises(ValueError, match="accuracy: the texts have the labels blue, green, red, the model a, b"):
        accuracy(ml.add_classifier(ml.GPT(CONFIG), ["a", "b"]), labelled)


def test_a_model_with_a_head_is_saved_with_it(tmp_path):
    model = ml.add_classifier(ml.GPT(CONFIG), COLOURS)
    model.classifier.weight.data[...] = np.random.default_rng(0).normal(size=(3, 16))
    again = ml.load_model(ml.save_model(model, tmp_path / "m.npz"))
    assert again.labels == tuple(COLOURS)
    np.testing.assert_array_equal(again.classifier.weight.data, model.classifier.weight.data)


def test_the_interval_is_wilsons():
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    for right, total, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        np.testing.assert_allclose(Share(right, total).interval, (low, high), atol=5e-5)
    assert str(Share(81, 263)) == "30.8 % of 263 (95 % interval 25.5 to 36.6)"
    assert not [n for n in range(1, 300) if "-0.0" in str(Share(0, n)) or Share(n, n).interval[1] > 1]
