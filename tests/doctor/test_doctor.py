"""The doctor finds planted defects, and none in a good set."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from dualfuse.cli.doctor import print_report
from dualfuse.data.image.image_grid import Tile, image_grid
from dualfuse.data.sample import Sample
from dualfuse.doctor.examine import examine, split_of
from dualfuse.doctor.findings import Report
from dualfuse.doctor.fingerprint import COLOR_DISTANCE, HASH_DISTANCE, fingerprint, group, near_pairs
from dualfuse.prepare.shard_writer import write_shards


def scene(number: int, size: int = 96) -> Image.Image:
    """Return an image of a few random shapes, different for each number."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (size, size), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        corners = sorted(rng.integers(0, size, 2).tolist()), sorted(rng.integers(0, size, 2).tolist())
        box = (corners[0][0], corners[1][0], corners[0][1], corners[1][1])
        draw.ellipse(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sample(number: int, text: str = "", image: bytes | None = None) -> Sample:
    return Sample(f"{number:03d}", image or encode(scene(number)), (text or f"text number {number}",))


def found(report: Report) -> dict[str, int]:
    return {finding.name: finding.count for finding in report.findings}


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Report]:
    """Return a function that examines ten good training images and additional samples."""

    def planted(train: tuple[Sample, ...] = (), test: tuple[Sample, ...] = ()) -> Report:
        write_shards([*map(sample, range(10)), *train], tmp_path / "set", "my-train", limit=(6, 1 << 20))
        write_shards([*map(sample, range(10, 14)), *test], tmp_path / "set", "my-test")
        return examine(tmp_path / "set", text_length=8)

    return planted


def test_a_good_set_has_no_findings(plant: Callable[..., Report]) -> None:
    report = plant()
    assert report.findings == ()
    assert report.splits == {
        "train": {"shards": 2, "images": 10, "texts": 10},
        "test": {"shards": 1, "images": 4, "texts": 4},
    }


def animation() -> bytes:
    return encode(scene(50), "WEBP", save_all=True, append_images=[scene(51)])


@pytest.mark.parametrize(
    ("bad", "name", "example"),
    [
        (sample(90, image=encode(scene(90))[:900]), "unreadable image", "cannot be decoded"),
        (sample(90, image=encode(scene(90, 40))), "tiny image", "40 x 40"),
        (sample(90, image=encode(Image.new("L", (5000, 50)), "PNG")), "huge image", "5000 x 50"),
        (sample(90, image=animation()), "animated image", "2 frames"),
        (Sample("090", encode(scene(90))), "no text", "090"),
        (sample(90, text="one two three four five six seven"), "over-long text", "one two three"),
    ],
)
def test_defects_of_single_samples(plant: Callable[..., Report], bad: Sample, name: str, example: str) -> None:
    report = plant(train=(bad,))
    assert found(report) == {name: 1}
    assert report.findings[0].examples[0].startswith("my-train-00001/090") and example in report.findings[0].examples[0]


def test_six_tokens_and_two_special_ones_are_not_over_long(plant: Callable[..., Report]) -> None:
    assert found(plant(train=(sample(90, text="one two three four five six"),))) == {}


def near(number: int) -> bytes:
    return encode(scene(number).resize((200, 190)), quality=40)


def test_copies_within_a_split_and_leaks_between_splits(plant: Callable[..., Report]) -> None:
    train = (sample(90, image=encode(scene(3))), sample(91, image=encode(scene(3))), sample(92, image=near(4)))
    test = (sample(93, image=encode(scene(5))), sample(94, image=near(6)), sample(95, text=" Text  NUMBER 7"))
    report = plant(train, test)
    assert found(report) == {
        "duplicate image": 2,
        "near-duplicate image": 1,
        "same image in two splits": 1,
        "near-duplicate in two splits": 1,
        "same text in two splits": 1,
    }
    examples = {finding.name: finding.examples for finding in report.findings}
    assert examples["duplicate image"] == ("my-train-00000/003 = my-train-00001/090 = my-train-00001/091",)
    assert examples["same image in two splits"] == ("my-test-00000/093 = my-train-00000/005",)
    assert examples["near-duplicate in two splits"] == ("my-test-00000/094 = my-train-00001/006",)
    assert examples["same text in two splits"] == ("my-test-00000/095 = my-train-00001/007",)


def test_same_text_on_several_images(plant: Callable[..., Report]) -> None:
    twice_itself = Sample("092", encode(scene(92)), ("own", "own"))
    report = plant(train=(sample(90, "a dog"), sample(91, "A dog"), twice_itself))
    assert found(report) == {"same text on several images": 1}


def test_unreadable_shards_are_findings(plant: Callable[..., Report], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "my-train-00009.tar").write_bytes(b"no tar" * 200)
    report = plant()
    assert found(report) == {"unreadable shard": 1}
    assert "my-train-00009.tar" in report.findings[0].examples[0]


def test_image_grid_json_and_printed_report(tmp_path: Path) -> None:
    write_shards([sample(0), sample(1), sample(2, image=b"\xff\xd8\xffbroken")], tmp_path, "train")
    grid = tmp_path / "new" / "grid.png"
    report = examine(tmp_path / "train-00000.tar", text_length=40, save_image=grid)
    pixels = np.asarray(Image.open(grid).convert("RGB"))
    assert ((pixels == (0xC6, 0x28, 0x28)).all(axis=2).sum(axis=1) > 170).sum() == 6  # a red frame, 3 pixels wide
    assert ((pixels == 0xEE).all(axis=2).sum(axis=1) > 160).any()  # an empty field
    stored = json.loads(grid.with_suffix(".json").read_text())
    assert stored["findings"][0]["name"] == "unreadable image" and stored["splits"]["train"]["images"] == 3
    console = Console(record=True, width=100, file=io.StringIO())
    print_report(report, console)
    printed = console.export_text()
    assert "train-00000/002" in printed and "unreadable image" in printed and "no findings" not in printed


def test_a_set_of_one_unreadable_shard_has_no_image_grid(tmp_path: Path) -> None:
    (tmp_path / "train-00000.tar").write_bytes(b"no tar" * 200)
    report = examine(tmp_path, save_image=tmp_path / "sheet.png")
    assert found(report) == {"unreadable shard": 1}
    assert (tmp_path / "sheet.json").exists() and not (tmp_path / "sheet.png").exists()


def test_missing_shards_and_other_image_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tar file matches .*; .* holds nothing"):
        examine(tmp_path)
    with pytest.raises(ValueError, match=r"\.png or \.jpg"):
        examine(tmp_path, text_length=40, save_image=tmp_path / "sheet.txt")


def test_splits_are_recognized_by_names_of_tars() -> None:
    names = {"train-00000": "train", "openpics-mini-val-00003": "val", "food-00001": "food", "00001": "all"}
    assert {name: split_of(Path(f"{name}.tar")) for name in names} == names


def test_near_pairs_equal_those_of_a_double_loop() -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 1 << 63, 60, dtype=np.uint64)
    hashes[30:] = hashes[:30] ^ np.array(
        [sum(1 << int(b) for b in rng.choice(64, n % 6)) for n in range(30)], np.uint64
    )
    colors = rng.integers(0, 256, (60, 48), dtype=np.uint8)
    colors[30:55] = np.clip(colors[:25].astype(int) + rng.integers(-12, 13, (25, 1)), 0, 255)

    def is_near(one: int, other: int) -> bool:
        gap = np.abs(colors[one].astype(int) - colors[other].astype(int)).max()
        return bin(int(hashes[one]) ^ int(hashes[other])).count("1") <= HASH_DISTANCE and gap <= COLOR_DISTANCE

    expected = {pair for pair in combinations(range(60), 2) if is_near(*pair)}
    assert len(expected) > 5
    assert {tuple(sorted(pair)) for pair in near_pairs(hashes, colors)} == expected


def test_fingerprint_survives_encoding_and_distinguishes_colors() -> None:
    def is_near(one: Image.Image, other: Image.Image) -> bool:
        prints = [fingerprint(np.asarray(image.convert("RGB"))) for image in (one, other)]
        hashes = np.array([value for value, _ in prints], np.uint64)
        colors = np.frombuffer(b"".join(colors for _, colors in prints), np.uint8).reshape(2, 48)
        return any(near_pairs(hashes, colors))

    for number in range(20):
        copy = Image.open(io.BytesIO(near(number)))
        assert is_near(scene(number), copy)
        assert not is_near(scene(number), scene(number + 100))
    red, green = (Image.new("RGB", (64, 64), colour) for colour in ("#ff0000", "#008200"))  # equal to the gray hash
    assert not is_near(red, green)


def test_groups_are_connected_components() -> None:
    assert group(iter([(5, 3), (9, 8), (1, 3), (8, 9)])) == [[1, 3, 5], [8, 9]]
    assert group(iter(())) == []


def test_image_grid_layout() -> None:
    green = np.full((30, 60, 3), (0, 200, 0), np.uint8)
    tiles = [Tile(encode(scene(1)), "long " * 60, "title", "0.93"), (green, ""), (b"broken", "word" * 99)]
    grid = image_grid(tiles, columns=2, cell=100, heading="query " * 30)
    assert grid.width == 8 + 2 * (100 + 8)
    pixels = np.asarray(grid)
    ys, xs = np.nonzero((pixels == (0, 200, 0)).all(axis=2))
    assert (xs.min(), xs.max() - xs.min(), ys.max() - ys.min()) == (116, 99, 49)  # second column, as wide as a cell
    assert (pixels[-8:] == 255).all() and (pixels[:, -8:] == 255).all()  # nothing runs over the margin
    with pytest.raises(ValueError, match="needs images"):
        image_grid([])
