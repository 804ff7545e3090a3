"""A client of ``dualfuse serve`` with the calls of a local model and index."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.search.index import Hit
from dualfuse.tasks.encoder import ImageInput, image_bytes
from dualfuse.tasks.prediction import Prediction, ScoredAnswer

RETRIES = 3  # of a request that a service refuses because it is busy or still starts
MAX_WAIT = 30.0  # seconds that a service may ask to wait
INPUTS, BODY_BYTES = 64, 24 << 20  # of one request; a service accepts 64 images and 48 MiB


@dataclass(frozen=True)
class ImageId:
    """The id of an image in the collection of a service, where a call takes an image."""

    id: str


@dataclass(frozen=True)
class ServiceHit(Hit):
    """A hit of a local search, with the id of the image in the collection of the service."""

    id: str = ""


@dataclass(frozen=True, eq=False)
class ExplainedWord:
    """A word, its map of patches (h, w) from 0 to 1, and the match probability of the text without the word."""

    word: str
    heat: np.ndarray
    probability_without: float | None


@dataclass(frozen=True, eq=False)
class ServiceExplanation:
    """What the model answers, its match probability, and the words; the first stands for the whole text."""

    answer: str
    probability: float | None
    words: tuple[ExplainedWord, ...]


Image = ImageInput | ImageId


class Client:
    """The model and the collection of a service; close it after use, or use it in a ``with`` statement.

    An image is what a local model takes (a path, the bytes of a file, a PIL image, an array), or the :class:`ImageId`
    of an image of the collection. Every call raises DualfuseError with the message of the service if the service
    refuses the request, and if it cannot be reached. A busy service is asked again up to three times.
    """

    def __init__(self, address: str, *, token: str = "", timeout: float = 60.0, transport: Any = None) -> None:
        """``address`` is such as http://127.0.0.1:8000; ``timeout`` is in seconds; ``transport`` is one of httpx2."""
        try:
            import httpx2
        except ImportError as error:
            raise MissingExtraError("dualfuse.Client", "client") from error
        if not address.startswith(("http://", "https://")):
            raise DualfuseError(f"{address!r} is not the address of a service; give one such as http://127.0.0.1:8000")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.address = address.rstrip("/")
        self._errors = httpx2.HTTPError
        self._http = httpx2.Client(base_url=self.address, headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Client:
        """Return the client."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def info(self) -> dict[str, Any]:  # Any: JSON
        """Return the model, the index, what the model can do, and the limits of requests."""
        return self._request("GET", "/v1/info").json()

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Return unit embeddings (N, D) of texts, as :meth:`dualfuse.LoadedModel.encode_text` does."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        starts = range(0, len(texts), INPUTS)
        return _joined([self._embed(texts=texts[start : start + INPUTS]) for start in starts])

    def encode_image(self, images: Image | Sequence[Image]) -> np.ndarray:
        """Return unit embeddings (N, D) of images, as :meth:`dualfuse.LoadedModel.encode_image` does."""
        return _joined(
            [self._embed_images(batch) for batch in _batches([_reference(each) for each in _listed(images)])]
        )

    def match(self, images: Image | Sequence[Image], texts: str | Sequence[str]) -> np.ndarray:
        """Return the probabilities (N,) that each image and the text at its place match, as a local model does.

        Raises DualfuseError unless there are as many texts as images, and for a model that cannot match.
        """
        listed, texts = _listed(images), [texts] if isinstance(texts, str) else list(texts)
        if len(listed) != len(texts):
            raise DualfuseError(f"{len(listed)} images and {len(texts)} texts; give one text for each image")
        pairs = [{**_reference(image), "text": text} for image, text in zip(listed, texts, strict=True)]
        answers = [self._post("/v1/match", {"pairs": batch})["pairs"] for batch in _batches(pairs)]
        scores = [score["probability"] for answer in answers for score in answer]
        if None in scores:
            raise DualfuseError(f"the model of {self.address} has no match probabilities: it is not calibrated")
        return np.array(scores, dtype=np.float32)

    def search(
        self,
        query: str | Path | bytes | ImageId,
        *,
        top: int = 10,
        rerank: int = 0,
        where: Mapping[str, Any] | None = None,
        min_probability: float = 0.0,
    ) -> tuple[ServiceHit, ...]:
        """Return the ``top`` images for a text (str) or an image, as :meth:`dualfuse.Index.search` does."""
        part = {"text": query} if isinstance(query, str) else _reference(query)
        options = {"top": top, "rerank": rerank, "where": dict(where or {}), "min_probability": min_probability}
        return tuple(_hit(each) for each in self._post("/v1/search", {**part, **options})["hits"])

    def explain(self, image: Image, text: str) -> ServiceExplanation:
        """Return how much each word draws on each patch, and what the text without the word would match."""
        answer = self._post("/v1/explain", {**_reference(image), "text": text})
        words = tuple(
            ExplainedWord(each["word"], np.array(each["map"], dtype=np.float32), each["probability_without"])
            for each in answer["words"]
        )
        return ServiceExplanation(answer["answer"], answer["probability"], words)

    def predict(
        self, image: Image | None = None, text: str = "", *, labels: Sequence[str] = (), top: int = 5
    ) -> Prediction:
        """Run the model's head on an image, a text, or both; with ``labels`` zero-shot, as a local model does."""
        part = {} if image is None else _reference(image)
        answer = self._post("/v1/predict", {**part, "text": text, "classes": list(labels), "top": top})
        answers = tuple(ScoredAnswer(each["answer"], each["probability"]) for each in answer["answers"])
        return Prediction(answers, match=answer["match"], cosine=answer["cosine"], is_cut=answer["truncated"])

    def image(self, image: ImageId | Hit) -> bytes:
        """Return the file of an image of the collection, or of a hit."""
        id = image.id if isinstance(image, ImageId | ServiceHit) else ""
        if not id.isalnum():
            raise DualfuseError(f"{image!r} has no id of an image of {self.address}; give a hit of Client.search")
        return self._request("GET", f"/v1/images/{id}").content

    def _embed_images(self, batch: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Return embeddings in the order of the batch; a service answers with files first, then ids."""
        files = [each["image"] for each in batch if "image" in each]
        ids = [each["id"] for each in batch if "id" in each]
        answered = self._embed(images=files, ids=ids)
        order = sorted(range(len(batch)), key=lambda number: "id" in batch[number])  # stable: files, then ids
        embeddings = np.empty_like(answered)
        embeddings[order] = answered
        return embeddings

    def _embed(self, **inputs: Sequence[str]) -> np.ndarray:
        return np.array(self._post("/v1/embed", inputs)["embeddings"], dtype=np.float32)

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON
        return self._request("POST", path, body).json()

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:  # Any: httpx2.Response
        response, retries = self._send(method, path, body), 0
        while response.status_code in (429, 503) and retries < RETRIES:
            time.sleep(_seconds(response.headers.get("Retry-After", "")))
            response, retries = self._send(method, path, body), retries + 1
        if response.is_success:
            return response
        raise DualfuseError(f"{self.address}{path} answered {response.status_code}: {_message(response)}")

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:  # Any: httpx2.Response
        try:
            return self._http.request(method, path, json=body)
        except self._errors as error:
            raise DualfuseError(
                f"{self.address} does not answer ({type(error).__name__}: {error}); is `dualfuse serve` running?"
            ) from error


def _listed(images: Image | Sequence[Image]) -> list[Image]:
    return [images] if isinstance(images, ImageInput | ImageId) else list(images)


def _reference(image: Image) -> dict[str, str]:
    if isinstance(image, ImageId):
        return {"id": image.id}
    return {"image": base64.b64encode(image_bytes(image)).decode()}


def _batches(parts: Sequence[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Yield parts of requests in batches that a service accepts."""
    batch, size = list[dict[str, str]](), 0
    for part in parts:
        own = sum(map(len, part.values()))
        if batch and (len(batch) == INPUTS or size + own > BODY_BYTES):
            yield batch
            batch, size = [], 0
        batch, size = [*batch, part], size + own
    if batch:
        yield batch


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def _hit(answer: Mapping[str, Any]) -> ServiceHit:
    numbers = {name: answer[name] for name in ("score", "cosine", "match", "probability")}
    return ServiceHit(answer["name"], **numbers, fields=answer["fields"], id=answer["id"])


def _seconds(value: str) -> float:
    return min(float(value), MAX_WAIT) if value.isdigit() else 1.0


def _message(response: Any) -> str:  # Any: httpx2.Response
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase
