"""The table engine: one literal table per layout drives both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from dualfuse.errors import DualfuseError

Table = Mapping[str, str]
"""Their name to ours; {} stands for a layer number, the same on both sides."""


@dataclass(frozen=True)
class Renamed:
    """Tensors under their new names, and the names that the table does not know."""

    tensors: dict[str, Tensor]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """What a foreign file holds: tensors of ours, some that only that file format needs, and some that nobody reads."""

    names: Table
    kept: Table
    """Tensors without effect that are kept for the way back, and what they are called meanwhile."""
    dropped: tuple[str, ...]
    """Patterns of names whose tensors no model reads."""


@dataclass(frozen=True)
class Sorted:
    """The tensors of a foreign file: under our names, those kept for the way back, and all of them as they were."""

    tensors: dict[str, Tensor]
    kept: dict[str, Tensor]
    used: dict[str, Tensor]
    unused: dict[str, Tensor]
    """Without effect, those kept among them."""
    unexpected: dict[str, Tensor]


def rename(tensors: Mapping[str, Tensor], table: Table) -> Renamed:
    """Return every tensor its name of the right column."""
    patterns = [(re.compile(re.escape(old).replace(r"\{\}", r"(\d+)")), new) for old, new in table.items()]
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        for pattern, new in patterns:
            if found := pattern.fullmatch(name):
                renamed[new.format(*found.groups())] = tensor
                break
        else:
            unknown.append(name)
    return Renamed(renamed, tuple(unknown))


def inverse(table: Table) -> dict[str, str]:
    """Return the table from ours to theirs; refuses one that is not one to one."""
    turned = {new: old for old, new in table.items()}
    if len(turned) != len(table):
        raise DualfuseError("two rows of the table have the same name on the right")
    return turned


def sort(tensors: Mapping[str, Tensor], layout: Layout) -> Sorted:
    """Return the tensors our names and shapes; nothing is lost without being listed."""
    renamed = rename(tensors, layout.names)
    left = {name: tensors[name] for name in renamed.unknown}
    kept = rename(left, layout.kept)
    unexpected = {
        name: left[name] for name in kept.unknown if not any(fnmatchcase(name, dead) for dead in layout.dropped)
    }
    used = {name: tensor for name, tensor in tensors.items() if name not in left}
    unused = {name: tensor for name, tensor in left.items() if name not in unexpected}
    return Sorted(_with_axes(renamed.tensors), kept.tensors, used, unused, unexpected)


def weight_and_bias(rows: Table) -> dict[str, str]:
    """Return two rows for every one of ``rows``: of the weight, and of the bias."""
    return {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in rows.items() for part in ("weight", "bias")}


def inside(table: Table, theirs: str, ours: str) -> dict[str, str]:
    """Return the table with the prefixes ``theirs`` on the left and ``ours`` on the right."""
    return {theirs + left: ours + right for left, right in table.items()}


def _with_axes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Single numbers have one axis here: sharded training refuses parameters that have none."""
    return {name: tensor.reshape(1) if tensor.ndim == 0 else tensor for name, tensor in tensors.items()}
