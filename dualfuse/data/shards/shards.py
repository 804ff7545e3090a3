"""Shards: any sample of any number of tar files, read by number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dualfuse.data.files import find_files, labels
from dualfuse.data.map_dataset import MapDataset
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.shards.tar_index import TarIndex
from dualfuse.errors import DualfuseError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
OTHERS = 9  # further images of a sample, at most: KEY.1.jpg to KEY.9.jpg beside KEY.jpg
LABEL_MAP = "labels.png"  # a class for each pixel: KEY.labels.png beside KEY.jpg
LONG = 19  # digits that are no number of a class
FURTHER = tuple(f"{n}.{image}" for n in range(1, OTHERS + 1) for image in IMAGES)
READ = frozenset((*IMAGES, *FURTHER, LABEL_MAP, "txt", "json", "cls"))


class Shards(MapDataset):
    """The samples of one or more tar files, in file order.

    ``shards[n]`` reads the tar; it raises ``BrokenSample``, with the key, when sample ``n`` has no image or its
    parts cannot be read. Images stay encoded: nothing here looks into them. A value of this class pickles and holds
    no open file: every process maps the tars it reads when it reads them.
    """

    def __init__(self, tars: Sequence[TarIndex], labels: Sequence[str]) -> None:
        """Take the index of every tar and the name that stands for it in keys; see :meth:`open`."""
        super().__init__([len(tar) for tar in tars])
        self._tars, self._labels = tuple(tars), tuple(labels)

    @classmethod
    def open(cls, source: str | Path) -> Shards:
        """Return the samples of a tar file, of all ``*.tar`` of a folder, or of all ``*.tar`` a pattern matches.

        Tar files are sorted by path. Their index is read, or made where it is missing or older than the tar; if it
        cannot be written, it lives in memory. Raises DualfuseError when nothing is found, and for a file that is
        compressed, truncated or no tar.
        """
        paths = find_files(source, (".tar",), "tar file")
        shards = cls(tuple(TarIndex.of(path) for path in paths), labels(paths, (".tar",)))
        if not len(shards):
            raise DualfuseError(
                f"{source}: no samples in {len(paths)} tar file(s); members should be named like 0001.jpg"
            )
        return shards

    def key(self, index: int) -> str:
        """Return the key of sample ``index``, "TAR/KEY", which no other sample of the set has; reads no tar.

        TAR is the tar's file name without ``.tar``, with its folders when two tars of the set share that name.
        """
        tar, number = self.locate(index)
        return f"{self._labels[tar]}/{self._tars[tar].key(number)}"

    def digests(self) -> dict[str, str]:
        """Return what stands for names and sizes of the members of each tar."""
        return {label: tar.digest() for label, tar in zip(self._labels, self._tars, strict=True)}

    def read(self, file: int, number: int, key: str) -> Sample:
        """Read one sample of a tar."""
        try:
            return _sample(key, self._tars[file].read(number, READ))
        except BrokenSample:
            raise
        except (ValueError, RecursionError) as error:  # RecursionError: JSON that is nested too deeply
            raise BrokenSample(key, str(error)) from error


def _sample(key: str, parts: Mapping[str, bytes]) -> Sample:
    """Put the members of one sample together."""
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
        meta = {"label": class_in(parts["cls"].decode("utf-8-sig")), **meta}
    lines = _strings(parts["txt"].decode("utf-8-sig").split("\n")) if "txt" in parts else ()
    label_map = parts.get(LABEL_MAP, b"")
    return Sample(key, image, lines or _captions(meta), meta, other_images=_others(key, parts), label_map=label_map)


def _image(parts: Mapping[str, bytes], number: str = "") -> bytes | None:
    """Return the image of a sample, or that with a ``number`` such as "1."."""
    return next((parts[number + extension] for extension in IMAGES if number + extension in parts), None)


def _others(key: str, parts: Mapping[str, bytes]) -> tuple[bytes, ...]:
    """Return the further images in the order of their numbers; none may be missing before another."""
    found = tuple(_image(parts, f"{number}.") for number in range(1, OTHERS + 1))
    others = tuple(image for image in found if image is not None)
    if None in found[: len(others)]:
        raise BrokenSample(key, f"further images are numbered from 1 on; number {1 + found.index(None)} is missing")
    return others


def class_in(said: str) -> int | str:
    """Return the class that a member .cls holds: a number, or else a name."""
    said = said.strip()
    return int(said) if said.isdecimal() and len(said) < LONG else said


def _captions(meta: Mapping[str, object]) -> tuple[str, ...]:
    """Find the captions in a json object: a list "captions", or a string "caption" or "text"."""
    captions = meta.get("captions")
    if isinstance(captions, list):
        return _strings(captions)
    return _strings([text for text in (meta.get("caption"), meta.get("text")) if text is not None][:1])


def _strings(values: Sequence[object]) -> tuple[str, ...]:
    """Strip texts and leaves out empty ones; DualfuseError if one is none."""
    for value in values:
        if not isinstance(value, str):
            raise DualfuseError(f"a caption is a {type(value).__name__}; a string is needed")
    return tuple(text for text in (str(value).strip() for value in values) if text)
