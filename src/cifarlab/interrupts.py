"""Ctrl-C and SIGTERM as a request to stop after the step in hand, not as an exception in the middle of it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether a signal asked to stop, and which one. A plain flag: taking a lock in a signal handler can deadlock."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def is_set(self) -> bool:
        return self.signal_number is not None


@contextmanager
def stop_on_signals(on_stop: Callable[[int], None] | None = None) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a stop request; a second one does what it did before: Ctrl-C is a
    KeyboardInterrupt at once, SIGTERM ends the process.

    Signals that the process ignores (SIGINT under `nohup ... &`) stay ignored. In a thread other than the main one
    nothing is installed, since Python allows it there alone, and the request never comes.

    Args:
        on_stop: called with the signal's number inside the handler, to tell the person at once.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    watched = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        for each in watched:
            signal.signal(each, before[each])
        if on_stop is not None:
            on_stop(number)

    for number in watched:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number in watched:
            signal.signal(number, before[number])
