"""Keeping freed memory is asked for once, where there is a glibc, and changes no number."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest

import minilora as ml
from minilora.training import memory

PAGE_FAULTS = """
import resource, sys
import numpy as np
from minilora.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    return sum(float(np.ones(500_000)[0]) for _ in range(20))
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    arrays = [np.ones(500_000) for _ in range(5)]  # 4 MB each, then all freed
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
def test_freed_blocks_are_used_again():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", PAGE_FAULTS, how], capture_output=True, text=True).stdout)
        for how in ("keep", "give back")
    }
    assert faults["keep"] < faults["give back"] / 2


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "win32")
    assert memory.keep_freed_memory.__wrapped__() is False


def test_training_asks_for_it_once(monkeypatch):
    memory.keep_freed_memory.cache_clear()
    model = ml.GPT(ml.GPTConfig(7, 5, 1, 1, 4))
    optimizer = ml.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        ml.train_step(model, optimizer, np.zeros((2, 5), int), np.ones((2, 5), int))
    assert memory.keep_freed_memory.cache_info().misses == 1
