"""Finds an image by the name that a table or a json gives it."""

from __future__ import annotations

import os
from pathlib import Path

from dualfuse.prepare.sources.item import Slice


def around(folder: Path, *usual: str) -> tuple[Path, ...]:
    """Return ``folder``, the two around it, and and what lies in these under a ``usual`` name."""
    places = (folder, *folder.absolute().parents[:2])
    return *places, *(place / name for place in places for name in usual if (place / name).is_dir())


FLICKR = ("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Flickr8k_Dataset", "images")
"""How the folders of images are called that Flickr30k and Flickr8k unpack to."""


class ImageFinder:
    """Looks for images below some folders: under the full name first, under the bare file name then."""

    def __init__(self, *folders: Path) -> None:
        """``folders`` are tried in this order."""
        self.folders = folders

    def __call__(self, name: str) -> Slice:
        """Return the image called ``name``; where there is none, the place at which it should be."""
        bare = name.replace("\\", "/").rpartition("/")[2]
        for candidate in (name.replace("\\", "/"), bare):
            for folder in self.folders:
                if os.path.isfile(folder / candidate):  # Path.is_file raises OSError for a name that is too long
                    return Slice(folder / candidate)
        return Slice(self.folders[0] / name)
