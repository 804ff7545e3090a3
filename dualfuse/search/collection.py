"""The images that an index is built from: those of a folder and its sub-folders, or those of shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from dualfuse.data.map_dataset import find_files, has_ending
from dualfuse.data.shards.shards import Shards
from dualfuse.data.shards.tar_index import TarIndex
from dualfuse.errors import DualfuseError
from dualfuse.io import listing, to_json
from dualfuse.prepare.sources.pairs.folder import image_names
from dualfuse.prepare.sources.source import Slice
from dualfuse.search.stores.base import Value


@dataclass(frozen=True)
class Collection:
    """N images, addressed by number; an image is read when it is needed."""

    source: Path
    """The absolute path of the folder, the tar file, or the pattern of tar files."""
    root: Path
    """The folder that contains all images or tar files."""
    names: tuple[str, ...]
    """One per image, unique: its path below ``root``, or TAR/KEY."""
    stamps: tuple[str, ...]
    """One per image: size and modification time of its file, or of its tar file; changes with the image."""
    read: Callable[[int], bytes]
    """Return the bytes of an image; raises ``OSError`` or ``DualfuseError`` (``BrokenSample`` is one)."""
    fields: Callable[[int], dict[str, Value]] = field(default=lambda number: {})
    """Return the original name of an image and the fields by which its owner knows it, if its sample has them."""
    captions: Callable[[int], tuple[str, ...]] = field(default=lambda number: ())
    """Return the captions of an image, if its sample has some."""
    unlisted: Mapping[str, str] = field(default_factory=dict[str, str])
    """Sub-folders whose images are not in the collection, and why."""
    are_files: bool = True
    """Whether each image is a file of its own, so that size and time of its stamp are its own."""

    @staticmethod
    def open(source: Path | str) -> Collection:
        """List the images of a folder with its sub-folders, of a tar file, a folder of tars, or a pattern of tars.

        Hidden files and folders are ignored. Raises ``DualfuseError`` if there is no image, and for a folder that
        contains both images and tar files.
        """
        source = Path(source).expanduser().absolute()  # so that a change of the working directory does not matter
        if not source.is_dir():
            return _shards(source)
        unlisted = dict[str, str]()
        names = image_names(source, unlisted)
        tars = [path.name for path in sorted(source.iterdir()) if has_ending(path, (".tar",))]
        if names and tars:
            raise DualfuseError(
                f"{source} contains {len(names)} image(s), such as {names[0]}, and {len(tars)} tar file(s), such as "
                f"{tars[0]}; search the tar files with {source / '*.tar'}, or move them away to search the images"
            )
        if not names and not tars:
            raise DualfuseError(f"{source} contains neither images nor tar files; {_contents(source)}")
        return replace(_folder(source, names), unlisted=unlisted) if names else _shards(source)

    def __len__(self) -> int:
        """The number of images, unreadable ones included."""
        return len(self.names)


def _folder(folder: Path, names: Sequence[str]) -> Collection:
    stamps = tuple(_stamp(folder / name) for name in names)
    return Collection(folder, folder, tuple(names), stamps, partial(_read_file, folder, tuple(names)))


def _shards(source: Path) -> Collection:
    paths = find_files(source, (".tar",), "tar file")
    root = next(parent for parent in (source, *source.parents) if parent.is_dir())
    tars = tuple(TarIndex.of(path) for path in paths)
    # labelled by relative path, which does not depend on which other tars there are
    shards = Shards(tars, tuple(path.relative_to(root).with_suffix("").as_posix() for path in paths))
    stamps = tuple(stamp for tar in tars for stamp in [_stamp(tar.path)] * len(tar))
    if not stamps:
        raise DualfuseError(f"{source}: no samples in {len(paths)} tar file(s); members should be named like 0001.jpg")
    names = tuple(shards.key(number) for number in range(len(shards)))
    return Collection(
        source,
        root,
        names,
        stamps,
        partial(_read_sample, shards),
        partial(_sample_fields, shards),
        partial(_sample_captions, shards),
        are_files=False,
    )


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # a dangling link, or deleted since it was listed: reading it reports that
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _read_file(folder: Path, names: tuple[str, ...], number: int) -> bytes:
    return Slice(folder / names[number]).read()


def _read_sample(shards: Shards, number: int) -> bytes:
    return shards[number].image


def _sample_fields(shards: Shards, number: int) -> dict[str, Value]:
    kept = shards[number].kept
    return {str(name): value if isinstance(value, Value) else to_json(value) for name, value in kept.items()}


def _sample_captions(shards: Shards, number: int) -> tuple[str, ...]:
    return shards[number].texts


def _contents(folder: Path) -> str:
    return f"it contains {listing(sorted(path.name for path in folder.iterdir()), 5)}"
