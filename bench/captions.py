"""Does pre-training on pairs help a model to write captions? The demo's images, with several seeds.

For each seed vlmo-nano-captions is trained from the demo's model of that seed and from random weights, and both are
judged on the test split; beside them stand what needs no captioning: the most frequent caption, and by the demo's dual
encoder the caption of the nearest training image and the nearest training caption. Runs that are finished are not
repeated. The demo's models come from bench/demo_seeds.py:
``python bench/captions.py --seeds 1 2 3 --demos runs/scratch-seeds --out runs/captions``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from means import mean_and_spread
from torch import Tensor

from dualfuse import Plan, Shards, hub, train
from dualfuse.data.sample import Sample
from dualfuse.evaluation.runner import evaluate
from dualfuse.metrics.captions import caption_metrics
from dualfuse.recipes.vlmo_captioning import NANO_CAPTIONS
from dualfuse.tasks.pretrain.pairs import Pairs

SHOWN = ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D", "exact")
Metrics = Mapping[str, float]


def trained(start: str, data: Path, out: Path, seed: int, steps: int) -> Metrics:
    """Train from ``start``, or from random weights if it is empty, and judges on the test split."""
    recipe = NANO_CAPTIONS
    recipe = replace(
        recipe,
        data=replace(recipe.data, train=(f"{data}/train-*.tar",), validation=""),
        run=replace(recipe.run, seed=seed, steps=steps),
        start_from=start,
    )
    return evaluate(hub.load(train((recipe,), out)), f"{data}/test-*.tar", Plan()).metrics


@torch.inference_mode()
def without_writing(start: str, data: Path) -> dict[str, Metrics]:
    """Return the baselines: the most frequent caption, and the nearest ones."""
    model = hub.load(start)
    assert isinstance(model.task, Pairs)
    known, asked = (Shards.open(f"{data}/{name}-*.tar")[:] for name in ("train", "test"))
    references = [sample.texts for sample in asked]
    texts = [text for sample in known for text in sample.texts]
    images, queries = features(model, known), features(model, asked)
    nearest_picture = (queries @ images.T).argmax(1).tolist()
    nearest_text = (queries @ text_features(model, texts).T).argmax(1).tolist()
    frequent = Counter(texts).most_common(1)[0][0]
    return {
        f"the most frequent caption ({frequent})": caption_metrics([frequent] * len(asked), references),
        "caption of the nearest training image": caption_metrics(
            [known[number].texts[0] for number in nearest_picture], references
        ),
        "nearest training caption": caption_metrics([texts[number] for number in nearest_text], references),
    }


def features(model: hub.LoadedModel, samples: Sequence[Sample]) -> Tensor:
    """Return the dual encoder's vectors of images."""
    assert isinstance(model.task, Pairs)
    rng, embeddings = np.random.default_rng(0), []
    for first in range(0, len(samples), 64):
        images = torch.stack([model.processor.image(sample.image, rng) for sample in samples[first : first + 64]])
        embeddings.append(model.task.image_features(model.task.model.embed_image(images)))
    return torch.cat(embeddings)


def text_features(model: hub.LoadedModel, texts: Sequence[str]) -> Tensor:
    """Return the dual encoder's vectors of texts."""
    assert isinstance(model.task, Pairs)
    embeddings = []
    for text in texts:
        ids = torch.from_numpy(model.processor.text.encode(text).ids)[None]
        embeddings.append(model.task.text_features(model.task.model.embed_text(ids, torch.ones_like(ids).bool())))
    return torch.cat(embeddings)


def table(runs: Mapping[str, Sequence[Metrics]]) -> str:
    """Return a Markdown table: mean and spread over seeds, in percent but for CIDEr-D."""
    lines = [f"| | {' | '.join(SHOWN)} |", f"|---|{'---:|' * len(SHOWN)}"]
    for name, found in runs.items():
        cells = [_cell([one[metric] for one in found], metric) for metric in SHOWN]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], metric: str) -> str:
    if metric == "CIDEr-D":
        return mean_and_spread(values, digits=3)
    return mean_and_spread([100 * value for value in values])


def main() -> None:
    """Run what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--demos", type=Path, default=Path("runs/scratch-seeds"))
    parser.add_argument("--steps", type=int, default=NANO_CAPTIONS.run.steps)
    parser.add_argument("--out", type=Path, default=Path("runs/captions"))
    chosen = parser.parse_args()
    runs: dict[str, list[Metrics]] = {}
    for seed in chosen.seeds:
        start, data = str(chosen.demos / f"seed-{seed}" / "pairs" / "final"), chosen.demos / f"seed-{seed}" / "data"
        found = without_writing(start, data)
        for name, begin in (("from the demo's model", start), ("from random weights", "")):
            out = chosen.out / f"seed-{seed}" / name.replace(" ", "-").replace("'", "")
            found[name] = trained(begin, data, out, seed, chosen.steps)
        for name, metrics in found.items():
            runs.setdefault(name, []).append(metrics)
        print(f"\nseed {seed}\n{table({name: [metrics] for name, metrics in found.items()})}\n", flush=True)
    print("\n" + table(runs))


if __name__ == "__main__":
    main()
