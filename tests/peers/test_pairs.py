"""Instruction pairs beside transformers: the same tokens, the same of them count, the same loss and gradients."""

import numpy as np
import pytest
from tiny_tokenizers import write_folder

import minilora as ml
from minilora.interop.tokenizer import from_folder
from minilora.training.backward import loss_and_gradients
from minilora.training.examples import padded
from minilora.training.pairs import pair_of

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'minilora[peers]'")

BAR = 1e-6  # transformers takes the loss of float32 logits whatever the model has
TURN = "{{ '<|im_start|>' + m['role'] + '\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
SAID = "{{ m['content'] + '<|im_end|>' }}"
PLAIN = f"{{% for m in messages %}}{TURN}{SAID}{{{{ '\\n' }}}}{{% endfor %}}{ASK}"
MARKED = PLAIN.replace(
    SAID,
    f"{{% if m.role == 'assistant' %}}{{% generation %}}{SAID}{{% endgeneration %}}{{% else %}}{SAID}{{% endif %}}",
)
TURNS = ["Hello <b>", "Yes? The class.", "1 + 1?", "\n\n12 is\nthe count", "def f", "return 12 "]


def chat(n):
    return [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(TURNS[: 2 * n])]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Ours and transformers' of one folder."""
    folder = write_folder(tmp_path_factory.mktemp("tokenizer"), chat_template__jinja=PLAIN)
    return from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_assistants_tokens_are_those_that_its_template_marks(tokenizers, n):
    ours, theirs = tokenizers
    assert ours.chat_text(chat(n), False) == theirs.apply_chat_template(chat(n), chat_template=MARKED, tokenize=False)
    expected = theirs.apply_chat_template(
        chat(n), chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, targets = pair_of({"messages": chat(n)}, ours)
    np.testing.assert_array_equal(tokens, expected["input_ids"][: len(tokens)])
    labels = np.where(expected["assistant_masks"], expected["input_ids"], -100)[1:]
    np.testing.assert_array_equal(targets, labels[: len(targets)])
    assert (labels[len(targets) :] == -100).all()


def test_loss_and_gradients_are_those_of_labels_in_transformers(tokenizers, transformers_gpt2, as_gpt2, relative_error):
    ours, theirs = tokenizers
    model = ml.GPT(ml.GPTConfig(ours.vocab_size, 160, 2, 2, 16), rng=1).astype("float64")
    rows = [{"prompt": "The class", "completion": " of 2024"}, {"messages": chat(3)}, {"messages": chat(1)}]
    batch = [theirs.apply_chat_template(row["messages"], chat_template=MARKED, return_dict=True,
             return_assistant_tokens_mask=True) for row in rows[1:]]  # fmt: skip
    prompt, whole = (theirs(text)["input_ids"] for text in ("The class", "The class of 2024<|im_end|>"))
    batch.append({"input_ids": whole, "assistant_masks": [i >= len(prompt) for i in range(len(whole))]})
    longest = max(len(row["input_ids"]) for row in batch)
    ids, counts = (
        torch.tensor([[*row[key], *[0] * (longest - len(row[key]))] for row in batch])
        for key in ("input_ids", "assistant_masks")
    )
    attended = torch.tensor([[i < len(row["input_ids"]) for i in range(longest)] for row in batch])
    peer = transformers_gpt2(model)
    expected = peer(ids, attention_mask=attended, labels=torch.where(counts.bool(), ids, -100)).loss
    expected.backward()
    tokens, targets, _ = padded([pair_of(row, ours) for row in rows])
    loss, gradients = loss_and_gradients(model, model.parameters(), tokens, targets)
    assert relative_error(np.array(loss), expected) <= BAR
    named = as_gpt2(dict(zip((name for name, _ in model.named_parameters()), gradients, strict=True)))
    theirs = {name: p.grad for name, p in peer.named_parameters() if name in named}
    assert relative_error(named, theirs) <= BAR
