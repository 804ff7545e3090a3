"""Looks at one sample of a shard: what is wrong with it alone, and the hashes by which it is compared with others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dualfuse.data.image.image_file import header
from dualfuse.data.image.transform import decode
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.doctor.fingerprint import fingerprint

TINY = 48  # pixels on the shorter side
HUGE = 4096  # pixels on the longer side


@dataclass(frozen=True)
class SampleFindings:
    """What is kept of a sample: a hundred bytes or so, whatever the size of its image."""

    flaws: tuple[tuple[str, str], ...]
    """(name of the finding, what there is to say)."""
    content: int = 0
    """64-bit hash of the file's bytes; 0 for an image that cannot be read, as are the next two."""
    look: int = 0
    """64-bit hash of what the image looks like."""
    colours: bytes = bytes(48)
    texts: tuple[int, ...] = ()
    """64-bit hash of each text, without case and spacing."""


def examine_sample(shards: Shards, number: int, text: TextTransform) -> SampleFindings:
    """Return what there is to know about sample ``number``."""
    try:
        sample = shards[number]
    except BrokenSample as error:
        return SampleFindings((("unreadable image", error.reason),))
    texts = tuple(_hash(" ".join(line.casefold().split()).encode()) for line in sample.texts)
    flaws = _text_flaws(sample, text)
    try:
        is_small_or_large = _image_flaws(sample.image)
        look, colours = fingerprint(decode(sample.image).permute(1, 2, 0).contiguous().numpy())
    except ValueError as error:
        return SampleFindings((("unreadable image", str(error)), *flaws), texts=texts)
    return SampleFindings((*is_small_or_large, *flaws), _hash(sample.image), look, colours, texts)


def _image_flaws(image: bytes) -> tuple[tuple[str, str], ...]:
    found = header(image)
    size = f"{found.width} x {found.height}"
    checks = (
        (min(found.width, found.height) < TINY, "tiny image", size),
        (max(found.width, found.height) > HUGE, "huge image", size),
        (found.frames > 1, "animated image", f"{found.frames} frames"),
    )
    return tuple((name, detail) for is_so, name, detail in checks if is_so)


def _text_flaws(sample: Sample, text: TextTransform) -> tuple[tuple[str, str], ...]:
    if not sample.texts:
        return (("no text", ""),)
    return tuple(("over-long text", line[:60] + "…") for line in sample.texts if text.encode(line).truncated)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1
