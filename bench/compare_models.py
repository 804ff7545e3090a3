"""VLMo, METER and BridgeTower of equal size on the demo's data, for equal minutes of one processor.

Each seed of each model is trained by the command line, contrast first and then all objectives, and judged on the test
split. Steps are chosen so that all take as much processor time; what they took is in the table. Runs that are finished
are not repeated: ``python bench/compare_models.py --seeds 1 2 3 --out runs/compare``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from means import table

from dualfuse import hub
from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.retrieval import evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.tasks.pretrain.pairs import Pairs
from dualfuse.tasks.pretrain.pairs_evaluation import evaluate_pairs

TEST = "examples/openpics-mini/*-test-*.tar"
ROWS = {
    "text_to_image/R@1": "text to image R@1",
    "text_to_image/R@10": "text to image R@10",
    "text_to_image/reranked/R@1": "text to image R@1, re-ranked",
    "image_to_text/R@1": "image to text R@1",
    "image_to_text/R@10": "image to text R@10",
    "image_to_text/reranked/R@1": "image to text R@1, re-ranked",
    "itm/positive": "right pairs accepted",
    "itm/random_negative": "random negatives rejected",
    "itm/positive_above_hard": "right pair above the hardest wrong one",
    "mlm/accuracy": "masked words found",
}


@dataclass(frozen=True)
class Contender:
    """A recipe of two stages, and its steps: in proportion to the processor time of a step (measured once)."""

    recipe: str
    contrast: int
    joint: int


CONTENDERS = {
    "VLMo": Contender("demo", 600, 250),
    "METER": Contender("demo-meter", 700, 327),
    "BridgeTower": Contender("demo-bridgetower", 695, 323),
}


def run(contender: Contender, seed: int, out: Path) -> dict[str, float]:
    """Train and judges one model, or reads what an earlier run reached."""
    results = out / "results.json"
    if not results.exists():
        seconds = train(contender, seed, out)
        numbers = judge(out / "pairs" / "final") | {"seconds": seconds}
        results.write_text(json.dumps(numbers, indent=1) + "\n")
    return json.loads(results.read_text())


def train(contender: Contender, seed: int, out: Path) -> float:
    """Run ``dualfuse train`` with one thread and gives the processor seconds it took."""
    flags = [f"--itc.run.steps={contender.contrast}", f"--pairs.run.steps={contender.joint}"]
    for stage in ("itc", "pairs"):
        flags += [f"--{stage}.run.seed={seed}", f"--{stage}.data.num_workers=0", f"--{stage}.data.validation="]
    command = [sys.executable, "-m", "dualfuse", "train", contender.recipe, f"--out={out}", *flags]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def judge(model: Path) -> dict[str, float]:
    """Return retrieval and accuracies on the test split, in percent."""
    loaded, shards, plan = hub.load(model), Shards.open(TEST), Plan(batch_size=64, rerank=16, num_workers=0)
    assert isinstance(loaded.task, Pairs)
    found = dict(evaluate_retrieval(loaded.task, EvaluationData(shards, loaded.processor), plan).metrics)
    found |= evaluate_pairs(loaded.task, EvaluationData(shards, loaded.processor), plan).metrics
    return {name: 100 * found[name] for name in ROWS}


def main() -> None:
    """Run what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    reached: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for seed in chosen.seeds:  # all models of a seed first: an interrupted comparison is a fair one
        for name, contender in CONTENDERS.items():
            folder = chosen.out / f"{name.lower()}-{seed}"
            reached[name].append(run(contender, seed, folder))
    print(table("test split, %", reached, ROWS | {"seconds": "processor seconds of training"}))


if __name__ == "__main__":
    main()
