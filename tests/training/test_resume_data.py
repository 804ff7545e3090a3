"""A shard that is missing, cut off or another one ends the run with its name, whenever it happens; none silently."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import at_step, changed, lines, png_image, recipe, samples, stopped, weights

from dualfuse.data.sample import Sample
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.recipe import Recipe
from dualfuse.training import loop


@pytest.fixture
def three(tmp_path: Path) -> Recipe:
    """Forty samples in three shards, which are read in turn."""
    made = recipe(tmp_path, images=1)
    (tmp_path / "data" / "train-00000.tar").unlink()
    shards = write_shards(samples(40), tmp_path / "data", limit=(14, 10**9))
    assert len(shards) == 3
    return changed(made, num_workers=0)


def shard(recipe: Recipe, number: int) -> Path:
    return Path(recipe.data.train[0]).with_name(f"train-{number:05d}.tar")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def other_samples(path: Path) -> None:
    renamed = [Sample(f"x{sample.key}", sample.image, sample.texts) for sample in samples(14)]
    write_shards(renamed, path.parent, "other")
    (path.parent / "other-00000.tar").replace(path)


def one_picture_more(path: Path) -> None:
    shutil.copy(path, path.with_name("train-00003.tar"))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (Path.unlink, r"train-00001.tar is no longer readable: No such file or directory; restore it"),
        (cut, r"train-00001.tar has changed since it was opened; start again"),
        (other_samples, r"train-00001.tar has changed since it was opened; start again"),
        (os.utime, r"train-00001.tar has changed since it was opened; start again"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_during_the_run(
    three: Recipe,
    tmp_path: Path,
    harm: Callable[[Path], None],
    said: str,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "seed_step", at_step(6, lambda: harm(shard(three, 1))))
    long = changed(three, num_workers=workers, steps=30)  # what a worker has read ahead is still trained on
    with pytest.raises(OSError, match=said):
        loop.train((long,), tmp_path / "out")
    assert not (tmp_path / "out" / "skipped.jsonl").exists()  # it is no broken sample


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (Path.unlink, r"started with other data:\n  train-00001 is missing\nPut the files back"),
        (one_picture_more, r"started with other data:\n  train-00003 is new\nPut"),
        (other_samples, r"started with other data:\n  train-00001 contains other samples\nPut"),
        (cut, r"train-00001.tar is truncated or damaged at byte"),
    ],
)
def test_between_two_runs(three: Recipe, tmp_path: Path, harm: Callable[[Path], None], said: str) -> None:
    stopped(three, tmp_path / "out")
    aside = tmp_path / "aside.tar"
    shutil.copy2(shard(three, 1), aside)
    before = lines(tmp_path / "out")
    harm(shard(three, 1))
    for _ in range(2):
        with pytest.raises(ValueError, match=said):
            loop.train((three,), tmp_path / "out")
    assert lines(tmp_path / "out") == before
    shutil.copy2(aside, shard(three, 1))
    shard(three, 3).unlink(missing_ok=True)
    loop.train((three,), tmp_path / "out")


def test_moved_and_rewritten_data_resumes(three: Recipe, tmp_path: Path) -> None:
    """Neither a place nor a clock matters, nor what one evaluates on; a folder of an earlier version goes on, too."""
    loop.train((three,), tmp_path / "whole")
    for case in ("elsewhere", "validation", "earlier"):
        stopped(three, tmp_path / case)
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "data", moved)
    for path in moved.glob("*.tar"):
        os.utime(path, (0, 0))
    shutil.move(moved, tmp_path / "data")
    loop.train((three,), tmp_path / "elsewhere")
    loop.train((changed(three, validation=str(shard(three, 0))),), tmp_path / "validation")
    (tmp_path / "earlier" / "data.json").unlink()
    loop.train((three,), tmp_path / "earlier")
    for case in ("elsewhere", "earlier"):
        assert lines(tmp_path / case) == lines(tmp_path / "whole")


def same_length(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"cat", b"dog"))


def swapped_tokens(path: Path) -> None:
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    path.write_text(json.dumps(content))


def test_other_contents_of_equal_size_are_refused(three: Recipe, tmp_path: Path) -> None:
    """Captions or tokens are swapped, in place and at another path, before and after the end of a run."""
    out, tokenizer = stopped(three, tmp_path / "out"), Path(three.data.tokenizer)
    shutil.copytree(tmp_path / "data", tmp_path / "other")
    shutil.copy(tokenizer, tmp_path / "other.json")
    swapped_tokens(tmp_path / "other.json")
    same_length(tmp_path / "other" / "train-00001.tar")
    others = (
        (changed(three, train=(str(tmp_path / "other" / "*.tar"),)), "train-00001 contains other samples"),
        (changed(three, tokenizer=str(tmp_path / "other.json")), "the tokenizer has another content"),
    )
    content = {path: path.read_bytes() for path in (shard(three, 1), tokenizer)}
    for harm, path, reason in ((same_length, shard(three, 1), others[0][1]), (swapped_tokens, tokenizer, others[1][1])):
        harm(path)
        with pytest.raises(ValueError, match=f"started with other data:\n  {reason}\nPut"):
            loop.train((three,), out)
        path.write_bytes(content[path])
    for _ in ("unfinished", "finished"):
        for other, reason in others:
            with pytest.raises(ValueError, match=f"started with other data:\n  {reason}\nPut"):
                loop.train((other,), out)
        loop.train((three,), out)


def test_equal_data_and_tokenizer_at_another_path_resume(three: Recipe, tmp_path: Path) -> None:
    loop.train((three,), tmp_path / "whole")
    out = stopped(three, tmp_path / "out")
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = Path(shutil.move(three.data.tokenizer, tmp_path / "moved.json"))
    recipe = changed(three, train=(str(tmp_path / "moved" / "train-*.tar"),), tokenizer=str(moved))
    loop.train((recipe,), out)
    loop.train((recipe,), out)
    assert lines(out) == lines(tmp_path / "whole")
    expected = weights(tmp_path / "whole")
    assert all(tensor.equal(expected[name]) for name, tensor in weights(out).items())


@pytest.mark.parametrize("text", ["", "{", "[3]", '[{"files": 3}]', "{}", '[{"files": ["a"]}]'])
def test_damaged_data_record_is_refused(three: Recipe, tmp_path: Path, text: str) -> None:
    stopped(three, tmp_path / "out")
    (tmp_path / "out" / "data.json").write_text(text)
    with pytest.raises(ValueError, match=r"data.json is damaged .*; delete it if the data has not changed"):
        loop.train((three,), tmp_path / "out")


def test_flipped_bits_of_images_are_skipped(three: Recipe, tmp_path: Path) -> None:
    """PNG has checksums; the ledger says which samples they were, and what came instead."""
    path = shard(three, 1)
    content = bytearray(path.read_bytes())
    image = png_image(17)
    place = content.index(image)
    content[place + len(image) // 2] ^= 16
    path.write_bytes(content)
    loop.train((three,), tmp_path / "out")
    ledger = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert {(line["key"], line["replacement"]) for line in ledger} == {("train-00001/017", "train-00001/018")}
    assert len(ledger) == 2  # 80 samples are two epochs
    assert lines(tmp_path / "out")[-1]["count/skipped"] == 2


def test_flipped_bits_of_headers_are_refused_before_training(three: Recipe, tmp_path: Path) -> None:
    path = shard(three, 2)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"ustar") - 257
    content[place + 2] ^= 1  # a letter of a name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"train-00002.tar is truncated or damaged at byte {place:,} of .* checksum"):
        loop.train((replace(three),), tmp_path / "out")
