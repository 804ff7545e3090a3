"""Checks of single items: the split and the bytes that go into a shard, or the reason for skipping the item."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dualfuse.data.image.decode import decode
from dualfuse.data.image.formats import UnsupportedFormat
from dualfuse.data.image.image_file import ConvertedImage, TooLarge, convert_image
from dualfuse.data.image.label_map import decode_labels, encode_labels, resize_labels
from dualfuse.data.split import Shares, split_by_content
from dualfuse.errors import DualfuseError
from dualfuse.prepare.sources.source import Item, Slice

MISSING = "missing image"


@dataclass(frozen=True)
class PreparedItem:
    """An item that is written to a shard of ``split``."""

    image: ConvertedImage
    texts: tuple[str, ...]
    split: str
    other_images: tuple[ConvertedImage, ...] = ()
    label_map: bytes = b""
    """Of the size of the image; empty: none."""
    fingerprint: str = ""
    """Changes with the item."""


@dataclass(frozen=True)
class SkippedItem:
    """The reason for skipping an item, which is counted, and details about this item."""

    reason: str
    detail: str = ""
    fingerprint: str = ""
    """Changes with the item."""


@dataclass(frozen=True)
class ItemChecker:
    """Function that reads, decodes and checks an item; thread-safe."""

    shares: Shares = ()
    """Shares of splits, assigned by a hash of the image; empty: items without a split are for training."""
    longest_side: int = 0
    images_only: bool = False

    def __call__(self, item: Item) -> PreparedItem | SkippedItem:
        """Return what to write, or the reason for skipping; raises ``DualfuseError`` if both give a split."""
        if item.split and self.shares:
            raise DualfuseError(f"{item.name} is in split {item.split}: the source has splits already; remove --split")
        if item.problem:
            return SkippedItem(item.problem, item.detail)
        if not _is_unicode(item):
            return SkippedItem("invalid Unicode", "its name, texts or fields cannot be encoded as UTF-8")
        texts = clean_texts(item)
        if not texts and not self.images_only and not item.label_map:
            return SkippedItem("no caption")
        images = []
        for source in (item.image, *item.other_images):
            data = _bytes(source)
            image = data if isinstance(data, SkippedItem) else self._convert(data)
            if isinstance(image, SkippedItem):
                return image
            images.append((data, image))
        (data, first), *rest = images
        split = item.split or split_by_content(data, self.shares)
        label_map = _label_map(item.label_map, data, first) if item.label_map else b""
        if isinstance(label_map, SkippedItem):
            return label_map
        return PreparedItem(first, texts, split, tuple(image for _, image in rest), label_map)

    def _convert(self, data: bytes) -> ConvertedImage | SkippedItem:
        try:
            return convert_image(data, self.longest_side)
        except TooLarge as error:
            return SkippedItem("image too large", str(error))
        except ValueError as error:
            return _unreadable(error)


def clean_texts(item: Item) -> tuple[str, ...]:
    """Return the texts of an item without line breaks, repeated spaces and empty texts."""
    return tuple(filter(None, (" ".join(text.split()) for text in item.texts)))


def _unreadable(error: Exception) -> SkippedItem:
    """Return the reason for skipping an image that cannot be read or decoded."""
    is_unsupported = isinstance(error, UnsupportedFormat)
    return SkippedItem(f"{error.name} image" if is_unsupported else "unreadable image", str(error))


def _label_map(source: Slice | bytes, data: bytes, image: ConvertedImage) -> bytes | SkippedItem:
    """Return a label map of the size of the converted ``image``, or the reason for skipping the item."""
    encoded = _bytes(source)
    if isinstance(encoded, SkippedItem):
        return SkippedItem("unreadable label map", encoded.detail)
    try:
        labels = decode_labels(encoded)
    except ValueError as error:
        return SkippedItem("unreadable label map", str(error))
    size = image.height, image.width
    original = tuple(decode(data).shape[1:]) if image.change else size
    if labels.shape != original:
        sizes = (" x ".join(map(str, shape)) for shape in (labels.shape, original))
        return SkippedItem("label map of another size", "{} pixels, the image {}".format(*sizes))
    return encoded if original == size else encode_labels(resize_labels(labels, size))


def _is_unicode(item: Item) -> bool:
    """Return whether an item can be encoded as UTF-8; JSON may contain half of a surrogate pair."""
    try:
        json.dumps((item.name, item.texts, {**item.meta, **item.label}), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes(source: Slice | bytes) -> bytes | SkippedItem:
    if isinstance(source, bytes):
        return source or SkippedItem(MISSING)
    try:
        data = source.read()
    except FileNotFoundError:
        return SkippedItem(MISSING, source.remark or str(source.path))
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        return _unreadable(error)
    return data or SkippedItem("unreadable image", "empty")
