"""Results of composition benchmarks: accuracies by category and way, as a table, as metrics, and case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualfuse.data.loader import Skipped
from dualfuse.evaluation.predictions import CaseMargin, write_predictions
from dualfuse.evaluation.runner import EvaluationResult
from dualfuse.printable import printable

ALL = "all"
"""Name of the row over the cases of all categories."""
MACRO = "macro"
"""Part of the name of the mean over groups, such as relations, each of which counts the same."""
WAYS = ("dual", "fused", "both")


@dataclass(frozen=True)
class CaseResult:
    """The margins of one case by score ("" for one image; /text, /image, /group for two) and way, and its chance."""

    key: str
    category: str
    group: str
    margins: Mapping[str, Mapping[str, float]]
    chance: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One line of the table: shares of correct cases by way, and the share that random scores reach (None: unknown)."""

    name: str
    cases: str
    """Number of cases or groups; empty for retrieval."""
    chance: float | None
    shares: Mapping[str, float]


@dataclass(frozen=True)
class CompositionResult:
    """The rows of the table, the size of the benchmark, the excluded images, and the results of single cases."""

    rows: tuple[Row, ...]
    size: str
    excluded: tuple[Skipped, ...] = ()
    cases: tuple[CaseResult, ...] = ()

    @staticmethod
    def of_retrieval(name: str, result: EvaluationResult) -> CompositionResult:
        """Return the recalls of text to image as rows; those that fusion re-ranked are the way "both"."""
        dual, both = _recalls(result.metrics, "text_to_image"), _recalls(result.metrics, "text_to_image/reranked")
        rows = [
            Row(f"{name}/{at}", "", None, {"dual": dual[at]} | ({"both": both[at]} if at in both else {}))
            for at in dual
        ]
        return CompositionResult(tuple(rows), f"{name}: {result.size}", result.excluded)

    @staticmethod
    def joined(results: Sequence[CompositionResult]) -> CompositionResult:
        """Return the rows and cases of several results, in their order."""
        return CompositionResult(
            tuple(row for each in results for row in each.rows),
            "; ".join(each.size for each in results),
            tuple(skipped for each in results for skipped in each.excluded),
            tuple(case for each in results for case in each.cases),
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The shares by "CATEGORY/WAY", and "CATEGORY/chance"."""
        shares = {f"{row.name}/{way}": share for row in self.rows for way, share in row.shares.items()}
        return shares | {f"{row.name}/chance": row.chance for row in self.rows if row.chance is not None}

    def lines(self) -> list[str]:
        """Return the table in per cent, the size, and one line per excluded image."""
        ways = [way for way in WAYS if any(way in row.shares for row in self.rows)]
        width = max(len(printable(row.name)) for row in self.rows)
        head = f"{'accuracy, %':{width}}  {'cases':>12}  {'chance':>6}" + "".join(f"  {way:>6}" for way in ways)
        table = [
            f"{printable(row.name):{width}}  {row.cases:>12}  {_percent(row.chance)}"
            + "".join(f"  {_percent(row.shares.get(way))}" for way in ways)
            for row in self.rows
        ]
        excluded = [f"  excluded {printable(each.key)}: {printable(each.reason)}" for each in self.excluded]
        return [head, *table, f"{printable(self.size)}, {len(self.excluded)} images excluded", *excluded]

    def write(self, path: Path) -> None:
        """Write the margins of single cases to a .jsonl or .csv file; above zero, a case is correct."""
        margins = [
            CaseMargin(case.key, case.category + score, *(ways.get(way) for way in WAYS))
            for case in self.cases
            for score, ways in case.margins.items()
        ]
        write_predictions(margins, path)


def _recalls(metrics: Mapping[str, float], direction: str) -> dict[str, float]:
    return {name.removeprefix(f"{direction}/"): metrics[name] for name in metrics if name.startswith(f"{direction}/R@")}


def _percent(share: float | None) -> str:
    return f"{'' if share is None else f'{100 * share:.1f}':>6}"


def rows_of(results: Sequence[CaseResult], suffix: str = "") -> list[Row]:
    """Return a row for each category, with groups one more for the mean over these, and one for all cases."""
    categories = list(dict.fromkeys(result.category for result in results))
    rows: list[Row] = []
    for category in categories:
        of_category = [result for result in results if result.category == category]
        rows += _rows_by_score(category + suffix, of_category)
        if any(result.group for result in of_category):
            rows += _macro(f"{category}{suffix}/{MACRO}", of_category)
    of_all = _rows_by_score(ALL + suffix, results) if len(categories) > 1 else []
    alone = {(row.cases, *row.shares.items()) for row in rows}
    return rows + [row for row in of_all if (row.cases, *row.shares.items()) not in alone]


def _rows_by_score(name: str, results: Sequence[CaseResult]) -> list[Row]:
    """Return a row for each score that cases have, averaged over the cases that have it."""
    rows: list[Row] = []
    for score in dict.fromkeys(score for result in results for score in result.margins):
        having = [result for result in results if score in result.margins]
        chance = sum(result.chance[score] for result in having) / len(having)
        shares = {
            way: sum(result.margins[score][way] > 0 for result in having) / len(having)
            for way in having[0].margins[score]
        }
        rows.append(Row(name + score, f"{len(having):,}", chance, shares))
    return rows


def _macro(name: str, results: Sequence[CaseResult]) -> list[Row]:
    """Return the mean of the accuracies of the groups."""
    groups = [
        row
        for group in dict.fromkeys(result.group for result in results)
        for row in _rows_by_score("", [result for result in results if result.group == group])
    ]
    chance = sum(row.chance or 0.0 for row in groups) / len(groups)
    shares = {way: sum(row.shares[way] for row in groups) / len(groups) for way in groups[0].shares}
    return [Row(name, f"{len(groups):,} groups", chance, shares)]
