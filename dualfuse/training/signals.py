"""Ctrl-C and the scheduler's SIGTERM: ask the loop to stop between two steps."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ECHO = 1.0
"""Seconds in which further signals are taken for the same one: torchrun passes Ctrl-C on to processes that had it."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped between two steps, after a checkpoint; the same command goes on from there."""

    def __init__(self, said: str, number: int) -> None:
        """Take the message, and the number of the signal that asked."""
        super().__init__(said)
        self.number = number


@dataclass
class StopRequest:
    """Which signal asked the loop to stop, and when first; 0: none."""

    signal_number: int = 0
    since: float = math.inf

    def ask(self, number: int) -> None:
        """Asks; interrupts at once when asked again, after ``ECHO`` seconds."""
        if time.monotonic() - self.since > ECHO:
            raise Interrupted("at once, without a checkpoint", number)
        if not self.signal_number:
            self.signal_number, self.since = number, time.monotonic()


@contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """Return what the first SIGINT or SIGTERM marks as asked; another one, a second later, interrupts at once."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread can take signals
        return
    before = {
        number: signal.signal(number, lambda number, _: stop.ask(number)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
