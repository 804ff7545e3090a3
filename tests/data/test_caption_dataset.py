"""Sampling by caption: every pair of an image and a caption once an epoch, in any mixture, from any index."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import shards

from dualfuse.data.caption_dataset import CaptionDataset
from dualfuse.data.loader import MAX_CONSECUTIVE_BROKEN, SampleReader, Skipped
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.sampler import Draw, MixtureSampler
from dualfuse.data.shards.shards import Shards, stored_counts
from dualfuse.data.shards.tar_index import TarIndex
from dualfuse.data.text.corpus import Corpus
from dualfuse.data.text.tokenizer import TextTransform

BAD_JSON = "{"


def make_set(folder: Path, name: str, images: dict[str, tuple[str, ...]]) -> Shards:
    """A set of images with captions, in two tars; without an image for keys that begin with "no"."""
    folder.mkdir(exist_ok=True)
    for part in (0, 1):
        with tarfile.open(folder / f"{name}-{part}.tar", "w") as tar:
            for key, texts in list(images.items())[part::2]:
                members = {} if key.startswith("no") else {"jpg": key}
                kind = "json" if texts == (BAD_JSON,) else "txt"
                members |= {kind: "\n".join(texts)} if texts else {}
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content.encode()))
    return Shards.open(folder / f"{name}-*.tar")


def random_images(name: str, number: int, seed: int) -> dict[str, tuple[str, ...]]:
    counts = np.random.default_rng(seed).integers(0, 5, number)
    return {f"{name}{n}": tuple(f"{name} {n} {k}" for k in range(count)) for n, count in enumerate(counts)}


def pair(sample: Sample, _: object = None) -> dict[str, str]:
    [text] = sample.texts
    return {"pair": f"{sample.image.decode()}: {text}"}


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_has_each_pair_of_image_and_caption_once(tmp_path: Path, seed: int) -> None:
    images = random_images("a", 23, seed), random_images("b", 9, seed + 100)
    sets = [CaptionDataset(make_set(tmp_path, name, some)) for name, some in zip("ab", images, strict=True)]
    expected = {f"{key}: {text}" for some in images for key, texts in some.items() for text in texts}
    assert sum(map(len, sets)) == len(expected)
    reader = SampleReader(tuple(sets), pair, seed)
    for weights, block in (((), 0), ((), 4)):
        sampler = MixtureSampler(tuple(map(len, sets)), 1, seed, weights, block)
        for epoch in range(2):
            steps = range(epoch * len(expected), (epoch + 1) * len(expected))
            draws = itertools.chain.from_iterable(map(sampler.draws, steps))
            assert Counter(reader[draw][0]["pair"] for draw in draws) == Counter(expected)
    assert len({samples.key(n) for samples in sets for n in range(len(samples))}) == len(expected)


def test_items_are_the_captions_in_file_order(tmp_path: Path) -> None:
    samples = CaptionDataset(make_set(tmp_path, "s", {"a": ("x", "y"), "b": (), "c": ("z",), "d": ("u", "v", "w")}))
    assert [pair(sample)["pair"] for sample in samples[:]] == ["a: x", "a: y", "c: z", "d: u", "d: v", "d: w"]
    assert [samples.key(n) for n in (0, 1, 2, -1)] == ["s-0/a#0", "s-0/a#1", "s-0/c#0", "s-1/d#2"]
    assert samples[1].key == "s-0/a#1" and samples.without_caption == 1
    assert samples.digests() == samples.samples.digests()


def test_a_broken_image_is_replaced_by_the_next_image(tmp_path: Path) -> None:
    """With more captions than the limit of consecutive broken samples; and the last image is followed by the first."""
    many = tuple(map(str, range(MAX_CONSECUTIVE_BROKEN + 20)))
    samples = CaptionDataset(make_set(tmp_path, "s", {"a": ("x",), "c": ("y", "z"), "no": many, "d": (BAD_JSON,)}))
    reader = SampleReader((samples,), pair, 1)
    first = next(n for n in range(len(samples)) if samples.key(n).startswith("s-0/no"))
    example, skipped = reader[Draw(0, first + 5, 0)]
    assert example == {"pair": "c: y"}
    assert [(skip.key, skip.replacement) for skip in skipped] == [("s-0/no", "s-1/c#0")]
    example, (skip,) = reader[Draw(0, len(samples) - 1, 0)]  # whose json cannot be read: it counts once
    assert example == {"pair": "a: x"} and (skip.key, skip.replacement) == ("s-1/d", "s-0/a#0")
    assert isinstance(skip, Skipped) and "json" in skip.reason


def test_counts_are_kept_in_the_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = make_set(tmp_path, "s", {"a": ("x", "y"), "b": ("z",), "c": ()})
    path, counting = tmp_path / "s-0.tar", "counting the captions"
    assert stored_counts(TarIndex.of(path)) is None  # as in an index of an earlier version
    assert made.caption_counts().tolist() == [2, 0, 1] and counting in caplog.text
    digest = made.digests()
    caplog.clear()
    assert made.caption_counts().tolist() == Shards.open(tmp_path).caption_counts().tolist() == [2, 0, 1]
    assert counting not in caplog.text and Shards.open(tmp_path).digests() == digest
    index = TarIndex.of(path)
    assert len(index.captions) == 2 and len(index.contents) == 32  # neither replaced the other
    for damage in (np.array([2, -1], np.int32), np.array([2], np.int32), np.array([2.0, 0.0])):
        index.add(captions=damage)
        assert Shards.open(tmp_path).caption_counts().tolist() == [2, 0, 1]
    arrays = {name: value for name, value in vars(index).items() if name not in ("path", "captions")}
    np.savez(path.with_name(path.name + ".index.npz"), **arrays)
    assert Shards.open(tmp_path).caption_counts().tolist() == [2, 0, 1]


def test_counts_without_a_place_for_them(tmp_path: Path) -> None:
    made = make_set(tmp_path, "s", {"a": ("x", "y"), "b": ("z",)})
    for index in tmp_path.glob("*.npz"):
        index.unlink()
        index.mkdir()  # so that nothing can be stored there
    assert [sample.texts for sample in CaptionDataset(made)[:]] == [("x",), ("y",), ("z",)]


def test_counts_of_another_tar_are_not_used(tmp_path: Path) -> None:
    """An index that counts more captions than a sample has makes a broken sample."""
    samples = CaptionDataset(make_set(tmp_path, "s", {"a": ("x", "y"), "b": ("z",)}))
    index = TarIndex.of(tmp_path / "s-0.tar")
    index.add(captions=np.array([3], np.int32))
    with pytest.raises(BrokenSample, match="s-0/a#2: it has 2 texts, but its index counts more"):
        CaptionDataset(Shards.open(tmp_path))[2]
    assert replace(samples[0], key="") == Sample("", b"a", ("x",))


def test_sets_without_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of 2 samples has a caption; set it to 'image'"):
        CaptionDataset(make_set(tmp_path, "s", {"a": (), "b": ()}))
    (tmp_path / "text.txt").write_text("some words\n")
    with pytest.raises(ValueError, match="a Corpus set has no captions"):
        CaptionDataset(Corpus.open(tmp_path / "text.txt", TextTransform(12, "")))


def test_prepared_shards_have_counts(tmp_path: Path) -> None:
    shards(tmp_path, 7)
    assert stored_counts(TarIndex.of(tmp_path / "train-00000.tar")).tolist() == [1, 2, 3, 1, 2, 3, 1]  # type: ignore[union-attr]
