"""Consoles that show foreign texts as they are, and a progress bar for anything that takes more than a few seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from dualfuse import distributed as dist
from dualfuse.printable import printable

Item = TypeVar("Item")


class PlainConsole(Console):
    """A console without markup, in which control characters of the printed texts are escaped."""

    def __init__(self, *, stderr: bool = False) -> None:
        """``stderr`` chooses the stream; stdout by default."""
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:  # Any: as in rich
        """Return ``text`` escaped before it is measured, so that a column of a table is as wide as its cells."""
        return super().render_str(printable(text, "\n\t"), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of ``renderable``; those of rich itself (colors, cursor) stay as they are."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, "\n\t"))


def track(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """Yield ``items`` and count them on a progress bar; only the first process draws one, and only on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    console = PlainConsole(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal or dist.rank() > 0
    ) as progress:
        yield from progress.track(items, total=total, description=what)
