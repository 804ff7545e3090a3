"""Filters hold where the rule written out in the test holds, in both of their forms."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualfuse.errors import DualfuseError
from dualfuse.search.stores.filter_text import parse_text
from dualfuse.search.stores.filters import fields, matches, parse

PHOTO = {"folder": "2024/spring", "price": 12.5, "count": 3, "new": True, "tag": None, "odd": float("nan")}
DAY = datetime(2024, 5, 31, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("where", "text", "expected"),
    [
        ({"folder": "2024/spring"}, "folder = 2024/spring", True),
        ({"folder": ["a", "2024/spring"]}, "folder in (a, 2024/spring)", True),
        ({"folder": {"$prefix": "2024/"}}, "folder ^= 2024/", True),
        ({"folder": {"$prefix": "spring"}}, "folder ^= spring", False),
        ({"price": {"$prefix": "12"}}, "price ^= '12'", False),
        ({"price": {"$gte": 12.5, "$lt": 13}}, "price >= 12.5 and price < 13", True),
        ({"price": {"$gt": 12.5}}, "price > 12.5", False),
        ({"price": {"$lte": "9"}}, 'price <= "9"', False),  # a text is not a number
        ({"folder": {"$lt": "2024/t"}}, "folder < 2024/t", True),
        ({"count": 3.0}, "count = 3.0", True),
        ({"count": "3"}, "count = '3'", False),
        ({"new": 1}, "new = 1", False),  # a truth value is not a number
        ({"new": True}, "new = TRUE", True),
        ({"tag": None, "absent": None}, "tag = null and absent = null", True),
        ({"absent": {"$ne": "x"}}, "absent != x", True),
        ({"absent": {"$lt": 5}}, "absent < 5", False),
        ({"odd": {"$lt": 5}}, "odd < 5", False),
        ({"folder": {"$nin": ["a", "b"]}}, "not folder in (a, b)", True),
        ({"$or": [{"folder": "a"}, {"count": 3}]}, "folder = a or count = 3", True),
        ({"$not": {"$and": [{"count": 3}, {"new": False}]}}, "not (count = 3 and new = false)", True),
        ({"$or": [{"count": 3}, {"$and": [{"count": 4}, {"new": False}]}]}, "count=3 or count=4 and new=false", True),
        ({"$or": []}, '{"$or": []}', False),
        ({}, "{}", True),
        ({"count": {"$lt": DAY}}, "count < 2024-05-31", True),
        ({"a b": 'say "x"'}, r'"a b" = "say \"x\""', False),
    ],
)
def test_both_forms_hold_by_the_rules(where: dict, text: str, expected: bool) -> None:
    assert matches(PHOTO, where) is expected
    assert parse_text(text) == parse(where) or matches(PHOTO, parse_text(text)) is expected
    assert parse_text(json.dumps(where)) == parse(where)


def test_parsed_filters_are_values() -> None:
    assert parse({"a": [1, 2]}) == parse({"a": {"$in": (1.0, 2)}}) == parse_text("a in (1, 2)")
    assert parse({"a": 1}) != parse({"a": True}) and len({parse({"a": 1}), parse({"a": True})}) == 2
    assert fields({"a": 1, "$or": [{"b": 2}, {"$not": {"c": 3}}]}) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("where", "fact"),
    [
        ({"a": {"$like": "x"}}, r"\$like; the operators are \$eq"),
        ({"$nor": []}, r"\$nor combines no filters"),
        ({"$or": {"a": 1}}, r"\$or takes a list"),
        ({"a": {"$in": "x"}}, "takes a list"),
        ({"a": {"$lt": True}}, "a number or text, not True"),
        ({"a": {"$prefix": 1}}, "a text, not 1"),
        ({"a": {"x": 1}}, "the operator x"),
        ({"a": {}}, "is empty"),
        ({"a": [[1]]}, r"not \[1\]"),
        ({"a": float("inf")}, "not inf"),
        ({1: 2}, "by text, not by 1"),
        ([], r"not \[\]"),
        ({"a": list(range(10_001))}, "10,001 values"),
    ],
)
def test_invalid_filters_are_refused(where: object, fact: str) -> None:
    with pytest.raises(DualfuseError, match=fact):
        parse(where)  # type: ignore[arg-type]


def test_nesting_is_bounded() -> None:
    deep: dict = {"a": 1}
    for _ in range(5000):
        deep = {"$not": deep}
    with pytest.raises(DualfuseError, match="nested"):
        parse(deep)
    with pytest.raises(DualfuseError, match="nested"):
        parse_text("not " * 5000 + "a = 1")


@pytest.mark.parametrize(
    "text", ["", "a", "a =", "a = 1 b", "(a = 1", "a in 1", "a in ()", "a ! 1", "and", "a = 2024-13-01", "{"]
)
def test_mistakes_in_a_line_are_named(text: str) -> None:
    with pytest.raises(DualfuseError, match=r"the filter"):
        parse_text(text)


@given(st.text(max_size=40))
def test_any_line_is_a_filter_or_an_error(text: str) -> None:
    with suppress(DualfuseError):
        matches({"a": 1}, parse_text(text))
