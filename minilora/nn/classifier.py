"""A head for labels on a model of language: scores = W h + b, where h is the hidden state of one of a text's tokens.

A decoder's last token has seen the whole text (Radford et al. 2018, "GPT", section 3.2; with LoRA, Li et al. 2023,
"Label Supervised LLaMA Finetuning"). A label is a target as any other, the number of its score: it stands where h is
read, and all other targets are -100. So a batch of labels is trained on, padded and weighted as a batch of text is.
An encoder reads its first token, which sees the whole text, too, and its head is its family's (`encoder.py`).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ..autograd.signatures import checked, shown
from .language_model import LanguageModel

PARTS = ("classifier", "labels", "head", "pooler", "architecture", "config")  # what a head for labels may change


@checked
def add_classifier(model: Any, labels: Sequence[str]) -> Any:
    """Give a model a head for these labels, `model.classifier`; its loss is then the labels'. Returns the model.

    W (labels, C) starts at zero: all labels alike; b is an encoder's alone, as in transformers. An adapter trains and
    keeps the head where it is named: LoRAConfig(modules_to_save=("classifier",)), with "pooler" where a BERT came
    without one. An encoder's other head gives way; one for as many labels that are not named stays, and gets these
    names. A vision transformer's head gives way to one for other labels. Raises ValueError for fewer than two labels,
    for labels that are no texts or twice the same, and where a model of language has other labels.
    """
    if not hasattr(model, "take_head") or isinstance(model, type):
        raise TypeError(f"add_classifier: model = {shown(model)}, expected one such as ml.load_model('base')")
    labels = tuple(labels)
    if len(labels) < 2 or not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise ValueError(f"add_classifier: labels = {shown(labels)}, expected two different texts, or more")
    if model.labels == labels:
        return model
    if model.labels and isinstance(model, LanguageModel):
        raise ValueError(f"add_classifier: the model has a head for other labels: {', '.join(model.labels)}")
    model.take_head(len(labels))
    model.labels = labels
    return model


@contextlib.contextmanager
def with_classifier(model: Any, labels: Sequence[str]) -> Iterator[None]:
    """The model with a head for these labels, if there are any; where the block fails, without one that it got here."""
    before = {name: value for name, value in vars(model).items() if name in PARTS} if labels else {}
    try:
        if labels:
            add_classifier(model, labels)
        yield
    except BaseException:
        for name, value in before.items():
            setattr(model, name, value)
        raise
