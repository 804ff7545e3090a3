"""A text corpus: packed rows of consecutive sentences, read by index."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from dualfuse.data.map_dataset import MapDataset, find_files, labels
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
    """A file and its rows (R, 3), int64: the location of a record, and the first byte and the end inside it."""

    path: Path
    documents: Documents
    rows: np.ndarray

    @staticmethod
    def of(path: Path, text: TextTransform) -> PackedFile:
        """Load the rows stored beside ``path``; if they are missing or outdated, pack the file and try to store them.

        There is one file of rows per tokenizer and text length. Packing reads the file once, at a few MB per second.
        """
        documents, rows_path = open_documents(path), path.with_name(f"{path.name}.{_digest(text)}.rows.npy")
        stat = path.stat()
        stamp = np.array([[INDEX_FORMAT, stat.st_size, stat.st_mtime_ns]])
        try:
            stored = np.load(rows_path, mmap_mode="r", allow_pickle=False)
            if np.array_equal(stored[:1], stamp):
                return PackedFile(path, documents, stored[1:])
        except Exception:  # missing or damaged in any way: it is written again
            pass
        size = f"{stat.st_size / 1e6:,.1f} MB"
        logger.info("packing %s into rows of %s tokens, once (%s)", path, text.length, size)
        rows = np.array(list(pack(documents, text)), np.int64).reshape(-1, 3)
        with contextlib.suppress(OSError), atomic_write(rows_path) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate([stamp, rows]))  # suppressed in a read-only folder: every process packs
        return PackedFile(path, documents, rows)

    def read(self, number: int) -> str:
        """Return the text of a row; raises DualfuseError if it is broken."""
        location, start, stop = map(int, self.rows[number])
        record = self.documents.record(location)
        if stop == BROKEN:
            raise DualfuseError(f"the line at byte {start:,} is not UTF-8 text")
        return b" ".join(record[start:stop].split()).decode()  # the words that packing counted


class Corpus(MapDataset):
    """The rows of one or more text files, in file order: samples with one text and no image.

    A row holds consecutive sentences of one document, as many as fit into the text length. ``corpus[n]`` raises
    ``BrokenSample`` for a line that cannot be read.
    """

    def __init__(self, files: Sequence[PackedFile]) -> None:
        """``files`` are packed files; :meth:`open` packs them."""
        super().__init__([len(file.rows) for file in files])
        self._files, self._labels = tuple(files), labels([file.path for file in files])

    @classmethod
    def open(cls, source: str | Path, text: TextTransform) -> Corpus:
        """Open a file, all text files of a folder, or all that a glob pattern matches.

        Formats: plain text (.txt, blank lines between documents), JSON lines (.jsonl) and Parquet with a column
        "text", and shards (.tar), where each sample is a document. Raises
        DualfuseError if there is no text at all, and for a file of another format.
        """
        paths = find_files(source, ENDINGS, "text (.txt, .jsonl, .parquet or .tar)")
        corpus = cls([PackedFile.of(path, text) for path in paths])
        if len(corpus) == corpus.broken:
            reason = f"; the first of {corpus.broken} broken lines: {corpus._reason(0)}" if corpus.broken else ""
            raise DualfuseError(f"{source}: no text in {len(paths)} file(s){reason}")
        return corpus

    @property
    def broken(self) -> int:
        """Number of lines that cannot be read."""
        return sum(int((file.rows[:, 2] == BROKEN).sum()) for file in self._files)

    def key(self, index: int) -> str:
        """Return the unique key of row ``index``, "FILE/NUMBER", without reading it."""
        file, number = self.locate(index)
        return f"{self._labels[file]}/{number}"

    def digests(self) -> dict[str, str]:
        """Return a digest of the rows of each file."""
        rows = (np.ascontiguousarray(file.rows).data for file in self._files)
        return {label: blake2b(part, digest_size=8).hexdigest() for label, part in zip(self._labels, rows, strict=True)}

    def read(self, file: int, number: int, key: str) -> Sample:
        """Read row ``number`` of a file."""
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
    """Pack every ``of``-th file, beginning with file ``part``, so that processes share the work."""
    for path in find_files(source, ENDINGS, "text (.txt, .jsonl, .parquet or .tar)")[part::of]:
        PackedFile.of(path, text)


@cache
def _digest(text: TextTransform) -> str:
    """Return a name for the text length and the tokenizer, on which rows depend."""
    content = load_tokenizer(text.tokenizer).tokenizer.to_str().encode()
    return f"{text.length}-{blake2b(content, digest_size=4).hexdigest()}"
