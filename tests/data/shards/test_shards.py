"""Shards read what lies in tar files, whoever has written them."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.shards import tar_index
from dualfuse.data.shards.shards import Shards

JPEG = b"\xff\xd8\xff image "


def write_tar(path: Path, members: dict[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def numbered(count: int, prefix: str = "") -> dict[str, bytes]:
    members = {}
    for number in range(count):
        members[f"{prefix}{number:03}.jpg"] = JPEG + bytes([number])
        members[f"{prefix}{number:03}.txt"] = f"caption {number}\n".encode()
    return members


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_every_tar_format(tmp_path: Path, tar_format: int) -> None:
    long = "folder/" * 20 + "ä" * 20  # beyond the 100 bytes of the plain header
    if tar_format == tarfile.USTAR_FORMAT:
        long = "folder/" * 15 + "plain"
    members = {f"{long}.jpg": JPEG + b"1", f"{long}.json": b'{"caption": " a dog ", "n": 3}', "b/x.y.jpg": b"no image"}
    members |= {"b/x.PNG": JPEG + b"2", "b/x.Txt": "ein Hund\r\n\n  ein gr\u00fcner Ball \n".encode()}
    shards = Shards.open(write_tar(tmp_path / "set-0.tar", members, tar_format))
    assert shards[:] == (
        Sample(f"set-0/{long}", JPEG + b"1", ("a dog",), {"caption": " a dog ", "n": 3}),
        Sample("set-0/b/x", JPEG + b"2", ("ein Hund", "ein grüner Ball")),
    )
    assert [shards.key(number) for number in range(2)] == [sample.key for sample in shards]


def test_reads_what_webdataset_reads(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "web.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(7):
            sample = {"__key__": f"part.{number}/a{number}", "jpg": JPEG + bytes([number]), "txt": f"words {number}"}
            writer.write(sample | {"json": {"number": number}, "seg.png": b"mask", "__url__": "not stored"})
    with tarfile.open(path, "a") as tar:  # things that belong to no sample
        for name in ("README", "__notes__/x.jpg", "a7.jpg", "no-extension", "a7.TXT", ".hidden.jpg"):
            add(tar, name, b"words 7")
    with path.open("rb") as stream:  # webdataset.WebDataset(path) would leave it open
        files = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        theirs = list(webdataset.tariterators.group_by_keys(files))
    ours = Shards.open(path)
    assert [sample.key for sample in ours] == [f"web/{sample['__key__']}" for sample in theirs]
    assert [sample.image for sample in ours] == [sample["jpg"] for sample in theirs]
    assert [sample.texts for sample in ours] == [(sample["txt"].decode(),) for sample in theirs]
    assert [sample.meta for sample in ours] == [json.loads(sample.get("json", b"{}")) for sample in theirs]
    assert len(ours) == 8


def test_skips_links_and_folders(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("f.jpg")
        folder.type = tarfile.DIRTYPE
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(folder)
        add(tar, "x.jpg", JPEG)
        tar.addfile(link)
    assert Shards.open(tmp_path / "a.tar")[:] == (Sample("a/x", JPEG),)


def test_indices_run_through_all_tars_of_a_folder(tmp_path: Path) -> None:
    for name, count in (("b", 2), ("a", 3), ("c", 1)):
        write_tar(tmp_path / f"{name}.tar", numbered(count))
    write_tar(tmp_path / "empty.tar", {})
    shards = Shards.open(tmp_path)
    keys = ["a/000", "a/001", "a/002", "b/000", "b/001", "c/000"]
    assert len(shards) == 6
    assert [shards.key(number) for number in range(6)] == keys
    assert shards[-1] == shards[5] == Sample("c/000", JPEG + b"\0", ("caption 0",))
    assert [sample.key for sample in Shards.open(f"{tmp_path}/[bc].tar")] == keys[3:]
    for outside in (6, -7):
        with pytest.raises(IndexError, match="set of 6"):
            shards[outside]


def test_keys_distinguish_tars_of_one_name(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", numbered(1))
    assert [sample.key for sample in Shards.open(tmp_path / "**" / "*.tar")] == ["x/0/000", "y/0/000"]


@pytest.mark.parametrize(
    ("members", "texts"),
    [
        ({"a.jpg": JPEG, "a.json": b'{"captions": ["one", " ", "two "], "caption": "three"}'}, ("one", "two")),
        ({"a.jpg": JPEG, "a.json": b'{"caption": null, "text": "four"}'}, ("four",)),
        ({"a.jpg": JPEG, "a.json": b'{"caption": "five"}', "a.txt": b"six\nseven"}, ("six", "seven")),
        ({"a.jpg": JPEG, "a.json": b'{"caption": "five"}', "a.txt": b" \n"}, ("five",)),
        ({"a.webp": JPEG}, ()),
        ({"a.jpg": b"", "a.txt": b"\xef\xbb\xbfno image"}, ("no image",)),
    ],
)
def test_texts_of_a_sample(tmp_path: Path, members: dict[str, bytes], texts: tuple[str, ...]) -> None:
    (sample,) = Shards.open(write_tar(tmp_path / "t.tar", members))
    assert sample.texts == texts


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"x.txt": b"words"}, "no image"),
        ({"x.jpg": JPEG, "x.json": b"{"}, r"x\.json is not JSON"),
        ({"x.jpg": JPEG, "x.json": b"[" * 100_000}, "recursion"),
        ({"x.jpg": JPEG, "x.json": b"[1]"}, "json holds a list"),
        ({"x.jpg": JPEG, "x.json": b'{"captions": ["a", {}]}'}, "a caption is a dict"),
        ({"x.jpg": JPEG, "x.txt": b"ok\nca\xe9"}, r"x\.txt is not UTF-8 at byte 3 \(0xe9\) of line 2"),
        ({"x.jpg": JPEG, "x.txt": b"a\0b\0"}, "NUL characters"),
        ({"x.jpg": JPEG, "x.JPG": JPEG}, r"two members end in \.jpg"),
        ({"x.jpg": bytes(2000)}, "x.jpg has 2,000 bytes; at most 1,999"),
    ],
)
def test_broken_samples_name_key_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], reason: str
) -> None:
    if "at most" in reason:
        monkeypatch.setattr(tar_index, "MAX_MEMBER", 1999)
    shards = Shards.open(write_tar(tmp_path / "s.tar", members | {"y.jpg": JPEG}))
    with pytest.raises(BrokenSample, match=reason) as error:
        shards[0]
    assert error.value.key == shards.key(0) == "s/x"
    assert shards[1] == Sample("s/y", JPEG)


def test_index_is_stored_and_replaced_when_the_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "s.tar", numbered(3))
    first = Shards.open(path)
    before = first[:]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s.tar", "s.tar.index.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "_scan", lambda path: pytest.fail(f"{path} was walked again"))
        assert Shards.open(tmp_path)[:] == before

    size = path.stat().st_size
    write_tar(path, numbered(3, prefix="new"))
    os.utime(path, ns=(0, 10**18))
    assert path.stat().st_size == size  # only the time tells
    assert [sample.key for sample in Shards.open(path)] == ["s/new000", "s/new001", "s/new002"]

    Path(f"{path}.index.npz").write_bytes(b"PK\x03\x04 damaged")
    assert Shards.open(path).key(0) == "s/new000"


def test_a_tar_that_changes_after_opening_is_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", numbered(1))
    shards = Shards.open(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(OSError, match="has changed since"):
        shards[0]


def test_reads_from_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "s.tar", numbered(2))
    writable = Path.open

    def read_only(path: Path, mode: str = "r") -> io.IOBase:  # the tests may run as root, who can write anywhere
        if mode != "rb":
            raise OSError(30, "Read-only file system")
        return writable(path, mode)

    monkeypatch.setattr(Path, "open", read_only)
    assert len(Shards.open(tmp_path)[:]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["s.tar"]


def test_pickles_are_small_and_without_open_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", numbered(50))
    shards = Shards.open(tmp_path)
    read = shards[:]
    copy = pickle.dumps(shards)
    assert len(copy) < 5000  # the tar has 100 KB
    assert pickle.loads(copy)[:] == read


def test_reads_more_tars_than_are_mapped_at_once(tmp_path: Path) -> None:
    many = tar_index.OPEN_TARS + 10
    for number in range(many):
        write_tar(tmp_path / f"{number:03}.tar", {"x.jpg": JPEG + bytes([number % 256])})
    shards = Shards.open(tmp_path)
    for _ in range(2):
        assert [sample.image[-1] for sample in shards] == [number % 256 for number in range(many)]
    assert tar_index._map.cache_info().currsize == tar_index.OPEN_TARS


@pytest.mark.parametrize("cut", [100, 600, 1024, 1300, 2300, 2560])  # the members end at 1024 and 2560
def test_truncated_tar(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.jpg": JPEG, "b.jpg": bytes(1000)})
    data = path.read_bytes()
    path.write_bytes(data[: 2560 + 512])
    assert len(Shards.open(path)) == 2  # one block of zeros is end enough
    path.write_bytes(data[:cut])
    with pytest.raises(ValueError, match=r"s\.tar is (truncated|not a tar file: truncated)"):
        Shards.open(path)


def test_damaged_header_is_not_a_silent_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.jpg": JPEG, "b.jpg": JPEG})
    data = bytearray(path.read_bytes())
    data[1024] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged at byte 1,024 of 10,240: bad checksum"):
        Shards.open(path)


def test_negative_size_is_not_an_endless_loop(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = -1024
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    with pytest.raises(ValueError, match=r"damaged at byte 0 of 10,512: -1,024 bytes in a\.jpg"):
        Shards.open(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a tar file: empty"),
        (b"hello" * 200, "not a tar file"),
        (b"\x1f\x8b" + bytes(600), "with gzip; unpack it"),
    ],
)
def test_not_a_tar(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        Shards.open(tmp_path)


def test_members_of_a_sample_must_be_adjacent(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"a.jpg": JPEG, "b.jpg": JPEG, "a.txt": b"late"})
    with pytest.raises(ValueError, match="the members of a are not adjacent"):
        Shards.open(tmp_path)


def test_missing_tars_are_refused_with_the_contents_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"no tar file matches {tmp_path}/\*\.tar; {tmp_path} holds nothing"):
        Shards.open(tmp_path)
    for number in range(7):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(ValueError, match=rf"{tmp_path} holds 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, and 2 more"):
        Shards.open(tmp_path / "gone" / "train-*.tar")
    write_tar(tmp_path / "s.tar", {"README": b"text"})
    with pytest.raises(ValueError, match="no samples in 1 tar file"):
        Shards.open(tmp_path)


def test_other_images(tmp_path: Path) -> None:
    members = {"a.jpg": JPEG, "a.2.PNG": JPEG + b"2", "a.1.jpg": JPEG + b"1", "a.txt": b"two more\n", "b.jpg": JPEG}
    members |= {"c.jpg": JPEG, "c.2.jpg": JPEG, "d.1.jpg": JPEG, "e.jpg": JPEG, "e.12.jpg": JPEG, "e.seg.png": JPEG}
    shards = Shards.open(write_tar(tmp_path / "set.tar", members))
    assert shards[0] == Sample("set/a", JPEG, ("two more",), other_images=(JPEG + b"1", JPEG + b"2"))
    assert shards[1].other_images == ()
    with pytest.raises(BrokenSample, match="set/c: further images are numbered from 1; number 1 is missing"):
        shards[2]
    with pytest.raises(BrokenSample, match="set/d: no image"):
        shards[3]
    assert shards[4].other_images == ()  # what has another name is somebody else's


@pytest.mark.parametrize("value", [{"caption": "a \ud800 cat"}, {"caption": "a", "tags": ["\udfff"]}, {"\ud800": 1}])
def test_half_of_a_surrogate_pair_is_a_broken_sample(value: dict[str, object], tmp_path: Path) -> None:
    """Such a text can be neither tokenized nor written; whole pairs, which JSON may escape, are characters."""
    members = {
        "0.jpg": JPEG,
        "0.json": json.dumps(value).encode(),
        "1.jpg": JPEG,
        "1.json": b'{"caption": "\\ud83d\\ude00"}',
    }
    shards = Shards.open(write_tar(tmp_path / "a.tar", members))
    with pytest.raises(BrokenSample, match="surrogate"):
        shards[0]
    assert shards[1].texts == ("\U0001f600",)
