"""Decides about one item of a source: which split and which bytes go into a shard, or why it is left out."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dualfuse.data.image.image_file import ConvertedImage, TooLarge, convert_image
from dualfuse.data.image.label_map import decode_labels, encode_labels, resize_labels
from dualfuse.data.image.transform import decode
from dualfuse.data.split import Shares, split_by_content
from dualfuse.errors import DualfuseError
from dualfuse.prepare.sources.item import Item, Slice

MISSING = "missing image"


@dataclass(frozen=True)
class PreparedItem:
    """An image that goes into a shard of ``split``."""

    image: ConvertedImage
    texts: tuple[str, ...]
    split: str
    other_images: tuple[ConvertedImage, ...] = ()
    label_map: bytes = b""
    """As large as the image; empty: there is none."""


@dataclass(frozen=True)
class SkippedItem:
    """Why an item goes into none: the reason, which is counted, and what is to say about this item."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class ItemChecker:
    """Reads, decodes and judges items; safe to call from many threads."""

    shares: Shares = ()
    """Shares to set apart by a hash of the image; empty: all items whose source names no split are for training."""
    longest_side: int = 0
    images_only: bool = False

    def __call__(self, item: Item) -> PreparedItem | SkippedItem:
        """Return what to write, or why not; raises ``DualfuseError`` if shares are wanted of a source with splits."""
        if item.split and self.shares:
            raise DualfuseError(
                f"the source puts {item.name} into {item.split}: it has splits already; leave out --split"
            )
        if item.problem:
            return SkippedItem(item.problem)
        if not _is_unicode(item):
            return SkippedItem("half a character", "what is said about it cannot be written as UTF-8")
        texts = tuple(filter(None, (" ".join(text.split()) for text in item.texts)))
        if not texts and not self.images_only and not item.label_map:
            return SkippedItem("no caption")
        images = []
        for source in (item.image, *item.other_images):
            data = _bytes(source)
            image = data if isinstance(data, SkippedItem) else self._judge(data)
            if isinstance(image, SkippedItem):
                return image
            images.append((data, image))
        (data, first), *rest = images
        split = item.split or split_by_content(data, self.shares)
        label_map = _label_map(item.label_map, data, first) if item.label_map else b""
        if isinstance(label_map, SkippedItem):
            return label_map
        return PreparedItem(first, texts, split, tuple(image for _, image in rest), label_map)

    def _judge(self, data: bytes) -> ConvertedImage | SkippedItem:
        try:
            return convert_image(data, self.longest_side)
        except TooLarge as error:
            return SkippedItem("image too large", str(error))
        except ValueError as error:
            return SkippedItem("unreadable image", str(error))


def _label_map(source: Slice | bytes, data: bytes, image: ConvertedImage) -> bytes | SkippedItem:
    """Return a label map of the size that the image in ``data`` has in the shard, or why it cannot be used."""
    found = _bytes(source)
    if isinstance(found, SkippedItem):
        return SkippedItem("unreadable label map", found.detail)
    try:
        labels = decode_labels(found)
    except ValueError as error:
        return SkippedItem("unreadable label map", str(error))
    size = image.height, image.width
    before = tuple(decode(data).shape[1:]) if image.change else size
    if labels.shape != before:
        sizes = (" x ".join(map(str, shape)) for shape in (labels.shape, before))
        return SkippedItem("label map of another size", "{} pixels, the image {}".format(*sizes))
    return found if before == size else encode_labels(resize_labels(labels, size))


def _is_unicode(item: Item) -> bool:
    """False for half of a surrogate pair, which json can hold and no file can."""
    try:
        json.dumps((item.name, item.texts, {**item.meta, **item.label}), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes(source: Slice | bytes) -> bytes | SkippedItem:
    try:
        data = source if isinstance(source, bytes) else source.read()
    except FileNotFoundError:
        return SkippedItem(MISSING, str(source))
    except (OSError, ValueError) as error:  # ValueError: for a name that no file can have
        return SkippedItem("unreadable image", str(error))
    return data or SkippedItem(MISSING if source == b"" else "unreadable image", "empty")
