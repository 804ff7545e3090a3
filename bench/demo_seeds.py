"""The demo with several seeds: mean and spread of every number it reports, as a Markdown table.

Runs that are finished are not repeated: ``python bench/demo_seeds.py --seeds 1 2 3 --out runs/demo-seeds``; with
``--scratch`` the demo from random weights, beside its control. The first seed stores the states of the frozen encoders,
which the others read.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from dualfuse.report.demo.page import FUSION
from dualfuse.report.demo.results import DemoResults, Recall, StarterResults
from dualfuse.report.demo.run import demo
from dualfuse.report.demo.starter_run import starter_demo
from dualfuse.report.demo.wording import total_seconds

AT = (1, 5, 10)


def metrics(results: DemoResults | StarterResults) -> Iterator[tuple[str, float]]:
    """Return the name and value of every number, recall and accuracy in percent."""
    if isinstance(results, StarterResults):
        yield from recalls(results.rows)
        yield "seconds of training, last model", results.stages[-1].seconds
        return
    yield from recalls(results.retrieval.rows())
    for name, value in results.fusion:
        yield FUSION[name], 100 * value
    yield "seconds, all objectives", total_seconds(results.joint)
    yield "seconds, ITC only", total_seconds(results.control)


def recalls(rows: Sequence[tuple[str, Recall]]) -> Iterator[tuple[str, float]]:
    """Return the name and value of every recall in percent."""
    for way in ("text_to_image", "image_to_text"):
        for name, recall in rows:
            shares = recall.text_to_image if way == "text_to_image" else recall.image_to_text
            for k, share in zip(AT, shares, strict=True):
                yield f"{way.replace('_', ' ')}, R@{k}, {name}", 100 * share


def table(runs: Sequence[DemoResults | StarterResults]) -> str:
    """Return a Markdown table with a row for each number: mean, standard deviation, and the value of each seed."""
    head = f"| | mean | ± | {' | '.join(f'seed {run.seed}' for run in runs)} |\n|---|{'---:|' * (2 + len(runs))}\n"
    lines = []
    for entries in zip(*(tuple(metrics(run)) for run in runs), strict=True):
        values = [value for _, value in entries]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = " | ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {entries[0][0]} | {statistics.mean(values):.1f} | {spread:.1f} | {each} |")
    return head + "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    parser.add_argument("--scratch", action="store_true", help="the demo from random weights, and its control")
    chosen = parser.parse_args()
    results = list[DemoResults | StarterResults]()
    for seed in chosen.seeds:
        folder = chosen.out / f"seed-{seed}"
        results.append(demo(folder, seed=seed, control=True) if chosen.scratch else starter_demo(folder, seed=seed))
    print("\n" + table(results))


if __name__ == "__main__":
    main()
