"""Consoles that show foreign texts as they are, and a progress bar for anything that takes more than a few seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any, TextIO, TypeVar, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from dualfuse import distributed as dist
from dualfuse.io import silence
from dualfuse.printable import printable

Item = TypeVar("Item")


class _Messages:
    """The stream of messages, ``sys.stderr``: training does not end because nobody reads them any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # Any: whatever a stream has
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it if its reader or terminal has gone."""
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it likewise."""
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)


class PlainConsole(Console):
    """A console without markup, in which control characters of the printed texts are escaped."""

    def __init__(self, *, stderr: bool = False) -> None:
        """``stderr`` chooses the stream; stdout by default."""
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        if stderr and sys.stderr is not None:
            self.file = cast(IO[str], _Messages(sys.stderr))  # cast: it has what its stream has

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
