"""Settings that every test shares."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # for homework_grading.py, which the tests of the homework share, and the like
sys.path.append(str(HERE.parent / "notebooks" / "site"))  # for what the site is built with

# Two BLAS threads of products so small wait for one another, beside other work for minutes: one, here and in processes
# that tests start. Read when NumPy is imported; a test of what more threads must not change sets their number itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A suite started in the background ignores Ctrl-C, and so would the processes whose end by one is tested.
for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL), ("SIGQUIT", signal.SIG_DFL)):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, name), usual)

# Drawn cases are the same on every run, so that a red test stays red until it is mended; shared machines have no pace.
settings.register_profile("minilora", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("minilora")

ASKED = {  # what runs only where it is asked for by name: minutes that no edit should wait for
    "model": "needs the fetched model: `minilora fetch smollm2-135m`, then `pytest -m model`",
    "settings": "runs a lecture under other parameters: `pytest -m settings`",
}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The whole suite runs in two processes where there are two cores; with `-n 0`, `-s` or a file's name in one."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not hasattr(config, "workerinput")
    options = vars(config.option)
    watched = options["usepdb"] or options["capture"] == "no"
    if whole and not watched and options.get("numprocesses", 0) is None and (os.cpu_count() or 1) > 1:
        config.option.numprocesses, config.option.dist = 2, "worksteal"  # each begins with half the files, in order


def pytest_collection_modifyitems(config, items):
    """Tests with a marker of ASKED are left out unless it is named."""
    for name, reason in ASKED.items():
        for item in items:
            if name not in config.option.markexpr and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The file of the fetched model; the test, which is marked `model`, is skipped where it is not there."""
    from minilora.interop.fetch import cached  # here: collecting tests needs none of it

    try:
        return cached("smollm2-135m")
    except FileNotFoundError as error:
        pytest.skip(str(error))
