"""An index of images: embed a collection once, search it with the dual encoder, re-rank with the fusion encoder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_IMAGE, read_bounded
from dualfuse.hub import LoadedModel
from dualfuse.inference.encode import EmbeddedImages, SkippedImage, embed, embed_images, pixels
from dualfuse.io import remove_unfinished
from dualfuse.lock import lock
from dualfuse.models.base import Tokens
from dualfuse.progress import track
from dualfuse.search.collection import Collection
from dualfuse.search.stores.base import Filter, Metadata, Value, VectorStore
from dualfuse.search.stores.earlier import read_earlier
from dualfuse.search.stores.options import StoreOptions

PAIRS = 32  # fused at a time
FLUSH_EVERY = 60.0  # seconds between flushes of a build; a power cut loses what was embedded since
TAKEN_OVER = 10_000  # embeddings of an earlier index file that are added at a time
FORMAT = 1
FOLDER = ".dualfuse"
OWN = ("folder", "stamp", "name", "size", "time")  # the fields of the index itself; the last three of files alone
KEPT = "keep."  # precedes, in a store, the name of a kept field that the index itself uses


@dataclass(frozen=True)
class Hit:
    """An image that a search returned; hits are ranked by ``score``.

    ``score`` is the ``cosine`` of query and image or, for a re-ranked hit, the sum of its ITC logit and ``match``.
    ``match`` is the ITM logit (the log-odds that image and text belong together); None if the hit was not re-ranked.
    ``probability`` is that of showing what the query describes; None if the model is not calibrated, or for an image
    as the query. ``fields`` has the original name of an image in shards and the fields that ``prepare --keep`` stored.
    """

    name: str
    score: float
    cosine: float
    match: float | None = None
    probability: float | None = None
    fields: Metadata = field(default_factory=dict, hash=False)


@dataclass(frozen=True, eq=False)
class Index:
    """The images of a collection, ready to be searched."""

    loaded: LoadedModel
    collection: Collection
    store: VectorStore
    skipped: tuple[SkippedImage, ...]
    """The images that could not be read."""
    embedded: int
    """The number of images embedded by this build; the embeddings of all others were in the store."""

    @classmethod
    def build(
        cls,
        loaded: LoadedModel,
        images: Path | str,
        *,
        store: VectorStore | StoreOptions | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> Index:
        """Return the index of all images at ``images``: a folder, a tar file, a folder of tars, or a pattern.

        Only images that are new or have changed are embedded, ``batch_size`` at a time. An interrupted build resumes,
        and of two builds of one index at the same time, the second waits for the first. ``store`` holds the embeddings
        of this collection alone; by default they are in files beside the images. ``num_workers`` threads read images;
        0: one per processor. Raises ``DualfuseError`` if no image can be read, or if the embeddings in ``store`` are
        another model's.
        """
        if batch_size < 1:
            raise DualfuseError(f"batch_size is {batch_size}; embed at least 1 image at a time")
        loaded.task.check_search()
        collection, model = Collection.open(images), fingerprint(loaded)
        if store is None or isinstance(store, StoreOptions):
            options, paths = store or StoreOptions(), _paths(collection, model)
            with _lock(paths):
                opened = options.open(model, paths)
                _take_over(opened, [path.with_suffix(".safetensors") for path in paths], collection)
                return cls._build(loaded, collection, opened, batch_size, num_workers)
        if store.fingerprint != model:
            raise DualfuseError(
                f"the store holds embeddings of the model {store.fingerprint}, not of this one ({model}); "
                "use another store"
            )
        return cls._build(loaded, collection, store, batch_size, num_workers)

    @classmethod
    def _build(
        cls, loaded: LoadedModel, collection: Collection, store: VectorStore, batch_size: int, num_workers: int
    ) -> Index:
        """Embed what ``store`` lacks."""
        missing = _remove_stale(store, collection)
        batches = embed(loaded.task, loaded.processor.image, collection, missing, batch=batch_size, workers=num_workers)
        skipped = _add(store, collection, track(batches, total=-(-len(missing) // batch_size), what="embedding"))
        if not store.count():
            reasons = "; ".join(f"{each.name}: {each.reason}" for each in skipped[:3])
            raise DualfuseError(
                f"none of the {len(collection)} images at {collection.source} can be read; the first: {reasons}"
            )
        unlisted = tuple(SkippedImage(name, reason) for name, reason in collection.unlisted.items())
        return cls(loaded, collection, store, (*skipped, *unlisted), embedded=len(missing) - len(skipped))

    @property
    def default_rerank(self) -> int:
        """Candidates to re-rank for a text: as many as helped on the model's validation set; 0 if none did."""
        note = self.loaded.task.reranking
        return note.candidates if note is not None and note.helps and self.loaded.task.can_match else 0

    def __len__(self) -> int:
        """The number of images that a search can return."""
        return self.store.count()

    @torch.inference_mode()
    def search(
        self,
        query: str | Path | bytes,
        *,
        top: int = 10,
        rerank: int = 0,
        where: Filter | None = None,
        min_probability: float = 0.0,
    ) -> tuple[Hit, ...]:
        """Return the ``top`` images for a text (str), or for an image (the path of a file, or its bytes).

        The fusion encoder re-ranks the first ``rerank`` candidates of the dual encoder; the others follow in their
        order. ``where`` restricts the search by metadata, such as ``{"folder": {"$prefix": "2024/"}}``: see
        :mod:`dualfuse.search.stores.filters`. With ``min_probability`` hits that are less probable are omitted, maybe
        all. Raises ``DualfuseError`` for an empty text, an unreadable image, an
        invalid filter, ``rerank`` or ``min_probability`` for an image, and ``min_probability`` without calibration.
        """
        if top < 1 or rerank < 0:
            raise DualfuseError(f"top is {top} and rerank {rerank}; give at least 1 and 0")
        if min_probability:
            check_probability(self.loaded, min_probability, is_text=isinstance(query, str))
        if not isinstance(query, str):
            if rerank:
                raise DualfuseError(
                    "only a text can be matched with images; leave out rerank for an image as the query"
                )
            return self._nearest(self._embed_image(query), top, where)
        text = self._embed_text(query)
        hits = self._nearest(self.loaded.task.text_features(text), max(top, rerank), where)
        hits = self._probable((*self._rerank(hits[:rerank], text), *hits[rerank:])[:top])
        return tuple(hit for hit in hits if not min_probability or (hit.probability or 0) >= min_probability)

    def _probable(self, hits: Sequence[Hit]) -> tuple[Hit, ...]:
        """Return hits of a text with their probability, if the model is calibrated."""
        chance = self.loaded.probability
        return tuple(replace(hit, probability=chance(hit.cosine, hit.match, hit=True)) for hit in hits)

    def image(self, name: str) -> bytes:
        """Return the file of a hit, as it is on disk or in its tar."""
        return self.collection.read(self._number_of[name])

    def caption(self, name: str) -> str:
        """Return the first caption of an image of shards; empty for one that has none or is unreadable."""
        try:
            return next(iter(self.collection.captions(self._number_of[name])), "")
        except (OSError, ValueError, KeyError):
            return ""

    def fields(self, name: str, metadata: Metadata | None = None) -> Metadata:
        """Return the fields by which the owner of an image knows it; empty for an unknown name.

        ``metadata`` is that of its embedding; by default it is read from the store.
        """
        return _kept(self._entries.get(name, {}) if metadata is None else metadata, self.collection.are_files)

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.collection.names)}

    @cached_property
    def _entries(self) -> Mapping[str, Metadata]:
        return self.store.entries()

    def nearest(self, features: Tensor, top: int, where: Filter | None = None) -> list[tuple[Hit, ...]]:
        """Return the ``top`` images for each of Q unit embeddings (Q, D), best first."""
        return [
            tuple(
                Hit(match.name, score=match.score, cosine=match.score, fields=self.fields(match.name))
                for match in matches
            )
            for matches in self.store.search(features.float().cpu(), top, where)
        ]

    @property
    def version(self) -> str:
        """The version of the store's content; empty for a store without versions."""
        return str(getattr(self.store, "version", ""))  # getattr: stores of third parties need not have one

    def _nearest(self, features: Tensor, top: int, where: Filter | None) -> tuple[Hit, ...]:
        return self.nearest(features, top, where)[0]

    def _embed_text(self, query: str) -> Tokens:
        """Embed one text: B is 1."""
        if not query.strip():
            raise DualfuseError("the query is empty; describe what the image should show")
        model = self.loaded.task.model
        ids = torch.from_numpy(self.loaded.processor.text.encode(query).ids)[None].to(next(model.parameters()).device)
        return model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))

    def _embed_image(self, query: Path | bytes) -> Tensor:
        data = query if isinstance(query, bytes) else read_bounded(query, MAX_IMAGE)
        try:
            image = self.loaded.processor.image(data, np.random.default_rng(0))  # not augmented: nothing is drawn
        except ValueError as error:
            raise DualfuseError(f"{'the query' if isinstance(query, bytes) else query}: {error}") from error
        return embed_images(self.loaded.task, image[None])

    def _rerank(self, hits: Sequence[Hit], text: Tokens) -> tuple[Hit, ...]:
        """Order hits by both scores; those that can no longer be read come last, unchanged."""
        by_number = {self._number_of[hit.name]: hit for hit in hits}
        ranked, unreadable = [], []
        for chunk in pixels(self.loaded.processor.image, self.collection, tuple(by_number), batch=PAIRS, workers=0):
            candidates = [(by_number[number], image) for number, image in chunk if isinstance(image, Tensor)]
            unreadable += [by_number[number] for number, image in chunk if isinstance(image, SkippedImage)]
            ranked += self._match(candidates, text) if candidates else ()
        return (*sorted(ranked, key=lambda hit: -hit.score), *unreadable)

    def _match(self, candidates: Sequence[tuple[Hit, Tensor]], text: Tokens) -> list[Hit]:
        """Return hits with both scores; a candidate is a hit and its image (3, H, W)."""
        task, device = self.loaded.task, text.mask.device
        image = task.model.embed_image(torch.stack([image for _, image in candidates]).to(device))
        match = task.match_logit(image, text.take(torch.zeros(len(image), dtype=torch.long, device=device)))
        cosine = torch.tensor([hit.cosine for hit, _ in candidates], dtype=torch.float32, device=device)
        scores = zip(task.rerank_score(cosine, match).tolist(), match.tolist(), strict=True)
        return [
            replace(hit, score=both, match=logit) for (hit, _), (both, logit) in zip(candidates, scores, strict=True)
        ]


def check_probability(loaded: LoadedModel, minimum: float, *, is_text: bool = True) -> None:
    """Raise ``DualfuseError`` if hits cannot be cut at the probability ``minimum``."""
    if not 0 <= minimum <= 1:
        raise DualfuseError(f"min_probability is {minimum}; give a number from 0 to 1, such as 0.5")
    if not is_text:
        raise DualfuseError("min_probability is for text queries; leave it out for an image as the query")
    if loaded.task.calibration is None:
        raise DualfuseError(
            "this model is not calibrated, so its hits have no probability; calibrate it on held-out pairs with "
            "dualfuse evaluate MODEL SHARDS --calibrate"
        )


def fingerprint(loaded: LoadedModel) -> str:
    """Return 32 hexadecimal digits that change with everything that the embedding of an image depends on.

    All weights are hashed, which takes about a second per gigabyte: fine-tuning may have changed one small head only.
    """
    settings = (FORMAT, loaded.recipe.model, loaded.recipe.task, loaded.processor.image)
    digest = blake2b(repr(settings).encode(), digest_size=16)
    for name, tensor in sorted(loaded.task.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _lock(paths: Sequence[Path]) -> Iterator[None]:
    """Hold the lock of an index at the first of ``paths`` that is writable; there is none if nothing is."""
    with ExitStack() as stack:
        for path in paths:
            with suppress(OSError):
                stack.enter_context(lock(path.with_name(f"{path.name}.lock"), path.parent, wait=True))
                remove_unfinished(path.parent, path.name)
                break
        yield


def _remove_stale(store: VectorStore, collection: Collection) -> tuple[int, ...]:
    """Remove the embeddings of images that changed or vanished, and return the numbers of images without one."""
    stamps = dict(zip(collection.names, collection.stamps, strict=True))
    current, stale = set[str](), list[str]()
    for name, metadata in store.entries().items():  # one pass: a store may read them from a disk
        if name in stamps and metadata.get("stamp") == stamps[name]:
            current.add(name)
        else:
            stale.append(name)
    store.remove(stale)
    return tuple(number for number, name in enumerate(collection.names) if name not in current)


def _take_over(store: VectorStore, paths: Sequence[Path], collection: Collection) -> None:
    """Move the content of an index file of an earlier version to an empty store."""
    if store.count() or not (content := read_earlier(paths, store.fingerprint)):
        return
    names, embeddings, metadata = content
    complete = [
        {**each, **_own(name, str(each.get("stamp") or ""), collection.are_files)}
        for name, each in zip(names, metadata, strict=True)
    ]
    for start in range(0, len(names), TAKEN_OVER):
        end = start + TAKEN_OVER
        store.add(names[start:end], embeddings[start:end], complete[start:end])
    store.flush()
    if store.location:
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _add(store: VectorStore, collection: Collection, batches: Iterable[EmbeddedImages]) -> tuple[SkippedImage, ...]:
    """Store embeddings as they come, and return the images that could not be read."""
    skipped, flushed_at = [], monotonic()
    try:
        for batch in batches:
            skipped += batch.skipped
            names = [collection.names[number] for number in batch.numbers]
            store.add(names, batch.embeddings, [_metadata(collection, number) for number in batch.numbers])
            if monotonic() - flushed_at >= FLUSH_EVERY:
                store.flush()
                flushed_at = monotonic()
    finally:  # also when it is interrupted
        store.flush()
    return tuple(skipped)


def _metadata(collection: Collection, number: int) -> Metadata:
    """Return the fields stored with an embedding; those of the sample that ``prepare --keep`` stored come first."""
    own = _own(collection.names[number], collection.stamps[number], collection.are_files)
    kept = {f"{KEPT}{name}" if name in own else name: value for name, value in collection.fields(number).items()}
    return {**kept, **own}


def _own(name: str, stamp: str, are_files: bool) -> dict[str, Value]:
    """Return the fields that the index itself stores."""
    folder, _, base = name.rpartition("/")
    size, _, changed = stamp.partition("-")
    own: dict[str, Value] = {"folder": folder, "stamp": stamp}
    if are_files and size and changed:
        own |= {"name": base, "size": int(size), "time": int(changed) / 1e9}
    return own


def _kept(metadata: Metadata, are_files: bool) -> dict[str, Value]:
    """Return the fields of the sample in the metadata of its embedding; ``are_files`` as in ``Collection``."""
    own = OWN if are_files else OWN[:2]
    names = {f"{KEPT}{name}": name for name in own}
    return {names.get(name, name): value for name, value in metadata.items() if name not in own}


def _paths(collection: Collection, model: str) -> tuple[Path, ...]:
    """Return where the embeddings of a collection may be: beside it, or in the user's cache folder."""

    def file(source: Path) -> str:  # one folder may hold several sets of tars
        return f"{model}-{blake2b(os.fsencode(source), digest_size=4).hexdigest()}.index"

    beside = collection.root / FOLDER / file(collection.source.relative_to(collection.root))  # both can be moved
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):  # a user without a home folder
        return (beside,)
    return beside, Path(cache) / "dualfuse" / "search" / file(collection.source)
