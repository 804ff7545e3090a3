"""Tables of several seeds: means and standard deviations."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Numbers = Mapping[str, float]
"""Of one run, by name."""


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Return mean ± standard deviation; of one run the mean alone."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(title: str, reached: Mapping[str, Sequence[Numbers]], rows: Mapping[str, str]) -> str:
    """Return a Markdown table: a column for each of ``reached`` with its runs, a row for each number and its words."""
    lines = [f"| {title} | {' | '.join(reached)} |", f"|---|{'---:|' * len(reached)}"]
    for name, words in rows.items():
        cells = (mean_and_spread([numbers[name] for numbers in runs]) for runs in reached.values())
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)
