"""Paths, folders and patterns of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualfuse.data.map_dataset import find_files, labels
from dualfuse.errors import DualfuseError


def names(source: Path) -> list[str]:
    return [path.name for path in find_files(source, (".tar",), "tar file")]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("train-{0..2}.tar", 3),
        ("train-{2..0}.tar", 3),
        ("{train,val}-{0..1}.tar", 4),
        ("train-[01].tar", 2),
        ("tr{ain,}*.tar", 3),
        ("*.tar", 6),
    ],
)
def test_wildcards_and_braces(tmp_path: Path, pattern: str, count: int) -> None:
    for split in ("train", "val"):
        for number in range(3):
            (tmp_path / f"{split}-{number}.tar").touch()
    assert len(names(tmp_path / pattern)) == count


def test_braces_with_leading_zeros_name_all_their_files(tmp_path: Path) -> None:
    for number in range(9, 12):
        (tmp_path / f"{number:05}.tar").touch()
    assert names(tmp_path / "{00009..00011}.tar") == ["00009.tar", "00010.tar", "00011.tar"]
    with pytest.raises(DualfuseError, match=r"stands for 4 files, of which 00012\.tar are missing"):
        names(tmp_path / "{00009..00012}.tar")
    with pytest.raises(DualfuseError, match="no tar file matches"):
        names(tmp_path / "{1..3}.tar")
    with pytest.raises(DualfuseError, match="more than 1,000,000 names"):
        names(tmp_path / "{0..99999}-{0..99999}.tar")


def test_what_exists_is_taken_literally(tmp_path: Path) -> None:
    folder = tmp_path / "set [1] {a,b} *"
    folder.mkdir()
    for name in ("x.tar", "{0..1}.tar", "y.TAR", "notes.txt"):
        (folder / name).touch()
    assert names(folder) == names(folder / "*.[tT]*") == ["x.tar", "y.TAR", "{0..1}.tar"]
    assert names(folder / "{0..1}.tar") == ["{0..1}.tar"]
    assert labels(find_files(folder, (".tar",), "tar file"), (".tar",)) == ("x", "y", "{0..1}")
