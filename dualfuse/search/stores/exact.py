"""Keeps the vectors of a collection beside it, or in the user's cache folder where it cannot be written to."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.search.collection import Collection

FORMAT = 1
FOLDER = ".dualfuse"


@dataclass(frozen=True, eq=False)
class StoredEmbeddings:
    """What is known of N images: names, stamps (see :class:`Collection`), and vectors (N, D), float32."""

    names: tuple[str, ...]
    stamps: tuple[str, ...]
    embeddings: Tensor


@dataclass(frozen=True)
class EmbeddingFile:
    """The one file with the vectors that one model gives to one collection.

    Names and vectors stand in the same file and are replaced together, so they always fit each other.
    """

    places: tuple[Path, ...]
    """Where the file may lie, the best place first."""

    @staticmethod
    def of(collection: Collection, model: str) -> EmbeddingFile:
        """Return the store for the vectors of the model with this :func:`fingerprint`."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # relative: a folder may be moved together with its index
        beside = collection.home / FOLDER / _file(collection.source.relative_to(collection.home), model)
        return EmbeddingFile((beside, cache / "dualfuse" / "search" / _file(collection.source, model)))

    def read(self) -> tuple[StoredEmbeddings, Path] | None:
        """Return what was written last, and where; None if there is nothing, or nothing whole."""
        there = [(place.stat().st_mtime_ns, place) for place in self.places if place.is_file()]
        for _, place in sorted(there, reverse=True):
            with suppress(SafetensorError, OSError, KeyError, ValueError):  # damaged: it can be made again
                return _read(place), place
        return None

    def write(self, kept: StoredEmbeddings) -> Path | None:
        """Replace the file, whole or not at all, and gives its place; None if there is no place to write to."""
        for place in self.places:
            with suppress(OSError, SafetensorError):  # read-only, or full: the next place
                _write(kept, place)
                return place
        return None


def fingerprint(loaded: LoadedModel) -> str:
    """Return 32 hexadecimal digits that change with anything that an image's vector depends on.

    All weights are hashed, about a second for each gigabyte: fine-tuning may have changed one small head only.
    """
    settings = (FORMAT, loaded.recipe.model, loaded.recipe.task, loaded.processor.image)
    digest = blake2b(repr(settings).encode(), digest_size=16)
    for name, tensor in sorted(loaded.task.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file(source: Path, model: str) -> str:
    """Return a file name: several sets of tars may lie in one folder."""
    return f"{model}-{blake2b(os.fsencode(source), digest_size=4).hexdigest()}.safetensors"


def _read(place: Path) -> StoredEmbeddings:
    tensors = safetensors.torch.load_file(place)
    names, stamps = json.loads(tensors["images"].numpy().tobytes())
    kept = StoredEmbeddings(tuple(names), tuple(stamps), tensors["vectors"])
    if not len(kept.names) == len(kept.stamps) == len(kept.embeddings):
        raise DualfuseError(f"{place}: {len(kept.names)} names and {len(kept.embeddings)} vectors")
    return kept


def _write(kept: StoredEmbeddings, place: Path) -> None:
    images = json.dumps([kept.names, kept.stamps]).encode()  # as a tensor: a header must not exceed 100 MB
    tensors = {
        "vectors": kept.embeddings.contiguous(),
        "images": torch.frombuffer(bytearray(images), dtype=torch.uint8),
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f"{place.name}.{secrets.token_hex(8)}")
    try:
        safetensors.torch.save_file(tensors, unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)
