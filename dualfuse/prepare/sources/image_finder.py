"""Search for images by their names in a table or JSON file."""

from __future__ import annotations

import os
from pathlib import Path

from dualfuse.prepare.sources.source import Slice


def around(folder: Path, *usual: str) -> tuple[Path, ...]:
    """Return ``folder``, its two parents, and the sub-folders of these with a ``usual`` name."""
    folders = (folder, *folder.absolute().parents[:2])
    return *folders, *(parent / name for parent in folders for name in usual if (parent / name).is_dir())


FLICKR = ("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Flickr8k_Dataset", "images")
"""Names of the image folders of Flickr30k and Flickr8k."""


class ImageFinder:
    """Function that searches for images in several folders, by the full name first, then by the file name."""

    def __init__(self, *folders: Path) -> None:
        """``folders`` are searched in this order."""
        self.folders = folders

    def __call__(self, name: str) -> Slice:
        """Return the image called ``name``; if there is none, its path in the first folder."""
        bare = name.replace("\\", "/").rpartition("/")[2]
        for candidate in (name.replace("\\", "/"), bare):
            for folder in self.folders:
                if os.path.isfile(folder / candidate):  # Path.is_file raises OSError for a name that is too long
                    return Slice(folder / candidate)
        return Slice(self.folders[0] / name)
