"""Settings that every test shares."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.append(str(Path(__file__).parent))  # for homework_grading.py, which the tests of the homework share

# Drawn cases are the same on every run, so that a red test stays red until it is mended; shared machines have no pace.
settings.register_profile("minilora", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("minilora")
