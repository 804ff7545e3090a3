"""The rename-table engine: one literal table per checkpoint layout drives both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.io import listing

Table = dict[str, str]
"""Third-party name to dualfuse name; {} stands for an index, which is the same on both sides."""


@dataclass(frozen=True)
class Renamed:
    """Tensors under their new names, and the names that the table does not contain."""

    tensors: dict[str, Tensor]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How a checkpoint format names its tensors, and which tensors a conversion may lose, in either direction."""

    names: Table
    kept: Table = field(default_factory=dict[str, str])
    """Tensors without effect that are kept for the conversion back, under the names on the right meanwhile."""
    unused: tuple[str, ...] = ()
    """Patterns of third-party names whose tensors no model reads."""
    dropped: tuple[str, ...] = ()
    """Patterns of dualfuse names whose tensors the format cannot store; they are reported as dropped."""
    scalars: tuple[str, ...] = ()
    """Endings of third-party names whose tensors have no axes; in dualfuse they have one."""


@dataclass(frozen=True)
class ImportedTensors:
    """The tensors of a third-party checkpoint under dualfuse names, and all of them by what became of them."""

    tensors: dict[str, Tensor]
    kept: dict[str, Tensor]
    used: dict[str, Tensor]
    unused: dict[str, Tensor]
    """Tensors without effect, including those kept."""
    unexpected: dict[str, Tensor]
    """Tensors that the layout does not name."""


@dataclass(frozen=True)
class ExportedTensors:
    """Tensors under third-party names, and what became of the dualfuse tensors."""

    tensors: dict[str, Tensor]
    used: dict[str, Tensor]
    dropped: dict[str, Tensor]


def rename(tensors: Mapping[str, Tensor], table: Table) -> Renamed:
    """Rename tensors from the names on the left of the table to those on the right."""
    patterns = [(re.compile(re.escape(old).replace(r"\{\}", r"(\d+)")), new) for old, new in table.items()]
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        for pattern, new in patterns:
            if match := pattern.fullmatch(name):
                renamed[new.format(*match.groups())] = tensor
                break
        else:
            unknown.append(name)
    return Renamed(renamed, tuple(unknown))


def inverse(table: Table) -> dict[str, str]:
    """Return the table from right to left; ``DualfuseError`` if it is not one to one."""
    inverted = {new: old for old, new in table.items()}
    if len(inverted) != len(table):
        raise DualfuseError("two rows of the table have the same name on the right")
    return inverted


def import_tensors(tensors: Mapping[str, Tensor], layout: Layout) -> ImportedTensors:
    """Return the tensors of a third-party checkpoint under dualfuse names; every tensor is accounted for."""
    renamed = rename(tensors, layout.names)
    rest = {name: tensors[name] for name in renamed.unknown}
    kept = rename(rest, layout.kept)
    unexpected = {name: rest[name] for name in kept.unknown if not matches(name, layout.unused)}
    return ImportedTensors(
        # sharded training refuses parameters without axes
        tensors={name: tensor.reshape(1) if tensor.ndim == 0 else tensor for name, tensor in renamed.tensors.items()},
        kept=kept.tensors,
        used={name: tensor for name, tensor in tensors.items() if name not in rest},
        unused={name: tensor for name, tensor in rest.items() if name not in unexpected},
        unexpected=unexpected,
    )


def export_tensors(
    tensors: Mapping[str, Tensor], layout: Layout, kept: Mapping[str, Tensor] | None = None
) -> ExportedTensors:
    """Return dualfuse tensors, and those kept from an earlier conversion, under third-party names and shapes.

    Raises ``DualfuseError`` for tensors that have no name in the layout and are not listed there as dropped.
    """
    dropped = {name: tensor for name, tensor in tensors.items() if matches(name, layout.dropped)}
    used = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    renamed, added = rename(used, inverse(layout.names)), rename(kept or {}, inverse(layout.kept))
    if unknown := (*renamed.unknown, *added.unknown):
        raise DualfuseError(
            f"the target format has no name for {len(unknown)} tensors of the model: {listing(unknown)}"
        )
    tensors = renamed.tensors | added.tensors
    scalars = {name: tensor.reshape(()) for name, tensor in tensors.items() if name.endswith(layout.scalars)}
    return ExportedTensors(tensors | scalars, used, dropped)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the patterns, in which * stands for anything."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def weight_and_bias(rows: Table) -> dict[str, str]:
    """Return two rows for each of ``rows``: one for .weight and one for .bias."""
    return {f"{left}.{part}": f"{right}.{part}" for left, right in rows.items() for part in ("weight", "bias")}


def add_prefixes(table: Table, left: str, right: str) -> dict[str, str]:
    """Return the table with the prefix ``left`` on the left and ``right`` on the right."""
    return {left + old: right + new for old, new in table.items()}
