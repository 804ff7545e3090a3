"""Filters: which embeddings a search may return, as a JSON-like mapping or as one line of text.

A filter names fields of the metadata and what their values must be::

    {"folder": "2024/spring"}                               equal
    {"sku": ["A-1", "A-2"]}                                 equal to one of them
    {"price": {"$gte": 10, "$lt": 20}}                      ranges: $lt, $lte, $gt, $gte
    {"folder": {"$prefix": "2024/"}}                        begins with
    {"tag": {"$ne": "draft"}}, {"tag": {"$nin": ["a"]}}     differs, from one and from all
    {"$or": [{"price": {"$lt": 5}}, {"$not": {"tag": "new"}}], "folder": "a"}

Entries of one mapping must all hold. The operators are those of MongoDB, Chroma and Pinecone. A value is compared with
values of its own type only: numbers with numbers, texts with texts (by code point), and a truth value is not a number.
An absent field is None. A number that is not finite equals nothing and lies in no range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from dualfuse.errors import DualfuseError
from dualfuse.io import listing
from dualfuse.printable import brief

Value = str | int | float | bool | None
Metadata = Mapping[str, Value]
"""The fields stored with an embedding, such as {"folder": "2024/spring"}."""
COMPARISONS = ("$eq", "$ne", "$in", "$nin", "$lt", "$lte", "$gt", "$gte", "$prefix")
COMBINATIONS = ("$and", "$or", "$not")
MAX_DEPTH, MAX_VALUES = 32, 10_000  # of a filter, which may come from a request


@dataclass(frozen=True)
class Test:
    """One comparison of a field: ``operator`` is "in", "lt", "lte", "gt", "gte" or "prefix"."""

    field: str
    operator: str
    values: tuple[Value, ...]
    """The values of "in"; one for all other operators."""
    kinds: tuple[str, ...] = dataclass_field(init=False)  # so that filters for 1 and for True differ

    def __post_init__(self) -> None:
        """Set the kinds of the values."""
        object.__setattr__(self, "kinds", tuple(map(kind, self.values)))

    def holds(self, value: Value) -> bool:
        """Whether a value of the field passes the comparison."""
        found = kind(value)
        return any(
            found == wanted and found != "" and ORDER[self.operator](value, each)
            for wanted, each in zip(self.kinds, self.values, strict=True)
        )


@dataclass(frozen=True)
class Both:
    """All ``parts`` hold; without parts, always."""

    parts: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Either:
    """One of ``parts`` holds; without parts, never."""

    parts: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Not:
    """``part`` does not hold."""

    part: Condition


Condition = Test | Both | Either | Not
"""A parsed filter: hashable, equal for equal filters."""
Filter = Mapping[str, Any] | Condition
"""A filter as the module's documentation shows it, or a parsed one. Any: JSON."""

ORDER: dict[str, Callable[[Any, Any], bool]] = {  # Any: two values of one kind
    "in": lambda value, wanted: value == wanted,
    "lt": lambda value, bound: value is not None and value < bound,
    "lte": lambda value, bound: value is not None and value <= bound,
    "gt": lambda value, bound: value is not None and value > bound,
    "gte": lambda value, bound: value is not None and value >= bound,
    "prefix": lambda value, prefix: isinstance(value, str) and value.startswith(prefix),
}


def kind(value: object) -> str:
    """Return "null", "bool", "number" or "text"; empty for a number that is not finite and for any other type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else ""


def matches(metadata: Metadata, where: Filter) -> bool:
    """Whether metadata passes a filter; raises ``DualfuseError`` for an invalid filter."""
    return _holds(parse(where), metadata)


def predicate(where: Filter) -> Callable[[Metadata], bool]:
    """Return the test of a filter, which is parsed once; raises ``DualfuseError`` for an invalid filter."""
    condition = parse(where)
    return lambda metadata: _holds(condition, metadata)


def parse(where: Filter) -> Condition:
    """Return a filter as a condition. Raises ``DualfuseError`` for an unknown operator or a value of a wrong type."""
    if isinstance(where, Condition):
        return where
    condition = _mapping(where, MAX_DEPTH)
    if (number := sum(len(test.values) for test in tests(condition))) > MAX_VALUES:
        raise DualfuseError(f"the filter has {number:,} values; give at most {MAX_VALUES:,}")
    return condition


def tests(condition: Condition) -> Iterator[Test]:
    """Yield the comparisons of a condition."""
    if isinstance(condition, Test):
        yield condition
    else:
        for part in (condition.part,) if isinstance(condition, Not) else condition.parts:
            yield from tests(part)


def fields(where: Filter) -> set[str]:
    """Return the names of the fields that a filter compares."""
    return {test.field for test in tests(parse(where))}


def _holds(condition: Condition, metadata: Metadata) -> bool:
    if isinstance(condition, Test):
        return condition.holds(metadata.get(condition.field))
    if isinstance(condition, Not):
        return not _holds(condition.part, metadata)
    return (all if isinstance(condition, Both) else any)(_holds(part, metadata) for part in condition.parts)


def _mapping(where: object, depth: int) -> Condition:
    if not isinstance(where, Mapping):
        raise DualfuseError(f'a filter is a mapping such as {{"folder": "a"}}, not {brief(repr(where))}')
    if depth == 0:
        raise DualfuseError(f"the filter is nested more than {MAX_DEPTH} levels deep")
    parts = tuple(_entry(name, required, depth - 1) for name, required in where.items())
    return parts[0] if len(parts) == 1 else Both(parts)


def _entry(name: object, required: object, depth: int) -> Condition:
    if not isinstance(name, str):
        raise DualfuseError(f"a filter names fields by text, not by {brief(repr(name))}")
    if name == "$not":
        return Not(_mapping(required, depth))
    if name in COMBINATIONS:
        if not isinstance(required, Sequence) or isinstance(required, str):
            raise DualfuseError(f"{name} takes a list of filters, not {brief(repr(required))}")
        return (Both if name == "$and" else Either)(tuple(_mapping(part, depth) for part in required))
    if name.startswith("$"):
        raise DualfuseError(
            f"{brief(name)} combines no filters; give {', '.join(COMBINATIONS)}, or the name of a field"
        )
    if isinstance(required, Mapping):
        if not required:
            raise DualfuseError(f"the filter of the field {brief(name)} is empty; give {listing(COMPARISONS, 9)}")
        parts = tuple(_comparison(name, operator, value) for operator, value in required.items())
        return parts[0] if len(parts) == 1 else Both(parts)
    return _comparison(name, "$in" if isinstance(required, list | tuple) else "$eq", required)


def _comparison(name: str, operator: object, value: object) -> Condition:
    if operator not in COMPARISONS:
        raise DualfuseError(
            f"the field {brief(name)} has the operator {brief(str(operator))}; the operators are "
            + ", ".join(COMPARISONS)
        )
    several = operator in ("$in", "$nin")
    if several and not isinstance(value, list | tuple):
        raise DualfuseError(f"{operator} of the field {brief(name)} takes a list, not {brief(repr(value))}")
    values: tuple[Any, ...] = tuple(value) if several and isinstance(value, list | tuple) else (value,)  # Any: of JSON
    allowed = {"$prefix": ("text",)}.get(operator, ("number", "text") if operator in RANGES else ANY_KIND)
    for each in values:
        if kind(each) not in allowed:
            raise DualfuseError(
                f"{operator} of the field {brief(name)} compares with a {' or '.join(allowed)}, not {brief(repr(each))}"
            )
    if operator in ("$ne", "$nin"):
        return Not(Test(name, "in", values))
    return Test(name, "in" if operator in ("$eq", "$in") else operator[1:], values)


RANGES = ("$lt", "$lte", "$gt", "$gte")
ANY_KIND = ("number", "text", "bool", "null")
