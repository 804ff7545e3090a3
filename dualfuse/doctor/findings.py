"""What is wrong with a data set: the kinds of flaws, and the report that names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dualfuse.io import write_json

ADVICE = {
    "unreadable shard": "cut off or no tar; copy or prepare it again",
    "unreadable image": "training skips it, evaluation stops at it; prepare the set again to leave it out",
    "tiny image": "there is little to see; leave it out, or check that no thumbnails were taken",
    "huge image": "decoding takes long; prepare again with --longest-side",
    "animated image": "only its first frame is seen",
    "same image again": "no flaw if each has its own question; else it counts several times: leave out all but one",
    "near-same image again": "re-encoded or resized copies, or a series; look at them",
    "same image in two splits": "a leak: what is tested was trained on; remove it from training",
    "near-same image in two splits": "perhaps a leak; look at them",
    "no text": "of no use for pairs; training on images alone can use it",
    "over-long text": "its end is cut off; raise --text-length (here and in the recipe) or shorten it",
    "same text on several images": "no flaw if it fits them all; retrieval cannot tell these images apart by it",
    "same text in two splits": "perhaps a leak; look at the images",
}


@dataclass(frozen=True)
class Finding:
    """One kind of flaw, and where it was found."""

    name: str
    """One of ``ADVICE``."""
    count: int
    """How many images, texts or groups of them have it."""
    examples: tuple[str, ...]
    """Keys of the first, with what there is to say; several keys that belong together are joined by " = "."""


@dataclass(frozen=True)
class Report:
    """What ``examine`` found."""

    path: str
    splits: Mapping[str, Mapping[str, int]]
    """Of each split, how many shards, images and texts it has."""
    findings: tuple[Finding, ...]
    """Only what was found at least once, in the order of ``ADVICE``."""

    def save(self, path: Path) -> None:
        """Write the report as json."""
        write_json(path, asdict(self))
