"""Shards: the samples of any number of tar files, read by index."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from dualfuse.data.map_dataset import MapDataset, find_files, labels
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.shards.tar_index import TarIndex
from dualfuse.data.text.captions import parse_texts
from dualfuse.data.text.decode import decode_text
from dualfuse.errors import DualfuseError
from dualfuse.io import listing
from dualfuse.progress import track

logger = logging.getLogger(__name__)

THREADS = 4  # that hash the contents of tars
IMAGES = (
    "jpg",
    "jpeg",
    "png",
    "webp",
    "gif",
    "bmp",
    "tif",
    "tiff",
    "jfif",
    "jpe",
    "avif",
    "heic",
    "heif",
    "jp2",
    "jxl",
)
MAX_OTHER_IMAGES = 9  # of a sample: KEY.1.jpg to KEY.9.jpg beside KEY.jpg
LABEL_MAP = "labels.png"  # class numbers of the pixels: KEY.labels.png beside KEY.jpg
OTHER_IMAGES = frozenset(f"{n}.{image}" for n in range(1, MAX_OTHER_IMAGES + 1) for image in IMAGES)
MAX_CLASS_DIGITS = 18
TEXTS = ("txt", "json", "cls")


class Shards(MapDataset):
    """The samples of one or more tar files, in file order.

    ``shards[n]`` reads the tar; it raises ``BrokenSample`` with the key if sample ``n`` has no image or is unreadable.
    Images stay encoded. Instances can be pickled and hold no open files: every process maps the tars that it reads.
    """

    def __init__(self, tars: Sequence[TarIndex], labels: Sequence[str]) -> None:
        """``tars`` are the indices of the tars, ``labels`` their names in keys; see :meth:`open`."""
        super().__init__([len(tar) for tar in tars])
        self._tars, self._labels = tuple(tars), tuple(labels)

    @classmethod
    def open(cls, source: str | Path) -> Shards:
        """Open a tar file, all ``*.tar`` of a folder, or all ``*.tar`` that a glob pattern matches, sorted by path.

        The index of a tar is loaded, or created if it is missing or outdated; where it cannot be written, it is kept
        in memory. Raises DualfuseError if there is no tar, and for a file that is compressed, truncated or not a tar.
        """
        paths = find_files(source, (".tar",), "tar file")
        shards = cls(tuple(TarIndex.of(path) for path in paths), labels(paths, (".tar",)))
        if not len(shards):
            raise DualfuseError(
                f"{source}: no samples in {len(paths)} tar file(s); members should be named like 0001.jpg"
            )
        return shards

    def key(self, index: int) -> str:
        """Return the unique key of sample ``index``, "TAR/KEY", without reading the tar.

        TAR is the file name without ``.tar``, with its folders if two tars of the set share that name.
        """
        tar, number = self.locate(index)
        return f"{self._labels[tar]}/{self._tars[tar].key(number)}"

    def digests(self) -> dict[str, str]:
        """Return a digest of the names and contents of the members of each tar."""
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(self._labels, pool.map(TarIndex.digest, self._tars), strict=True))

    def caption_counts(self) -> np.ndarray:
        """Return the number of captions of each sample, from the indices of the tars; one without is counted once."""
        counts = [stored_counts(tar) for tar in self._tars]
        uncounted = [number for number, each in enumerate(counts) if each is None]
        if uncounted:
            logger.info("counting the captions in %s tar file(s), once", f"{len(uncounted):,}")
        for number in track(uncounted, total=len(uncounted), what="counting captions"):
            counts[number] = count_captions(self._tars[number])
        return np.concatenate([each for each in counts if each is not None])

    def read(self, file: int, number: int, key: str) -> Sample:
        """Read sample ``number`` of a tar."""
        tar = self._tars[file]
        try:
            images = image_members(tar.members(number))
            parts = tar.read(number, (*images, LABEL_MAP, *TEXTS))
            texts, meta = sample_texts(parts, tar.key(number))
            if b"\\ud" in parts.get("json", b"").lower():  # perhaps half of a surrogate pair, which is not a character
                json.dumps(meta, ensure_ascii=False).encode()
        except ValueError as error:
            raise BrokenSample(key, str(error)) from error
        image, *others = (parts[name] for name in images)
        return Sample(key, image, texts, meta, other_images=tuple(others), label_map=parts.get(LABEL_MAP, b""))


def stored_counts(tar: TarIndex) -> np.ndarray | None:
    """Return the numbers of captions in the index of a tar; None if they were not counted."""
    for counts in (tar.captions, tar.stored().captions):
        if counts.shape == (len(tar),) and counts.dtype == np.int32 and (counts >= 0).all():
            return counts
    return None


def count_captions(tar: TarIndex) -> np.ndarray:
    """Read and return the number of captions (S,) of each sample of a tar, and add it to the stored index.

    An unreadable sample counts as one, so that training reports it as skipped.
    """
    counts = np.ones(len(tar), np.int32)
    for number in range(len(tar)):
        with suppress(ValueError):
            counts[number] = len(sample_texts(tar.read(number, TEXTS), tar.key(number))[0])
    tar.add(captions=counts)
    return counts


def image_members(names: Collection[str]) -> tuple[str, ...]:
    """Return which members of a sample are its image and its further images, in numerical order, by extension.

    Raises DualfuseError for a sample without an image, and for a gap in the numbers.
    """
    numbered = [_image(names, f"{number}." if number else "") for number in range(MAX_OTHER_IMAGES + 1)]
    if not numbered[0]:
        members = listing(f".{name}" for name in names)
        raise DualfuseError(
            f"no image among its members, which end in {members}; one of {', '.join(IMAGES)} is needed, where the "
            "ending is everything behind the first dot"
        )
    images = tuple(filter(None, numbered))
    if "" in numbered[: len(images)]:
        raise DualfuseError(f"further images are numbered from 1; number {numbered.index('')} is missing")
    return images


def _image(names: Collection[str], number: str) -> str:
    return next((number + extension for extension in IMAGES if number + extension in names), "")


def sample_texts(
    parts: Mapping[str, bytes], name: str, encoding: str = ""
) -> tuple[tuple[str, ...], dict[str, object]]:
    """Return the captions and the meta data in the members .txt, .json and .cls; a class is the "label" of the meta.

    Raises DualfuseError for a member that cannot be decoded.
    """
    texts, meta = parse_texts(parts, name, encoding)
    if "cls" in parts:
        meta = {"label": parse_class(decode_text(parts["cls"], f"{name}.cls", encoding)), **meta}
    return texts, meta


def parse_class(text: str) -> int | str:
    """Return the class in a member .cls: a number, or else a name."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= MAX_CLASS_DIGITS else text
