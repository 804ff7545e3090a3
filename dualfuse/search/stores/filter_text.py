"""Filters as one line of text, as ``--where`` takes them.

    folder ^= 2024/ and (price < 20 or not tag in (new, "on sale"))

``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``^=`` (begins with) and ``in (a, b)`` compare a field with a value;
``not`` binds closer than ``and``, and ``and`` closer than ``or``. A value is a number, true, false, null, a date like
2024-05-31 or 2024-05-31T12:00 (seconds since 1970, UTC), or a text, in quotes if it has spaces, brackets or commas or
looks like one of the others. A line that begins with ``{`` is the JSON of a filter.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

from dualfuse.errors import DualfuseError
from dualfuse.printable import brief
from dualfuse.search.stores.filters import Both, Condition, Either, Not, Test, Value, parse

TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*"|'[^']*')|(?P<symbol>!=|<=|>=|\^=|[=<>(),])|(?P<word>[^\s=<>!^(),"']+))"""
)
OPERATORS = {"=": "in", "!=": "in", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte", "^=": "prefix", "in": "in"}
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?")
WORDS: dict[str, Value] = {"true": True, "false": False, "null": None}


def parse_text(text: str) -> Condition:
    """Return the condition of a filter in one line. Raises ``DualfuseError`` that names the place of a mistake."""
    if text.lstrip().startswith("{"):
        try:
            return parse(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise (
                error if isinstance(error, DualfuseError) else DualfuseError(f"the filter is not valid JSON: {error}")
            ) from error
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over the tokens of one line."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, self.position = text, list[tuple[str, str, int]](), 0
        end = 0
        while text[end:].strip():
            found = TOKEN.match(text, end)
            if not found:
                raise self.problem("a character that starts no value", end)
            self.tokens.append((str(found.lastgroup), found[str(found.lastgroup)], found.start(str(found.lastgroup))))
            end = found.end()

    def whole(self) -> Condition:
        condition = self.either(depth=32)
        if self.position < len(self.tokens):
            raise self.expected("and, or, or the end")
        return parse(condition)

    def either(self, depth: int) -> Condition:
        parts = [self.both(depth)]
        while self.take("word", "or"):
            parts.append(self.both(depth))
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def both(self, depth: int) -> Condition:
        parts = [self.negated(depth)]
        while self.take("word", "and"):
            parts.append(self.negated(depth))
        return parts[0] if len(parts) == 1 else Both(tuple(parts))

    def negated(self, depth: int) -> Condition:
        if depth == 0:
            raise DualfuseError("the filter is nested too deeply")
        if self.take("word", "not"):
            return Not(self.negated(depth - 1))
        if self.take("symbol", "("):
            inner = self.either(depth - 1)
            self.require(")")
            return inner
        return self.comparison()

    def comparison(self) -> Condition:
        name = self.literal("the name of a field")[0]
        kind, operator, _ = self.peek()
        if operator not in OPERATORS or kind == "quoted":
            raise self.expected("one of " + " ".join(OPERATORS))
        self.position += 1
        values = self.values() if operator == "in" else (self.value(),)
        return (
            parse({name: {f"${OPERATORS[operator]}": list(values) if OPERATORS[operator] == "in" else values[0]}})
            if (operator != "!=")
            else Not(Test(name, "in", values))
        )

    def values(self) -> tuple[Value, ...]:
        self.require("(")
        values = [self.value()]
        while self.take("symbol", ","):
            values.append(self.value())
        self.require(")")
        return tuple(values)

    def value(self) -> Value:
        text, is_quoted = self.literal("a value")
        if is_quoted or not (text.lower() in WORDS or NUMBER.fullmatch(text) or DATE.fullmatch(text)):
            return text
        if text.lower() in WORDS:
            return WORDS[text.lower()]
        if NUMBER.fullmatch(text):
            return int(text) if text.lstrip("+-").isdecimal() and len(text) < 400 else float(text)
        try:
            return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        except ValueError as error:
            raise DualfuseError(f"the filter has the date {text}: {error}") from error

    def literal(self, what: str) -> tuple[str, bool]:
        kind, text, _ = self.peek()
        if kind not in ("word", "quoted"):
            raise self.expected(what)
        self.position += 1
        if kind == "word":
            return text, False
        return (re.sub(r"\\(.)", r"\1", text[1:-1]) if text[0] == '"' else text[1:-1]), True

    def peek(self) -> tuple[str, str, int]:
        return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "", len(self.text))

    def take(self, kind: str, text: str) -> bool:
        found = self.peek()
        if found[0] != kind or found[1].lower() != text:
            return False
        self.position += 1
        return True

    def require(self, symbol: str) -> None:
        if not self.take("symbol", symbol):
            raise self.expected(symbol)

    def expected(self, what: str) -> DualfuseError:
        return self.problem(f"{what} is expected", self.peek()[2])

    def problem(self, what: str, position: int) -> DualfuseError:
        place = f"before {brief(repr(self.text[position:]))}" if self.text[position:].strip() else "at its end"
        return DualfuseError(
            f"the filter {brief(repr(self.text))}: {what} {place}; an example is folder ^= 2024/ and price < 20"
        )
