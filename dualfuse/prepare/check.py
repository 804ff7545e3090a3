"""Decides about one item of a source: which split and which bytes go into a shard, or why it is left out."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dualfuse.data.images import decode
from dualfuse.data.label_map import decode_labels, encode_labels, resize_labels
from dualfuse.data.picture_file import Fitted, TooLarge, fit
from dualfuse.data.split import Shares, split_by_content
from dualfuse.prepare.sources.item import Item, Slice

MISSING = "missing picture"


@dataclass(frozen=True)
class Ready:
    """A picture that goes into a shard of ``split``."""

    picture: Fitted
    texts: tuple[str, ...]
    split: str
    others: tuple[Fitted, ...] = ()
    label_map: bytes = b""
    """As large as the picture; empty: there is none."""


@dataclass(frozen=True)
class LeftOut:
    """Why an item goes into none: the reason, which is counted, and what is to say about this item."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """Reads, decodes and judges items; safe to call from many threads."""

    shares: Shares = ()
    """Shares to set apart by a hash of the picture; empty: all items whose source names no split are for training."""
    longest_side: int = 0
    pictures_only: bool = False

    def __call__(self, item: Item) -> Ready | LeftOut:
        """Gives what to write, or why not; raises ``ValueError`` if shares are wanted of a source with splits."""
        if item.split and self.shares:
            raise ValueError(f"the source puts {item.name} into {item.split}: it has splits already; leave out --split")
        if item.problem:
            return LeftOut(item.problem)
        if not _is_unicode(item):
            return LeftOut("half a character", "what is said about it cannot be written as UTF-8")
        texts = tuple(filter(None, (" ".join(text.split()) for text in item.texts)))
        if not texts and not self.pictures_only and not item.label_map:
            return LeftOut("no caption")
        pictures = []
        for source in (item.image, *item.others):
            data = _bytes(source)
            picture = data if isinstance(data, LeftOut) else self._judge(data)
            if isinstance(picture, LeftOut):
                return picture
            pictures.append((data, picture))
        (data, first), *rest = pictures
        split = item.split or split_by_content(data, self.shares)
        label_map = _label_map(item.label_map, data, first) if item.label_map else b""
        if isinstance(label_map, LeftOut):
            return label_map
        return Ready(first, texts, split, tuple(picture for _, picture in rest), label_map)

    def _judge(self, data: bytes) -> Fitted | LeftOut:
        try:
            return fit(data, self.longest_side)
        except TooLarge as error:
            return LeftOut("picture too large", str(error))
        except ValueError as error:
            return LeftOut("unreadable picture", str(error))


def _label_map(source: Slice | bytes, data: bytes, picture: Fitted) -> bytes | LeftOut:
    """Gives a label map of the size that the picture in ``data`` has in the shard, or why it cannot be used."""
    found = _bytes(source)
    if isinstance(found, LeftOut):
        return LeftOut("unreadable label map", found.detail)
    try:
        labels = decode_labels(found)
    except ValueError as error:
        return LeftOut("unreadable label map", str(error))
    size = picture.height, picture.width
    before = tuple(decode(data).shape[1:]) if picture.change else size
    if labels.shape != before:
        sizes = (" x ".join(map(str, shape)) for shape in (labels.shape, before))
        return LeftOut("label map of another size", "{} pixels, the picture {}".format(*sizes))
    return found if before == size else encode_labels(resize_labels(labels, size))


def _is_unicode(item: Item) -> bool:
    """False for half of a surrogate pair, which json can hold and no file can."""
    try:
        json.dumps((item.name, item.texts, {**item.meta, **item.truth}), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes(source: Slice | bytes) -> bytes | LeftOut:
    try:
        data = source if isinstance(source, bytes) else source.read()
    except FileNotFoundError:
        return LeftOut(MISSING, str(source))
    except (OSError, ValueError) as error:  # ValueError: for a name that no file can have
        return LeftOut("unreadable picture", str(error))
    return data or LeftOut(MISSING if source == b"" else "unreadable picture", "empty")
