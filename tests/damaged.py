"""Damaged files for hypothesis, and what may come of reading one: a result, or a sentence."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

SECONDS = 30  # of the processor, after which reading a file of a few KB is taken for endless


class Endless(BaseException):
    """Not to be taken for an error of the file."""


@contextmanager
def ends() -> Iterator[None]:
    """End what does not end by itself."""

    def stop(*_: object) -> None:
        raise Endless

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def told(read: Callable[[], Any]) -> Any:
    """Return what reading gives, or None for a ``ValueError`` with a message; anything else fails the test."""
    with ends():
        try:
            return read()
        except ValueError as error:
            assert str(error).strip()
            return None


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, most: int = 6) -> bytes:
    """Some bytes of a file are others, are gone, come twice or are new; or it ends early."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from((1, 1, 1, 2, 4, 8, 40, 512)))
        match draw(st.sampled_from(("write", "write", "flip", "remove", "repeat", "insert", "number", "cut"))):
            case "write":
                data[place : place + length] = draw(st.binary(min_size=length, max_size=length))[: len(data) - place]
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "remove":
                del data[place : place + length]
            case "repeat":
                data[place:place] = data[place : place + length]
            case "insert":
                data[place:place] = draw(st.binary(max_size=length))
            case "number":
                text = draw(st.sampled_from((b"-1", b"0", b"1e999", b"99999999999999999999", b"\xff" * 8, b"[", b'"')))
                data[place : place + len(text)] = text
            case _:
                del data[place:]
    return bytes(data)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(("\ud800", "../../x", "\0", "x" * 300, "http://a/b.jpg", '["a", "b"]')),
)


def values(names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Return JSON with such names of fields as a reader knows."""
    keys = st.one_of(st.sampled_from(names), st.text(max_size=4))
    return st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=12
    )


@st.composite
def changed_json(draw: st.DrawFn, whole: Any, names: tuple[str, ...] = ()) -> Any:
    """Return JSON in which one to three values, anywhere, are others, are gone or have another name."""
    value = whole
    for _ in range(draw(st.integers(1, 3))):
        value = draw(_changed_once(value, names))
    return value


@st.composite
def _changed_once(draw: st.DrawFn, value: Any, names: tuple[str, ...]) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(values(names or ("is",)))
    inside = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    key = draw(st.sampled_from(sorted(inside, key=str)))
    match draw(st.sampled_from(("deeper", "deeper", "deeper", "deeper", "remove", "rename"))):
        case "deeper":
            inside[key] = draw(_changed_once(inside[key], names))
        case "remove":
            del inside[key]
        case _:
            inside[draw(st.sampled_from(names)) if names else draw(st.text(max_size=5))] = inside.pop(key)
    return inside if isinstance(value, dict) else list(inside.values())
