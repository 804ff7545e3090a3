"""Frozen dataclasses to JSON and back: a folder says what builds it, and nothing has to be registered."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

from dualfuse.errors import DualfuseError

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

IS = "is"
"""The key under which a dataclass writes its "module:Class"."""

_trusted: set[str] = set()


def trust(config: Any) -> None:  # Any: whatever a config holds
    """Let files name frozen dataclasses of the modules that the classes of ``config``, a value or a class, are from.

    For whoever has configs of his own: ``trust(MyModelConfig)`` before a model folder that names it is opened.
    Training does it for the recipes that it is given.
    """
    if isinstance(config, tuple):
        for item in config:  # pyright: ignore[reportUnknownVariableType]  of whatever
            trust(item)
    elif is_dataclass(config):
        _trusted.add(config.__module__)
        if not isinstance(config, type):
            for field in fields(config):
                trust(getattr(config, field.name))


def to_json(value: Any) -> JSON:  # Any: whatever a config holds
    """Return a config as JSON values; tuples become lists, a dataclass says its module and name."""
    if is_dataclass(value) and not isinstance(value, type):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        _checked(_found(name), name)  # raises now, not when the file is read
        return {IS: name} | {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return list(map(to_json, value))  # pyright: ignore[reportUnknownArgumentType]  of whatever
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config holds {value!r}; only dataclasses, tuples, numbers, strings, True, False, None fit JSON")


def from_json(data: JSON) -> Any:  # Any: the dataclass that the data names
    """Return back what :func:`to_json` was given.

    A file may come from anywhere: it can name frozen dataclasses that are defined in this package or in a module that
    was given to :func:`trust`, and nothing else is ever imported or called on its behalf. Raises ``DualfuseError`` for
    anything else, and for values that such a class does not take.
    """
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    kind = _named(data.get(IS))
    values = {name: from_json(value) for name, value in data.items() if name != IS}
    known = {field.name for field in fields(kind)}
    if unknown := values.keys() - known:
        raise DualfuseError(
            f"{kind.__qualname__} has no field {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}. "
            "The file may come from another version of dualfuse"
        )
    try:
        return kind(**values)
    except Exception as error:  # it may look into values that are of another type than it says
        raise DualfuseError(
            f"{kind.__qualname__} cannot be made of {', '.join(values) or 'nothing'}: {error}"
        ) from error


def _named(name: object) -> Any:  # Any: a dataclass type
    module_name = name.partition(":")[0] if isinstance(name, str) else ""
    is_own = module_name.startswith("dualfuse.") and module_name != "dualfuse.__main__"  # which runs when imported
    if is_own:
        with suppress(ImportError, ValueError):  # ValueError: for a name that no module can have
            importlib.import_module(module_name)
    return _checked(_found(name) if is_own or module_name in _trusted else None, name)


def _found(name: object) -> Any:  # Any: whatever is called so
    """Return what a module that was imported has under "module:name", if it was defined there."""
    module_name, _, class_name = name.partition(":") if isinstance(name, str) else ("", "", "")
    found = vars(sys.modules[module_name]).get(class_name) if module_name in sys.modules else None
    return found if getattr(found, "__module__", None) == module_name else None  # reason for getattr: any value


def _checked(kind: Any, name: object) -> Any:  # Any: whatever was found; a dataclass type
    if not (isinstance(kind, type) and is_dataclass(kind) and _is_frozen(kind)):
        raise DualfuseError(
            f'"{IS}": {name!r} names no frozen dataclass of dualfuse or of a module that was trusted; if it is yours, '
            "define it at the top of a module, import that, and call dualfuse.config.trust(THE_CLASS) first"
        )
    return kind


def _is_frozen(kind: type) -> bool:
    return getattr(kind, "__dataclass_params__").frozen  # noqa: B009 - as it is not in any type
