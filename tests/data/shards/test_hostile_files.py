"""Files that were made to do harm cost neither memory nor time, and nothing outside of them is touched."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import png_image, tokenizer

from dualfuse.data.image.decode import decode
from dualfuse.data.image.image_file import TooLarge, header
from dualfuse.data.sample import BrokenSample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.shards.tar_index import TarIndex
from dualfuse.data.text.tokenizer import TextTransform, load_tokenizer
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare


def peak(do: Callable[[], Any]) -> tuple[Any, int]:
    """Return what something gives, and the most bytes that Python had for it."""
    tracemalloc.start()
    try:
        return do(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """An image of one colour whose pixels take a thousandth of their size."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(min((1 + 3 * width) * height, 100_000_000)), level=1)
    return start + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def webp(side: int) -> bytes:
    data = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (side - 1).to_bytes(3, "little") * 2 + b"VP8 " + bytes(12)
    return b"RIFF" + struct.pack("<I", len(data) + 4) + b"WEBP" + data


def gif(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    return file.getvalue()[:6] + struct.pack("<HH", side, side) + file.getvalue()[10:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png(30_000, 30_000),
    "longest": lambda: png(2**31 - 1, 1),
    "text": lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), level=1))),
    "profile": lambda: png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000), level=1))),
    "webp": lambda: webp(16_383),
    "gif": lambda: gif(65_535),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs(name: str) -> None:
    """Refused by what their header says, before room is made for their pixels; large notes are ignored."""
    bomb = BOMBS[name]()

    def refused() -> None:
        if name in ("text", "profile"):
            assert decode(bomb).shape == (3, 8, 8)
            return
        with pytest.raises(ValueError, match=r"bytes cannot be decoded|pixels, more than|are not an image in one of"):
            decode(bomb)

    start = time.process_time()
    assert peak(refused)[1] < 100e6
    assert time.process_time() - start < 5
    if name in ("png", "longest"):
        with pytest.raises(TooLarge):
            header(bomb)


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def write(path: Path, *members: bytes) -> Path:
    path.write_bytes(b"".join(members) + bytes(10_240))
    return path


def test_names_outside_of_the_folder_are_not_extracted(tmp_path: Path) -> None:
    """They are keys and nothing else; ``prepare`` makes names of its own of them."""
    inside = tmp_path / "inside"
    inside.mkdir()
    names = ("../../up", "/absolute/path", "..", "a/../../b", "C:\\x", "\\\\host\\x", "nul\nline", "-rf *", "a\u202eb")
    members = (
        member(f"{name}{end}", data) for name in names for end, data in ((".png", png_image(1)), (".txt", b"cat"))
    )
    path = write(inside / "s.tar", *members)
    shards = Shards.open(path)
    found = [sample.key for sample in shards]
    assert found[:2] == ["s/../../up", "s//absolute/path"] and len(found) >= 8
    summary = prepare(path, inside / "out", PrepareOptions(num_workers=1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["inside"]
    assert sorted(entry.name for entry in inside.iterdir()) == ["out", "s.tar", "s.tar.index.npz"]
    assert {entry.name for entry in summary.folder.iterdir()} >= {"train-00000.tar", "prepared.json"}
    keys = [sample.key for sample in Shards.open(inside / "out")]
    assert len(keys) == len(set(keys)) == len(names) - 1  # "...png" has no name
    assert not [key for key in keys if set(key.removeprefix("train-00000/")) & set("./\\ \n*")]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_special_members_are_ignored(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "secret.png").write_bytes(png_image(9))
    places = (str(tmp_path / "secret.png"), "secret.png", "a.png", "/dev/zero", "b.png")
    links = [member(f"b{number}.png", kind=kind, link=place) for number, place in enumerate(places)]
    path = write(tmp_path / "s.tar", *links, member("c.png", png_image(1)), member("c.txt", b"a cat"))
    assert [sample.key for sample in Shards.open(path)] == ["s/c"]


@pytest.mark.parametrize("count", [5_000, pytest.param(500_000, marks=pytest.mark.slow)])
def test_indexing_time_is_linear_in_the_number_of_members(tmp_path: Path, count: int) -> None:
    """A few hundred bytes and some ten microseconds each; a million: half a minute, once."""
    path = write(tmp_path / "s.tar", *(member(f"{number:07d}.jpg") for number in range(count)))
    start = time.process_time()
    index = TarIndex.of(path)
    assert (time.process_time() - start) / count < 3e-4
    assert len(index) == count and index.key(count - 1) == f"{count - 1:07d}"
    path.with_name("s.tar.index.npz").unlink()
    index, most = peak(lambda: TarIndex.of(path))
    assert most / count < 1500


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_too_long_names_are_refused(tmp_path: Path, form: int) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=form) as tar:
        tar.addfile(tarfile.TarInfo("x" * 2**20 + ".jpg"))
    with pytest.raises(ValueError, match=r"s\.tar is truncated or damaged at byte 0 of .*: 0 bytes in xxx"):
        TarIndex.of(tmp_path / "s.tar")


def huge(size: int) -> bytes:
    """A header that says that its member has more bytes than any disk."""
    info = tarfile.TarInfo("a.jpg")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(line: bytes, kind: bytes = b"x") -> bytes:
    """A header whose records are somebody's idea."""
    return member("pax", line, kind=kind) + member("a.jpg", b"12")


LONG = member("././@LongLink", b"name\0", kind=tarfile.GNUTYPE_LONGNAME)


@pytest.mark.parametrize(
    "content",
    [
        huge(2**40),
        huge(2**62),
        huge(2**64 + 1),
        huge(-(2**40)),
        LONG * 3000 + member("a.jpg"),
        LONG,
        member("x", bytes(100), kind=tarfile.GNUTYPE_LONGNAME)[:700],
        pax(b"20 size=99999999999\n"),
        pax(b"12 size=-9\n\0"),
        pax(b"12 size=1e9\n"),
        pax(b"999999999999999999999 path=x\n"),
        pax(b"0 path=x\n"),
        pax(b"16 path=../../x\n" * 9 + b"rubbish"),
        pax(b"22 GNU.sparse.size=9\n\n" + b"22 GNU.sparse.major=1\n"),
        pax(b"28 GNU.sparse.map=1,2,3,4,x\n"),
        pax(b"18 path=a\0b/c.jpg\n"),
        pax(b"13 path=\xff\xfe\n"),
        pax(b"21 hdrcharset=BINARY\n13 path=\xff\xfe\n", kind=b"g"),
        member("s.jpg", bytes(600), kind=tarfile.GNUTYPE_SPARSE),
        member("m.jpg", b"x", kind=b"M"),
        b"\xff" * 512,
    ],
)
def test_malicious_headers(tmp_path: Path, content: bytes) -> None:
    """A sentence, or what is left without them; neither another error nor an endless walk."""
    path = write(tmp_path / "s.tar", content, member("z.jpg", b"end"))
    try:
        shards = Shards.open(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        for number in range(len(shards)):
            assert len(shards[number].image) <= 600


def test_too_large_members_are_refused(tmp_path: Path) -> None:
    """A sparse file of 300 MB: its json is not read, nor is its image."""
    size = 300 << 20
    info = tarfile.TarInfo("a.jpg")
    info.size = size
    with (tmp_path / "s.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + size + 10_240)
    shards = Shards.open(tmp_path / "s.tar")

    def read() -> None:
        with pytest.raises(BrokenSample, match=r"a\.jpg has 314,572,800 bytes; at most 268,435,456 are read"):
            shards[0]

    assert peak(read)[1] < 1e6


MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "text",
    ["a red cat sleeps ", "x", " ", ".", "\u4e2d", "e\u0301", "\0", "cat.", "\u0301", "a red cat\n" + 9999 * " "],
)
def test_long_texts_are_encoded_quickly(text: str, tmp_path: Path) -> None:
    """The same tokens as of its beginning, without encoding all of it."""
    long = (text * (MEGABYTE // len(text) + 1))[:MEGABYTE]
    start = time.process_time()
    found = TextTransform(40).encode(long)
    assert time.process_time() - start < 5
    beginning = long[: 200_000 if len(text) > 1000 else 10_000]
    whole = load_tokenizer("").tokenizer.encode(beginning, add_special_tokens=False).ids
    assert found.ids[1:-1].tolist() == whole[:38]
    assert found.truncated == (len(whole) > 38)
    assert len(TextTransform(12, tokenizer(tmp_path)).encode(long).ids) <= 12  # has no limit to the length of a word


@pytest.mark.parametrize("length", [3, 10, 40])
def test_long_texts_are_encoded_by_their_beginning(length: int) -> None:
    """Of long texts of all sorts, cut off anywhere: the tokens of the whole text, as far as they fit."""
    rng = np.random.default_rng(0)
    parts = (
        "a",
        " ",
        "\n",
        "house",
        "\u4e2d",
        "'",
        ".",
        "\u0301",
        "x" * 300,
        "\U0001f600",
        "[SEP]",
        "  ",
        "\u00e9",
        "9",
    )
    for _ in range(60):
        long = "".join(rng.choice(parts, size=rng.integers(10, 3000), p=rng.dirichlet(np.full(len(parts), 0.3))))
        whole = load_tokenizer("").tokenizer.encode(long, add_special_tokens=False)
        found = TextTransform(length).encode(long)
        assert found.ids[1:-1].tolist() == whole.ids[: length - 2]
        assert found.word_ids[1:-1].tolist() == whole.word_ids[: length - 2]
        assert found.truncated == (len(whole.ids) > length - 2)


@pytest.mark.parametrize("kind", ["bomb", "pipe"])
def test_a_hostile_index_is_replaced(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", member("0.jpg", b"image"))
    index = tmp_path / "a.tar.index.npz"
    if kind == "pipe":
        os.mkfifo(index)
    else:
        np.savez_compressed(index, stamp=np.zeros(10_000_000, np.int64))
    shards, most = peak(lambda: Shards.open(path))
    assert len(shards) == 1 and most < 20e6
