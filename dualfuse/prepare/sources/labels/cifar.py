"""CIFAR-10 and CIFAR-100 as published: the binary version, and the pickles of the Python version.

``cifar-10-batches-bin``, ``cifar-100-binary``, ``cifar-10-batches-py`` and ``cifar-100-python``. Images are stored as
PNG files. Pickles are read without running them; see :mod:`dualfuse.pickles`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dualfuse.data.text.decode import read_lines
from dualfuse.errors import DualfuseError
from dualfuse.files import open_regular, read_bounded
from dualfuse.pickles import StrictUnpickler
from dualfuse.prepare.sources.label_names import LABELS_FILE
from dualfuse.prepare.sources.source import Item, Source

SIDE, PIXELS = 32, 3 * 32 * 32
MAX_FILE = 512 << 20  # bytes of a file; CIFAR-100's training set has 155 MB
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


@dataclass(frozen=True)
class Version:
    """The files of one published version."""

    train: tuple[str, ...]
    test: str
    names: str
    """File of the names of the classes."""
    label: str
    """Key of the labels, and in pickles of the names."""
    bytes_before: int = 0
    """Bytes of labels before the pixels of an image; the last one is the class. 0: pickles."""


VERSIONS = (
    Version(tuple(f"{name}.bin" for name in TRAIN), "test_batch.bin", "batches.meta.txt", "label", 1),
    Version(("train.bin",), "test.bin", "fine_label_names.txt", "fine_label", 2),
    Version(TRAIN, "test_batch", "batches.meta", "label"),
    Version(("train",), "test", "meta", "fine_label"),
)


def cifar_version(folder: Path) -> Version | None:
    """Return the version of CIFAR in ``folder``; None if there is none."""

    def is_here(version: Version) -> bool:
        return all((folder / name).is_file() for name in (version.names, version.test, *version.train))

    return next(filter(is_here, VERSIONS), None) if folder.is_dir() else None


def load(folder: Path) -> Source:
    """Return each image with the name of its class; of CIFAR-100 the fine one."""
    version = cifar_version(folder)
    assert version is not None  # recognized before
    names = _class_names(folder / version.names, version)
    labels = "".join(f"{name}\n" for name in names)
    return Source(_items(folder, version, names), files={LABELS_FILE: labels})


def _items(folder: Path, version: Version, names: tuple[str, ...]) -> Iterator[Item]:
    for file, split in (*((name, "train") for name in version.train), (version.test, "test")):
        pixels, classes = _read(folder / file, version)
        for number, (values, label) in enumerate(zip(pixels, classes, strict=True)):
            name = f"{file.removesuffix('.bin')}/{number:05d}.png"
            if not 0 <= label < len(names):
                yield Item(name, b"", split=split, problem=f"its class is {label} of {len(names)}")
            else:
                yield Item(name, _png(values), split=split, label={"label": names[label]})


def _read(path: Path, version: Version) -> tuple[np.ndarray, list[int]]:
    """Return pixels (N, 3072) and the class of each image."""
    if not version.bytes_before:
        content = read_batch(path)
        pixels, classes = content.get("data"), content.get(f"{version.label}s")
        if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (PIXELS,) or not isinstance(classes, list):
            raise DualfuseError(f"{path} has no pixels of {PIXELS} bytes an image, or no {version.label}s")
        if not all(isinstance(label, int) for label in classes):
            raise DualfuseError(f"{path} has {version.label}s that are not numbers")
        return pixels, classes
    size = version.bytes_before + PIXELS
    values = np.frombuffer(read_bounded(path, MAX_FILE), np.uint8)
    if len(values) % size or not len(values):
        raise DualfuseError(f"{path} has {len(values):,} bytes, not {size:,} for each image; download it again")
    rows = values.reshape(-1, size)
    return rows[:, version.bytes_before :], rows[:, version.bytes_before - 1].tolist()


def _class_names(path: Path, version: Version) -> tuple[str, ...]:
    if version.bytes_before:
        return tuple(read_lines(path))
    names = read_batch(path).get(f"{version.label}_names")
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise DualfuseError(f"{path} has no {version.label}_names")
    return tuple(name.replace("\n", " ") for name in names)


def _png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values.reshape(3, SIDE, SIDE).transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def read_batch(path: Path) -> Mapping[str, Any]:  # Any: checked where used
    """Return the dictionary in a pickle of Python 2, whose only objects besides containers are arrays of bytes.

    Raises DualfuseError for a pickle that names anything else.
    """
    array, names = _pickled_types()

    def resolve(module: str, name: str) -> object:
        if f"{module}.{name}" not in names:
            raise DualfuseError(f"it names {module}.{name}, which CIFAR's files do not")
        return names[f"{module}.{name}"]

    try:
        with open_regular(path, MAX_FILE) as file:
            content = StrictUnpickler(file, resolve, encoding="latin-1").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise DualfuseError(f"{path} is not a file of CIFAR: {error}") from error
    if not isinstance(content, dict):
        raise DualfuseError(f"{path} holds a {type(content).__name__}; a dictionary is needed")
    return {str(name): value.values if isinstance(value, array) else value for name, value in content.items()}


def _pickled_types() -> tuple[Any, Mapping[str, object]]:  # Any: a class
    """Return the class of arrays, and what CIFAR's pickles name.

    They are made anew for every file, because a pickle can set attributes of what it names.
    """

    class Array:
        """An array of numpy."""

        values: np.ndarray

        def __setstate__(self, state: Any) -> None:
            _, shape, dtype, is_fortran, data = state
            if getattr(dtype, "code", "") != "u1" or is_fortran:  # reason for getattr: any object of the file
                raise DualfuseError("it holds an array that is not of bytes, row by row")
            self.values = np.frombuffer(data.encode("latin-1") if isinstance(data, str) else data, np.uint8)
            self.values = self.values.reshape(shape)

    class DType:
        """The type of an array."""

        def __init__(self, code: object, *_: object) -> None:
            self.code = code

        def __setstate__(self, state: object) -> None:
            pass

    return Array, {
        "numpy.core.multiarray._reconstruct": lambda *_: Array(),
        "numpy.ndarray": Array,
        "numpy.dtype": DType,
    }
