"""Formats that people call images are decoded, or named."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import png_image

from dualfuse.data.image.decode import decode
from dualfuse.data.image.formats import UnsupportedFormat, formats_of
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.search.collection import Collection

ONE = PrepareOptions(num_workers=1)


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 16), (200, 30, 30)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def heif() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
@pytest.mark.usefixtures("heif")
def test_heic_and_avif_are_decoded(kind: str) -> None:
    pixels = decode(encoded(kind))
    assert pixels.shape == (3, 16, 32) and torch.allclose(pixels[0].float().mean(), torch.tensor(200.0), atol=4)


@pytest.mark.usefixtures("heif")
def test_heic_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnsupportedFormat, match=r"HEIC.*\[heif\]"):
        decode(data)


UNSUPPORTED = {
    "a.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    "b.j2k": (b"\xff\x4f\xff\x51", "JPEG 2000"),
    "c.jxl": (b"\xff\x0a\0", "JPEG XL"),
    "d.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    "e.cr3": (b"\0\0\0\x18ftypcrx ", "raw"),
    "f.psd": (b"8BPS\0\1", "Photoshop"),
    "g.svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
}


@pytest.mark.parametrize(("data", "name"), UNSUPPORTED.values())
def test_other_formats_are_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=name):
        formats_of(data)


def test_images_that_cannot_be_decoded_are_counted_by_format_and_listed_for_search(tmp_path: Path) -> None:
    for name, (data, _) in UNSUPPORTED.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "h.NEF").write_bytes(encoded("TIFF"))  # a raw photo is a TIFF file with a preview
    (tmp_path / "i.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "z.png").write_bytes(png_image(0))
    options = PrepareOptions(num_workers=1, images_only=True)
    tally = prepare(tmp_path, tmp_path / "out", options).tally
    counts = {"JPEG 2000 image": 2, "JPEG XL image": 2, "raw image": 2, "Photoshop image": 1, "SVG image": 1}
    assert {reason: tally.skipped[reason] for reason in counts} == counts
    assert sum(tally.skipped.values()) == 9 and tally.samples == 1
    collection = Collection.open(tmp_path)
    assert len(collection) == 10
    with pytest.raises(UnsupportedFormat, match="raw"):
        collection.read(collection.names.index("h.NEF"))
