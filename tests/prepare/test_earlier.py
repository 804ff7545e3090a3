"""A changed source is converted again without decoding what has not changed, with the bytes of a new conversion."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import png_image

from dualfuse.data.image.image_file import ConvertedImage
from dualfuse.data.shards.shards import Shards
from dualfuse.prepare import checks, earlier
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare

OPTIONS = PrepareOptions(num_workers=1, split="val=0.3", shard_samples=4)


def export(folder: Path) -> list[list[str]]:
    """The table of a shop: 12 images, of which one is broken, one missing and one a GIF."""
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.png").write_bytes(png_image(number))
    (folder / "3.png").write_bytes(b"broken")
    (folder / "5.png").unlink()
    (folder / "7.png").write_bytes(b"GIF89a" + b"\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;")
    return [[f"{number}.png", f"a {number}", str(10 * number)] for number in range(12)]


def table(folder: Path, rows: list[list[str]]) -> Path:
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption", "price"], *rows])
    return folder / "t.csv"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images that were decoded, as a list to clear."""
    calls: list[int] = []
    convert = checks.convert_image

    def count(data: bytes, longest_side: int = 0) -> ConvertedImage:
        calls.append(len(data))
        return convert(data, longest_side)

    monkeypatch.setattr(checks, "convert_image", count)
    return calls


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.endswith(".npz")}


Change = Callable[[list[list[str]], Path], object]
CHANGES: dict[str, tuple[Change, int]] = {
    "caption": (lambda rows, folder: rows[4].__setitem__(1, "another"), 1),
    "price": (lambda rows, folder: rows[4].__setitem__(2, "99"), 1),
    "insert": (lambda rows, folder: rows.insert(0, ["0.png", "first", "1"]), 1),
    "remove": (lambda rows, folder: rows.pop(2), 0),
    "order": (lambda rows, folder: rows.reverse(), 0),
    "image": (lambda rows, folder: (folder / "6.png").write_bytes(png_image(60)), 1),
    "mended": (lambda rows, folder: (folder / "3.png").write_bytes(png_image(30)), 1),
    "arrived": (lambda rows, folder: (folder / "5.png").write_bytes(png_image(50)), 1),
    "gone": (lambda rows, folder: (folder / "0.png").unlink(), 0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_update_decodes_what_changed_and_equals_a_new_conversion(
    tmp_path: Path, decoded: list[int], name: str
) -> None:
    folder, (change, expected) = tmp_path / "shop", CHANGES[name]
    rows = export(folder)
    prepare(table(folder, rows), tmp_path / "out", OPTIONS)
    (tmp_path / "out/notes.md").write_text("mine")
    change(rows, folder)
    decoded.clear()
    summary = prepare(table(folder, rows), tmp_path / "out", OPTIONS)
    assert len(decoded) == expected and summary.folder == tmp_path / "out"
    prepare(table(folder, rows), tmp_path / "fresh", OPTIONS)
    assert content(tmp_path / "out") == content(tmp_path / "fresh") | {"notes.md": b"mine"}
    assert not (tmp_path / "out.partial").exists()


def test_an_unchanged_source_is_not_decoded_or_written(tmp_path: Path, decoded: list[int]) -> None:
    folder = tmp_path / "shop"
    source = table(folder, export(folder))
    first = prepare(source, tmp_path / "out", OPTIONS)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    decoded.clear()
    assert prepare(source, tmp_path / "out", OPTIONS).tally == first.tally and not decoded
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_folders_of_another_version_are_converted_as_a_whole(tmp_path: Path, decoded: list[int]) -> None:
    folder, out = tmp_path / "shop", tmp_path / "out"
    source = table(folder, export(folder))
    prepare(source, out, OPTIONS)
    expected = content(out)
    tally = json.loads((out / "prepared.json").read_text()) | {"version": "0.0"}
    (out / "prepared.json").write_text(json.dumps(tally))
    decoded.clear()
    prepare(source, out, OPTIONS)
    assert len(decoded) == 11 and content(out) == expected


@pytest.mark.parametrize("moment", ["written", "moved", "set aside"])
def test_an_interrupted_update_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    folder, out = tmp_path / "shop", tmp_path / "out"
    rows = export(folder)
    prepare(table(folder, rows), out, OPTIONS)
    (out / "notes.md").write_text("mine")
    rows.pop()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        place = {"written": "remove_folder", "moved": "load_tally", "set aside": "replace_folder"}[moment]
        real = getattr(earlier, place)

        def interrupt(*arguments: Path) -> object:
            if (out / earlier.UPDATE / "prepared.json").exists() or (tmp_path / "out.partial").exists():
                if moment == "set aside":
                    os.replace(out, tmp_path / "out.old.partial")
                raise KeyboardInterrupt
            return real(*arguments)

        patch.setattr(earlier, place, interrupt)
        prepare(table(folder, rows), out, OPTIONS)
    prepare(table(folder, rows), out, OPTIONS)
    prepare(table(folder, rows), tmp_path / "fresh", OPTIONS)
    assert content(out) == content(tmp_path / "fresh") | {"notes.md": b"mine"}


def test_a_failed_update_leaves_the_earlier_conversion(tmp_path: Path) -> None:
    folder, out = tmp_path / "shop", tmp_path / "out"
    rows = export(folder)
    prepare(table(folder, rows), out, OPTIONS)
    before = content(out)
    with pytest.raises(ValueError, match="is usable"):
        prepare(table(folder, [["gone.png", "x", "1"]]), out, OPTIONS)
    (out / earlier.UPDATE / "skipped.jsonl").unlink()
    assert {name: data for name, data in before.items()} == {
        path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.suffix != ".npz"
    }


def test_questions_that_share_an_image_and_label_maps_are_reused(tmp_path: Path, decoded: list[int]) -> None:
    folder = tmp_path / "shop"
    source = table(folder, export(folder))
    options = replace(OPTIONS, label_column="price")
    prepare(source, tmp_path / "out", options)
    with source.open("a") as file:
        file.write("0.png,another,1\n0.png,third,2\n")
    decoded.clear()
    prepare(source, tmp_path / "out", options)
    prepare(source, tmp_path / "fresh", options)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    assert len(Shards.open(tmp_path / "out")) == 12
