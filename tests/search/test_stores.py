"""Every store keeps the contract of VectorStore, and so does a store of a third party."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from toy_store import ToyStore

from dualfuse.search.stores.base import Filter, Matches, VectorStore, matches
from dualfuse.search.stores.exact import ExactStore
from dualfuse.testing import check_store


class ForgetsFilters(ToyStore):
    def search(self, embeddings: Tensor, k: int, where: Filter | None = None) -> Matches:
        return super().search(embeddings, k)


class FiltersTheBestOnly(ToyStore):
    """What approximate indexes do: search first, and filter the k best."""

    def search(self, embeddings: Tensor, k: int, where: Filter | None = None) -> Matches:
        best = super().search(embeddings, k)
        kept = ([match for match in each if matches(self.items[match.name][1], where or {})] for each in best)
        return Matches(kept, fingerprint=self.fingerprint)


class KeepsRemoved(ToyStore):
    def remove(self, names) -> None:
        pass


class IgnoresTheModel(ToyStore):
    items_of_all: ClassVar[dict] = {}

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint, self.items = fingerprint, self.items_of_all

    def remove(self, names) -> None:
        for name in set(names) & self.items.keys():
            del self.items[name]


def test_exact_store_keeps_the_contract(tmp_path: Path) -> None:
    check_store(lambda fingerprint: ExactStore.open(fingerprint, [tmp_path / "new" / f"{fingerprint}.index"]))


def test_store_in_memory_keeps_the_contract() -> None:
    check_store(ExactStore)


def test_toy_store_keeps_the_contract() -> None:
    check_store(ToyStore)


@pytest.mark.parametrize(
    ("make_store", "rule"),
    [
        (ForgetsFilters, "with k 1 and the filter {'folder': '3'} is exact"),
        (FiltersTheBestOnly, "with k 1 and the filter {'folder': '3'} is exact"),
        (KeepsRemoved, "after removing are exact"),
        (IgnoresTheModel, "embeddings of another model are not returned"),
    ],
)
def test_broken_stores_are_caught(make_store: Callable[[str], VectorStore], rule: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(rule)):
        check_store(make_store)


def test_unchanged_store_is_not_written_again(tmp_path: Path) -> None:
    store = ExactStore.open("model", [tmp_path / "a.index"])
    store.add(["a"], torch.ones(1, 4), [{}])
    store.flush()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for again in (store, ExactStore.open("model", [tmp_path / "a.index"])):
        again.remove(["unknown"])
        again.add([], torch.empty(0, 4), [])
        again.flush()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def test_name_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 names \(1 of them different\)"):
        ExactStore("model").add(["a", "a"], torch.ones(2, 4), [{}, {}])
