"""Samples per second of one core: ours, Pillow alone, and the package webdataset, on the same tars.

Ours is what a loader process does: it reads a tar at random places, draws a caption, decodes, crops, augments, splits
into tokens, masks, and makes batches. webdataset reads the tars from first to last through a shuffle buffer and is
given the same work in Pillow (crop and resize in one call), with our tokens and our RandAugment, as it has none.
Pillow alone opens, converts, resizes without augmentation, and makes an array, of bytes that are in memory. Candidates
take turns in random order; times are processor seconds, ratios are formed within a round:
``python bench/loading.py --tars 'examples/openpics-mini/*-train-*.tar'``. ``--photographs`` makes tars of JPEGs of
500 x 375 pixels first, as photographs of Flickr are.
"""

from __future__ import annotations

import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from dualfuse.data.image.randaugment import rand_augment
from dualfuse.data.image.transform import Augment, ImageTransform, Preprocess, random_box
from dualfuse.data.loader import SampleReader, training_batches
from dualfuse.data.map_dataset import find_files
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.sampler import MixtureSampler
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.masking import mask_words
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.recipes.small_pairs import OPENPICS
from dualfuse.tasks.pretrain.pair_batch import PairExample, collate_pairs, content_id
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training.memory import keep_big_blocks

BATCH = 64
SETTINGS = {
    "224, RandAugment": ImageTransform((224, 224), Augment()),
    "224": ImageTransform((224, 224), Augment(rand_augment=False)),
    "64, as the demo without colours": ImageTransform((64, 64), Augment(crop=(0.5, 1.0), rand_augment=False)),
}
TEXTS = TextTransform(OPENPICS.text_length)

Batches = Iterator[object]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    tars: str = "examples/openpics-mini/*-train-*.tar"
    photographs: bool = False
    """Measure on made-up photographs in the place of ``tars``."""
    rounds: int = 7
    batches: int = 4
    """Of 64 samples, in each turn."""


def ours(tars: str, transform: ImageTransform) -> Batches:
    """Return batches as a loader process makes them."""
    shards, cfg, processor = Shards.open(tars), PairsConfig(), Processor(transform, TEXTS)

    def read(sample: Sample, rng: np.random.Generator) -> PairExample:
        return cfg.read(sample, processor, rng)

    order = MixtureSampler((len(shards),), batch_size=BATCH, seed=1)
    place = {"start": 0, "rank": 0, "world": 1, "micro_batch": 0, "workers": 0}
    return training_batches(SampleReader((shards,), read, 1), order, cfg.collate, **place)


def pillow(tars: str, transform: ImageTransform) -> Batches:
    """Return lists of arrays: decoded and resized, and nothing else."""
    shards = Shards.open(tars)
    encoded = [shards[number].image for number in range(min(len(shards), 8 * BATCH))]
    size = transform.size[1], transform.size[0]
    while True:
        for first in range(0, len(encoded) - BATCH + 1, BATCH):
            images = (Image.open(io.BytesIO(data)).convert("RGB") for data in encoded[first : first + BATCH])
            yield [np.array(image.resize(size, Image.Resampling.BICUBIC)) for image in images]


def webdataset(tars: str, transform: ImageTransform) -> Batches:
    """Return batches as a pipeline of webdataset makes them."""
    package = import_module("webdataset")  # it may be missing
    rng = np.random.default_rng(1)
    paths = [str(path) for path in find_files(tars, (".tar",), "tar file")]
    dataset = package.WebDataset(paths, shardshuffle=False, empty_check=False).repeat().shuffle(1000).decode("pil")
    return iter(dataset.map(partial(_row, transform=transform, rng=rng)).batched(BATCH, collation_fn=collate_pairs))


def _row(sample: dict[str, object], transform: ImageTransform, rng: np.random.Generator) -> PairExample:
    image = next(value for value in sample.values() if isinstance(value, Image.Image))
    texts = str(sample["txt"]).split("\n") if "txt" in sample else _captions(sample["json"])
    caption = texts[int(rng.integers(len(texts)))]
    words = TEXTS.encode(caption)
    masked, labels = mask_words(words, TEXTS.vocab_size, TEXTS.mask_id, rng)
    return {
        "image": _vary(image.convert("RGB"), transform, rng),
        "ids": words.ids,
        "masked_ids": masked,
        "labels": labels,
        "image_id": content_id(str(sample["__key__"]).encode()),
        "text_id": content_id(caption.encode()),
        "source": 0,
    }


def _captions(meta: object) -> list[str]:
    assert isinstance(meta, dict)  # decoded by webdataset
    return meta.get("captions") or [meta.get("caption") or meta["text"]]


def _vary(image: Image.Image, transform: ImageTransform, rng: np.random.Generator) -> Tensor:
    """Crops, resizes and flips in Pillow; then RandAugment, and the normalisation that torchvision would do."""
    augment = transform.augment
    assert augment is not None  # of all SETTINGS
    top, left, height, width = random_box((image.height, image.width), augment, rng)
    box = (left, top, left + width, top + height)
    image = image.resize((transform.size[1], transform.size[0]), Image.Resampling.BICUBIC, box=box)
    if rng.random() < augment.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if augment.rand_augment:
        pixels = rand_augment(pixels, augment.rand_augment_policy, rng)
    return Preprocess().normalize(pixels)


CANDIDATES: dict[str, Callable[[str, ImageTransform], Batches]] = {
    "ours": ours,
    "Pillow alone": pillow,
    "webdataset": webdataset,
}


def photographs(folder: Path) -> str:
    """Write 512 JPEGs of 500 x 375 pixels with as much detail as photographs have: 40 KiB or so each."""
    rng = np.random.default_rng(0)

    def made(number: int) -> Sample:
        smooth = Image.fromarray(rng.integers(256, size=(24, 32, 3), dtype=np.uint8)).resize((500, 375))
        noise = Image.fromarray(rng.integers(256, size=(188, 250, 3), dtype=np.uint8)).resize((500, 375))
        file = io.BytesIO()
        Image.blend(smooth, noise, 0.15).save(file, "JPEG", quality=90)
        return Sample(f"{number:05d}", file.getvalue(), ("two dogs run along the beach in the evening sun",))

    write_shards([made(number) for number in range(512)], folder, "train")
    return str(folder / "train-*.tar")


def measure(tars: str, transform: ImageTransform, options: Options) -> list[dict[str, float]]:
    """Return the samples per processor second of every candidate, round by round."""
    streams = {name: start(tars, transform) for name, start in candidates().items()}
    rounds: list[dict[str, float]] = []
    for number in range(1 + options.rounds):
        names, found = random.sample(tuple(streams), len(streams)), dict[str, float]()
        for name in names:
            before = time.process_time()
            for _ in islice(streams[name], options.batches):
                pass
            found[name] = options.batches * BATCH / (time.process_time() - before)
        if number:  # the first round opens files and fills buffers
            rounds.append(found)
    return rounds


def candidates() -> dict[str, Callable[[str, ImageTransform], Batches]]:
    """Return those that are installed."""
    if find_spec("webdataset") is None:
        print("webdataset is not installed and left out: pip install webdataset")
        return {name: start for name, start in CANDIDATES.items() if name != "webdataset"}
    return CANDIDATES


def report(setting: str, rounds: list[dict[str, float]]) -> None:
    """Print one line per candidate."""
    for name in rounds[0]:
        ratios = sorted(found["ours"] / found[name] for found in rounds)
        speed = statistics.median(found[name] for found in rounds)
        spread = f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {setting} | {name} | {speed:,.0f} | {spread} |", flush=True)


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    keep_big_blocks()  # as training does before it starts its loader processes
    with tempfile.TemporaryDirectory() as folder:
        tars = photographs(Path(folder)) if options.photographs else options.tars
        shards = Shards.open(tars)
        some = [shards[number].image for number in range(0, len(shards), max(1, len(shards) // 100))]
        kib, size = statistics.mean(map(len, some)) / 1024, Image.open(io.BytesIO(some[0])).size
        print(f"{len(shards):,} images, {kib:.1f} KiB each, the first {size[0]} x {size[1]}")
        print("| images become | | samples/s of a core | ours is … times as fast |\n|---|---|---:|---:|")
        for setting, transform in SETTINGS.items():
            report(setting, measure(tars, transform, options))


if __name__ == "__main__":
    main()
