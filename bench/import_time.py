"""Measures what it costs to start dualfuse, in seconds of processor time: python bench/import_time.py

Commands take turns, so that a busy machine slows all of them; each is shown with its median, smallest and largest.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 7
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "import dualfuse": (sys.executable, "-c", "import dualfuse"),
    "dualfuse --help": (str(Path(sys.executable).with_name("dualfuse")), "--help"),
    "import torch": (sys.executable, "-c", "import torch"),
}


def children_seconds() -> float:
    """Return the processor time, user and system, of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def seconds(command: tuple[str, ...]) -> float:
    """Return the processor time of one run of ``command``; raises if it fails."""
    before = children_seconds()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return children_seconds() - before


def main() -> None:
    """Print one line per command."""
    for command in COMMANDS.values():
        seconds(command)  # once without looking: compiles and warms the file cache
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(ROUNDS)]
    print(f"CPU seconds to start, {ROUNDS} rounds")
    for name in COMMANDS:
        times = [times_of[name] for times_of in rounds]
        print(f"  {name:<16} {statistics.median(times):6.3f}  ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()
