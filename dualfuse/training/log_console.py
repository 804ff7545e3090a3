"""The lines of a run's log on stderr: one that is updated in place on a terminal, otherwise a log message each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dualfuse.progress import PlainConsole

logger = logging.getLogger("dualfuse.training.run_log")


def open_console(steps: int, start: int) -> TerminalLine | PlainLines:
    """Return the console for a log that begins at step ``start`` of ``steps``."""
    return TerminalLine(steps, start) if PlainConsole(stderr=True).is_terminal else PlainLines(steps)


class SilentConsole:
    """Shows nothing, on all processes but the first."""

    def show(self, step: int, values: Mapping[str, float], left: float, note: str) -> None:
        """Show the values of one line, and the seconds ``left``."""

    def close(self) -> None:
        """End the display."""


class PlainLines:
    """One log message each time, where stderr is not a terminal."""

    def __init__(self, steps: int) -> None:
        """``steps`` is the last one."""
        self.steps = steps

    def show(self, step: int, values: Mapping[str, float], left: float, note: str) -> None:
        """Show the values of one line, and the seconds ``left``."""
        logger.info("step %s/%s  %s", step, self.steps, _format(values, left, note))

    def close(self) -> None:
        """End the display."""


class TerminalLine:
    """One line that is updated in place."""

    def __init__(self, steps: int, start: int) -> None:
        """Show a bar that stands at ``start`` of ``steps``."""
        columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[text]}", markup=False))
        # refreshed by hand, without a thread beside the training
        self.progress = Progress(*columns, console=PlainConsole(stderr=True), auto_refresh=False)
        self.bar = self.progress.add_task("", total=steps, completed=start, text="")
        self.progress.start()

    def show(self, step: int, values: Mapping[str, float], left: float, note: str) -> None:
        """Show the values of one line, and the seconds ``left``."""
        self.progress.update(self.bar, completed=step, text=_format(values, left, note), refresh=True)

    def close(self) -> None:
        """End the display."""
        self.progress.stop()


def _format(values: Mapping[str, float], left: float, note: str) -> str:
    """Return "loss 0.693  lr 0.0002  1:02:03 left"."""
    numbers = (f"{name.replace('_per_', '/')} {value:.4g}" for name, value in values.items())
    return "  ".join(filter(None, (*numbers, f"{timedelta(seconds=round(left))} left", note)))
