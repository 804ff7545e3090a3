"""Filters over all entries at once: each field is a column of numbers that stand for its different values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from dualfuse.search.stores.filters import Both, Condition, Filter, Not, Test, Value, kind, parse

CHUNK = 10_000
CACHED = 32  # filters whose result is kept


class Columns:
    """The metadata of R rows, by field; unchangeable."""

    def __init__(self, texts: Iterable[str]) -> None:
        """``texts`` are the metadata as JSON objects, one per row."""
        self._codes: dict[str, np.ndarray] = {}
        self._values: dict[str, list[Value]] = {}
        self._results: dict[Condition, np.ndarray] = {}
        self.count = 0
        found: dict[str, dict[tuple[str, Value], int]] = {}
        parts: dict[str, list[np.ndarray]] = {}
        rows = iter(texts)
        while chunk := list(islice(rows, CHUNK)):
            self._add(json.loads(f"[{','.join(chunk)}]"), found, parts)
            self.count += len(chunk)
        for name, values in found.items():
            self._codes[name] = np.concatenate(parts[name])
            self._values[name] = [None, *(value for _, value in values)]

    def select(self, where: Filter) -> np.ndarray:
        """Return which rows match (R,), bool. Raises ``DualfuseError`` for an invalid filter."""
        condition = parse(where)
        if condition not in self._results:
            if len(self._results) >= CACHED:
                self._results.pop(next(iter(self._results)), None)
            self._results[condition] = self._select(condition)
        return self._results[condition]

    def _add(
        self, rows: Sequence[dict[str, Value]], found: dict[str, dict[tuple[str, Value], int]], parts: dict[str, list]
    ) -> None:
        for name in {name for row in rows for name in row} - found.keys():
            found[name], parts[name] = {}, [np.zeros(self.count, np.int32)]  # 0: None, of a row without the field
        for name, numbers in found.items():
            codes = np.zeros(len(rows), np.int32)
            for position, row in enumerate(rows):
                value = row.get(name)
                if value is not None:
                    codes[position] = numbers.setdefault((kind(value), value), len(numbers) + 1)
            parts[name].append(codes)

    def _select(self, condition: Condition) -> np.ndarray:
        if isinstance(condition, Test):
            if condition.field not in self._codes:
                return np.full(self.count, condition.holds(None))
            holds = np.fromiter(map(condition.holds, self._values[condition.field]), bool)
            return holds[self._codes[condition.field]]
        if isinstance(condition, Not):
            return ~self._select(condition.part)
        combine, empty = (np.logical_and, True) if isinstance(condition, Both) else (np.logical_or, False)
        result = np.full(self.count, empty)
        for part in condition.parts:
            result = combine(result, self._select(part))
        return result
