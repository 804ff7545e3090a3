"""What can be searched: the images of a folder and its sub-folders, or those of shards, by number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dualfuse.data.shards.shards import Shards
from dualfuse.data.shards.tar_index import TarIndex
from dualfuse.doctor.examine import find_tars
from dualfuse.errors import DualfuseError
from dualfuse.prepare.sources.pairs.folder import image_names


@dataclass(frozen=True)
class Collection:
    """N images, none of them read yet."""

    source: Path
    """What was opened, absolute: a folder, a tar file, or a pattern of tar files."""
    home: Path
    """The folder that all of it lies in."""
    names: tuple[str, ...]
    """One per image, unique: its path below ``home``, or TAR/KEY."""
    stamps: tuple[str, ...]
    """One per image: size and time stamp of the file that it lies in; a changed image has another one."""
    read: Callable[[int], bytes]
    """Gives the bytes of an image, or raises ``OSError`` or ``DualfuseError`` (``BrokenSample`` is one)."""

    @staticmethod
    def open(source: Path | str) -> Collection:
        """List the images of a folder with its sub-folders, of a tar file, a folder of tars, or a pattern of tars.

        Hidden files and folders are left out. Raises ``DualfuseError`` where there is no image, and for a folder that
        holds images as well as tar files.
        """
        source = Path(source).expanduser().absolute()  # a later change of folder must not matter
        if not source.is_dir():
            return _shards(source)
        names, tars = image_names(source), sorted(tar.name for tar in source.glob("*.tar"))
        if names and tars:
            raise DualfuseError(
                f"{source} holds {len(names)} image(s), such as {names[0]}, and {len(tars)} tar file(s), such as "
                f"{tars[0]}; search the tar files with {source / '*.tar'}, or move them away to search the images"
            )
        if not names and not tars:
            raise DualfuseError(f"{source} holds no image, no folder with images, and no tar file; {_inside(source)}")
        return _folder(source, names) if names else _shards(source)

    def __len__(self) -> int:
        """The number of images, unreadable ones included."""
        return len(self.names)


def _folder(folder: Path, names: Sequence[str]) -> Collection:
    stamps = tuple(_stamp(folder / name) for name in names)
    return Collection(folder, folder, tuple(names), stamps, partial(_read_file, folder, tuple(names)))


def _shards(source: Path) -> Collection:
    paths = find_tars(source)
    home = next(parent for parent in (source, *source.parents) if parent.is_dir())
    tars = tuple(TarIndex.of(path) for path in paths)
    # relative paths as labels: unlike file names they stay the same whatever other tars come and go
    shards = Shards(tars, tuple(path.relative_to(home).with_suffix("").as_posix() for path in paths))
    stamps = tuple(stamp for tar in tars for stamp in [_stamp(tar.path)] * len(tar))
    if not stamps:
        raise DualfuseError(f"{source}: no samples in {len(paths)} tar file(s); members should be named like 0001.jpg")
    names = tuple(shards.key(number) for number in range(len(shards)))
    return Collection(source, home, names, stamps, partial(_read_sample, shards))


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # a link to nothing, or gone since it was listed: reading it will say so
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


def _read_file(folder: Path, names: tuple[str, ...], number: int) -> bytes:
    path = folder / names[number]
    if path.exists() and not path.is_file():
        raise DualfuseError("it is no plain file")  # a pipe would never end
    return path.read_bytes()


def _read_sample(shards: Shards, number: int) -> bytes:
    return shards[number].image


def _inside(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"it holds {', '.join(names[:5])}{more}" if names else "it is empty"
