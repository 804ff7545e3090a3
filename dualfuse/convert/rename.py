"""The table engine: one literal table per layout drives both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

Table = Mapping[str, str]
"""Their name to ours; {} stands for a layer number, the same on both sides."""


@dataclass(frozen=True)
class Renamed:
    """Tensors under their new names, and the names that the table does not know."""

    tensors: dict[str, Tensor]
    unknown: tuple[str, ...]


def rename(tensors: Mapping[str, Tensor], table: Table) -> Renamed:
    """Gives every tensor its name of the right column."""
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
    """Gives the table from ours to theirs; refuses one that is not one to one."""
    turned = {new: old for old, new in table.items()}
    if len(turned) != len(table):
        raise ValueError("two rows of the table have the same name on the right")
    return turned
