"""Requests of all kinds against the OpenAPI document of the service: never a 5xx, never an answer of another shape."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import schemathesis
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import checks
from tiny import MODEL, png_image, tokenizer

from dualfuse import hub
from dualfuse.recipe import Data, Recipe
from dualfuse.search.index import Index
from dualfuse.search.server.app import create_app
from dualfuse.search.server.options import ServerOptions
from dualfuse.search.server.run import create_service
from dualfuse.search.server.snapshot import image_id
from dualfuse.tasks.pretrain.pairs import PairsConfig

ADDRESSES = ("/v1/search", "/v1/match", "/v1/explain", "/v1/embed", "/v1/embeddings", "/v1/predict", "/v1/browse")
SECRET = b"nothing of this file may leave the machine"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@pytest.fixture(scope="module")
def app(root: Path) -> Callable[[], FastAPI]:
    (root / "secret.txt").write_bytes(SECRET)
    for number in range(6):
        path = root / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png_image(number, 48))
    torch.manual_seed(0)
    data = Data(image_size=(32, 32), text_length=12, tokenizer=tokenizer(root / "words"))
    recipe = Recipe("tiny", replace(MODEL, drop_path=0.0), PairsConfig(), data)
    loaded = hub.load(hub.save(root / "model", recipe.task.build(recipe.model.build()), recipe))

    def made() -> FastAPI:
        options = ServerOptions(window_ms=0)
        return create_app(create_service(loaded, lambda: Index.build(loaded, root / "images"), options, "tiny"))

    return made


@pytest.fixture(scope="module")
def client(app: Callable[[], FastAPI]) -> Iterator[TestClient]:
    with TestClient(app(), raise_server_exceptions=False) as client:
        yield client


def test_every_endpoint_answers_as_documented(app: Callable[[], FastAPI], root: Path) -> None:
    api = schemathesis.openapi.from_asgi("/openapi.json", app())  # starts and stops a service of its own
    for found in api.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            response = case.call()
            case.validate_response(
                response,
                checks=[
                    checks.not_a_server_error,
                    checks.status_code_conformance,
                    checks.response_schema_conformance,
                ],
            )
            assert SECRET not in response.content and str(root).encode() not in response.content

        check()


NASTY = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            image_id("1.png"),
            "../secret.txt",
            "%2e%2e%2fsecret.txt",
            "/etc/passwd",
            "\x00",
            "\ud800",
            "[MASK]",
            "a" * 5000,
        ]
    ),
    st.integers(),
    st.floats(),
    st.none(),
    st.booleans(),
    st.just(10**400),
)
JSON = st.recursive(
    NASTY, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=8), each, max_size=3)
)
NAMES = ("text", "id", "image", "not", "where", "top", "cursor", "rerank", "weights", "min_probability", "collapse")
MORE = ("pairs", "texts", "images", "ids", "dtype", "input", "dimensions", "classes", "format", "deletions")
BODIES = st.dictionaries(st.sampled_from(NAMES + MORE), JSON, max_size=5)


@given(address=st.sampled_from(ADDRESSES), body=BODIES | JSON, raw=st.none() | st.binary(max_size=60))
def test_no_body_breaks_an_endpoint(client: TestClient, address: str, body: object, raw: bytes | None) -> None:
    content = json.dumps(body).encode() if raw is None else raw
    response = client.post(address, content=content, headers={"content-type": "application/json"})
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert len(response.json()["error"]["message"]) > 10


@given(data=st.binary(max_size=200), cut=st.integers(0, 2000), request=st.text(max_size=20) | st.just('{"top": 2}'))
def test_no_upload_breaks_a_search(client: TestClient, data: bytes, cut: int, request: str) -> None:
    for file in (data, png_image(3, 48)[:cut] + data, b"\x89PNG\r\n\x1a\n" + data, b"\xff\xd8\xff" + data):
        files = {"image": ("../../x.png", file, "image/png")}
        response = client.post("/v1/search", files=files, data={"request": request.encode("utf-8", "replace")})
        assert response.status_code < 500, response.text


@given(identifier=NASTY.map(str), width=NASTY.map(str), span=st.text(max_size=20))
def test_no_id_leads_outside_of_the_collection(client: TestClient, identifier: str, width: str, span: str) -> None:
    quoted = "".join(f"%{byte:02x}" for byte in identifier.encode("utf-8", "replace"))[:900]
    headers = {"Range": re.sub(r"[^ -~]", "", f"bytes={span}")}
    for path in (f"/v1/images/{quoted}", f"/v1/images/{quoted}/thumbnail", f"/v1/jobs/{quoted}", f"/page/{quoted}"):
        response = client.get(path, params={"w": width.encode("utf-8", "replace")}, headers=headers)
        assert response.status_code < 500 and SECRET not in response.content, response.text
