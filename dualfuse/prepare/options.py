"""How ``prepare`` reads and writes; apart from it so that the command line can show it without loading torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True)
class PrepareOptions:
    """How raw data are read and written."""

    images: Path | None = None
    """Folder of the images, where a table or json names them relative to it."""
    answers: Path | None = None
    """Answers that are known, one a line: Visual Genome's questions need the answers.txt written for VQAv2."""
    image_column: Annotated[str, arg(name="image")] = ""
    """Column of a table that names the image (or holds it); empty: by its usual names."""
    text_columns: Annotated[tuple[str, ...], arg(name="text")] = ()
    """Columns of a table that hold captions; empty: by their usual names."""
    label_column: Annotated[str, arg(name="label")] = ""
    """Column of a table with the label of image and text, or with a list of answers; each row is then a sample. Of a
    folder of images the word folder: it has a sub-folder for each class, also below train, val and test."""
    class_names: Path | None = None
    """With --label folder: what the classes are called, a folder's name and that of its class in each line."""
    split_column: str = ""
    """Column of a table that says train, val or test; empty: the column called split, if there is one."""
    split: str = ""
    """Shares to set apart, such as val=0.05,test=0.05, by a hash of the image; for sources without splits."""
    longest_side: int = 0
    """Images with a longer side are made smaller and become JPEG; 0: every image stays as it is."""
    images_only: bool = False
    """Keep images without a caption, for training on images alone."""
    shard_samples: int = 10_000
    """Most samples in a shard."""
    shard_megabytes: int = 64
    """Most megabytes in a shard."""
    num_workers: int = 0
    """Threads that read and decode; 0: one per processor."""
