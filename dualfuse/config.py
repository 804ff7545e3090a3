"""Frozen dataclasses to JSON and back: a folder says what builds it, and nothing has to be registered."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

IS = "is"
"""The key under which a dataclass writes its "module:Class"."""


def to_json(value: Any) -> JSON:  # Any: whatever a config holds
    """Gives a config as JSON values; tuples become lists, a dataclass says its module and name."""
    if is_dataclass(value) and not isinstance(value, type):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        _named(name)  # raises now, not when the file is read
        return {IS: name} | {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return list(map(to_json, value))  # pyright: ignore[reportUnknownArgumentType]  of whatever
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config holds {value!r}; only dataclasses, tuples, numbers, strings, True, False, None fit JSON")


def from_json(data: JSON) -> Any:  # Any: the dataclass that the data names
    """Gives back what :func:`to_json` was given.

    A file may come from anywhere: it can name frozen dataclasses of this package and of modules that are already
    imported, and nothing else is ever imported or called on its behalf. Raises ``ValueError`` for anything else.
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
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{kind.__qualname__} cannot be made of {', '.join(values) or 'nothing'}: {error}") from error


def _named(name: object) -> Any:  # Any: a dataclass type
    module_name, _, class_name = name.partition(":") if isinstance(name, str) else ("", "", "")
    if module_name.startswith("dualfuse.") and module_name != "dualfuse.__main__":  # which runs when it is imported
        with suppress(ImportError):
            importlib.import_module(module_name)
    module = sys.modules.get(module_name)
    kind = vars(module).get(class_name) if module else None
    if not (isinstance(kind, type) and is_dataclass(kind) and _is_frozen(kind)):
        raise ValueError(
            f'"{IS}": {name!r} names no frozen dataclass of dualfuse or of an imported module; '
            "if it is yours, define it at the top of a module and import that first"
        )
    return kind


def _is_frozen(kind: type) -> bool:
    return vars(kind)["__dataclass_params__"].frozen
