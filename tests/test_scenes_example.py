"""The example draws what its captions say, keeps its splits apart, and makes recipes that fit its data."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.recipes import find_recipe

FILE = Path(__file__).parents[1] / "examples" / "scenes.py"
SPLITS = ("train", "val", "test")
BACK = {"right of": "left of", "below": "above"}
FILLED = {"circle": 0.785, "triangle": 0.5, "square": 1.0, "diamond": 0.5}  # of the box around it

Fact = tuple[str, str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    find_recipe(f"{FILE}:scenes")  # imports the file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scenes.py", str(folder), "--train", "300", "--test", "60"])
        sys.modules["scenes"].main()
    return folder


@pytest.fixture(scope="module")
def shards(folder: Path) -> dict[str, tuple[Sample, ...]]:
    return {split: Shards.open(folder / f"{split}-00000.tar")[:] for split in SPLITS}


def said(caption: str) -> Fact:
    """Read a caption, as "left of" or "above"."""
    words = caption.removeprefix("there is ").removeprefix("a ")
    relation = next(place for place in ("left of", "above", *BACK) if f" {place} a " in words)
    first, second = words.split(f" {relation} a ")
    return (second, BACK[relation], first) if relation in BACK else (first, relation, second)


def kinds_of(sample: Sample) -> dict[int, str]:
    kinds = sample.meta["kinds"]
    assert isinstance(kinds, dict)
    return {int(cell): str(kind) for cell, kind in kinds.items()}


def shown(sample: Sample) -> set[Fact]:
    """Return what is true of an image, from the cells of its shapes."""
    kinds = kinds_of(sample)
    near = {(0, 1): "left of", (2, 3): "left of", (0, 2): "above", (1, 3): "above"}
    return {(kinds[a], relation, kinds[b]) for (a, b), relation in near.items() if kinds.keys() >= {a, b}}


def pixels(sample: Sample) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Find shapes by their colour: x and y of all its pixels; shapes whose colour another one has are left out."""
    image = np.asarray(Image.open(io.BytesIO(sample.image))).astype(int)
    assert image.shape == (64, 64, 3)
    colours = [kind.split()[1] for kind in kinds_of(sample).values()]
    found = {}
    for kind in kinds_of(sample).values():
        colour = kind.split()[1]
        if colours.count(colour) == 1:
            y, x = np.nonzero((abs(image - ImageColor.getrgb(colour)) < 60).all(2))
            found[kind] = (x, y)
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_shapes_are_where_captions_say(shards: dict[str, tuple[Sample, ...]], split: str) -> None:
    evaluated = 0
    for sample in shards[split]:
        places = {kind: (x.mean(), y.mean()) for kind, (x, y) in pixels(sample).items()}
        for first, relation, second in map(said, sample.texts):
            if first in places and second in places:
                axis = ("left of", "above").index(relation)
                assert places[second][axis] - places[first][axis] > 5, (sample.key, sample.texts)
                evaluated += 1
    assert evaluated >= 30


def test_shapes_have_the_size_and_form_of_their_name(shards: dict[str, tuple[Sample, ...]]) -> None:
    seen = set()
    for sample in shards["train"]:
        for kind, (x, y) in pixels(sample).items():
            size, _, shape = kind.split()
            width, height = np.ptp(x) + 1, np.ptp(y) + 1
            assert (7 <= width <= 14) if size == "small" else (15 <= width <= 25), (kind, width)
            if size == "large":
                assert len(x) / (width * height) == pytest.approx(FILLED[shape], abs=0.08), kind
                lowest, highest = (y == y.max()).sum(), (y == y.min()).sum()
                assert (lowest > 3 * highest) == (shape == "triangle"), kind
            seen.add((size, shape))
    assert len(seen) == 2 * len(FILLED)


def test_held_out_pairs_are_absent_from_training_images(shards: dict[str, tuple[Sample, ...]]) -> None:
    told = {
        split: {frozenset(said(text)[::2]) for sample in shards[split] for text in sample.texts} for split in SPLITS
    }
    beside = {frozenset((first, second)) for sample in shards["train"] for first, _, second in shown(sample)}
    assert beside == told["train"]  # all that is true of a training image is said of it
    assert beside.isdisjoint(told["val"] | told["test"])
    assert told["val"].isdisjoint(told["test"])


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_caption_is_true_of_one_image(shards: dict[str, tuple[Sample, ...]], split: str) -> None:
    for sample in shards[split]:
        (text,) = sample.texts
        assert [other.key for other in shards[split] if said(text) in shown(other)] == [sample.key]


def test_recipe_fits_the_data(folder: Path, shards: dict[str, tuple[Sample, ...]]) -> None:
    stages = find_recipe(f"{FILE}:scenes")
    assert [stage.name for stage in stages] == ["itc", "random", "hard"]
    text = TextTransform(stages[0].data.text_length, str(folder / "tokenizer.json"))
    assert stages[0].model.vocab_size == text.vocab_size
    captions = {caption for sample in shards["train"] for caption in sample.texts}
    assert all(text.decode(text.encode(caption).ids) == caption for caption in captions)


def test_equal_seeds_draw_equal_images(shards: dict[str, tuple[Sample, ...]]) -> None:
    samples = sys.modules["scenes"].samples
    assert [sample.image for sample in samples("test", 60, 1)] == [sample.image for sample in shards["test"]]
    assert next(samples("test", 1, 2)).image != shards["test"][0].image


def test_too_many_held_out_images_are_refused() -> None:
    with pytest.raises(ValueError, match="only 876 facts"):
        next(sys.modules["scenes"].samples("test", 877, 1))
