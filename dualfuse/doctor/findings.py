"""Findings about a data set, advice for each kind, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dualfuse.io import write_json

ADVICE = {
    "unreadable shard": "truncated or not a tar; copy or prepare it again",
    "unreadable image": "training skips it, evaluation stops at it; prepare the set again to remove it",
    "tiny image": "little information; remove it, or check whether the images are thumbnails",
    "huge image": "decoding is slow; prepare the set again with --longest-side",
    "animated image": "only the first frame is used",
    "duplicate image": "normal if each has its own question; otherwise it counts several times: keep one",
    "near-duplicate image": "re-encoded or resized copies, or a series; check them",
    "same image in two splits": "a leak: a test image is trained on; remove it from training",
    "near-duplicate in two splits": "possibly a leak; check them",
    "no text": "unusable for image-text pairs; usable for training on images alone",
    "over-long text": "it is truncated; raise --text-length (here and in the recipe) or shorten it",
    "same text on several images": "normal if it fits all of them, but retrieval cannot distinguish them by it",
    "same text in two splits": "possibly a leak; check the images",
}


@dataclass(frozen=True)
class Finding:
    """One kind of defect, with examples."""

    name: str
    """One of ``ADVICE``."""
    count: int
    """Number of images, texts or groups of them."""
    examples: tuple[str, ...]
    """Keys of the first samples, with details; keys of equal samples are joined by " = "."""


@dataclass(frozen=True)
class Report:
    """The result of ``examine``."""

    path: str
    splits: Mapping[str, Mapping[str, int]]
    """Numbers of shards, images and texts of each split."""
    findings: tuple[Finding, ...]
    """All findings, in the order of ``ADVICE``."""

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        write_json(path, asdict(self))
