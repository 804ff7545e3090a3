"""Images of two or three coloured shapes, and captions that name two of them: what re-ranking is measured on.

``python examples/scenes.py data/scenes`` draws them, ``dualfuse train examples/scenes.py:scenes`` learns from them.
"""

from __future__ import annotations

import argparse
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers

from dualfuse.data.image.transform import Augment
from dualfuse.data.sample import Sample
from dualfuse.data.text.tokenizer import BERT_SPECIAL
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.recipe import Recipe, Run
from dualfuse.recipes.small_pairs import NANO, OPENPICS, QUICK
from dualfuse.tasks.pretrain.pairs import PairsConfig

FOLDER, CELL, ZOOM = "data/scenes", 32, 4
RADII = {"small": 6.5, "large": 12.0}
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black")
SHAPES = {"circle": (40, 0), "triangle": (3, 0), "square": (4, 0), "diamond": (4, 45)}  # corners, degrees turned
KINDS = tuple(" ".join(words) for words in product(RADII, COLOURS, SHAPES))
NEIGHBOURS = {(0, 1): "left of", (2, 3): "left of", (0, 2): "above", (1, 3): "above"}  # of four cells, as one reads
INVERSE = {"left of": "right of", "above": "below"}
TEMPLATES = ("a {} {} a {}", "there is a {} {} a {}")
WORDS = ("a", "there", "is", "left", "right", "of", "above", "below", *RADII, *COLOURS, *SHAPES)
VOCABULARY = (*BERT_SPECIAL, "[UNK]", *WORDS)


@dataclass(frozen=True)
class Fact:
    """Two kinds, such as "small red circle", and how the first lies to the second."""

    first: str
    relation: str
    second: str

    @property
    def split(self) -> str:
        """The split of the two kinds, in any order and relation: a tenth each is test and val."""
        place = zlib.crc32(" and ".join(sorted((self.first, self.second))).encode()) % 10
        return ("test", "val")[place] if place < 2 else "train"

    @property
    def captions(self) -> tuple[str, ...]:
        """The ways to say it, from either end."""
        ends = ((self.first, self.relation, self.second), (self.second, INVERSE[self.relation], self.first))
        return tuple(template.format(*end) for template in TEMPLATES for end in ends)


def scene(rng: np.random.Generator) -> tuple[dict[int, str], tuple[Fact, ...]]:
    """Return two neighbours or three shapes as kinds by cell, and all that is true of neighbours among them."""
    three = tuple({0, 1, 2, 3} - {int(rng.integers(4))})
    cells = three if rng.random() < 0.5 else tuple(NEIGHBOURS)[rng.integers(4)]
    kinds = dict(zip(cells, rng.choice(KINDS, len(cells), replace=False).tolist(), strict=True))
    near = ((pair, relation) for pair, relation in NEIGHBOURS.items() if kinds.keys() >= set(pair))
    return kinds, tuple(Fact(kinds[one], relation, kinds[other]) for (one, other), relation in near)


def draw(kinds: Mapping[int, str], rng: np.random.Generator) -> Image.Image:
    """Return the image, 64 x 64, with each shape anywhere within its cell."""
    image = Image.new("RGB", (2 * CELL * ZOOM, 2 * CELL * ZOOM), "white")
    for cell, kind in kinds.items():
        size, colour, shape = kind.split()
        room = CELL / 2 - RADII[size] - 1
        x, y = ((place + 0.5) * CELL + rng.uniform(-room, room) for place in (cell % 2, cell // 2))
        circle = (ZOOM * x, ZOOM * y, ZOOM * RADII[size])
        ImageDraw.Draw(image).regular_polygon(circle, *SHAPES[shape], fill=colour)
    return image.reduce(ZOOM)


def samples(split: str, number: int, seed: int) -> Iterator[Sample]:
    """Return training images with all that is true of them, or images of val or test with one caption each.

    The two kinds of a held-out caption are neighbours in no training image, and it is true of no other held-out one.
    """
    known = sum(Fact(*pair).split == split for pair in product(KINDS, INVERSE, KINDS) if pair[0] != pair[2])
    if split != "train" and number > known:
        raise ValueError(f"{number} images of {split} with a fact each: there are only {known} facts; ask for fewer")
    rng = np.random.default_rng((seed, ("train", "val", "test").index(split)))
    told, made = set[Fact](), 0
    while made < number:
        kinds, facts = scene(rng)
        here = tuple(fact for fact in facts if fact.split == split)
        others = {fact.split for fact in facts} - {split}
        if split == "train" and not others:
            texts = tuple(caption for fact in facts for caption in fact.captions)
        elif split != "train" and len(here) == 1 and others <= {"train"} and here[0] not in told:
            told.update(here)
            texts = (str(rng.choice(here[0].captions)),)
        else:
            continue
        file = io.BytesIO()
        draw(kinds, rng).save(file, "PNG")
        yield Sample(f"{made:06d}", file.getvalue(), texts, {"kinds": kinds})
        made += 1


def scenes() -> tuple[Recipe, ...]:
    """Contrast, then all objectives with random negatives, then with hard ones."""
    task = PairsConfig(
        itc_features="unimodal", mlm_weight=1.0, negatives_per_pair=1, negative_hardness=0.0, init_std=NANO.init.std
    )
    data = replace(
        OPENPICS,
        train=(f"{FOLDER}/train-*.tar",),
        validation=f"{FOLDER}/val-*.tar",
        augment=Augment(crop=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0, rand_augment=False),  # a flip makes left right
        tokenizer=f"{FOLDER}/tokenizer.json",
        batch_size=64,
    )
    itc = Recipe(
        name="itc",
        model=replace(NANO, vocab_size=len(VOCABULARY)),
        task=replace(task, itm_weight=0.0, mlm_weight=0.0),
        data=data,
        optim=replace(QUICK, lr=1.5e-3),
        run=Run(steps=900, eval_every=300, eval_rerank=16, save_every=300, log_every=50),
    )
    random = replace(itc, name="random", task=task, start_from="itc")
    hard = replace(random, name="hard", task=replace(task, negative_hardness=1.0), start_from="random")
    return itc, random, replace(hard, optim=replace(QUICK, lr=1e-3), run=replace(hard.run, steps=2400))


def main() -> None:
    """Write train, val and test shards, and the tokenizer."""
    parser = argparse.ArgumentParser(description="Draws scenes and writes them into shards.")
    parser.add_argument("out", type=Path, help=f"the recipe reads {FOLDER}")
    parser.add_argument("--train", type=int, default=20_000, help="images to learn from")
    parser.add_argument("--test", type=int, default=500, help="images of val, and of test")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    for split, number in {"train": chosen.train, "val": chosen.test, "test": chosen.test}.items():
        write_shards(samples(split, number, chosen.seed), chosen.out, split)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    tokenizer.save(str(chosen.out / "tokenizer.json"))


if __name__ == "__main__":
    main()
