"""``prepare`` reads tars by the reader of ``Shards``: the same samples, or the same errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from tests.data.shards.test_shards import write_tar
from tests.tiny import png_image

PNG, OTHER = png_image(1), png_image(2)
ONE = PrepareOptions(num_workers=1)


@pytest.mark.parametrize(
    ("members", "texts"),
    [
        ({"1.depth.png": OTHER, "1.png": PNG, "1.txt": b"a"}, ("a",)),
        ({"./._1.png": b"Mac", "./1.png": PNG, "./._1.txt": b"Mac", "./1.txt": b"a", "__MACOSX/1.png": OTHER}, ("a",)),
        ({".hidden/1.png": OTHER, "a/1.PNG": PNG, "a/1.TXT": "\ufeffa\u2028b\r\nc".encode()}, ("a\u2028b", "c")),
        ({"1.png": PNG, "1.json": b'{"caption": ["a", 7]}'}, ("a", "7")),
        ({"1.png": PNG, "1.json": b'{"captions": "a"}'}, ("a",)),
        ({"1.png": PNG, "1.txt": "é".encode("utf-16")}, ("é",)),
    ],
)
def test_samples_are_those_of_shards(tmp_path: Path, members: dict[str, bytes], texts: tuple[str, ...]) -> None:
    (ours,) = Shards.open(write_tar(tmp_path / "0.TAR", members))
    prepare(tmp_path / "0.TAR", tmp_path / "out", ONE)
    (prepared,) = Shards.open(tmp_path / "out")
    assert ours.image == prepared.image == PNG and ours.texts == texts
    assert prepared.texts == tuple(" ".join(text.split()) for text in texts) and prepared.meta["name"] == ours.key


def test_further_images_label_maps_and_classes_are_kept(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": PNG, "a.1.png": OTHER, "a.txt": b"x", "a.cls": b"3", "a.seg.npy": b"-"})
    summary = prepare(tmp_path / "0.tar", tmp_path / "out", ONE)
    (sample,) = Shards.open(tmp_path / "out")
    assert sample.other_images == (OTHER,) and sample.meta["label"] == 3
    assert "members of the tar files that are not read: 1 .seg.npy" in summary.tally.remarks


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.png": PNG, "2.png": PNG, "1.txt": b"a"}, "the members of 1 are not adjacent; create the tar with --sort"),
        ({"s0.input.jpg": PNG, "s0.outputs.txt": b"a"}, r"0/s0: no image .* end in \.input\.jpg, \.outputs\.txt"),
        ({"1.png": PNG, "1.txt": b"caf\xe9"}, r"1\.txt is not UTF-8 at byte 4 .*--encoding cp1252"),
        ({"1.png": PNG, "1.json": b"{"}, r"1\.json is not JSON"),
    ],
)
def test_unusable_samples_say_why(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(DualfuseError, match=message):
        prepare(tmp_path, tmp_path / "out", ONE)


@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz", "0.tgz"])
def test_compressed_tars_say_how_to_unpack_them(tmp_path: Path, name: str) -> None:
    plain = write_tar(tmp_path / "plain", {"1.png": PNG, "1.txt": b"a"})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(DualfuseError, match=rf"compressed with gzip; unpack it: gzip -dc {name} > 0-unpacked\.tar"):
        prepare(tmp_path / "set", tmp_path / "out", ONE)
    write_tar(tmp_path / "set" / "1.tar", {"1.png": PNG, "1.txt": b"a"})
    assert prepare(tmp_path / "set", tmp_path / "out", ONE).tally.skipped == {"unreadable tar": 1}


def test_texts_in_a_named_encoding(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"1.png": PNG, "1.txt": b"caf\xe9"})
    prepare(tmp_path, tmp_path / "out", PrepareOptions(num_workers=1, encoding="cp1252"))
    assert Shards.open(tmp_path / "out")[0].texts == ("café",)


@pytest.mark.parametrize(
    ("name", "text", "texts"),
    [
        ("a.txt", "x\n\n y ", ("x", "y")),
        ("A.TXT", "x", ("x",)),
        ("a.caption", "x", ("x",)),
        ("a.png.txt", "x", ("x",)),
        ("a.json", '{"captions": "x", "score": NaN}', ("x",)),
    ],
)
def test_captions_beside_an_image(tmp_path: Path, name: str, text: str, texts: tuple[str, ...]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_bytes(PNG)
    (source / name).write_text(text)
    prepare(source, tmp_path / "out", ONE)
    (sample,) = Shards.open(tmp_path / "out")
    assert sample.texts == texts and sample.meta.get("score") is None
    assert b"NaN" not in (tmp_path / "out" / "train-00000.tar").read_bytes()


def test_undecodable_texts_beside_images_are_skipped_and_listed(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, text in {"a": b"caf\xe9", "b": b"x", "c": b"\xff\xfeo\0k\0"}.items():
        (source / f"{name}.png").write_bytes(PNG)
        (source / f"{name}.txt").write_bytes(text)
    assert prepare(source, tmp_path / "out", ONE).tally.skipped == {"unreadable text beside the image": 1}
    assert [sample.texts for sample in Shards.open(tmp_path / "out")] == [("x",), ("ok",)]
    line = json.loads((tmp_path / "out" / "skipped.jsonl").read_text())
    assert line["name"] == "a.png" and "a.txt is not UTF-8 at byte 4 (0xe9) of line 1" in line["detail"]
