"""Stop the loop between two steps on Ctrl-C or on the SIGTERM of a scheduler; outlive the terminal."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

logger = logging.getLogger(__name__)

ECHO = 1.0
"""Seconds in which further signals count as the same one: torchrun forwards Ctrl-C to processes that also got it."""
LAUNCHER = "TORCHELASTIC_RUN_ID"
"""Environment variable of processes that torchrun started."""


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
            raise Interrupted("at once; the same command resumes from the newest checkpoint", number)
        if not self.signal_number:
            self.signal_number, self.since = number, time.monotonic()


@contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """Return a request that the first SIGINT or SIGTERM sets; another one, a second later, interrupts at once.

    Under torchrun SIGHUP requests a stop, too: torchrun ends its processes half a minute after its terminal is closed.
    The former signal handlers are restored at the end. Outside the main thread no signal is handled.
    """
    stop = StopRequest()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if LAUNCHER in os.environ and hasattr(signal, "SIGHUP"):
        numbers.append(signal.SIGHUP)
    with _handling(dict.fromkeys(numbers, stop.ask)):
        yield stop


@contextmanager
def outlive_terminal() -> Iterator[None]:
    """Ignore SIGHUP, which a terminal sends when it is closed, where it would end the process.

    A handler of the host program stays. Outside the main thread nothing changes.
    """
    number = getattr(signal, "SIGHUP", None)  # reason for getattr: Windows has no SIGHUP
    ends_process = number is not None and signal.getsignal(number) == signal.SIG_DFL
    with _handling({number: _report_hangup} if number is not None and ends_process else {}):
        yield


def _report_hangup(number: int) -> None:
    logger.warning("the terminal was closed (signal %s); training continues, and SIGTERM stops it", number)


@contextmanager
def _handling(handlers: Mapping[int, Callable[[int], None]]) -> Iterator[None]:
    """Call the handlers for their signals; restore the former ones at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
        return
    before = {
        number: signal.signal(number, lambda number, _, handler=handler: handler(number))
        for number, handler in handlers.items()
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
