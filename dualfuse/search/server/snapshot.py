"""One version of the index: what a running query keeps while a newer version takes over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

from torch import Tensor

from dualfuse.search.index import Hit, Index
from dualfuse.search.server.compute.cache import LRUCache
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.stores.filters import Condition, Metadata

MAX_CHOICES = 50  # different values of a field that are listed as choices
CAPTIONS = 16 << 20  # bytes of captions that are kept


@dataclass(frozen=True)
class Snapshot:
    """An index and its version, which changes whenever an image is added, changed or removed."""

    index: Index
    version: str
    captions: LRUCache[tuple[str, str], str] = field(
        default_factory=lambda: LRUCache(CAPTIONS, lambda caption: len(caption) * 2)
    )
    """The captions that :meth:`read_captions` read."""

    @staticmethod
    def of(index: Index) -> Snapshot:
        """Return the snapshot of an index; equal contents have equal versions."""
        digest = blake2b(index.store.fingerprint.encode(), digest_size=6)
        for name, metadata in sorted(index.store.entries().items()):
            digest.update(f"{name}\0{metadata.get('stamp')}\0".encode("utf-8", "surrogateescape"))
        return Snapshot(index, digest.hexdigest())

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The name of each image by its id."""
        return {image_id(name): name for name in self.entries}

    @cached_property
    def entries(self) -> Mapping[str, Metadata]:
        """The stored metadata of each image by name."""
        return dict(self.index.store.entries().items())

    @cached_property
    def newest(self) -> tuple[str, ...]:
        """The names of all images, newest first; images of shards, which have no time of their own, by name."""
        return tuple(sorted(self.entries, key=lambda name: (-(self.size_and_time(name)[1] or 0.0), name)))

    def size_and_time(self, name: str) -> tuple[int | None, float | None]:
        """Return bytes and time of change (seconds since 1970) of an image that is a file; None for others."""
        size, _, changed = self.stamp(name).partition("-")
        if not (self.index.collection.are_files and size.isdigit() and changed.isdigit()):
            return None, None
        return int(size), int(changed) / 1e9

    def nearest(self, embeddings: Tensor, k: int, where: Condition | None) -> tuple[list[tuple[Hit, ...]], bool]:
        """Return the ``k`` nearest images to each of Q unit embeddings (Q, D), and whether none can be missing."""
        found = self.index.store.search(embeddings.float().cpu(), k, where)
        hits = [tuple(Hit(match.name, match.score, match.score) for match in matches) for matches in found]
        return hits, bool(getattr(found, "exact", True))  # getattr: stores of third parties need not say so

    def kept(self, name: str) -> Metadata:
        """Return the fields by which the owner of an image knows it."""
        return self.index.fields(name, self.entries.get(name, {}))

    def stamp(self, name: str) -> str:
        """Return size and time of the last change of the file of an image: "BYTES-NANOSECONDS"."""
        return str(self.entries.get(name, {}).get("stamp") or "")

    def key(self, name: str) -> tuple[str, str]:
        """Return what stands for an image in caches: it changes with the file."""
        return name, self.stamp(name)

    def revision(self, name: str) -> str:
        """Return 8 hexadecimal digits that change with the file of an image."""
        return blake2b(self.stamp(name).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()

    def read_name(self, name: str) -> bytes:
        """Return the file of an image by name; ``OSError`` or ``ValueError`` if it is gone."""
        try:
            return self.index.image(name)
        except KeyError as error:
            raise FileNotFoundError(name) from error

    async def read_captions(self, names: Sequence[str], read: Callable[..., Awaitable[None]]) -> None:
        """Read the captions of images of shards that were not read before; ``read`` runs a function in a thread."""
        missing = [name for name in names if self.captions.get(self.key(name)) is None]
        if missing and not self.index.collection.are_files:
            await read(self._read_captions, missing)

    def _read_captions(self, names: Sequence[str]) -> None:
        for name in names:
            self.captions.put(self.key(name), self.index.caption(name))

    def name(self, identifier: str, param: str = "id") -> str:
        """Return the name of an image; ``Problem`` 404 for an unknown id."""
        if identifier not in self.names:
            raise Problem(404, f"no image of the collection has the id {identifier[:40]!r}", param=param)
        return self.names[identifier]

    def read(self, identifier: str) -> bytes:
        """Return the file of an image; ``Problem`` 404 for an unknown id and for a file that is gone."""
        try:
            return self.read_name(self.name(identifier))
        except (OSError, ValueError) as error:
            raise Problem(404, "the image has changed or is gone; refresh the index by POST /v1/refresh") from error

    @cached_property
    def fields(self) -> list[dict[str, object]]:
        """The metadata fields that a filter can name: type, choices with their counts, or smallest and largest."""
        names = sorted({name for metadata in self.entries.values() for name in metadata if name != "stamp"})
        return [_describe(name, [each.get(name) for each in self.entries.values()]) for name in names]


def image_id(name: str) -> str:
    """Return the id of an image: 16 hexadecimal digits, which tell nothing about its path."""
    return blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _describe(name: str, values: list[object]) -> dict[str, object]:
    present = [value for value in values if value is not None and _is_unicode(value)]
    numbers = [value for value in present if isinstance(value, int | float) and not isinstance(value, bool)]
    counts = Counter(map(str, present)) if len(numbers) < len(present) else Counter[str]()
    described: dict[str, object] = {"name": name, "count": len(present)}
    if numbers and len(numbers) == len(present):
        return described | {"type": "number", "min": min(numbers), "max": max(numbers)}
    choices = [{"value": value, "count": count} for value, count in counts.most_common(MAX_CHOICES)]
    if len(counts) > MAX_CHOICES and choices[0]["count"] == 1:  # such as file names: a list of some would help nobody
        choices = []
    return described | {"type": "text", "choices": choices, "complete": len(counts) <= MAX_CHOICES}


def _is_unicode(value: object) -> bool:
    """Whether JSON can hold a value: names of files may be any bytes."""
    return not isinstance(value, str) or value.isascii() or not any("\ud800" <= each <= "\udfff" for each in value)
