"""The contract test of a vector store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.search.stores.base import Filter, Metadata, VectorStore, matches


def check_store(make_store: Callable[[str], VectorStore]) -> None:
    """Check that a store keeps the contract of :class:`~dualfuse.search.stores.base.VectorStore`.

    ``make_store(fingerprint)`` opens the store of a model at one place, which must be empty at first, and is called
    several times. Raises ``AssertionError`` that names the broken part of the contract.
    """
    rng = np.random.default_rng(0)
    store, expected = make_store("model-a"), _Naive()
    _require(store.fingerprint == "model-a", "a store has the fingerprint that it was made with")
    _compare(store, expected, rng, "of an empty store")
    names = [f"{number % 7}/ü {number}.jpg" for number in range(60)]
    for part, state in (
        (names[:25], "after adding"),
        (names[25:], "after adding more"),
        (names[20:30], "after replacing"),
    ):
        embeddings = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(len(part), 16))).float())
        metadata = [{"folder": name[0], "size": number, "tag": None} for number, name in enumerate(part)]
        store.add(part, embeddings, metadata)
        expected.add(part, embeddings, metadata)
        _compare(store, expected, rng, state)
    store.remove([*names[10:30], "unknown"])
    expected.remove(names[10:30])
    _compare(store, expected, rng, "after removing")
    try:
        store.add(["one", "two"], torch.zeros(1, 16), [{}, {}])
    except DualfuseError:
        _compare(store, expected, rng, "after an add that was refused")
    else:
        raise AssertionError("adding 2 names with 1 embedding raises DualfuseError")
    store.flush()
    if store.location:
        _compare(make_store("model-a"), expected, rng, "after reopening")
    try:
        other = make_store("model-b")
    except DualfuseError:
        return  # refusing is as good as being empty
    _require(other.fingerprint == "model-b" and other.count() == 0, "embeddings of another model are not returned")


class _Naive:
    """A store as a dictionary and a loop."""

    def __init__(self) -> None:
        self.items: dict[str, tuple[Tensor, Metadata]] = {}

    def add(self, names: Sequence[str], embeddings: Tensor, metadata: Sequence[Metadata]) -> None:
        self.items.update(zip(names, zip(embeddings, metadata, strict=True), strict=True))

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            del self.items[name]

    def search(self, query: Tensor, k: int, where: Filter | None) -> list[tuple[str, float]]:
        scores = [
            (name, float(query @ embedding))
            for name, (embedding, metadata) in self.items.items()
            if matches(metadata, where or {})
        ]
        return sorted(scores, key=lambda item: -item[1])[:k]


def _compare(store: VectorStore, expected: _Naive, rng: np.random.Generator, state: str) -> None:
    """Require the same entries, counts and search results."""
    entries = {name: dict(metadata) for name, metadata in store.entries().items()}
    _require(
        entries == {name: metadata for name, (_, metadata) in expected.items.items()}, f"entries {state} are exact"
    )
    queries = torch.from_numpy(rng.normal(size=(3, 16))).float()
    filters: tuple[Filter | None, ...] = (
        None,
        {"folder": "3"},
        {"folder": ("1", "2"), "size": (1, 2, 3, 4, 5, 6, 7)},
        {"folder": "none of them"},
        {"tag": None},
        {"absent": "x"},
        {"folder": {"$prefix": ""}, "size": {"$gte": 3, "$lt": 9}},
        {"$or": [{"size": {"$gt": 20}}, {"$not": {"folder": {"$lte": "4"}}}]},
    )
    for where in filters:
        number = len(expected.search(queries[0], len(expected.items), where))
        _require(store.count(where) == number, f"count {state} with the filter {where} is {number}")
        for k in (1, 5, 1000):
            results = store.search(queries, k, where)
            _require(len(results) == len(queries), "a search returns one list per query")
            _require(results.fingerprint == store.fingerprint, "every answer carries the fingerprint of its embeddings")
            for query, matched in zip(queries, results, strict=True):
                best = expected.search(query, k, where)
                _require(
                    [match.name for match in matched] == [name for name, _ in best]
                    and np.allclose([match.score for match in matched], [score for _, score in best], atol=1e-5),
                    f"a search {state} with k {k} and the filter {where} is exact",
                )


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise AssertionError(f"the contract of VectorStore is broken: {rule}")
