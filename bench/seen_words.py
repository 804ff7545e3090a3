"""Recall of texts by how often their words occur in the training captions: python bench/seen_words.py --help

Says what keeps a small training set from more: a text whose words the model never met can only be guessed. Several
models (seeds) give mean and spread: python bench/seen_words.py --models runs/scratch-seeds/seed-*/pairs/final
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from means import mean_and_spread

from dualfuse import hub
from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.retrieval import Gallery
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.tasks.pretrain.pairs import Pairs

SMALL = frozenset(["a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "s", "the", "to", "with"])
"""Words that say nothing alone."""
KINDS = (
    "no word ever seen",
    "some word never seen",
    "every word seen, one at most 4 times",
    "every word 5 times or more",
)


@dataclass(frozen=True)
class Options:
    """Which models, trained on what, are asked for what."""

    models: tuple[Path, ...]
    data: str = ""
    """Folder of train-*.tar and test-*.tar; empty: data in the folder of the run, as the demo has it."""
    at: int = 10


def words(text: str) -> set[str]:
    """Return the words of a text that say something."""
    return set(re.findall(r"\w+", text.lower())) - SMALL


def kind(text: str, seen: Counter[str]) -> str:
    """Return one of ``KINDS``."""
    counts = [seen[word] for word in words(text)]
    if not any(counts):
        return KINDS[0]
    rarest = min(counts)
    return KINDS[1] if not rarest else KINDS[2] if rarest < 5 else KINDS[3]


def judge(model: Path, data: Path, at: int) -> dict[str, list[bool]]:
    """Return for each kind of test text whether its image is among the first ``at``."""
    seen: Counter[str] = Counter()
    for sample in Shards.open(str(data / "train-*.tar")):
        tags = sample.meta.get("keywords")
        seen.update(words(" ".join([*sample.texts, *map(str, tags if isinstance(tags, list) else ())])))
    loaded = hub.load(model)
    test = Shards.open(str(data / "test-*.tar"))
    assert isinstance(loaded.task, Pairs), f"{model} was not trained on pairs"
    with torch.inference_mode():
        reading = Gallery(loaded.task, EvaluationData(test, loaded.processor), Plan(num_workers=0))
        image, text, _, owner = reading.features()
        logits = text @ image.T
        better = logits > logits.gather(1, owner[:, None])
    texts = [text for sample in test for text in sample.texts]
    found: dict[str, list[bool]] = {name: [] for name in KINDS}
    for said, rank in zip(texts, better.sum(1).tolist(), strict=True):
        found[kind(said, seen)].append(rank < at)
    return found


def main() -> None:
    """Print a Markdown table."""
    options = tyro.cli(Options, description=__doc__)
    runs = [
        judge(model, Path(options.data) if options.data else model.parents[1] / "data", options.at)
        for model in options.models
    ]
    print(f"| test texts | number | text to image R@{options.at}, % |\n|---|---:|---:|")
    for name in KINDS:
        shares = [100 * sum(run[name]) / max(1, len(run[name])) for run in runs]
        print(f"| {name} | {len(runs[0][name])} | {mean_and_spread(shares)} |")


if __name__ == "__main__":
    main()
