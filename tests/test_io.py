"""Atomic writing: readers see the old content or the new one, with the usual permissions."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dualfuse.errors import DualfuseError
from dualfuse.files import check_regular, open_regular, read_bounded, walk
from dualfuse.io import PARTIAL, atomic_folder, atomic_write, listing, remove_folder, write_json, write_text


@pytest.fixture(params=[0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest):
    """Run a test under an umask."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_written_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "new" / "a.txt", "é")
    with atomic_write(tmp_path / "b.safetensors") as partial:
        safetensors.torch.save_file({"a": torch.zeros(2)}, partial)
    with atomic_folder(tmp_path / "folder") as partial:
        safetensors.torch.save_file({"a": torch.zeros(2)}, partial / "c.safetensors")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in sorted(files)] == ["b.safetensors", "c.safetensors", "a.txt"]
    assert {mode(path) for path in files} == {0o666 & ~umask}
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "é"


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with atomic_folder(tmp_path / "folder") as partial:
        (partial / "old").touch()
    with pytest.raises(KeyError), atomic_write(tmp_path / "a.json") as partial:
        partial.write_text("half")
        raise KeyError
    with pytest.raises(KeyError), atomic_folder(tmp_path / "folder") as partial:
        (partial / "new").touch()
        raise KeyError
    assert (tmp_path / "a.json").read_text() == '{\n "old": 1\n}\n'
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.json", "folder", "old"]


def test_a_folder_is_replaced_and_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"folder{PARTIAL}").mkdir()
    (tmp_path / f"folder.old{PARTIAL}").mkdir()
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "folder") as partial:
            (partial / name).touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "second"]
    remove_folder(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_errors_name_the_path_and_the_space(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a\.txt"), atomic_write(tmp_path / "a.txt") as partial:
        (partial / "below a file").touch()
    with (
        pytest.raises(OSError, match=r"folder\.partial could not be written \(.*it takes 4 KB, and .* Make room"),
        atomic_folder(tmp_path / "folder", [torch.zeros(1000)], "Make room"),
    ):
        raise OSError("No space left on device")


@pytest.mark.parametrize(("names", "expected"), [((), "nothing"), (("a", "b"), "a, b"), ("abcd", "a, b, and 2 more")])
def test_listing(names: str, expected: str) -> None:
    assert listing(names, 2) == expected


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(30 << 30)
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, message in (
        ("pipe", "a pipe"),
        ("link", "a device"),
        (".", "a folder"),
        ("sparse", "32.2 GB"),
    ):
        for read in (check_regular, open_regular, read_bounded):
            with pytest.raises(DualfuseError, match=message):
                read(tmp_path / name, 1000)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "missing", 1000)
    (tmp_path / "a.txt").write_text("four")
    assert read_bounded(tmp_path / "a.txt", 4) == b"four"


def test_the_bound_holds_for_files_whose_size_is_unknown() -> None:
    with pytest.raises(DualfuseError, match="more than 8 bytes"):
        read_bounded(Path("/proc/cpuinfo"), 8)  # its size is 0


def test_walk_lists_every_folder_once(tmp_path: Path) -> None:
    top, elsewhere = tmp_path / "top", tmp_path / "elsewhere"
    for folder in (top / "a" / "b", top / "c", top / ".hidden", elsewhere):
        folder.mkdir(parents=True)
        (folder / "x.jpg").touch()
    (top / "a" / "above").symlink_to("..")
    (top / "a" / "beside").symlink_to("../c")
    (top / "c" / "beside").symlink_to("../a")
    (top / "0").symlink_to("c")  # sorted before the folder, which has its own name nevertheless
    (top / "other").symlink_to(elsewhere)
    (top / "self").symlink_to("self")
    skipped: dict[str, str] = {}
    content = dict(walk(top, skipped))
    assert content == {"": ["self"], "a": [], "a/b": ["x.jpg"], "c": ["x.jpg"], "other": ["x.jpg"]}
    assert sorted(skipped) == ["0", "a/above", "a/beside", "c/beside"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_walk_reports_unreadable_folders(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    tmp_path.chmod(0o755)
    (tmp_path / "locked").chmod(0)
    skipped: dict[str, str] = {}
    relative_to = os.open(tmp_path, os.O_RDONLY)
    here = os.open(".", os.O_RDONLY)
    try:
        os.fchdir(relative_to)  # the parents of tmp_path are closed to other users
        os.seteuid(12345)
        assert dict(walk(Path("."), skipped)) == {"": []}
    finally:
        os.seteuid(0)
        os.fchdir(here)
    assert skipped == {"locked": "unreadable folder: Permission denied"}
