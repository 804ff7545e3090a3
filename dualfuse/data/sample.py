"""What a data set is made of: one image, or several, with its texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dualfuse.errors import DualfuseError


@dataclass(frozen=True)
class Sample:
    """One image with its texts, still encoded as they lie in the shard.

    Whatever is trained or judged by itself is a sample of its own: where an image has several questions, each of them
    is one, so that all are read equally often and each has a key.

    ``image`` holds the bytes of a JPEG, PNG or WebP file, ``texts`` the captions (none for an image that is to
    be searched only), ``meta`` whatever else the source said (JSON values), ``source`` the number of its set among
    those that are trained on together, ``others`` further images that the texts speak of, in order, ``label_map`` a
    PNG with the number of a class for each pixel of ``image`` (empty: there is none).
    """

    key: str
    image: bytes
    texts: tuple[str, ...] = ()
    meta: Mapping[str, object] = field(default_factory=dict)
    source: int = 0
    other_images: tuple[bytes, ...] = ()
    label_map: bytes = b""


class ChangedFile(OSError):
    """A file of a set has gone, or is no longer what it was when the set was opened: nothing of the set is right."""


class BrokenSample(DualfuseError):
    """A sample that cannot be used: the message says which one and why."""

    def __init__(self, key: str, reason: str) -> None:
        """``key`` names the sample, ``reason`` completes "it was left out because"."""
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason

    def __reduce__(self) -> tuple[type[BrokenSample], tuple[str, str]]:
        """Let loader workers send it to the main process."""
        return BrokenSample, (self.key, self.reason)
