"""A small text and a small model for the tests of training."""

import contextlib
import gc
import itertools
import os
import signal
import sys

import numpy as np
import pytest

import minilora as ml
from minilora.training.corpus import Corpus

PACKAGE = os.path.join(os.path.dirname(ml.__file__), "")  # a checkout may have its name, too

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "rat", "run", "from", "dog", "who", "ate", "it"]


@pytest.fixture
def text_path(tmp_path):
    """A file of 6,000 or so characters with something to learn in it."""
    words = np.random.default_rng(0).choice(WORDS, 1500)
    path = tmp_path / "story.txt"
    path.write_text(" ".join(words))
    return path


@pytest.fixture
def corpus(text_path) -> Corpus:
    """The small text as a corpus."""
    return ml.load_corpus(text_path)


@pytest.fixture
def make_model():
    """A function that builds a small GPT over the 96 characters."""

    def make(dtype: str = "float32", dropout: float = 0.0, lora: ml.LoRAConfig | None = None, rng: int = 0) -> ml.GPT:
        model = ml.GPT(ml.GPTConfig(96, 12, 2, 2, 16, dropout=dropout), rng=rng).astype(dtype)
        return ml.add_lora(model, lora, rng=1) if lora else model

    return make


class _Interrupt:
    """Raises KeyboardInterrupt in the calling thread where its n-th line of minilora begins.

    The collector rests meanwhile: it would end generators of earlier tries, where an interrupt is raised to nobody.
    """

    def __init__(self, n: int):
        self.left = n

    def __enter__(self):
        self.before = sys.gettrace()
        gc.disable()
        sys.settrace(self)
        return self

    def __exit__(self, *error):
        sys.settrace(self.before)
        gc.enable()

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


@pytest.fixture
def interrupted_at_every_line():
    """A function that calls another one many times, interrupted one line later each time, until it comes through."""

    def tries(function, step: int = 1):
        for n in itertools.count(1, step):
            try:
                with _Interrupt(n) as interrupt:
                    function()
            except KeyboardInterrupt:
                yield n
            else:
                assert interrupt.left > 0, "a Ctrl-C was lost"
                return

    return tries


@pytest.fixture
def interrupted_at_random():
    """A function that calls another one many times, interrupted after at most so many seconds, as Ctrl-C would."""

    def tries(function, times: int, seconds: float):
        def interrupt(number, frame):
            raise KeyboardInterrupt

        rng, before = np.random.default_rng(0), signal.signal(signal.SIGALRM, interrupt)
        gc.disable()  # what others do when it collects, as hypothesis does, is not to be interrupted
        try:
            for _ in range(times):
                with contextlib.suppress(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, seconds))
                    function()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            gc.enable()

    return tries


@pytest.fixture
def interrupted():
    """Train a run that Ctrl-C stops: -> the run."""

    def train(run, *args):
        with pytest.raises(KeyboardInterrupt):
            ml.train(run, *args, progress=False)
        return run

    return train
