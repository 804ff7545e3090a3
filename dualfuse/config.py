"""Frozen dataclasses to JSON and back: a folder says what builds it, and nothing has to be registered."""

from __future__ import annotations

import importlib
import sys
from dataclasses import fields, is_dataclass
from typing import Any

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

IS = "is"
"""The key under which a dataclass writes its "module:Class"."""


def to_json(value: Any) -> JSON:  # Any: whatever a config holds
    """Gives a config as JSON values; tuples become lists, a dataclass says its module and name."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        return {IS: f"{kind.__module__}:{kind.__qualname__}"} | {
            field.name: to_json(getattr(value, field.name)) for field in fields(value)
        }
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config holds {value!r}; only dataclasses, tuples, numbers, strings, True, False, None fit JSON")


def from_json(data: JSON) -> Any:  # Any: the dataclass that the data names
    """Gives back what :func:`to_json` was given.

    A file may come from anywhere: it can name dataclasses of this package and of modules that are already imported,
    and nothing else is ever imported or called on its behalf.
    """
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    kind = _named(data.get(IS))
    values = {name: from_json(value) for name, value in data.items() if name != IS}
    known = {field.name for field in fields(kind)}
    if unknown := values.keys() - known:
        raise ValueError(
            f"{kind.__qualname__} has no field {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}. "
            "The file may come from another version of dualfuse"
        )
    return kind(**values)


def _named(name: object) -> Any:  # Any: a dataclass type
    module_name, _, class_name = name.partition(":") if isinstance(name, str) else ("", "", "")
    if module_name.split(".")[0] == "dualfuse":
        importlib.import_module(module_name)
    module = sys.modules.get(module_name)
    kind = vars(module).get(class_name) if module else None
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(
            f'"{IS}": {name!r} names no dataclass of dualfuse or of an imported module; '
            "if it is yours, import its module first"
        )
    return kind
