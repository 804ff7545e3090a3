"""Builder of benchmarks: images by name, each once, with the captions that its cases need."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dualfuse.data.image.decode import decode
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.composition import Benchmark, CompositionCase
from dualfuse.io import listing
from dualfuse.prepare.sources.source import Slice

Box = tuple[int, int, int, int]
"""Left, upper, width and height in pixels."""


@dataclass(frozen=True)
class BenchmarkImage:
    """An image of a benchmark: its file or its bytes, the part that is used, and the captions of its cases."""

    key: str
    source: Slice | bytes
    box: Box | None = None
    texts: tuple[str, ...] = ()

    def read(self) -> bytes:
        """Return the bytes of an image file; raises ``OSError`` or ``DualfuseError`` if it cannot be read."""
        data = self.source if isinstance(self.source, bytes) else self.source.read()
        return data if self.box is None else _cropped(data, self.box)


class BenchmarkImages:
    """The images of a benchmark as the samples of an evaluation, read one by one."""

    def __init__(self, images: Sequence[BenchmarkImage]) -> None:
        """Keep the images; their keys differ."""
        self.images = tuple(images)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int, /) -> Sample:
        """Read an image, with all captions that are scored with it."""
        image = self.images[index]
        return Sample(image.key, image.read(), image.texts)

    def key(self, index: int) -> str:
        """Return the name of an image."""
        return self.images[index].key

    def missing(self) -> list[str]:
        """Return the names of the images whose files do not exist."""
        paths = ((each.key, each.source.path) for each in self.images if isinstance(each.source, Slice))
        return [key for key, path in paths if not os.path.isfile(path)]


class BenchmarkBuilder:
    """Collector of cases; images and captions that several cases share are kept, read and scored once."""

    def __init__(self, name: str, find: Callable[[str], Slice]) -> None:
        """``find`` returns the file of an image by its name in the benchmark."""
        self.name, self._find = name, find
        self._numbers: dict[str, int] = {}
        self._images: list[BenchmarkImage] = []
        self._texts: list[dict[str, int]] = []
        self._cases: list[CompositionCase] = []

    def image(self, name: str, *, data: bytes = b"", box: Box | None = None) -> int:
        """Return the number of an image; ``data`` are its bytes, if the benchmark holds them."""
        key = name if box is None else f"{name} {box[0]},{box[1]},{box[2]},{box[3]}"
        if key not in self._numbers:
            self._numbers[key] = len(self._images)
            self._images.append(BenchmarkImage(key, data or self._find(name), box))
            self._texts.append({})
        return self._numbers[key]

    def captions(
        self, category: str, image: int, captions: Sequence[str], *, true: int = 1, group: str = "", key: str = ""
    ) -> None:
        """Add a case of one image whose first ``true`` captions are true, the others false."""
        places = tuple(self._caption(image, text) for text in captions)
        self._add(CompositionCase(key, category, (image,), places, true, group))

    def pair(self, category: str, images: tuple[int, int], captions: tuple[str, str], *, key: str = "") -> None:
        """Add a case of two images, each with the caption that is true of it."""
        places = tuple(self._caption(image, text) for image, text in zip(images, captions, strict=True))
        self._add(CompositionCase(key, category, images, places))

    def build(self) -> Benchmark:
        """Return the benchmark."""
        images = [replace(image, texts=tuple(texts)) for image, texts in zip(self._images, self._texts, strict=True)]
        return Benchmark(self.name, tuple(self._cases), BenchmarkImages(images) if images else None)

    def _add(self, case: CompositionCase) -> None:
        self._cases.append(replace(case, key=case.key or str(len(self._cases))))

    def _caption(self, image: int, text: str) -> tuple[int, int]:
        return image, self._texts[image].setdefault(text, len(self._texts[image]))


def check_images(benchmark: Benchmark, where: Sequence[Path]) -> None:
    """Raise DualfuseError with the number of missing image files, examples, and the searched folders."""
    sets = [benchmark.samples, *benchmark.galleries.values()]
    images = [each for each in sets if isinstance(each, BenchmarkImages)]
    missing = [name for each in images for name in each.missing()]
    if missing:
        raise DualfuseError(
            f"{len(missing):,} of {sum(map(len, images)):,} images of {benchmark.name} are missing, such as "
            f"{listing(missing, 3)}; searched in {listing(map(str, where), 6)}. Give their folder with --images DIR, "
            "or evaluate without them with --exclude-broken"
        )


def fields(entry: object, place: str, *names: str) -> tuple[str, ...]:
    """Return the strings ``names`` of a JSON object; raises DualfuseError with the place if one is absent."""
    values = tuple(entry.get(name) for name in names) if isinstance(entry, dict) else ()
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise DualfuseError(f"{place} lacks one of the texts {', '.join(names)}; download the benchmark again")
    return tuple(str(value) for value in values)


def _cropped(data: bytes, box: Box) -> bytes:
    left, upper, width, height = box
    pixels = decode(data)[:, max(0, upper) : upper + height, max(0, left) : left + width]
    if not pixels.numel():
        raise DualfuseError(f"the box of {width} x {height} pixels at {left}, {upper} lies outside of the image")
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()
