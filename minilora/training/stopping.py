"""The first Ctrl-C, or a signal that ends programs, lets a loop finish the step it is in and save it.

A batch system whose time is up sends SIGTERM and, seconds later, SIGKILL; a terminal that is closed sends SIGHUP.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


@contextlib.contextmanager
def stop_at_signals() -> Iterator[threading.Event]:
    """An event that the first signal sets. The second Ctrl-C interrupts as usual; others wait until the block ends.

    SIGTERM and SIGHUP that are ignored (as by `nohup`), or that the program answers itself, stay so.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield event
        return

    def stop(number: int, frame: Any) -> None:
        event.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    ours = [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, *ours)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
