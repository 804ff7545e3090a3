"""The default store: all embeddings in memory, compared one by one, and kept in one safetensors file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.files import check_regular
from dualfuse.io import atomic_write
from dualfuse.metrics.recall import nearest
from dualfuse.search.stores.base import Filter, Match, Metadata, matches

logger = logging.getLogger(__name__)


class ExactStore:
    """A :class:`VectorStore` that computes every inner product.

    Names, metadata and embeddings are in one file, which :meth:`flush` replaces atomically, so they always belong
    together.
    """

    def __init__(self, fingerprint: str, paths: Sequence[Path] = ()) -> None:
        """Create an empty store; :meth:`open` also reads what is on disk.

        ``paths`` are files to write to, in order of preference: the next one is used where one is not writable.
        """
        self.fingerprint = fingerprint
        self.path: Path | None = None
        """The file that holds the embeddings; None if none could be read or written."""
        self._paths = tuple(paths)
        self._entries: dict[str, Metadata] = {}  # in the order of the embeddings
        self._blocks: list[Tensor] = []  # each (B, D)
        self._is_flushed = True

    @staticmethod
    def open(fingerprint: str, paths: Sequence[Path]) -> ExactStore:
        """Return the store in the newest of the files that is readable; an empty one if there is none.

        A damaged file, and one of another model or an older format, is reported and ignored: its embeddings can be
        computed again.
        """
        store = ExactStore(fingerprint, paths)
        existing = [(path.stat().st_mtime_ns, path) for path in paths if path.is_file()]
        for _, path in sorted(existing, reverse=True):
            try:
                store._entries, embeddings = _read(path, fingerprint)
            except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
                logger.warning("%s cannot be used (%s); the images are embedded again", path, error)
            else:
                store._blocks, store.path = [embeddings] if len(embeddings) else [], path
                break
        return store

    @property
    def location(self) -> str:
        """The path of the file; empty if there is none."""
        return str(self.path or "")

    @property
    def embeddings(self) -> Tensor:
        """All embeddings (N, D), in the order of :meth:`entries`."""
        if len(self._blocks) > 1:
            self._blocks = [torch.cat(self._blocks)]
        return self._blocks[0] if self._blocks else torch.empty(0, 0, dtype=torch.float32)

    def entries(self) -> Mapping[str, Metadata]:
        """Return the metadata of every stored embedding by name."""
        return self._entries

    def count(self, where: Filter | None = None) -> int:
        """Return the number of embeddings, or of those that match a filter."""
        return len(self._positions(where)) if where else len(self._entries)

    def add(self, names: Sequence[str], embeddings: Tensor, metadata: Sequence[Metadata]) -> None:
        """Store B embeddings (B, D), float32; one whose name is already stored replaces it."""
        if not len(names) == len(set(names)) == len(embeddings) == len(metadata):
            raise DualfuseError(
                f"{len(names)} names ({len(set(names))} of them different), {len(embeddings)} embeddings and metadata "
                f"of {len(metadata)}; give as many of each, and every name once"
            )
        if not names:
            return
        self.remove(names)
        self._entries.update(zip(names, map(dict, metadata), strict=True))
        self._blocks.append(embeddings.detach().float().cpu())
        self._is_flushed = False

    def remove(self, names: Sequence[str]) -> None:
        """Delete embeddings by name; unknown names are ignored."""
        removed = self._entries.keys() & set(names)
        if removed:
            kept = [position for position, name in enumerate(self._entries) if name not in removed]
            self._blocks = [self.embeddings[kept]] if kept else []
            self._entries = {name: each for name, each in self._entries.items() if name not in removed}
            self._is_flushed = False

    def search(self, embeddings: Tensor, k: int, where: Filter | None = None) -> list[list[Match]]:
        """Return the k best matches of each of Q queries (Q, D), best first."""
        names, candidates = list(self._entries), self.embeddings
        if where:
            positions = self._positions(where)
            names, candidates = [names[position] for position in positions], candidates[positions]
        if not names:
            return [[] for _ in embeddings]
        scores, indices = nearest(embeddings.float().cpu(), candidates, k)
        return [
            [Match(names[index], score) for index, score in zip(*query, strict=True)]
            for query in zip(indices.tolist(), scores.tolist(), strict=True)
        ]

    def flush(self) -> None:
        """Replace the file by one with all embeddings, at the first path that is writable."""
        if self._is_flushed:
            return
        self.path = None
        for path in self._paths:
            with suppress(OSError, SafetensorError):  # read-only or full: try the next path
                _write(path, self.fingerprint, self._entries, self.embeddings)
                self.path = path
                break
        self._is_flushed = True

    def _positions(self, where: Filter) -> list[int]:
        return [position for position, each in enumerate(self._entries.values()) if matches(each, where)]


def _read(path: Path, fingerprint: str) -> tuple[dict[str, Metadata], Tensor]:
    check_regular(path)
    tensors = safetensors.torch.load_file(path)
    stored, entries = json.loads(tensors["entries"].numpy().tobytes())
    if stored != fingerprint or len(entries) != len(tensors["embeddings"]):
        raise DualfuseError("it holds the embeddings of another model, or is damaged")
    if "checksum" in tensors and not torch.equal(tensors["checksum"], _checksum(tensors)):
        raise DualfuseError("its content differs from its checksum: bits have flipped")
    return dict(entries), tensors["embeddings"].clone()  # aligned as new ones, which decides the last bit of a score


def _write(path: Path, fingerprint: str, entries: Mapping[str, Metadata], embeddings: Tensor) -> None:
    described = json.dumps([fingerprint, list(entries.items())]).encode()  # a tensor: headers are limited to 100 MB
    tensors = {
        "embeddings": embeddings.contiguous(),
        "entries": torch.frombuffer(bytearray(described), dtype=torch.uint8),
    }
    with atomic_write(path) as partial:
        safetensors.torch.save_file(tensors | {"checksum": _checksum(tensors)}, partial)


def _checksum(tensors: Mapping[str, Tensor]) -> Tensor:
    digest = sha256()
    for name in ("entries", "embeddings"):
        digest.update(tensors[name].contiguous().numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
