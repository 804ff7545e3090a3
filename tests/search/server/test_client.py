"""Clients of a service on a port: dualfuse.Client answers as the local model does, and the openai package works."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from running import running
from tiny import png_image

from dualfuse import Client, ImageId, Index
from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.inference.explain import explain

TOKEN = "0123456789abcdef"
TEXTS = ["a red cat", "a blue dog on a tree"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png_image(number, 48))
    return folder


@pytest.fixture(scope="module")
def address(loaded: LoadedModel, collection: Path) -> Iterator[str]:
    with running(loaded, collection, TOKEN) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, token=TOKEN) as client:
        yield client


def test_embeddings_equal_those_of_the_model(client: Client, loaded: LoadedModel, collection: Path) -> None:
    np.testing.assert_allclose(client.encode_text(TEXTS), loaded.encode_text(TEXTS), atol=1e-5)
    many = [f"cat {number}" for number in range(70)]  # more than one request takes
    np.testing.assert_allclose(client.encode_text(many), loaded.encode_text(many), atol=1e-5)
    files = [collection / f"{number}.png" for number in (3, 1, 2)]
    ids = {hit.name: ImageId(hit.id) for hit in client.search("cat")}
    mixed = [ids["3.png"], files[1], ids["2.png"]]
    np.testing.assert_allclose(client.encode_image(mixed), loaded.encode_image(files), atol=1e-5)
    assert client.encode_text([]).shape == client.encode_image([]).shape == (0, 0)


def test_search_equals_that_of_the_index(client: Client, loaded: LoadedModel, collection: Path) -> None:
    index = Index.build(loaded, collection)
    for query, rerank in ((TEXTS[0], 0), (TEXTS[0], 3), (collection / "4.png", 0)):
        expected = index.search(query, top=4, rerank=rerank)
        hits = client.search(query, top=4, rerank=rerank)
        assert [hit.name for hit in hits] == [hit.name for hit in expected]
        assert [hit.cosine for hit in hits] == pytest.approx([hit.cosine for hit in expected], abs=1e-5)
    assert client.image(hits[0]) == (collection / "4.png").read_bytes()
    only = client.search("cat", where={"name": {"$prefix": "5"}})
    assert [hit.name for hit in only] == ["5.png"]


def test_match_predict_and_explain_equal_those_of_the_model(
    client: Client, loaded: LoadedModel, collection: Path
) -> None:
    files = [collection / "0.png", collection / "1.png"]
    np.testing.assert_allclose(client.match(files, TEXTS), loaded.match(files, TEXTS), atol=1e-2)  # half states
    expected, prediction = loaded.predict(files[0], TEXTS[0]), client.predict(files[0], TEXTS[0])
    assert (prediction.match, prediction.cosine) == pytest.approx((expected.match, expected.cosine), abs=1e-5)
    labels = client.predict(files[0], labels=["cat", "dog"])
    assert {each.answer for each in labels.answers} == {"cat", "dog"}
    (local,), remote = explain(loaded, files[0], TEXTS[0]), client.explain(files[0], TEXTS[0])
    assert [each.word for each in remote.words] == list(local.words)
    for word, heat in zip(remote.words, local.heat.detach(), strict=True):
        scaled = (heat - heat.min()) / (heat.max() - heat.min())
        np.testing.assert_allclose(word.heat, scaled, atol=1e-3)


def test_errors_name_what_to_change(client: Client, address: str) -> None:
    with pytest.raises(DualfuseError, match="2 images and 1 texts"):
        client.match([b"", b""], "a cat")
    with pytest.raises(DualfuseError, match="answered 4"):
        client.encode_image(b"not an image")
    with pytest.raises(DualfuseError, match="answered 404"):
        client.encode_image(ImageId("0" * 16))
    with Client(address) as stranger, pytest.raises(DualfuseError, match="answered 401"):
        stranger.info()
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(DualfuseError, match="does not answer"):
        nobody.info()
    with pytest.raises(DualfuseError, match="is not the address"):
        Client("127.0.0.1:8000")


def test_a_busy_service_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    answers = [httpx2.Response(429, headers={"Retry-After": "2"}), httpx2.Response(200, json={"model": "tiny"})]
    waited: list[float] = []
    monkeypatch.setattr("dualfuse.search.client.time.sleep", waited.append)
    transport = httpx2.MockTransport(lambda request: answers.pop(0))
    with Client("http://service", transport=transport) as client:
        assert client.info() == {"model": "tiny"}
    assert waited == [2.0]


def test_the_openai_package_works(address: str, loaded: LoadedModel, collection: Path) -> None:
    openai = pytest.importorskip("openai")
    data_url = f"data:image/png;base64,{base64.b64encode((collection / '0.png').read_bytes()).decode()}"
    with openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0) as client:
        for encoding in ("float", "base64", openai.NOT_GIVEN):
            answer = client.embeddings.create(model="tiny", input=[*TEXTS, data_url], encoding_format=encoding)
            embeddings = [each.embedding for each in answer.data]
            if encoding == "base64":
                embeddings = [np.frombuffer(base64.b64decode(each), dtype="<f4") for each in embeddings]
            expected = np.concatenate([loaded.encode_text(TEXTS), loaded.encode_image(collection / "0.png")])
            np.testing.assert_allclose(np.array(embeddings), expected, atol=1e-5)
            assert answer.usage.total_tokens > 0
        assert len(client.embeddings.create(model="tiny", input="cat", dimensions=4).data[0].embedding) == 4
        with pytest.raises(openai.UnprocessableEntityError, match="empty"):
            client.embeddings.create(model="tiny", input=" ")
