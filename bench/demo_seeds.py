"""The demo with several seeds: mean and spread of every number it reports, as a Markdown table.

Runs that are finished are not repeated: ``python bench/demo_seeds.py --seeds 1 2 3 --out runs/demo-seeds``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from dualfuse.report.demo.page import FUSION
from dualfuse.report.demo.results import DemoResults
from dualfuse.report.demo.run import demo
from dualfuse.report.demo.wording import total_seconds

AT = (1, 5, 10)


def metrics(results: DemoResults) -> Iterator[tuple[str, float]]:
    """Return the name and value of every number, recall and accuracy in percent."""
    found = results.retrieval
    for way in ("text_to_image", "image_to_text"):
        for name, recall in found.rows():
            shares = recall.text_to_image if way == "text_to_image" else recall.image_to_text
            for k, share in zip(AT, shares, strict=True):
                yield f"{way.replace('_', ' ')}, R@{k}, {name}", 100 * share
    for name, value in results.fusion:
        yield FUSION[name], 100 * value
    yield "seconds, all objectives", total_seconds(results.joint)
    yield "seconds, contrast only", total_seconds(results.control)


def table(runs: Sequence[DemoResults]) -> str:
    """Return a Markdown table with a row for each number: mean, standard deviation, and what each seed reached."""
    head = f"| | mean | ± | {' | '.join(f'seed {run.seed}' for run in runs)} |\n|---|{'---:|' * (2 + len(runs))}\n"
    lines = []
    for entries in zip(*(tuple(metrics(run)) for run in runs), strict=True):
        values = [value for _, value in entries]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = " | ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {entries[0][0]} | {statistics.mean(values):.1f} | {spread:.1f} | {each} |")
    return head + "\n".join(lines)


def main() -> None:
    """Run what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    chosen = parser.parse_args()
    folders = {seed: chosen.out / f"seed-{seed}" for seed in chosen.seeds}
    for seed, folder in folders.items():
        demo(folder, seed=seed)
    print("\n" + table([DemoResults.load(folder) for folder in folders.values()]))


if __name__ == "__main__":
    main()
