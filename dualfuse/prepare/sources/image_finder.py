"""Search for images by their names in a table or JSON file."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from dualfuse.io import listing
from dualfuse.prepare.sources.source import IMAGE_SUFFIXES, Item, Slice

FLICKR = ("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Flickr8k_Dataset", "images")
"""Names of the image folders of Flickr30k and Flickr8k."""
OTHER_NAME = "the image was found under another name"


def around(folder: Path, *usual: str) -> tuple[Path, ...]:
    """Return ``folder``, its two parents, and the sub-folders of these with a ``usual`` name."""
    folders = (folder, *folder.absolute().parents[:2])
    return *folders, *(parent / name for parent in folders for name in usual if (parent / name).is_dir())


def file_key(image: Slice) -> object:
    """Return a value that is equal for two paths of the same file."""
    try:
        status = os.stat(image.path)
    except (OSError, ValueError):  # ValueError: an invalid file name
        return image.path
    return (status.st_dev, status.st_ino) if status.st_ino else image.path


def merge_images(items: Iterable[Item]) -> Iterator[Item]:
    """Merge the items about the same file in the same split into one with all texts, in the order of the first ones.

    A kept field with several values becomes their list. Items with a problem, and those with the bytes of an image, are
    yielded at once.
    """
    merged: dict[tuple[str, object], tuple[Item, list[str], dict[str, list[object]]]] = {}
    for item in items:
        if item.problem or not isinstance(item.image, Slice):
            yield item
        else:
            _, texts, keep = merged.setdefault((item.split, file_key(item.image)), (item, [], {}))
            texts.extend(item.texts)
            for name, value in item.keep.items():
                if value not in keep.setdefault(name, []):
                    keep[name].append(value)
    for item, texts, keep in merged.values():
        fields = {name: values[0] if len(values) == 1 else values for name, values in keep.items()}
        yield replace(item, texts=tuple(texts), keep=fields)


class ImageFinder:
    """Function that searches for images in several folders, first by the exact name, then by similar ones.

    A similar name differs in letter case, Unicode normalization, %-encoding or a leading slash; in the suffix, unless
    another name of the source has that suffix; or in the folder, if no other name of the source has that file name.
    """

    def __init__(self, *folders: Path, names: Callable[[], Iterable[str]] = tuple) -> None:
        """``folders`` are searched in this order; ``names`` returns all names of the source."""
        self.folders, self._names = folders, names
        self._listings: dict[Path, _Listing] = {}

    def __call__(self, name: str) -> Slice:
        """Return the image called ``name``, with a remark if its name is only similar.

        If there is no such image, or several have a similar name, the slice has the path in the first folder and a
        remark about files with similar names.
        """
        exact = name.replace("\\", "/")
        for candidate in dict.fromkeys((name, exact)):
            for folder in self.folders:
                if os.path.isfile(folder / candidate):  # Path.is_file raises OSError for a name that is too long
                    return Slice(folder / candidate)
        similar: list[Path] = []
        for search in (self._other_spelling, self._other_suffix, self._other_folder):
            paths, is_allowed = search(_parts(exact))
            unique = {file_key(Slice(path)): path for path in paths}
            if is_allowed and len(unique) == 1:
                return Slice(next(iter(unique.values())), remark=OTHER_NAME)
            similar += [path for path in paths if path not in similar]
        verb = "is" if len(similar) == 1 else "are"
        remark = f"{name} is not there, but {listing(map(self._relative, similar), 3)} {verb}" if similar else ""
        return Slice(self.folders[0] / exact.lstrip("/"), remark=remark)

    def _other_spelling(self, parts: Sequence[str]) -> tuple[list[Path], bool]:
        return self._paths(parts, by_stem=False), True

    def _other_suffix(self, parts: Sequence[str]) -> tuple[list[Path], bool]:
        paths = self._paths(parts, by_stem=True)
        has_suffix = bool(parts) and _stem(parts[-1]) != parts[-1]
        named = has_suffix and any(tuple(_parts(self._relative(path))) in self._named for path in paths)
        return paths, not named

    def _other_folder(self, parts: Sequence[str]) -> tuple[list[Path], bool]:
        if len(parts) < 2:
            return [], False
        paths = self._paths(parts[-1:], by_stem=False) or self._paths(parts[-1:], by_stem=True)
        return paths, self._stems[_stem(parts[-1])] <= 1

    def _paths(self, parts: Sequence[str], *, by_stem: bool) -> list[Path]:
        """Return all files below the folders whose parts are equal to ``parts`` in their plain form."""
        paths = list(self.folders) if parts else []
        for part in parts[:-1]:
            same = [".."] if part == ".." else []
            paths = [path / name for path in paths for name in self._listing(path).by_name.get(part, same)]
        found = []
        for path in paths:
            entries = self._listing(path)
            names = entries.by_stem.get(_stem(parts[-1]), ()) if by_stem else entries.by_name.get(parts[-1], ())
            found += [path / name for name in names if os.path.isfile(path / name)]
        return found

    def _listing(self, folder: Path) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = _Listing(folder)
        return self._listings[folder]

    def _relative(self, path: Path) -> str:
        """Return ``path`` relative to the first folder that contains it."""
        return next(path.relative_to(folder).as_posix() for folder in self.folders if path.is_relative_to(folder))

    @cached_property
    def _named(self) -> frozenset[tuple[str, ...]]:
        return frozenset(tuple(_parts(name.replace("\\", "/"))) for name in self._names())

    @cached_property
    def _stems(self) -> Counter[str]:
        """The number of different names in the source for each file name without suffix."""
        return Counter(_stem(parts[-1]) for parts in self._named if parts)


class _Listing:
    """The entries of a folder by their plain names, and those with the suffix of an image also by their stems."""

    def __init__(self, folder: Path) -> None:
        self.by_name: dict[str, list[str]] = {}
        self.by_stem: dict[str, list[str]] = {}
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            names = []
        for name in names:
            plain = _plain(name)
            self.by_name.setdefault(plain, []).append(name)
            if plain.endswith(IMAGE_SUFFIXES):
                self.by_stem.setdefault(_stem(plain), []).append(name)


def _parts(name: str) -> list[str]:
    """Return the plain folders and file name of a path: without a leading slash, "." and inner ".."."""
    return [part for part in posixpath.normpath(_plain(name).lstrip("/")).split("/") if part not in ("", ".")]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).lower()


def _stem(plain: str) -> str:
    """Return a plain name without the suffix of an image."""
    return next((plain[: -len(suffix)] for suffix in IMAGE_SUFFIXES if plain.endswith(suffix)), plain)
