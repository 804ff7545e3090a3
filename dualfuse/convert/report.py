"""What became of every tensor in a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from dualfuse.convert.rename import ImportedTensors
from dualfuse.io import listing, write_json

SHOWN = 12  # names per list; the count is always shown, and the file holds all
FILE = "conversion.json"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Report:
    """Names and shapes of all tensors of a conversion, by what became of them."""

    source: str
    used: Shapes
    """Tensors of the source that are in the result."""
    unused: Shapes = field(default_factory=dict)
    """Tensors of a third-party source that have no effect on a model, or belong to another task."""
    unexpected: Shapes = field(default_factory=dict)
    """Tensors of a third-party source that its format does not name, and that are not in the result."""
    new: Shapes = field(default_factory=dict)
    """Tensors of the result that the source lacks; they have initial values."""
    dropped: Shapes = field(default_factory=dict)
    """Tensors of a dualfuse source that the third-party format cannot store."""
    notes: tuple[str, ...] = ()
    """Other changes."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Licence and origin of the weights, by their name, for the cards of all models that start from them."""

    def __str__(self) -> str:
        """Return the report as text, with the first ``SHOWN`` names of each list."""
        lines = [f"{self.source}: {_count(self.used)} used"]
        for names, meaning in (
            (self.unexpected, "UNEXPECTED: {}, which this kind of model does not have"),
            (self.new, "{} new, with initial values"),
            (self.dropped, "{} dropped, which the format cannot store"),
            (self.unused, "{} unused, without effect or of another task"),
        ):
            if names:
                lines += [f"{meaning.format(_count(names))}:", *_first(names)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def save(self, folder: Path) -> None:
        """Write conversion.json with all names."""
        write_json(folder / FILE, asdict(self))


def import_report(source: str, imported: ImportedTensors, notes: list[str]) -> Report:
    """Return the report on a third-party checkpoint before a task is built from it."""
    return Report(source, shapes(imported.used), shapes(imported.unused), shapes(imported.unexpected), notes=(*notes,))


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name, sorted by name."""
    return {name: tuple(tensors[name].shape) for name in sorted(tensors)}


def _count(names: Shapes) -> str:
    return f"{len(names):,} tensor{'' if len(names) == 1 else 's'}"


def _first(names: Shapes) -> list[str]:
    lines = [f"{name} {' x '.join(map(str, shape)) or 'scalar'}" for name, shape in names.items()]
    shown = listing(lines, SHOWN, "\n  ")
    return [f"  {shown}, all in {FILE}" if len(lines) > SHOWN else f"  {shown}"]
