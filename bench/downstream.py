"""Answers on small real data: easy-VQA's questions, and labels made of images with names; against baselines.

All is done by the command line with one thread, three seeds each; runs that are finished are not repeated. Parts whose
data are not given are left out. ``python bench/downstream.py --easy-vqa data/easy-vqa --openpics
'openpics/openpics-{split}-*.tar' --demo 'runs/scratch-seeds/seed-{seed}' --out runs/downstream``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from answer_baselines import Asks, colour_cosines, known, learnt_cosines, linear, most_frequent, scores, threshold
from means import mean_and_spread
from openpics_labels import FITS, NEAR, name_of, pictures_of, write_fits, write_same

from dualfuse.data.processor import Processor
from dualfuse.data.shards.shards import Shards
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.recipes import find_recipe
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig

Numbers = dict[str, float]
Rows = dict[str, list[Numbers]]  # by what a row of the table is called: one or several seeds


@dataclass(frozen=True)
class Part:
    """One set of questions: its shards, the task, the splits that judge, and the columns of its table."""

    folder: Path
    task: Asks
    names: tuple[str, ...]
    recipes: Mapping[str, str]
    """By what a row of the table is called."""
    tests: tuple[str, ...]
    columns: Mapping[str, str]
    """By the split and name of a number."""

    def shards(self, split: str) -> str:
        """Return the pattern of a split."""
        return f"{self.folder}/{split}-*.tar"


MODELS = {"VLMo": "", "BridgeTower": "-bridgetower"}
FROM_DEMO = "VLMo, from the demo's model"
LABELS = {"test accuracy": "wrong ones at random", f"{NEAR} accuracy": "wrong ones alike"}
KINDS = {"test accuracy": "accuracy"} | {f"test accuracy/{kind}": kind for kind in ("yes/no", "colour", "shape")}


def parts(chosen: argparse.Namespace) -> Iterator[tuple[str, Part]]:
    """Return what can be done with the data that are given; writes what is made of images with names."""
    if chosen.easy_vqa:
        names = read_vocabulary(chosen.easy_vqa / "answers.txt")
        recipes = {model: f"demo-vqa{ending}" for model, ending in MODELS.items()}
        yield "vqa", Part(chosen.easy_vqa, VQAConfig(answers=names), names, recipes, ("test",), KINDS)
    if chosen.openpics:
        made = _openpics(chosen)
        for name, task in (("entailment", EntailmentConfig(FITS)), ("nlvr2", NLVR2Config())):
            recipes = {"VLMo": f"demo-{name}"} | ({FROM_DEMO: f"demo-{name}"} if chosen.demo else {})
            recipes["BridgeTower"] = f"demo-{name}-bridgetower"
            yield name, Part(made / name, task, task.labels, recipes, ("test", NEAR), LABELS)


def _openpics(chosen: argparse.Namespace) -> Path:
    """Write labelled shards once and gives the folder around them."""
    folder = chosen.out / "data"
    if not (folder / "numbers.json").exists():
        images, rng = pictures_of(chosen.openpics), np.random.default_rng(0)
        seen = frozenset(map(name_of, Shards.open(chosen.seen)))
        table = write_fits(images, folder / "images", rng)
        columns = ["--image", "photo", "--text", "says", "--label", "verdict"]
        command("prepare", str(table), str(folder / "entailment"), *columns)
        numbers = write_same([sample for part in images.values() for sample in part], seen, folder / "nlvr2", rng)
        (folder / "numbers.json").write_text(json.dumps(numbers) + "\n")
    return folder


def command(*arguments: str) -> float:
    """Run a command of dualfuse with one thread and gives the processor seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = [sys.executable, "-m", "dualfuse", *arguments]
    subprocess.run(run, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def trained(part: Part, recipe: str, start: str, *, seed: int, out: Path) -> Numbers:
    """Train and judges one model, or reads what an earlier run reached: numbers in percent by split and name."""
    results = out / "results.json"
    if not results.exists():
        flags = [f"--run.seed={seed}", "--data.train", part.shards("train"), "--data.validation", part.shards("val")]
        flags += ["--task.vocabulary", f"{part.folder}/answers.txt"] if isinstance(part.task, VQAConfig) else []
        flags += ["--start-from", start] if start else []
        numbers = {"minutes": command("train", recipe, "--out", str(out), *flags) / 60}
        for split in part.tests:
            evaluated = out / f"{split}.json"
            command("evaluate", str(out / "final"), part.shards(split), "--num-workers", "0", "--out", str(evaluated))
            found = json.loads(evaluated.read_text())
            numbers |= {f"{split} {name}": 100 * value for name, value in found.items()}
        results.write_text(json.dumps(numbers, indent=1) + "\n")
    return json.loads(results.read_text())


def baselines(part: Part, seeds: Sequence[int], demo: str) -> Rows:
    """Return what answers without a transformer that was trained for it."""
    recipe = find_recipe(part.recipes["VLMo"])[0]
    processor = Processor(replace(recipe.data.image_transform, augment=None), recipe.data.text_transform)
    read = {
        split: known(part.task, processor, part.shards(split), part.names) for split in ("train", "val", *part.tests)
    }
    train, validation, *tests = read.values()

    def evaluated(answers: Sequence[torch.Tensor]) -> Numbers:
        found = zip(part.tests, answers, tests, strict=True)
        return {f"{split} {name}": share for split, said, test in found for name, share in scores(said, test).items()}

    words = "most frequent answer to the same words"
    rows: Rows = {words: [evaluated([most_frequent(train, test) for test in tests])]}
    learn = partial(linear, train, validation, tests, classes=len(part.names))
    rows["linear model, words times colours"] = [evaluated(learn(seed=seed)) for seed in seeds]
    if isinstance(part.task, NLVR2Config):
        cosines = [colour_cosines(each) for each in (validation, *tests)]
        rows["cosine of colours, threshold"] = [evaluated(threshold(validation, cosines))]
    for seed in seeds if demo and len(part.names) == 2 else ():
        folder = f"{demo.format(seed=seed)}/pairs/final"
        cosines = [learnt_cosines(folder, part.task, part.shards(split)) for split in ("val", *part.tests)]
        rows.setdefault("cosine by the demo's model, threshold", []).append(evaluated(threshold(validation, cosines)))
    return rows


def table(part: Part, rows: Rows) -> str:
    """Return a Markdown table: means and standard deviations in percent, and processor minutes of training."""
    lines = [f"| % | {' | '.join(part.columns.values())} | CPU minutes |", f"|---|{'---:|' * (1 + len(part.columns))}"]
    for name, runs in rows.items():
        cells = [mean_and_spread([numbers[column] for numbers in runs]) for column in part.columns]
        minutes = [numbers["minutes"] for numbers in runs if "minutes" in numbers]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{statistics.mean(minutes):.1f}' if minutes else ''} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and prints a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--easy-vqa", type=Path, help="folder that prepare made of the package easy_vqa")
    parser.add_argument("--openpics", default="", help="shards of images with names; {split} is train, val, test")
    parser.add_argument("--seen", default="examples/openpics-mini/*-train-*.tar", help="what the demo trained from")
    parser.add_argument("--demo", default="", help="folder of `dualfuse demo --seed`, with {seed}; empty: random only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/downstream"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name, part in parts(chosen):
        rows = baselines(part, chosen.seeds, chosen.demo)
        for seed in chosen.seeds:  # all models of a seed first: an interrupted comparison is a fair one
            for row, recipe in part.recipes.items():
                start = f"{chosen.demo.format(seed=seed)}/pairs/final" if row == FROM_DEMO else ""
                folder = chosen.out / name / f"{row.split()[-1] if start else row}-{seed}".lower().replace("'s", "")
                rows.setdefault(row, []).append(trained(part, recipe, start, seed=seed, out=folder))
        print(f"\n{name}\n\n{table(part, rows)}")


if __name__ == "__main__":
    main()
