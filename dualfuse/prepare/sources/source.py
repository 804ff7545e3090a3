"""A source that was opened: its items, and what belongs to it as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

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
