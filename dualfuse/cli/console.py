"""Log messages of the library on stderr, while a command runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Print what the loggers ``dualfuse.*`` record from level INFO on; only warnings in all processes but the first."""
    logger, handler = logging.getLogger("dualfuse"), _StderrHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _StderrHandler(logging.Handler):
    """Writes to the current ``sys.stderr``, which a progress bar replaces while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(prefix + self.format(record), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return ``text``, such as a file name of any bytes, in a form that a terminal or a font can show."""
    text = text.encode(errors="backslashreplace").decode()  # bytes that are not UTF-8
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
