"""Samples with the same image share it in their shard, which no reader notices."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from tiny import png_image

from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.shard_writer import ShardWriter, write_shards


def asked(number: int, of: int, name: str = "", others: tuple[bytes, ...] = ()) -> Sample:
    """Question ``number`` about image ``of``."""
    meta = {"id": number, "name": name or f"{of}.jpg"}
    return Sample(f"{number:04d}", png_image(of), (f"question {number}",), meta, other_images=others)


def questions() -> list[Sample]:
    """Five about each of three images."""
    return [asked(5 * of + number, of) for of in range(3) for number in range(5)]


def members(shard: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(shard) as tar:
        return [member for member in tar if not member.name.endswith((".txt", ".json"))]


def same(shards: Path, expected: list[Sample]) -> None:
    found = [(sample.image, sample.other_images, sample.texts, sample.meta) for sample in Shards.open(shards)]
    assert found == [(sample.image, sample.other_images, sample.texts, sample.meta) for sample in expected]


def test_each_image_is_stored_once(tmp_path: Path) -> None:
    [shard] = write_shards(questions(), tmp_path)
    found = members(shard)
    assert [member.name for member in found if member.isreg()] == ["0000.png", "0005.png", "0010.png"]
    assert sum(member.islnk() for member in found) == 12
    same(tmp_path, questions())
    with tarfile.open(shard) as tar:  # whoever unpacks it gets whole files
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert [(tmp_path / "unpacked" / f"{n:04d}.png").read_bytes() for n in range(15)] == [
        sample.image for sample in questions()
    ]


def test_later_duplicates_are_linked_and_other_names_are_stored(tmp_path: Path) -> None:
    content = [asked(0, 1), asked(1, 2), asked(2, 1), asked(3, 1, "copy.jpg"), Sample("0004", png_image(1))]
    [shard] = write_shards([*content, Sample("0005", png_image(1))], tmp_path)
    assert [member.name for member in members(shard) if member.islnk()] == ["0002.png"]
    both = [asked(n, 1, others=(png_image(2), png_image(1))) for n in range(2)]
    [shard] = write_shards(both, tmp_path / "several")
    assert [member.name for member in members(shard) if member.isreg()] == ["0000.png", "0000.1.png"]
    same(tmp_path / "several", both)


def test_a_changed_image_of_the_same_name_is_stored_again(tmp_path: Path) -> None:
    [shard] = write_shards([asked(0, 1, "a.jpg"), asked(1, 2, "a.jpg")], tmp_path)
    assert all(member.isreg() for member in members(shard))


def test_links_stay_within_a_shard(tmp_path: Path) -> None:
    shards = write_shards(questions(), tmp_path, limit=(3, 1 << 20))
    assert len(shards) == 5 and all(members(shard)[0].isreg() for shard in shards)
    same(tmp_path, questions())


@pytest.mark.parametrize("stop", range(1, 15))
def test_resume_is_bitwise(tmp_path: Path, stop: int) -> None:
    whole = write_shards(questions(), tmp_path / "whole", limit=(7, 1 << 20))
    writer = ShardWriter(tmp_path / "parts", "train", limit=(7, 1 << 20))
    for sample in questions()[:stop]:
        writer.add(sample)
    mark = writer.mark()
    writer.add(asked(99, 9))  # is cut off again
    writer.stop()
    writer = ShardWriter(tmp_path / "parts", "train", mark, limit=(7, 1 << 20))
    for sample in questions()[stop:]:
        writer.add(sample)
    writer.close()
    assert [path.read_bytes() for path in writer.shards] == [path.read_bytes() for path in whole]


def test_shards_can_be_prepared_again(tmp_path: Path) -> None:
    write_shards(questions(), tmp_path / "shards")
    prepare(tmp_path / "shards", tmp_path / "again", PrepareOptions(num_workers=1))
    assert [(sample.image, sample.texts) for sample in Shards.open(tmp_path / "again")] == [
        (sample.image, sample.texts) for sample in questions()
    ]
