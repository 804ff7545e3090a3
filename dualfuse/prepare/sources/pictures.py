"""Finds a picture by the name that a table or a json gives it."""

from __future__ import annotations

from pathlib import Path

from dualfuse.prepare.sources.item import Slice


class PictureFinder:
    """Looks for pictures below some folders: under the full name first, under the bare file name then."""

    def __init__(self, *folders: Path) -> None:
        """``folders`` are tried in this order."""
        self.folders = folders

    def __call__(self, name: str) -> Slice:
        """Gives the picture called ``name``; where there is none, the place at which it should be."""
        bare = name.replace("\\", "/").rpartition("/")[2]
        for candidate in (name.replace("\\", "/"), bare):
            for folder in self.folders:
                if (folder / candidate).is_file():
                    return Slice(folder / candidate)
        return Slice(self.folders[0] / name)
