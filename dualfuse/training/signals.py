"""Stop the loop between two steps on Ctrl-C or on the SIGTERM of a scheduler."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ECHO = 1.0
"""Seconds in which further signals count as the same one: torchrun forwards Ctrl-C to processes that also got it."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal; the same command resumes it."""

    def __init__(self, message: str, signal_number: int) -> None:
        """``signal_number`` is the signal that stopped the run."""
        super().__init__(message)
        self.number = signal_number


@dataclass
class StopRequest:
    """The signal that asked the loop to stop (0: none), and the time of the first one."""

    signal_number: int = 0
    since: float = math.inf

    def ask(self, number: int) -> None:
        """Request a stop; a second request, more than ``ECHO`` seconds later, interrupts at once."""
        if time.monotonic() - self.since > ECHO:
            raise Interrupted("at once, without a checkpoint", number)
        if not self.signal_number:
            self.signal_number, self.since = number, time.monotonic()


@contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """Return a request that the first SIGINT or SIGTERM sets; another one, a second later, interrupts at once.

    The former signal handlers are restored at the end. Outside the main thread no signal is handled.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread can handle signals
        return
    before = {
        number: signal.signal(number, lambda number, _: stop.ask(number)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
