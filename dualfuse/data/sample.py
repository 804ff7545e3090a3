"""Samples: one or several images with their texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dualfuse.errors import DualfuseError


@dataclass(frozen=True)
class Sample:
    """One image with its texts, encoded as in the shard.

    Every unit of training or evaluation is a sample with its own key: if an image has several questions, each is a
    sample, so that all are read equally often.

    ``image`` holds the bytes of a JPEG, PNG or WebP file, ``texts`` the captions (empty for an image that is only
    searched), ``meta`` all other fields of the source (JSON values), ``source`` the index of its set in a mixture,
    ``other_images`` further images that the texts refer to, in order, ``label_map`` a PNG with a class number for each
    pixel of ``image`` (empty: none).
    """

    key: str
    image: bytes
    texts: tuple[str, ...] = ()
    meta: Mapping[str, object] = field(default_factory=dict)
    source: int = 0
    other_images: tuple[bytes, ...] = ()
    label_map: bytes = b""

    @property
    def kept(self) -> dict[str, object]:
        """The original name of the image and the fields that ``prepare --keep`` stored; empty without such fields."""
        keep = self.meta.get("keep")
        return {"name": self.meta.get("name"), **keep} if isinstance(keep, Mapping) else {}


class ChangedFile(OSError):
    """A file of a set was deleted or changed after the set was opened, so no sample of the set can be trusted."""


class BrokenSample(DualfuseError):
    """An unusable sample; the message has its key and the reason."""

    def __init__(self, key: str, reason: str) -> None:
        """``key`` names the sample; ``reason`` is a phrase such as "no image among its members"."""
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason

    def __reduce__(self) -> tuple[type[BrokenSample], tuple[str, str]]:
        """Support pickling, which loader processes need."""
        return BrokenSample, (self.key, self.reason)
