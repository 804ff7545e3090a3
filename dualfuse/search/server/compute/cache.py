"""A cache that is bounded in bytes, and forgets what was not used for the longest time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
OVERHEAD = 300  # bytes of Python objects for an entry: key, dict slot, value


class LRUCache(Generic[Key, Value]):
    """Values by key, of at most ``capacity`` bytes together; safe to use from several threads."""

    def __init__(self, capacity: int, size_of: Callable[[Value], int]) -> None:
        """``size_of`` returns the bytes of a value; with ``capacity`` 0 nothing is kept."""
        self._capacity, self._size_of = capacity, size_of
        self._values, self._lock, self._bytes = OrderedDict[Key, Value](), Lock(), 0

    @property
    def bytes(self) -> int:
        """The bytes that the cache takes."""
        return self._bytes

    def __len__(self) -> int:
        """The number of values."""
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """Return the value of a key, None if there is none."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, and forget the oldest ones beyond the capacity; a value that is larger is not kept."""
        size = self._size_of(value) + OVERHEAD
        if size > self._capacity:
            return
        with self._lock:
            if key in self._values:
                self._bytes -= self._size_of(self._values.pop(key)) + OVERHEAD
            self._values[key] = value
            self._bytes += size
            while self._bytes > self._capacity:
                self._bytes -= self._size_of(self._values.popitem(last=False)[1]) + OVERHEAD
