"""Shards are plain tars, bitwise reproducible and resumable."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dualfuse.data.image.image_file import image_suffix
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.prepare.shard_writer import Mark, ShardWriter, write_shards


def image(number: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8 + number, 8), (10 * number, 0, 99)).save(file, kind)
    return file.getvalue()


SAMPLES = tuple(
    Sample(f"{n:04d}", image(n, kind), (f"text {n}", "größer\n als"), {"n": n})
    for n, kind in enumerate(("JPEG", "PNG", "WEBP", "JPEG", "JPEG"))
)


def test_shards_and_tarfile_read_what_was_written(tmp_path: Path) -> None:
    (shard,) = write_shards(SAMPLES, tmp_path)
    assert shard == tmp_path / "train-00000.tar"
    for read, wrote in zip(Shards.open(shard), SAMPLES, strict=True):
        assert (read.key, read.image) == (f"train-00000/{wrote.key}", wrote.image)
        assert (read.texts, read.meta) == ((wrote.texts[0], "größer als"), wrote.meta)
    with tarfile.open(shard) as archive:
        assert archive.getnames()[:4] == ["0000.jpg", "0000.txt", "0000.json", "0001.png"]
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}


def test_shards_are_indexed_when_they_are_complete(tmp_path: Path) -> None:
    (shard,) = write_shards(SAMPLES, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [shard.name, shard.name + ".index.npz"]


@pytest.mark.parametrize(("limit", "sizes"), [((2, 1 << 20), [2, 2, 1]), ((9, 5000), [1] * 5), ((9, 1 << 20), [5])])
def test_shards_hold_no_more_than_their_limit(tmp_path: Path, limit: tuple[int, int], sizes: list[int]) -> None:
    shards = write_shards(SAMPLES, tmp_path, "val", limit=limit)
    assert [len(Shards.open(shard)) for shard in shards] == sizes


@pytest.mark.parametrize("taken", range(1, 5))
def test_resume_from_a_mark_is_bitwise(tmp_path: Path, taken: int) -> None:
    whole = [path.read_bytes() for path in write_shards(SAMPLES, tmp_path / "whole", limit=(2, 1 << 20))]
    first = ShardWriter(tmp_path / "parts", "train", limit=(2, 1 << 20))
    for sample in SAMPLES[:taken]:
        first.add(sample)
    mark = first.mark()
    for number in range(9):
        first.add(Sample(f"lost{number}", image(number), ("much text",) * 2000))  # after the mark: to be cut off
    first.stop()
    second = ShardWriter(tmp_path / "parts", "train", mark, limit=(2, 1 << 20))
    for sample in SAMPLES[taken:]:
        second.add(sample)
    assert second.close() == len(SAMPLES)
    assert [path.read_bytes() for path in second.shards] == whole


def test_incomplete_shards_are_not_read(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train")
    writer.add(SAMPLES[0])
    writer.stop()
    assert not list(tmp_path.glob("*.tar"))
    with pytest.raises(ValueError, match="is missing or truncated"):
        ShardWriter(tmp_path, "train", Mark(0, 9, 1 << 20, 9))


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "größe", "x" * 91])
def test_invalid_keys_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        write_shards([Sample(key, image(1))], tmp_path)


def test_only_jpeg_png_and_webp_are_written(tmp_path: Path) -> None:
    assert [image_suffix(image(1, kind)) for kind in ("JPEG", "PNG", "WEBP", "GIF")] == ["jpg", "png", "webp", ""]
    with pytest.raises(ValueError, match="convert it first"):
        write_shards([Sample("a", image(1, "GIF"))], tmp_path)


def test_other_images_keep_their_order(tmp_path: Path) -> None:
    others = tuple(image(number, kind) for number, kind in enumerate(("PNG", "JPEG", "WEBP")))
    several = Sample("two", image(9), ("a text",), {"n": 1}, other_images=others)
    (shard,) = write_shards([several, SAMPLES[0]], tmp_path)
    first, second = Shards.open(shard)
    assert (first.image, first.other_images, first.texts, first.meta) == (image(9), others, ("a text",), {"n": 1})
    assert second.other_images == ()
    with tarfile.open(shard) as archive:
        assert archive.getnames()[:6] == ["two.jpg", "two.1.png", "two.2.jpg", "two.3.webp", "two.txt", "two.json"]
    for broken, reason in ((others * 4, "12 further images"), ((b"no image",), "another format; convert")):
        with pytest.raises(ValueError, match=reason):
            write_shards([Sample("k", image(0), other_images=broken)], tmp_path / "broken")
