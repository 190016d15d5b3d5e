"""Settings that every test shares."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.append(str(Path(__file__).parent))  # for homework_grading.py, which the tests of the homework share

# Drawn cases are the same on every run, so that a red test stays red until it is mended; shared machines have no pace.
settings.register_profile("minilora", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("minilora")

FETCH = "needs the fetched model: `minilora fetch smollm2-135m`, then `pytest -m model`"


def pytest_collection_modifyitems(config, items):
    """Tests of the fetched model run where they are asked for by name: minutes that no edit should wait for."""
    if "model" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("model"):
                item.add_marker(pytest.mark.skip(reason=FETCH))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The file of the fetched model; the test, which is marked `model`, is skipped where it is not there."""
    from minilora.interop.fetch import cached  # here: collecting tests needs none of it

    try:
        return cached("smollm2-135m")
    except FileNotFoundError as error:
        pytest.skip(str(error))
