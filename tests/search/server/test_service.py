"""The API of a service: answers equal those of the index, and bad input is answered by what to change."""

from __future__ import annotations

import base64
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tiny import png_image

from dualfuse.hub import LoadedModel
from dualfuse.search.index import Index
from dualfuse.search.server.app import create_app
from dualfuse.search.server.options import ServerOptions, check_address
from dualfuse.search.server.run import create_service
from dualfuse.search.server.service import Service
from dualfuse.search.server.snapshot import image_id


def test_a_search_equals_that_of_the_index(client: TestClient, service: Service) -> None:
    answer = client.post("/v1/search", json={"text": "a red cat", "top": 5, "rerank": 4}).json()
    hits = service.snapshot.index.search("a red cat", top=5, rerank=4)
    assert [hit["name"] for hit in answer["hits"]] == [hit.name for hit in hits]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(
        [hit.score for hit in hits], abs=1e-2
    )  # half states
    assert [hit["cosine"] for hit in answer["hits"]] == pytest.approx([hit.cosine for hit in hits], abs=1e-5)
    assert answer["hits"][4]["match"] is None and answer["hits"][0]["probability"] is not None
    assert (answer["index"]["count"], answer["model"], answer["exact"]) == (12, "tiny", True)
    assert answer["reranked"] == 4 and not answer["budget_exceeded"]


def test_pages_continue_where_the_one_before_ended(client: TestClient) -> None:
    everything = client.post("/v1/search", json={"text": "a dog", "top": 12}).json()
    assert everything["cursor"] == ""
    names, cursor = [], ""
    for _ in range(3):
        page = client.post("/v1/search", json={"text": "a dog", "top": 5, "cursor": cursor}).json()
        names, cursor = names + [hit["name"] for hit in page["hits"]], page["cursor"]
    assert names == [hit["name"] for hit in everything["hits"]] and cursor == ""


def test_an_image_finds_itself_by_id_base64_and_upload(client: TestClient) -> None:
    name, data = "autumn/04.png", png_image(4, 48)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for response in (
        client.post("/v1/search", json={"id": image_id(name)}),
        client.post("/v1/search", json={"image": url}),
        client.post("/v1/search", files={"image": ("x.png", data, "image/png")}, data={"request": '{"top": 3}'}),
    ):
        best = response.json()["hits"][0]
        assert best["name"] == name and best["cosine"] == pytest.approx(1, abs=1e-5)


def test_parts_are_added_by_weight_and_subtracted_by_not(client: TestClient, service: Service) -> None:
    index, name = service.snapshot.index, "spring/05.png"
    text = index.loaded.task.text_features(index._embed_text("a dog"))[0].detach()
    other = index.loaded.task.text_features(index._embed_text("a fish"))[0].detach()
    image = index._embed_image(png_image(5, 48))[0]
    query = 0.5 * text + image - 0.5 * other
    expected = [hit.name for hit in index.nearest((query / query.norm())[None], 12)[0]]
    body = {"text": "a dog", "id": image_id(name), "weights": {"text": 0.5}, "not": [{"text": "a fish"}], "top": 12}
    assert [hit["name"] for hit in client.post("/v1/search", json=body).json()["hits"]] == expected


def test_filters_and_fields(client: TestClient) -> None:
    answer = client.post("/v1/search", json={"text": "a dog", "where": {"folder": ["spring"]}}).json()
    assert {hit["name"].split("/")[0] for hit in answer["hits"]} == {"spring"} and len(answer["hits"]) == 6
    fields = {field["name"]: field for field in client.get("/v1/fields").json()["fields"]}
    assert fields["folder"]["choices"] == [{"value": "autumn", "count": 6}, {"value": "spring", "count": 6}]
    assert sorted(fields) == ["folder", "name", "size", "time"]
    size = sorted(hit["size"] for hit in client.post("/v1/browse", json={"top": 12}).json()["hits"])[5]
    body = {"text": "a dog", "where": {"size": {"$lte": size}, "name": {"$prefix": "0"}}}
    hits = client.post("/v1/search", json=body).json()["hits"]
    assert {hit["size"] <= size and Path(hit["name"]).name[0] == "0" for hit in hits} == {True}
    assert client.post("/v1/search", json={"text": "a dog", "where": {"size": {"$near": 1}}}).status_code == 422


def test_browsing_lists_the_newest_images_in_pages(client: TestClient, images: Path) -> None:
    os.utime(images / "spring/05.png", (2e9, 2e9))
    job = client.post("/v1/refresh").json()["id"]
    while client.get(f"/v1/jobs/{job}").json()["status"] == "running":
        time.sleep(0.01)
    body = {"where": {"folder": ["spring"]}, "top": 4}
    first = client.post("/v1/browse", json=body).json()
    second = client.post("/v1/browse", json={**body, "cursor": first["cursor"]}).json()
    names = [hit["name"] for hit in first["hits"] + second["hits"]]
    assert names[0] == "spring/05.png" and len(set(names)) == 6 and (first["total"], second["cursor"]) == (6, "")
    assert client.post("/v1/browse", json={"cursor": first["cursor"]}).status_code == 422


def test_folded_near_copies_are_in_the_answer(loaded: LoadedModel, images: Path) -> None:
    (images / "copy.png").write_bytes((images / "spring/05.png").read_bytes())
    service = create_service(loaded, lambda: Index.build(loaded, images), OPTIONS, "tiny")
    with TestClient(create_app(service)) as client:
        hits = client.post("/v1/search", json={"text": "a dog", "top": 13, "collapse": True}).json()["hits"]
    (hit,) = [hit for hit in hits if hit["copies"]]
    assert {hit["name"], hit["folded"][0]["name"]} == {"copy.png", "spring/05.png"} and len(hit["folded"]) == 1


def test_min_probability_omits_and_counts(client: TestClient) -> None:
    body = {"text": "a red dog", "top": 12, "rerank": 12}
    probabilities = sorted(hit["probability"] for hit in client.post("/v1/search", json=body).json()["hits"])
    middle = (probabilities[5] + probabilities[6]) / 2
    answer = client.post("/v1/search", json=body | {"min_probability": middle}).json()
    assert len(answer["hits"]) == 6 and answer["omitted"] == 6
    assert client.post("/v1/search", json=body | {"min_probability": 1.0}).json()["hits"] == []


def test_near_copies_are_folded(images: Path, loaded: LoadedModel) -> None:
    (images / "copy.png").write_bytes(png_image(3, 64))
    service = create_service(loaded, lambda: Index.build(loaded, images), OPTIONS, "tiny")
    with TestClient(create_app(service)) as client:
        answer = client.post("/v1/search", json={"text": "a dog", "top": 20, "collapse": True}).json()
    assert len(answer["hits"]) == 12
    (folded,) = [hit for hit in answer["hits"] if hit["copies"]]
    assert folded["copies"] == 1 and folded["name"] in ("copy.png", "spring/03.png")


def test_match_explain_and_predict(client: TestClient, service: Service) -> None:
    identifier = image_id("spring/01.png")
    (pair,) = client.post("/v1/match", json={"pairs": [{"id": identifier, "text": "a red cat"}]}).json()["pairs"]
    hits = service.snapshot.index.search("a red cat", top=12, rerank=12)
    expected = next(hit for hit in hits if hit.name == "spring/01.png")
    assert pair["match"] == pytest.approx(expected.match, abs=1e-3)
    assert pair["probability"] == pytest.approx(1 / (1 + np.exp(-expected.match)), abs=1e-3)
    explained = client.post("/v1/explain", json={"id": identifier, "text": "a red cat"}).json()
    assert [word["word"] for word in explained["words"][1:]] == ["a", "red", "cat"]
    assert np.array(explained["words"][2]["map"]).shape == (4, 4)
    without = client.post("/v1/match", json={"pairs": [{"id": identifier, "text": "a cat"}]}).json()["pairs"][0]
    assert explained["words"][2]["probability_without"] == pytest.approx(without["probability"])
    png = client.post("/v1/explain", json={"id": identifier, "text": "a red cat", "format": "png"})
    assert png.headers["content-type"] == "image/png" and png.content.startswith(b"\x89PNG")
    answer = client.post("/v1/predict", json={"id": identifier, "text": "", "classes": ["cat", "dog"]}).json()
    assert {each["answer"] for each in answer["answers"]} == {"cat", "dog"}


def test_embeddings_in_three_types_and_in_the_shape_of_openai(client: TestClient) -> None:
    body = {"texts": ["a dog"], "ids": [image_id("spring/01.png")]}
    plain = np.array(client.post("/v1/embed", json=body).json()["embeddings"])
    assert np.linalg.norm(plain, axis=1) == pytest.approx(1, abs=1e-5)
    packed = client.post("/v1/embed", json=body | {"dtype": "int8"}).json()
    restored = np.array(packed["embeddings"]) * np.array(packed["scales"])[:, None]
    assert np.abs(restored - plain).max() <= np.abs(plain).max() / 127
    bits = client.post("/v1/embed", json=body | {"dtype": "bits"}).json()["embeddings"]
    assert [np.unpackbits(np.array(row, np.uint8)).tolist() for row in bits] == (plain > 0).astype(int).tolist()
    answer = client.post(
        "/v1/embeddings", json={"input": ["a dog"], "encoding_format": "base64", "dimensions": 8}
    ).json()
    cut = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    assert cut == pytest.approx(plain[0, :8] / np.linalg.norm(plain[0, :8]), abs=1e-6)
    assert answer["usage"]["total_tokens"] == 4


def test_images_by_id_with_etag_range_and_thumbnail(client: TestClient) -> None:
    url, data = f"/v1/images/{image_id('autumn/02.png')}", png_image(2, 48)
    whole = client.get(url)
    assert whole.content == data and whole.headers["content-type"] == "image/png"
    assert client.get(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    part = client.get(url, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, data[2:6], f"bytes 2-5/{len(data)}")
    assert client.get(url, headers={"Range": "bytes=-3"}).content == data[-3:]
    assert client.get(url, headers={"Range": "bytes=999999-"}).status_code == 416
    small = client.get(url + "/thumbnail?w=40")
    assert small.headers["content-type"] == "image/jpeg" and small.headers["cache-control"] == "private, no-cache"
    hits = client.post("/v1/search", json={"text": "a", "top": 12}).json()["hits"]
    revision = next(hit["revision"] for hit in hits if hit["name"] == "autumn/02.png")
    for address in (f"{url}?v={revision}", f"{url}/thumbnail?v={revision}"):
        assert "immutable" in client.get(address).headers["cache-control"]
    assert "immutable" not in client.get(f"{url}?v=0123abcd").headers["cache-control"]


OPTIONS = ServerOptions(window_ms=1, budget_ms=60_000)
BAD = {
    "empty": ({}, 422, "the query is empty"),
    "unknown field": ({"texts": "a"}, 422, "texts"),
    "unknown id": ({"id": "../../etc/passwd"}, 404, "no image of the collection has the id"),
    "not base64": ({"image": "%%%"}, 422, "base64"),
    "not an image": ({"image": base64.b64encode(b"hello").decode()}, 415, "not a usable image"),
    "too much text": ({"text": "é" * 3000}, 413, "at most 4,096"),
    "half a surrogate": ({"text": "\ud800"}, 422, ""),
    "top": ({"text": "a", "top": 0}, 422, "top"),
    "field": ({"text": "a", "where": {"colour": "red"}}, 422, "no image has the field 'colour'; the fields are folder"),
    "cursor": ({"text": "a", "cursor": "AAAA"}, 422, "cursor"),
    "rerank an image": ({"id": image_id("spring/01.png"), "rerank": 4}, 422, "only a text"),
    "cancelling parts": ({"text": "a", "not": [{"text": "a", "weight": 2}]}, 422, "cancel"),
    "weights": ({"text": "a", "weights": {"text": -1}}, 422, "weights"),
}


@pytest.mark.parametrize("body, status, message", BAD.values(), ids=BAD)
def test_bad_requests_say_what_to_change(client: TestClient, body: dict, status: int, message: str) -> None:
    response = client.post("/v1/search", content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == status and message in response.json()["error"]["message"]


def test_limits_and_unknown_addresses(client: TestClient, service: Service) -> None:
    huge = base64.b64encode(b"\x89PNG" + bytes(service.options.limits.upload_bytes)).decode()
    assert client.post("/v1/search", json={"image": huge}).status_code == 413
    assert client.post("/v1/search", content=b"x" * (49 << 20)).status_code == 413
    assert client.post("/v1/search", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    assert client.get("/v1/images/%2e%2e%2fetc").status_code == 404
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]


def test_a_token_guards_everything_but_health_and_the_page(service: Service) -> None:
    service.options = replace(OPTIONS, token="s" * 32)
    with TestClient(create_app(service)) as client:
        assert client.get("/healthz").status_code == client.get("/").status_code == 200
        for url in ("/v1/info", "/metrics", "/openapi.json", f"/v1/images/{image_id('spring/01.png')}"):
            assert client.get(url).status_code == 401
            assert client.get(url, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.get(url, headers={"Authorization": "Bearer " + "s" * 32}).status_code == 200
            client.cookies.set("dualfuse_token", "s" * 32)
            assert client.get(url).status_code == 200
            client.cookies.clear()
    with pytest.raises(ValueError, match="can be reached by others"):
        check_address("0.0.0.0", "")
    with pytest.raises(ValueError, match="16 or more"):
        check_address("0.0.0.0", "short")


def test_a_refresh_follows_the_files_and_old_cursors_are_refused(client: TestClient, images: Path) -> None:
    first = client.post("/v1/search", json={"text": "a dog", "top": 3}).json()
    (images / "new.png").write_bytes(png_image(77, 48))
    (images / "spring" / "01.png").unlink()
    job = client.post("/v1/refresh").json()
    while (state := client.get(f"/v1/jobs/{job['id']}").json())["status"] == "running":
        time.sleep(0.02)
    assert (state["status"], state["embedded"]) == ("done", 1)
    answer = client.post("/v1/search", json={"text": "a dog", "top": 20}).json()
    names = {hit["name"] for hit in answer["hits"]}
    assert (
        "new.png" in names and "spring/01.png" not in names and answer["index"]["version"] != first["index"]["version"]
    )
    old = client.post("/v1/search", json={"text": "a dog", "top": 3, "cursor": first["cursor"]})
    assert old.status_code == 409 and "search again" in old.json()["error"]["message"]


def test_answers_under_load_are_those_of_single_requests(client: TestClient) -> None:
    queries = [
        {"text": text, "top": 6, "rerank": 3 * (n % 2)}
        for n, text in enumerate(["a dog", "the red fish", "a cat", "big tree"] * 6)
    ]
    alone = {json.dumps(query): client.post("/v1/search", json=query).json() for query in queries}
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda query: client.post("/v1/search", json=query).json(), queries))
    for query, answer in zip(queries, together, strict=True):
        expected = alone[json.dumps(query)]["hits"]
        assert [hit["name"] for hit in answer["hits"]] == [hit["name"] for hit in expected]
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit["score"] for hit in expected], abs=1e-4)


def test_a_full_queue_is_answered_by_429(loaded: LoadedModel, images: Path) -> None:
    options = ServerOptions(max_batch=1, max_queue=1, query_cache_mb=0)
    service = create_service(loaded, lambda: Index.build(loaded, images), options, "tiny")
    with TestClient(create_app(service)) as client, ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda n: client.post("/v1/search", json={"text": f"dog {n}"}), range(12)))
    refused = [response for response in responses if response.status_code == 429]
    assert refused and all("retry-after" in response.headers for response in refused)
    assert {response.status_code for response in responses} <= {200, 429}


def test_the_time_budget_stops_re_ranking(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualfuse.search.server.compute.engine.PAIRS", 2)
    with TestClient(create_app(service)) as client:
        score = service.engine.pairs._run
        monkeypatch.setattr(service.engine.pairs, "_run", lambda pairs: time.sleep(0.2) or score(pairs))
        service.engine.options = replace(OPTIONS, budget_ms=300)
        answer = client.post("/v1/search", json={"text": "a dog", "rerank": 8}).json()
        service.engine.options = replace(OPTIONS, budget_ms=0)
        nothing = client.post("/v1/search", json={"text": "a dog", "rerank": 8}).json()
    assert answer["budget_exceeded"] and 0 < answer["reranked"] < 8 and len(answer["hits"]) == 12
    assert nothing["budget_exceeded"] and nothing["reranked"] == 0 and nothing["hits"][0]["match"] is None
    assert sorted(hit["name"] for hit in nothing["hits"]) == sorted(hit["name"] for hit in answer["hits"])


def test_nothing_names_a_path_of_the_server(client: TestClient, images: Path) -> None:
    root = str(images.parent)
    bodies = [
        client.post("/v1/search", json={"text": "a"}).text,
        client.get("/v1/info").text,
        client.get("/metrics").text,
    ]
    for path in images.rglob("*.png"):
        path.unlink()
    bodies.append(client.get(f"/v1/images/{image_id('spring/01.png')}").text)
    job = client.post("/v1/refresh").json()
    while (state := client.get(f"/v1/jobs/{job['id']}").json())["status"] == "running":
        time.sleep(0.02)
    assert state["status"] == "failed"
    assert all(root not in body for body in [*bodies, str(state)])


def test_the_openapi_document_has_every_endpoint(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {
        "/v1/search",
        "/v1/match",
        "/v1/explain",
        "/v1/embed",
        "/v1/embeddings",
        "/v1/predict",
        "/v1/refresh",
        "/v1/jobs/{job}",
    } <= paths.keys()
    assert paths["/v1/search"]["post"]["requestBody"]["content"].keys() == {"application/json", "multipart/form-data"}
    client.get("/v1/info")
    assert 'dualfuse_requests_total{endpoint="/v1/info",status="200"} 1.0' in client.get("/metrics").text
