"""Filters and metadata for PostgreSQL: conditions on a column of JSON that hold where those of Python do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from dualfuse.search.stores.filters import Both, Condition, Metadata, Not, Test, Value

MARK = "\U0010ffff"  # a code point that is not a character: begins what JSON of PostgreSQL cannot hold
ESCAPED = re.compile(f"[\0\ud800-\udfff{MARK}]")
ORDERS = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}


def escape(text: str) -> str:
    """Return a text without NUL and without halves of surrogate pairs, which names of files may have."""
    return ESCAPED.sub(lambda found: f"{MARK}{ord(found[0]) & 0xFFFF:04x}", text)


def unescape(text: str) -> str:
    """Return the text of :func:`escape`."""
    return re.sub(f"{MARK}([0-9a-f]{{4}})", lambda found: MARK if found[1] == "ffff" else chr(int(found[1], 16)), text)


def pack(metadata: Metadata) -> dict[str, Value]:
    """Return metadata as values of JSON."""
    return {escape(name): _packed(value) for name, value in metadata.items()}


def unpack(fields: Mapping[str, Any]) -> dict[str, Value]:
    """Return the metadata of :func:`pack`."""
    return {unescape(name): _unpacked(value) for name, value in fields.items()}


def to_sql(condition: Condition) -> tuple[str, list[Any]]:
    """Return a condition on the JSON column ``fields`` as SQL that is never NULL, with its parameters."""
    if isinstance(condition, Test):
        return _test(condition)
    if isinstance(condition, Not):
        text, values = to_sql(condition.part)
        return f"NOT ({text})", values
    joint, empty = ("AND", "TRUE") if isinstance(condition, Both) else ("OR", "FALSE")
    parts = [to_sql(part) for part in condition.parts]
    text = f" {joint} ".join(f"({text})" for text, _ in parts) or empty
    return text, [value for _, values in parts for value in values]


def _test(test: Test) -> tuple[str, list[Any]]:
    name = escape(test.field)
    if test.operator == "in":
        texts = [json.dumps(_packed(value)) for value in test.values]
        return "coalesce(fields -> %s, 'null'::jsonb) = ANY(%s::text[]::jsonb[])", [name, texts]
    value = test.values[0]
    if isinstance(value, str):
        text = "coalesce(fields ->> %s, '')"
        kind = f"jsonb_typeof(fields -> %s) = 'string' AND NOT starts_with({text}, %s)"
        holds = (
            f"starts_with({text}, %s)"
            if test.operator == "prefix"
            else f'{text} COLLATE "C" {ORDERS[test.operator]} %s'
        )
        return f"coalesce({kind} AND {holds}, FALSE)", [name, name, f"{MARK}#", name, escape(value)]
    number = f"(fields ->> %s)::numeric {ORDERS[test.operator]} %s"
    decimal = Decimal(repr(value))
    return f"CASE WHEN jsonb_typeof(fields -> %s) = 'number' THEN {number} ELSE FALSE END", [name, name, decimal]


def _packed(value: Value) -> Value:
    if isinstance(value, str):
        return escape(value)
    return f"{MARK}#{value}" if isinstance(value, float) and not math.isfinite(value) else value


def _unpacked(value: Value) -> Value:
    if not isinstance(value, str):
        return value
    return float(value[2:]) if value.startswith(f"{MARK}#") else unescape(value)
