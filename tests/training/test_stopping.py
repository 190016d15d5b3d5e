"""The first signal sets an event, and the handlers are put back as they were."""

import os
import signal
import threading

import pytest

from minilora.training.stopping import ENDING, stop_at_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")


@pytest.fixture(autouse=True)
def handlers():
    """The handlers, put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_sets_the_event_and_only_ctrl_c_insists(first, handlers):
    with pytest.raises(KeyboardInterrupt), stop_at_signals() as event:
        assert not event.is_set()
        signal.raise_signal(first)
        assert event.is_set()
        for number in ENDING:
            signal.raise_signal(number)  # while it is saved
        if first != signal.SIGINT:
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C was swallowed")
    assert {number: signal.getsignal(number) for number in handlers} == handlers


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("answer", [signal.SIG_IGN, lambda *_: None])
def test_what_is_ignored_or_answered_stays_so(number, answer):
    signal.signal(number, answer)
    with stop_at_signals() as event:
        assert signal.getsignal(number) is answer
        signal.raise_signal(number)
        assert not event.is_set()
    assert signal.getsignal(number) is answer


def test_a_thread_has_no_signals():
    seen = []

    def work():
        with stop_at_signals() as event:
            seen.append((event.is_set(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.SIG_DFL)]
