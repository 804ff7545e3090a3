"""Frozen dataclasses: to JSON and back, and checks of their values.

A file names the classes that it needs, and nothing has to be registered.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dualfuse import upgrade
from dualfuse.errors import DualfuseError
from dualfuse.printable import printable

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

IS = "is"
"""The key under which a dataclass writes its address, "module:Class"."""

OWN = "dualfuse"

_trusted: set[str] = set()
"""Modules and packages outside dualfuse whose frozen dataclasses files may name."""


def trust(config: Any) -> None:  # Any: any value of a config
    """Let files name frozen dataclasses of the modules that define the classes of ``config``, a value or a class.

    Call ``trust(MyModelConfig)`` before opening a model folder that names it; training trusts the recipes that it is
    given, and ``dualfuse.plugins.load`` whole packages. Raises ``DualfuseError`` for a class that no later process
    could find again, such as one of a notebook.
    """
    if isinstance(config, tuple):
        for item in config:  # pyright: ignore[reportUnknownVariableType]  items of any type
            trust(item)
    elif is_dataclass(config):
        kind = config if isinstance(config, type) else type(config)
        _address(kind)
        trust_module(kind.__module__)
        if not isinstance(config, type):
            for field in fields(config):
                trust(getattr(config, field.name))


def trust_module(name: str) -> None:
    """Let files name frozen dataclasses of the module ``name`` and, if it is a package, of its modules."""
    if name.partition(".")[0] != OWN:
        _trusted.add(name)


def to_json(value: Any) -> JSON:  # Any: any value of a config
    """Return a config as JSON values: tuples become lists, a dataclass holds its address under "is".

    Raises ``DualfuseError`` for a class that no later process could find, ``TypeError`` for a value that JSON lacks.
    """
    if is_dataclass(value) and not isinstance(value, type):
        address = {IS: _address(type(value))}
        return address | {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return list(map(to_json, value))  # pyright: ignore[reportUnknownArgumentType]  items of any type
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config holds {value!r}; only dataclasses, tuples, numbers, strings, True, False, None fit JSON")


def differences(before: JSON, now: JSON, name: str = "") -> Iterator[tuple[str, JSON, JSON]]:
    """Yield the differing values of two configs as JSON by their dotted name: ("optim.lr", 0.1, 0.2)."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:  # in the order of the fields
            yield from differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield name, before, now


def from_json(data: JSON) -> Any:  # Any: the dataclass that the data names
    """Return the config that :func:`to_json` was given; files of earlier versions are upgraded.

    A file may come from anywhere: it can name frozen dataclasses of this package and of modules that were trusted, and
    nothing else is imported or called on its behalf. Raises ``DualfuseError`` for other addresses, for unknown fields,
    and for values that a class does not accept.
    """
    return _build(upgrade.config(data))


def third_party(data: JSON) -> list[str]:
    """Return the packages and files outside dualfuse whose classes ``data`` names, sorted."""
    if isinstance(data, list):
        return sorted({name for item in data for name in third_party(item)})
    if not isinstance(data, dict):
        return []
    package = str(data.get(IS, OWN)).partition(":")[0].partition(".")[0]
    return sorted({*third_party(list(data.values())), package} - {OWN})


def _build(data: JSON) -> Any:  # Any: the dataclass that the data names
    if isinstance(data, list):
        return tuple(_build(item) for item in data)
    if not isinstance(data, dict):
        return data
    kind = _class(data.get(IS))
    values = {name: _build(value) for name, value in data.items() if name != IS}
    check_names(values, [field.name for field in fields(kind)], kind.__qualname__)
    try:
        return kind(**values)
    except Exception as error:  # __post_init__ may meet values of any type
        raise DualfuseError(
            f"{kind.__qualname__} cannot be made of {', '.join(values) or 'nothing'}: {error}"
        ) from error


def check_names(given: Iterable[str], names: Iterable[str], owner: str) -> None:
    """Raise ``DualfuseError``, with the nearest name, if ``given`` holds a name that ``owner`` lacks."""
    names = sorted(names)
    if unknown := sorted(set(given) - set(names)):
        close = get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise DualfuseError(
            f"{owner} has no field {', '.join(map(printable, unknown))}; {hint}it has {', '.join(names)}. "
            "The file may come from another version of dualfuse"
        )


def is_trusted(module: str) -> bool:
    """Return whether files may name classes of a module outside dualfuse."""
    return any(module == trusted or module.startswith(f"{trusted}.") for trusted in _trusted)


def dataclass_of(kind: type, field: str) -> type | None:
    """Return the dataclass that the field of a dataclass may hold; None if there is not exactly one."""
    hint = _hints(kind).get(field)
    found = [each for each in (hint, *get_args(hint)) if isinstance(each, type) and is_dataclass(each)]
    return found[0] if len(found) == 1 else None


def _address(kind: type) -> str:
    """Return "module:Class"; raises ``DualfuseError`` for a class that cannot be found there again."""
    module = kind.__module__
    if module == "__main__":
        file = getattr(sys.modules[module], "__file__", None)  # absent in a notebook
        if file is None:
            raise DualfuseError(
                f"{kind.__qualname__} is defined in a notebook or an interactive session, where no saved file can find "
                "it again; move it to a module, and import it from there"
            )
        module = Path(file).stem
    _checked(_defined(sys.modules.get(kind.__module__), kind.__qualname__), f"{kind.__module__}:{kind.__qualname__}")
    return f"{module}:{kind.__qualname__}"


def _class(address: object) -> Any:  # Any: a dataclass type
    module, _, name = address.partition(":") if isinstance(address, str) else ("", "", "")
    return _checked(_defined(_module(module), name), address)


def _module(name: str) -> ModuleType | None:
    """Return the module that files call ``name``, of this package or trusted; None if there is none.

    A trusted module is also found by the path of its file: "recipes" and "lab.recipes" are both lab/recipes.py.
    """
    is_own = name.startswith(f"{OWN}.") and name != f"{OWN}.__main__"  # which runs when imported
    if is_own or is_trusted(name):
        with suppress(ImportError, ValueError):  # ValueError: a name that no module can have
            return importlib.import_module(name)
    parts = name.split(".")
    modules = [sys.modules[trusted] for trusted in _trusted if trusted in sys.modules]
    same = {id(module): module for module in modules if _file_parts(module)[-len(parts) :] == parts}
    return same.popitem()[1] if len(same) == 1 else None


def _file_parts(module: ModuleType) -> list[str]:
    path = Path(getattr(module, "__file__", None) or "")  # reason for getattr: built-in modules lack it
    return list((path.parent if path.stem == "__init__" else path.with_suffix("")).parts) if path.name else []


def _defined(module: ModuleType | None, name: str) -> Any:  # Any: any value of a module
    """Return what ``module`` has under ``name``, if it was defined there."""
    value = vars(module).get(name) if module else None
    is_here = module and getattr(value, "__module__", None) == module.__name__  # reason for getattr: any value
    return value if is_here else None


def _checked(kind: Any, address: object) -> Any:  # Any: any value; a dataclass type
    if not (isinstance(kind, type) and is_dataclass(kind) and _is_frozen(kind)):
        package = str(address).partition(":")[0].partition(".")[0]
        advice = (
            f"if you trust its code, import it with --import {package} (--import path/{package}.py for a file) or, in "
            "Python, dualfuse.plugins.load"
        )
        raise DualfuseError(
            f'"{IS}": {address!r} names no frozen dataclass of dualfuse or of a module that was trusted; '
            + ("it may come from another version" if package == OWN else advice)
            + ". A class has to be defined at the top of a module"
        )
    return kind


def _is_frozen(kind: type) -> bool:
    return getattr(kind, "__dataclass_params__").frozen  # noqa: B009 - as it is not in any type


def check_types(config: Any, path: str = "") -> None:  # Any: a dataclass
    """Raise ``DualfuseError`` for the first value in a dataclass that is not of its annotated type.

    Dataclasses in its fields are checked, too. The message names the field by its dotted path, and the allowed values.
    """
    hints = _hints(type(config))  # pyright: ignore[reportUnknownArgumentType]  type of any
    for field in fields(config):
        name, value = f"{path}.{field.name}".lstrip("."), getattr(config, field.name)
        if not _fits(value, hints.get(field.name, Any)):
            raise DualfuseError(f"{name} is {value!r:.200}; {_expected(hints[field.name])}")
        for item in _items(value):
            if is_dataclass(item) and not isinstance(item, type):
                check_types(item, name)


def _items(value: Any) -> tuple[Any, ...]:  # Any: any value of a config
    return value if isinstance(value, tuple) else (value,)  # pyright: ignore[reportUnknownVariableType]


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of the fields; empty if an annotation names something that its module lacks."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {}


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in arguments)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is tuple and isinstance(value, tuple):
        items = _items(value)
        kinds = arguments[:1] * len(items) if arguments[1:] == (...,) else arguments
        return len(kinds) == len(items) and all(map(_fits, items, kinds))
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    kind = origin or kind
    is_protocol = getattr(kind, "_is_protocol", False)  # reason for getattr: typing.Protocol sets it
    return kind is Any or is_protocol or not isinstance(kind, type) or isinstance(value, kind)


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"allowed are {', '.join(map(repr, get_args(kind)))}"
    return f"it should be {_text(kind)}"


def _text(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_text, get_args(kind)))
    if kind is NoneType:
        return "None"
    return f"of type {kind.__name__ if isinstance(kind, type) and not get_args(kind) else kind}"


def check_numbers(config: object, *, positive: tuple[str, ...] = (), not_negative: tuple[str, ...] = ()) -> None:
    """Raise ``DualfuseError`` for fields of a config that are not finite, or below their smallest sensible value.

    Values that are not numbers are left to :func:`check_types`.
    """
    for name in (*positive, *not_negative):
        value = getattr(config, name)
        for number in _items(value):
            is_number = isinstance(number, int | float)
            is_small = is_number and (number <= 0 if name in positive else number < 0)
            if is_number and (is_small or not math.isfinite(number)):
                least = "above 0" if name in positive else "at least 0"
                part = type(config).__name__.lower()
                raise DualfuseError(f"{part}.{name} is {value}; it should be {least} and finite")
