"""Options of ``prepare``, in a module without torch so that the command line imports it quickly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dualfuse.errors import DualfuseError


@dataclass(frozen=True)
class PrepareOptions:
    """Columns and splits of the source, and the layout of the shards."""

    images: Path | None = None
    """Folder that the image paths in a table or JSON file are relative to; default: the folder of that file."""
    answers: Path | None = None
    """File with one known answer per line. Visual Genome questions need the answers.txt that was written for VQAv2."""
    encoding: str = ""
    """Encoding of text files and tables that are neither UTF-8 nor UTF-16 with a byte order mark, such as cp1252."""
    image_column: Annotated[str, arg(name="image")] = ""
    """Table column with the image or its path; empty: recognized by its usual names."""
    text_columns: Annotated[tuple[str, ...], arg(name="text")] = ()
    """Table columns with captions; empty: recognized by their usual names."""
    label_column: Annotated[str, arg(name="label")] = ""
    """Table column with a label or a list of answers; each row becomes one sample. The value folder, for a folder of
    images, makes each sub-folder one class, also below train, val and test."""
    class_names: Path | None = None
    """With --label folder: file of class names, a sub-folder and its class per line."""
    keep: tuple[str, ...] = ()
    """Columns of a table, or fields of json objects, that identify items for you, such as id sku price. They are
    stored with each sample, and shown beside the name of the image in skipped.jsonl, search, doctor and predictions."""
    split_column: str = ""
    """Table column with the values train, val and test; empty: the column split if there is one."""
    split: str = ""
    """Fractions of the images that go to other splits than train, such as val=0.05,test=0.05, chosen by a hash of the
    image; only for sources without splits."""
    longest_side: int = 0
    """Maximum side length in pixels: larger images are resized and stored as JPEG; 0: images are stored as they are."""
    images_only: bool = False
    """Keep images without captions, for training on images alone."""
    shard_samples: int = 10_000
    """Maximum number of samples per shard."""
    shard_megabytes: int = 64
    """Maximum size of a shard in megabytes."""
    num_workers: int = 0
    """Threads that read and decode images; 0: one per CPU core."""

    def __post_init__(self) -> None:
        """Validate the numbers."""
        for name, least in (("longest_side", 0), ("shard_samples", 1), ("shard_megabytes", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise DualfuseError(f"{name} is {getattr(self, name)}; it must be at least {least}")
