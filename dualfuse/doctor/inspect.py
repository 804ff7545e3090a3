"""Inspection of single samples: their defects, and the hashes for comparisons with other samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dualfuse.data.image.decode import decode, decoding
from dualfuse.data.image.image_file import header
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.doctor.fingerprint import fingerprint

TINY = 48  # pixels on the shorter side
HUGE = 4096  # pixels on the longer side


@dataclass(frozen=True)
class SampleFindings:
    """Defects and hashes of a sample: about a hundred bytes, whatever the size of its image."""

    defects: tuple[tuple[str, str], ...]
    """(name of the finding, details)."""
    content: int = 0
    """64-bit hash of the file; 0 for an unreadable image, as are the next two."""
    perceptual: int = 0
    """64-bit perceptual hash; see :func:`fingerprint`."""
    colors: bytes = bytes(48)
    texts: tuple[int, ...] = ()
    """64-bit hash of each text, ignoring case and white space."""


@decoding()
def examine_sample(shards: Shards, number: int, text: TextTransform) -> SampleFindings:
    """Inspect sample ``number``."""
    try:
        sample = shards[number]
    except BrokenSample as error:
        return SampleFindings((("unreadable image", error.reason),))
    texts = tuple(_hash(" ".join(line.casefold().split()).encode()) for line in sample.texts)
    defects = _text_defects(sample, text)
    try:
        image_defects = _image_defects(sample.image)
        perceptual, colors = fingerprint(decode(sample.image).permute(1, 2, 0).contiguous().numpy())
    except ValueError as error:
        return SampleFindings((("unreadable image", str(error)), *defects), texts=texts)
    return SampleFindings((*image_defects, *defects), _hash(sample.image), perceptual, colors, texts)


def _image_defects(image: bytes) -> tuple[tuple[str, str], ...]:
    info = header(image)
    size = f"{info.width} x {info.height}"
    checks = (
        (min(info.width, info.height) < TINY, "tiny image", size),
        (max(info.width, info.height) > HUGE, "huge image", size),
        (info.frames > 1, "animated image", f"{info.frames} frames"),
    )
    return tuple((name, detail) for is_defect, name, detail in checks if is_defect)


def _text_defects(sample: Sample, text: TextTransform) -> tuple[tuple[str, str], ...]:
    if not sample.texts:
        return (("no text", ""),)
    return tuple(("over-long text", line[:60] + "…") for line in sample.texts if text.encode(line).truncated)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1
