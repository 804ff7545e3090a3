"""A source that was opened: its items, and what belongs to it as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.prepare.sources.item import Item


@dataclass(frozen=True)
class Source:
    """Everything that is prepared from one file or folder."""

    items: Iterator[Item]
    total: int | None = None
    """How many items there are, where that is known before they are read."""
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """Texts that are written beside the shards, by name."""
    remarks: tuple[str, ...] = ()
    """What people should know of the source, such as parts that are not there."""


@contextmanager
def of_others(path: Path, kind: str) -> Iterator[None]:
    """Turn what a file of somebody else makes its reader stumble over into a ``DualfuseError`` that names the file."""
    try:
        yield
    except (DualfuseError, OSError):  # these say what is wrong
        raise
    except Exception as error:
        raise DualfuseError(
            f"{path} looks like the kind {kind!r}, but is damaged or another version of it ({type(error).__name__}: "
            f"{error}); download it again, or look at the entry"
        ) from error


def readable(items: Iterator[Item], path: Path, kind: str) -> Iterator[Item]:
    """Return the items of a file of somebody else; ``DualfuseError`` where it is not what it seems.

    A caption that is no text is none.
    """
    with of_others(path, kind):
        for item in items:
            texts = tuple(text for text in item.texts if isinstance(text, str))
            yield item if len(texts) == len(item.texts) else replace(item, texts=texts)
