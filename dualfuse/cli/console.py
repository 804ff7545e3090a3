"""What the commands print: results on stdout, messages on stderr, and never a control character of a foreign text."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from dualfuse.io import silence
from dualfuse.printable import printable

LINES = "\n\t"  # characters that lay out the text of a command


def echo(text: object, *, to_stderr: bool = False) -> None:
    """Print a text, with escapes for control characters and for characters that the stream cannot encode.

    Where the reader of the stream (``| head``) or its terminal has gone, nothing is printed; and nothing on a stderr
    that cannot be written, such as a file on a full disk.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is None:  # closed when the process was started
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = printable(str(text), LINES).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(shown, file=stream, flush=True)
    except OSError as error:
        if not to_stderr and error.errno not in (errno.EPIPE, errno.EIO):
            raise
        silence(stream)


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error, as ``sys.excepthook`` does, with escapes for control characters."""
    echo("".join(traceback.format_exception(kind, error, trace)).rstrip(), to_stderr=True)


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
        echo(prefix + self.format(record), to_stderr=True)
