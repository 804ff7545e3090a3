"""Images of coloured shapes with captions: what re-ranking, and composition, are measured on.

``python examples/scenes.py data/scenes`` draws two or three shapes, with captions that say how two of them lie;
``dualfuse train examples/scenes.py:scenes`` learns from them. With ``--captions composition`` there are up to four
shapes, and captions about attributes, counts and negation, too; ``examples/scenes.py:composition`` learns from those.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from dualfuse.data.image.transform import Augment
from dualfuse.data.sample import Sample
from dualfuse.data.scenes.samples import SPLITS, scene_samples
from dualfuse.data.scenes.samples import WORDS as ALL_WORDS
from dualfuse.data.scenes.shapes import COLORS, FORMS, KINDS, RADII, place, png, split_of
from dualfuse.data.text.tokenizer import BERT_SPECIAL
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.recipe import Recipe, Run
from dualfuse.recipes.small_pairs import NANO, OPENPICS, QUICK
from dualfuse.tasks.pretrain.pairs import PairsConfig

FOLDER, COMPOSITION = "data/scenes", "data/scenes-composition"
NEIGHBOURS = {(0, 1): "left of", (2, 3): "left of", (0, 2): "above", (1, 3): "above"}  # of four cells, as one reads
INVERSE = {"left of": "right of", "above": "below"}
TEMPLATES = ("a {} {} a {}", "there is a {} {} a {}")
WORDS = ("a", "there", "is", "left", "right", "of", "above", "below", *RADII, *COLORS, *FORMS)


@dataclass(frozen=True)
class Fact:
    """Two kinds, such as "small red circle", and how the first lies to the second."""

    first: str
    relation: str
    second: str

    @property
    def split(self) -> str:
        """The split of the two kinds, in any order and relation: a tenth each is test and val."""
        return split_of(self.first, self.second)

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


def samples(split: str, number: int, seed: int) -> Iterator[Sample]:
    """Return training images with all that is true of them, or images of val or test with one caption each.

    The two kinds of a held-out caption are neighbours in no training image, and it is true of no other held-out one.
    """
    known = sum(Fact(*pair).split == split for pair in product(KINDS, INVERSE, KINDS) if pair[0] != pair[2])
    if split != "train" and number > known:
        raise ValueError(f"{number} images of {split} with a fact each: there are only {known} facts; ask for fewer")
    rng = np.random.default_rng((seed, SPLITS.index(split)))
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
        yield Sample(f"{made:06d}", png(place(kinds, rng)), texts, {"kinds": kinds})
        made += 1


def scenes() -> tuple[Recipe, ...]:
    """Contrast, then all objectives with random negatives, then with hard ones."""
    return stages(FOLDER, WORDS)


def composition() -> tuple[Recipe, ...]:
    """The same on captions about attributes, relations, counts and negation."""
    return stages(COMPOSITION, ALL_WORDS)


def stages(folder: str, words: Sequence[str]) -> tuple[Recipe, ...]:
    task = PairsConfig(
        itc_features="unimodal", mlm_weight=1.0, negatives_per_pair=1, negative_hardness=0.0, init_std=NANO.init.std
    )
    data = replace(
        OPENPICS,
        train=(f"{folder}/train-*.tar",),
        validation=f"{folder}/val-*.tar",
        augment=Augment(crop=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0, rand_augment=False),  # a flip makes left right
        tokenizer=f"{folder}/tokenizer.json",
        batch_size=64,
    )
    itc = Recipe(
        name="itc",
        model=replace(NANO, vocab_size=len(vocabulary(words))),
        task=replace(task, itm_weight=0.0, mlm_weight=0.0),
        data=data,
        optim=replace(QUICK, lr=1.5e-3),
        run=Run(steps=900, eval_every=300, eval_rerank=16, save_every=300, log_every=50),
    )
    random = replace(itc, name="random", task=task, start_from="itc")
    hard = replace(random, name="hard", task=replace(task, negative_hardness=1.0), start_from="random")
    return itc, random, replace(hard, optim=replace(QUICK, lr=1e-3), run=replace(hard.run, steps=2400))


def vocabulary(words: Sequence[str]) -> tuple[str, ...]:
    return (*BERT_SPECIAL, "[UNK]", *words)


def write_tokenizer(folder: Path, words: Sequence[str]) -> None:
    numbers = {word: number for number, word in enumerate(vocabulary(words))}
    tokenizer = Tokenizer(models.WordLevel(numbers, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))


CAPTIONS = {"relations": (samples, WORDS), "composition": (scene_samples, ALL_WORDS)}


def main() -> None:
    """Write train, val and test shards, and the tokenizer."""
    parser = argparse.ArgumentParser(description="Draws scenes and writes them into shards.")
    parser.add_argument("out", type=Path, help=f"the recipes read {FOLDER} and {COMPOSITION}")
    parser.add_argument("--captions", choices=tuple(CAPTIONS), default="relations", help="what the captions are about")
    parser.add_argument("--train", type=int, default=20_000, help="images to learn from")
    parser.add_argument("--test", type=int, default=500, help="images of val, and of test")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    make, words = CAPTIONS[chosen.captions]
    for split, number in {"train": chosen.train, "val": chosen.test, "test": chosen.test}.items():
        write_shards(make(split, number, chosen.seed), chosen.out, split)
    write_tokenizer(chosen.out, words)


if __name__ == "__main__":
    main()
