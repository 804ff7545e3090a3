"""Hard links inside a tar are its members; nothing leads out of it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dualfuse.data.sample import Sample
from dualfuse.data.shards import tar_index
from dualfuse.data.shards.shards import Shards

JPEG = b"\xff\xd8\xff image"


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", link: str = "", kind: bytes = tarfile.LNKTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    if link:
        info.type, info.linkname = kind, link
    tar.addfile(info, io.BytesIO(data))


def test_hard_links_have_the_bytes_of_their_target(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.jpg", JPEG)
        add(tar, "1.jpg", link="0.jpg")
        add(tar, "2.jpg", link="1.jpg")  # of a link
        add(tar, "2.txt", b"words")
    found = [(sample.key, sample.image, sample.texts) for sample in Shards.open(tmp_path / "a.tar")]
    assert found == [("a/0", JPEG, ()), ("a/1", JPEG, ()), ("a/2", JPEG, ("words",))]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_other_links_are_ignored(tmp_path: Path, kind: bytes) -> None:
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(JPEG + b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.jpg", JPEG)
        for number, link in enumerate((str(outside), "../secret.jpg", "later.jpg", "0.png")):
            add(tar, f"0.{number + 1}.jpg", link=link, kind=kind)
        add(tar, "later.jpg", JPEG)
    assert Shards.open(tmp_path / "a.tar")[:] == (Sample("a/0", JPEG), Sample("a/later", JPEG))


def test_hard_links_written_by_tar(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(JPEG)
    os.link(tmp_path / "images" / "0.jpg", tmp_path / "images" / "1.jpg")
    command = ("tar", "--sort=name", "-cf", tmp_path / "a.tar", "-C", tmp_path / "images", ".")
    subprocess.run(command, check=True)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [member.islnk() for member in tar if not member.isdir()] == [False, True]
    assert [sample.image for sample in Shards.open(tmp_path / "a.tar")] == [JPEG, JPEG]


def test_an_index_of_an_older_format_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.jpg", JPEG)
        add(tar, "1.jpg", link="0.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "INDEX_FORMAT", 1)
        tar_index.TarIndex.of(tmp_path / "a.tar")
    with np.load(tmp_path / "a.tar.index.npz") as kept:
        before = kept["stamp"][0]
    assert before == 1 and len(Shards.open(tmp_path / "a.tar")) == 2
    with np.load(tmp_path / "a.tar.index.npz") as kept:
        assert kept["stamp"][0] == 2
