"""Something that may end a process, in a fork of this one, which has imported everything."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def in_a_process(do: Callable[[], object]) -> int:
    """Return the exit code: 0, 1 where something was raised, or minus the signal that ended the process."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        do()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
