"""A text corpus: rows of consecutive sentences, any of them read by number."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from dualfuse.data.files import find_files, labels
from dualfuse.data.map_dataset import MapDataset
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.documents import ENDINGS, Documents, open_documents
from dualfuse.data.text.packing import BROKEN, pack
from dualfuse.data.text.tokenizer import TextTransform, load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.io import atomic_write

logger = logging.getLogger(__name__)

INDEX_FORMAT = 1


@dataclass(frozen=True, eq=False)
class PackedFile:
    """One file and its rows: (R, 3) of int64, each the place of a record, and the first and last byte in it."""

    path: Path
    documents: Documents
    rows: np.ndarray

    @staticmethod
    def of(path: Path, text: TextTransform) -> PackedFile:
        """Return the rows kept beside ``path``; if there are none that fit, makes them and tries to keep them.

        They are kept for each tokenizer and length by themselves. Making them reads the whole file once, a few MB a
        second.
        """
        documents, kept = open_documents(path), path.with_name(f"{path.name}.{_digest(text)}.rows.npy")
        found = path.stat()
        stamp = np.array([[INDEX_FORMAT, found.st_size, found.st_mtime_ns]])
        try:
            stored = np.load(kept, mmap_mode="r", allow_pickle=False)
            if np.array_equal(stored[:1], stamp):
                return PackedFile(path, documents, stored[1:])
        except Exception:  # whatever has damaged a file that can be made again, it is made again
            pass
        size = f"{found.st_size / 1e6:,.1f} MB"
        logger.info("packing %s into rows of %s tokens, once (%s)", path, text.length, size)
        rows = np.array(list(pack(documents, text)), np.int64).reshape(-1, 3)
        with contextlib.suppress(OSError), atomic_write(kept) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate([stamp, rows]))  # suppressed in a read-only folder: every process packs
        return PackedFile(path, documents, rows)

    def read(self, number: int) -> str:
        """Return the text of a row; DualfuseError for a broken one."""
        place, start, stop = map(int, self.rows[number])
        record = self.documents.record(place)
        if stop == BROKEN:
            raise DualfuseError(f"the line at byte {start:,} is no UTF-8")
        return b" ".join(record[start:stop].split()).decode()  # words as packing has counted them


class Corpus(MapDataset):
    """The rows of one or more files of text, in file order, each a sample with one text and no image.

    A row holds consecutive sentences of one document, as many as fit into the text length. ``corpus[n]`` raises
    ``BrokenSample`` where a line cannot be read.
    """

    def __init__(self, files: Sequence[PackedFile]) -> None:
        """Take the rows of every file; see :meth:`open`."""
        super().__init__([len(file.rows) for file in files])
        self._files, self._labels = tuple(files), labels([file.path for file in files])

    @classmethod
    def open(cls, source: str | Path, text: TextTransform) -> Corpus:
        """Return the rows of a file, of all files of a folder, or of all that a pattern matches.

        Read are plain text (.txt, blank lines between documents), JSON lines (.jsonl) and Parquet with a "text", and
        the texts of shards (.tar), where a sample is a document. Raises DualfuseError when
        there is no text at all, and for a file that is none of these.
        """
        paths = find_files(source, ENDINGS, "text (.txt, .jsonl, .parquet or .tar)")
        corpus = cls([PackedFile.of(path, text) for path in paths])
        if len(corpus) == corpus.broken:
            reason = f"; the first of {corpus.broken} broken lines: {corpus._reason(0)}" if corpus.broken else ""
            raise DualfuseError(f"{source}: no text in {len(paths)} file(s){reason}")
        return corpus

    @property
    def broken(self) -> int:
        """The number of lines that cannot be read."""
        return sum(int((file.rows[:, 2] == BROKEN).sum()) for file in self._files)

    def key(self, index: int) -> str:
        """Return the key of row ``index``, "FILE/NUMBER", which no other row has; reads no text."""
        file, number = self.locate(index)
        return f"{self._labels[file]}/{number}"

    def digests(self) -> dict[str, str]:
        """Return what stands for the places of all rows of each file."""
        rows = (np.ascontiguousarray(file.rows).data for file in self._files)
        return {label: blake2b(part, digest_size=8).hexdigest() for label, part in zip(self._labels, rows, strict=True)}

    def read(self, file: int, number: int, key: str) -> Sample:
        """Read one row of a file."""
        try:
            return Sample(key, b"", (self._files[file].read(number),))
        except ValueError as error:
            raise BrokenSample(key, str(error)) from error

    def _reason(self, index: int) -> str:
        try:
            return str(self[index].texts)
        except BrokenSample as error:
            return str(error)


def pack_share(source: str | Path, text: TextTransform, *, part: int, of: int) -> None:
    """Make the rows of every ``of``-th file, from file ``part`` on, so that processes share the work."""
    for path in find_files(source, ENDINGS, "text (.txt, .jsonl, .parquet or .tar)")[part::of]:
        PackedFile.of(path, text)


@cache
def _digest(text: TextTransform) -> str:
    """Name what rows depend on beside their file."""
    content = load_tokenizer(text.tokenizer).tokenizer.to_str().encode()
    return f"{text.length}-{blake2b(content, digest_size=4).hexdigest()}"
