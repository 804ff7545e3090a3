"""Do VLMo's first two stages help at small size? Equal steps on pairs, equal processor time; a table and a plot.

::

    OMP_NUM_THREADS=1 python bench/stages.py --pairs PAIRS --text TEXT.txt --plot docs/images/stages.png

trains every arm for every seed, one after the other, and judges it on the test split. PAIRS is a folder of shards whose
names hold train-, val- and test-; its images are what stage one sees too. TEXT is what stage two reads. Stages that
are finished are not repeated. Steps were chosen once so that all arms but the first take as much processor time; what
they took is in the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from means import table
from stages_plot import Points, draw
from tokenizers import BertWordPieceTokenizer

from dualfuse import hub
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.corpus import Corpus
from dualfuse.evaluation.retrieval import evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.recipe import Recipe, Run
from dualfuse.recipes.small_pairs import NANO, QUICK, nano_pairs
from dualfuse.recipes.vlmo_images import NANO_IMAGES, NANO_TOKENIZER
from dualfuse.recipes.vlmo_text import NANO_TEXT
from dualfuse.tasks.pretrain.pairs import Pairs
from dualfuse.tasks.pretrain.pairs_evaluation import evaluate_pairs
from dualfuse.training.loop import train
from dualfuse.training.run_log import read_log

ROWS = {
    "text_to_image/R@1": "text to image R@1",
    "text_to_image/R@5": "text to image R@5",
    "text_to_image/R@10": "text to image R@10",
    "image_to_text/R@1": "image to text R@1",
    "image_to_text/R@5": "image to text R@5",
    "image_to_text/R@10": "image to text R@10",
    "itm/positive": "right pairs accepted",
    "itm/random_negative": "random negatives rejected",
    "itm/hard_negative": "hardest negatives rejected",
    "itm/positive_above_hard": "right pair above the hardest wrong one",
    "mlm/accuracy": "masked words found",
    "mlm/accuracy_other_image": "masked words found beside another image",
    "R@10": "R@10, mean of both ways",
    "match": "right and random pairs told apart",
}
BATCH, ROWS_OF_TEXT = 64, 32
"""Samples of a step: images or pairs, and rows of text."""
CONTRAST, JOINT = 380, 220
"""Steps of contrast alone, then of all objectives."""
VOCABULARY, TOKENIZER = 4096, 150
"""Tokens: of BERT's 30,522 a text stage of two minutes sees most too seldom. Steps of the tokenizer of images,
128 images each."""
WAYS = ("text_to_image", "image_to_text")
SECONDS, RESULTS = "seconds.txt", "results.json"


ALONE = replace(NANO, vocab_size=VOCABULARY, vl_expert_start=NANO.depth)
"""Without vision-language experts, which only all objectives together train."""


@dataclass(frozen=True)
class Arm:
    """What comes before pairs, in steps; how much longer pairs are trained; what vision-language experts begin as."""

    images: int = 0
    text: int = 0
    longer: float = 1.0
    both: Literal["random", "language", "vision"] = "random"


ARMS = {
    "pairs alone": Arm(),
    "pairs alone, longer": Arm(longer=2.0),
    "images, pairs": Arm(images=820),
    "text, pairs": Arm(text=1680),
    "images, text, pairs": Arm(images=410, text=950),
    "fewer images, pairs longer": Arm(images=410, longer=1.4),
}
EXPERTS = {
    "random": ARMS["images, text, pairs"],
    "language": replace(ARMS["images, text, pairs"], both="language"),
    "vision": replace(ARMS["images, text, pairs"], both="vision"),
}
"""What the last arm is repeated with: vision-language experts that begin as copies."""


@dataclass(frozen=True)
class Place:
    """Where the data is, and where runs go."""

    pairs: Path
    text: str
    out: Path

    def split(self, name: str) -> str:
        """Return the shards of a split."""
        return str(self.pairs / f"*{name}-*.tar")

    @property
    def words(self) -> Path:
        """Where the vocabulary is."""
        return self.out / "words.json"

    @property
    def tokenizer(self) -> Path:
        """Where the tokenizer of images is."""
        return self.out / "tokenizer"


def prepare(place: Place) -> None:
    """Make what all arms share: tokens of the text, and visual words of the images."""
    if not place.words.exists():
        pieces = BertWordPieceTokenizer()
        pieces.train([place.text], vocab_size=VOCABULARY, show_progress=False)
        place.words.parent.mkdir(parents=True, exist_ok=True)
        pieces.save(str(place.words))
    recipe = NANO_TOKENIZER
    data = replace(recipe.data, train=(place.split("train"),), num_workers=0)
    spend(place.tokenizer, replace(recipe, data=data, run=Run(steps=TOKENIZER)))
    Corpus.open(
        place.text, _text(1, place, alone=True).data.text_transform
    )  # keeps its rows beside it, at nobody's cost


def stages(arm: Arm, seed: int, place: Place) -> list[tuple[Path, Recipe]]:
    """List the recipes of an arm, each with its folder; arms that begin alike share folders."""
    recipes = [_images(arm.images, place)] if arm.images else []
    recipes += [_text(arm.text, place, alone=not arm.images)] if arm.text else []
    recipes += _pairs(arm, place)
    folder, found = place.out / f"seed-{seed}", []
    for recipe in recipes:
        start = str(folder / "final") if found else ""
        folder = folder / f"{recipe.name}-{recipe.run.steps}"
        run = replace(recipe.run, seed=seed, log_every=25, save_every=recipe.run.steps, keep_last=1)
        found.append((folder, replace(recipe, run=run, start_from=start)))
    if arm.both != "random":
        folder, recipe = found[-1]
        found[-1] = folder.with_name(f"{folder.name}-{arm.both}"), replace(recipe, vl_expert_init=arm.both)
    return found


def _images(steps: int, place: Place) -> Recipe:
    recipe = NANO_IMAGES
    data = replace(recipe.data, train=(place.split("train"),), batch_size=BATCH, num_workers=0)
    task = replace(recipe.task, tokenizer=str(place.tokenizer / "final"))
    return replace(recipe, model=ALONE, task=task, data=data, run=Run(steps=steps))


def _text(steps: int, place: Place, *, alone: bool) -> Recipe:
    """Without a stage of images attention is random, and frozen it would stay so: then all that texts pass learns."""
    recipe = NANO_TEXT
    data = replace(recipe.data, train=(place.text,), tokenizer=str(place.words), batch_size=ROWS_OF_TEXT, num_workers=0)
    model = replace(recipe.model, vocab_size=VOCABULARY)
    trained = () if alone else recipe.train_only
    return replace(recipe, model=model, data=data, train_only=trained, run=Run(steps=steps))


def _pairs(arm: Arm, place: Place) -> list[Recipe]:
    """Contrast alone, then all objectives, as in the demo; vision-language experts come in with the latter."""
    recipe, contrast, joint = nano_pairs(), round(CONTRAST * arm.longer), round(JOINT * arm.longer)
    data = replace(
        recipe.data, train=(place.split("train"),), validation=place.split("val"), batch_size=BATCH, num_workers=0
    )
    recipe = replace(recipe, data=replace(data, tokenizer=str(place.words)))
    return [
        replace(
            recipe,
            name="contrast",
            model=ALONE,
            task=replace(recipe.task, itm_weight=0.0, mlm_weight=0.0),
            run=Run(steps=contrast, eval_every=contrast // 6),
        ),
        replace(
            recipe,
            name="joint",
            model=replace(ALONE, vl_expert_start=NANO.vl_expert_start),
            optim=replace(QUICK, lr=1e-3, warmup=0.1),
            run=Run(steps=joint, eval_every=joint // 2),
        ),
    ]


def spend(folder: Path, recipe: Recipe) -> None:
    """Train one stage and writes down the processor seconds it took; one that was interrupted begins anew."""
    if not (folder / SECONDS).exists():
        shutil.rmtree(folder, ignore_errors=True)
        before = time.process_time()
        train((recipe,), folder)
        (folder / SECONDS).write_text(f"{time.process_time() - before:.1f}\n")


def run(arm: Arm, seed: int, place: Place) -> dict[str, float]:
    """Train and judges one arm, or reads what an earlier run reached; shares are in percent."""
    found = stages(arm, seed, place)
    for folder, recipe in found:
        spend(folder, recipe)
    results = found[-1][0] / RESULTS
    if not results.exists():
        results.write_text(json.dumps(judge(found[-1][0] / "final", place), indent=1) + "\n")
    seconds = sum(float((folder / SECONDS).read_text()) for folder, _ in found)
    return json.loads(results.read_text()) | {"seconds": seconds}


def curve(arm: Arm, seed: int, place: Place) -> Points:
    """Return R@10 on the validation images while an arm learns pairs, by all processor seconds so far."""
    points, before = [], 0.0
    for folder, recipe in stages(arm, seed, place):
        seconds = float((folder / SECONDS).read_text())
        points += [(before + seconds * step / recipe.run.steps, found) for step, found in validated(folder)]
        before += seconds
    return tuple(points)


def validated(folder: Path) -> Points:
    """Return (steps, R@10 on the validation images in percent, the mean of both ways) of one stage."""
    lines = [line for line in read_log(folder) if f"validation/{WAYS[0]}/R@10" in line]
    return tuple(
        (line["step"], 100 * statistics.mean(line[f"validation/{way}/R@10"] for way in WAYS)) for line in lines
    )


def judge(model: Path, place: Place) -> dict[str, float]:
    """Return retrieval and accuracies on the test split, in percent."""
    loaded, shards, plan = hub.load(model), Shards.open(place.split("test")), Plan(num_workers=0)
    assert isinstance(loaded.task, Pairs)
    found = dict(evaluate_retrieval(loaded.task, EvaluationData(shards, loaded.processor), plan).metrics)
    found |= evaluate_pairs(loaded.task, EvaluationData(shards, loaded.processor), plan).metrics
    found["R@10"] = statistics.mean(found[f"{way}/R@10"] for way in WAYS)
    found["match"] = (found["itm/positive"] + found["itm/random_negative"]) / 2
    return {name: 100 * found[name] for name in ROWS}


def arguments(purpose: str) -> argparse.ArgumentParser:
    """Return the arguments that say where the data is, and where runs go."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--pairs", type=Path, default=Path("openpics"), help="folder of shards, all splits")
    parser.add_argument("--text", default="wordnet/wordnet-train.txt", help="what stage two reads")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-stages"))
    return parser


def main() -> None:
    """Run what is missing, prints the tables, and draws."""
    parser = arguments("Compares pairs alone with VLMo's stages before them, at equal processor time.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--plot", type=Path, help="where the image goes; needs matplotlib")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    place = Place(chosen.pairs, chosen.text, chosen.out)
    prepare(place)
    reached = [_all(arms, chosen.seeds, place) for arms in (ARMS, EXPERTS)]
    rows = ROWS | {"seconds": "processor seconds of training"}
    print("\n\n".join(table("test split, %", arms, rows) for arms in reached))
    if chosen.plot:
        curves = {name: [curve(arm, seed, place) for seed in chosen.seeds] for name, arm in ARMS.items()}
        draw(curves, {name: [run["R@10"] for run in runs] for name, runs in reached[0].items()}, chosen.plot)


def _all(arms: Mapping[str, Arm], seeds: Sequence[int], place: Place) -> dict[str, list[dict[str, float]]]:
    """Take all arms of a seed first: an interrupted comparison is a fair one."""
    reached: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for seed in seeds:
        for name, arm in arms.items():
            reached[name].append(run(arm, seed, place))
    return reached


if __name__ == "__main__":
    main()
