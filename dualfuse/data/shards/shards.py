"""Shards: the samples of any number of tar files, read by index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dualfuse.data.map_dataset import MapDataset, find_files, labels
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.shards.tar_index import TarIndex
from dualfuse.errors import DualfuseError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_OTHER_IMAGES = 9  # of a sample: KEY.1.jpg to KEY.9.jpg beside KEY.jpg
LABEL_MAP = "labels.png"  # class numbers of the pixels: KEY.labels.png beside KEY.jpg
MAX_CLASS_DIGITS = 18
OTHER_IMAGES = tuple(f"{n}.{image}" for n in range(1, MAX_OTHER_IMAGES + 1) for image in IMAGES)
MEMBERS = frozenset((*IMAGES, *OTHER_IMAGES, LABEL_MAP, "txt", "json", "cls"))


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
        """Return a digest of the names and sizes of the members of each tar."""
        return {label: tar.digest() for label, tar in zip(self._labels, self._tars, strict=True)}

    def read(self, file: int, number: int, key: str) -> Sample:
        """Read sample ``number`` of a tar."""
        try:
            return _sample(key, self._tars[file].read(number, MEMBERS))
        except BrokenSample:
            raise
        except (ValueError, RecursionError) as error:  # RecursionError: deeply nested JSON
            raise BrokenSample(key, str(error)) from error


def _sample(key: str, parts: Mapping[str, bytes]) -> Sample:
    """Build a sample from its members."""
    image = _image(parts)
    if image is None:
        raise BrokenSample(key, f"no image among its members; one of {', '.join(IMAGES)} is needed")
    meta: dict[str, object] = {}
    if "json" in parts:
        try:
            meta = json.loads(parts["json"])
        except ValueError as error:
            raise BrokenSample(key, f"broken json: {error}") from error
        if not isinstance(meta, dict):
            raise BrokenSample(key, f"json holds a {type(meta).__name__}; an object is needed")
    if "cls" in parts:
        meta = {"label": parse_class(parts["cls"].decode("utf-8-sig")), **meta}
    lines = _strings(parts["txt"].decode("utf-8-sig").split("\n")) if "txt" in parts else ()
    label_map = parts.get(LABEL_MAP, b"")
    return Sample(key, image, lines or _captions(meta), meta, other_images=_others(key, parts), label_map=label_map)


def _image(parts: Mapping[str, bytes], number: str = "") -> bytes | None:
    """Return the image of a sample, or the further image with the prefix ``number``, such as "1."."""
    return next((parts[number + extension] for extension in IMAGES if number + extension in parts), None)


def _others(key: str, parts: Mapping[str, bytes]) -> tuple[bytes, ...]:
    """Return the further images in numerical order; raises BrokenSample for a gap in the numbers."""
    images = tuple(_image(parts, f"{number}.") for number in range(1, MAX_OTHER_IMAGES + 1))
    others = tuple(image for image in images if image is not None)
    if None in images[: len(others)]:
        raise BrokenSample(key, f"further images are numbered from 1; number {1 + images.index(None)} is missing")
    return others


def parse_class(text: str) -> int | str:
    """Return the class in a member .cls: a number, or else a name."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= MAX_CLASS_DIGITS else text


def _captions(meta: Mapping[str, object]) -> tuple[str, ...]:
    """Return the captions in a JSON object: a list "captions", or a string "caption" or "text"."""
    captions = meta.get("captions")
    if isinstance(captions, list):
        return _strings(captions)
    return _strings([text for text in (meta.get("caption"), meta.get("text")) if text is not None][:1])


def _strings(values: Sequence[object]) -> tuple[str, ...]:
    """Strip texts and drop empty ones; raises DualfuseError for a value that is not a string."""
    for value in values:
        if not isinstance(value, str):
            raise DualfuseError(f"a caption is a {type(value).__name__}; a string is needed")
    return tuple(text for text in (str(value).strip() for value in values) if text)
