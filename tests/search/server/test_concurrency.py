"""Many clients at the same time: batches, refreshes and a poisoned input never change the answer of another one."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tiny import caption, png_image

from dualfuse.hub import LoadedModel
from dualfuse.search.index import Index
from dualfuse.search.server.app import create_app
from dualfuse.search.server.compute.batching import Batcher, BatchingPolicy
from dualfuse.search.server.compute.cache import OVERHEAD, LRUCache
from dualfuse.search.server.endpoints.explaining import without_words
from dualfuse.search.server.options import ServerOptions
from dualfuse.search.server.run import create_service
from dualfuse.search.server.service import Service
from dualfuse.search.server.snapshot import image_id

CLIENTS = 32
OPTIONS = ServerOptions(window_ms=1, budget_ms=60_000)


def scores(answer: dict) -> dict[str, float]:
    return {hit["name"]: hit["score"] for hit in answer["hits"]}


def test_32_clients_get_the_answers_of_one(client: TestClient) -> None:
    bodies = [
        {"text": caption(number, 1 + number % 9), "top": 4 + number % 3, "rerank": (0, 3, 6)[number % 3]}
        | ({"where": {"folder": "spring"}} if number % 2 else {})
        | ({"id": image_id("autumn/02.png")} if number % 5 == 0 else {})
        for number in range(2 * CLIENTS)
    ]
    alone = [client.post("/v1/search", json=body).json() for body in bodies]
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(lambda body: client.post("/v1/search", json=body).json(), bodies))
    for one, other in zip(alone, together, strict=True):
        assert [hit["name"] for hit in one["hits"]] == [hit["name"] for hit in other["hits"]]
        assert scores(one) == pytest.approx(scores(other), abs=1e-4)
        assert (one["reranked"], one["cursor"]) == (other["reranked"], other["cursor"])


def test_requests_share_batches_in_every_stage(client: TestClient, service: Service) -> None:
    sizes: dict[str, list[int]] = {}
    service.engine.metrics.observe_batch = lambda stage, size, seconds: sizes.setdefault(stage, []).append(size)  # type: ignore[method-assign]
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda n: client.post("/v1/search", json={"text": caption(n), "rerank": 4}), range(CLIENTS)))
    assert max(sizes["text"]) > 1 and max(sizes["search"]) > 1 and max(sizes["match"]) > 4


def test_queries_run_while_the_index_is_refreshed(client: TestClient, service: Service, images: Path) -> None:
    """Each answer belongs to one version as a whole: count, names and scores."""
    expected = {service.snapshot.version: scores(client.post("/v1/search", json={"text": "a dog", "top": 50}).json())}
    answers: list[dict] = []
    with ThreadPoolExecutor(8) as pool:
        stop = False

        def ask() -> None:
            while not stop:
                answers.append(client.post("/v1/search", json={"text": "a dog", "top": 50}).json())

        asking = [pool.submit(ask) for _ in range(7)]
        for number in range(4):
            (images / f"new{number}.png").write_bytes(png_image(100 + number, 48))
            (images / f"spring/{2 * number + 1:02}.png").unlink()
            job = client.post("/v1/refresh").json()["id"]
            while (state := client.get(f"/v1/jobs/{job}").json())["status"] == "running":
                time.sleep(0.01)
            alone = client.post("/v1/search", json={"text": "a dog", "top": 50}).json()
            expected[state["version"]] = scores(alone)
        stop = True
        for each in asking:
            each.result()
    assert len({answer["index"]["version"] for answer in answers}) > 1
    for answer in answers:
        assert scores(answer) == pytest.approx(expected[answer["index"]["version"]], abs=1e-5)


def test_an_item_that_breaks_a_batch_fails_alone() -> None:
    def run(items: Sequence[int]) -> list[int]:
        if 13 in items:
            raise RuntimeError("poison")
        return [item * item for item in items]

    async def go() -> list[object]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(run, executor, BatchingPolicy(0.01, 8))
            return await asyncio.gather(*(batcher.submit(n) for n in range(20)), return_exceptions=True)

    results = asyncio.run(go())
    assert isinstance(results[13], RuntimeError)
    assert [each for number, each in enumerate(results) if number != 13] == [n * n for n in range(20) if n != 13]


def test_caches_are_bounded_in_bytes_and_change_no_answer(loaded: LoadedModel, images: Path) -> None:
    cache = LRUCache[int, bytes](3 * (100 + OVERHEAD), len)
    for key in range(5):
        cache.put(key, bytes(100))
        cache.get(2)
    cache.put(9, bytes(5000))
    assert [key for key in range(10) if cache.get(key) is not None] == [2, 3, 4] and cache.bytes == 3 * (100 + OVERHEAD)
    service = create_service(loaded, lambda: Index.build(loaded, images), OPTIONS, "tiny")
    with TestClient(create_app(service)) as client:
        body = {"text": "a red dog", "rerank": 12}
        cold, warm = (client.post("/v1/search", json=body).json() for _ in range(2))
    assert scores(cold) == scores(warm)


def test_pages_fit_together_when_hits_are_reranked_cut_and_folded(loaded: LoadedModel, images: Path) -> None:
    for number in range(4):
        (images / f"copy{number}.png").write_bytes(png_image(3 * number, 64))
    service = create_service(loaded, lambda: Index.build(loaded, images), OPTIONS, "tiny")
    with TestClient(create_app(service)) as client:
        probabilities = client.post("/v1/search", json={"text": "a cat", "top": 20, "rerank": 20}).json()["hits"]
        middle = sorted(hit["probability"] for hit in probabilities)[4]
        for extra in ({"rerank": 5}, {"collapse": True}, {"min_probability": middle, "rerank": 16}):
            body: dict = {"text": "a cat", "top": 20} | extra
            whole = [hit["name"] for hit in client.post("/v1/search", json=body).json()["hits"]]
            paged, cursor = [], ""
            for _ in itertools.repeat(None, 10):
                page = client.post("/v1/search", json=body | {"top": 3, "cursor": cursor}).json()
                paged, cursor = paged + [hit["name"] for hit in page["hits"]], page["cursor"]
                if not cursor:
                    break
            assert paged == whole and len(whole) == len(set(whole)) > 6, extra


def test_words_are_removed_at_their_own_place() -> None:
    for text, words, expected in (
        ("a cat and a hat", "a cat and a hat", ["", "a and a hat", "", "", "a cat and a"]),
        ("Red CAT, cat!", "red cat , cat !", ["CAT, cat!", "Red , cat!", "", "Red CAT, !", ""]),
        ("dog", "dog missing", ["", ""]),
    ):
        assert without_words(text, words.split()) == expected
