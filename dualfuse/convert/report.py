"""What became of every tensor of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from dualfuse.io import listing, write_json

SHOWN = 12  # names of a list; their number is always told, and all are in the file
FILE = "conversion.json"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Report:
    """Names and shapes of what was used, was not, or is new; nothing disappears without standing in one of them."""

    source: str
    used: Shapes
    """Theirs."""
    unused: Shapes = field(default_factory=dict)
    """Without effect, or heads that were never trained."""
    unexpected: Shapes = field(default_factory=dict)
    """Theirs, that the layout does not know: either another kind of model, or a part that is lost."""
    new: Shapes = field(default_factory=dict)
    """Of the result: what the source lacks, with initial weights."""
    notes: tuple[str, ...] = ()
    """What else changed."""

    def __str__(self) -> str:
        """Return what a person should see."""
        lines = [f"{self.source}: {_count(self.used)} used"]
        if self.unexpected:
            lines += [f"UNEXPECTED: {_count(self.unexpected)} that this kind of model does not have, left out:"]
            lines += _listed(self.unexpected)
        if self.new:
            lines += [f"{_count(self.new)} new, with initial weights:", *_listed(self.new)]
        if self.unused:
            lines += [f"{_count(self.unused)} left out, without effect or never trained:", *_listed(self.unused)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def save(self, folder: Path) -> None:
        """Write conversion.json with all names."""
        write_json(folder / FILE, asdict(self))


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name, sorted."""
    return {name: tuple(tensors[name].shape) for name in sorted(tensors)}


def _count(names: Shapes) -> str:
    return f"{len(names):,} tensor{'' if len(names) == 1 else 's'}"


def _listed(names: Shapes) -> list[str]:
    lines = [f"{name} {' x '.join(map(str, shape)) or 'one number'}" for name, shape in names.items()]
    shown = listing(lines, SHOWN, "\n  ")
    return [f"  {shown}, all in {FILE}" if len(lines) > SHOWN else f"  {shown}"]
