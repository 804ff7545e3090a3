"""The page that compares runs: recipe differences and metrics in one table, and curves over each other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from dualfuse import hub
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan
from dualfuse.files import MAX_TABLE, read_bounded, read_json
from dualfuse.io import write_text
from dualfuse.metrics.base import MetricInfo, find_metric
from dualfuse.report import figures, markup
from dualfuse.report.curves import History, history
from dualfuse.report.demo.wording import duration
from dualfuse.report.figures import NUM_SERIES, Chart, Line
from dualfuse.report.run_page import check_run, flat
from dualfuse.training.resume_checks import RECIPE
from dualfuse.training.run_log import read_log

PAGE = "comparison.html"
SEED = "run.seed"
VALIDATION = "validation/"
MARK = "<title>dualfuse: comparison"
"""By which a page of this kind is recognized, so that no other file is replaced."""


@dataclass(frozen=True)
class ComparedRun:
    """One run: its folder, the flat values of its recipe, its curves, and its last training speed."""

    folder: Path
    settings: Mapping[str, str]
    logged: History
    speed: float
    """Mean samples per second, weighted by time; nan if it was not logged."""
    infos: tuple[MetricInfo, ...]
    """Declared metrics; empty if classes of the recipe are not available."""


def compare(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page that compares the runs in two or more folders, and return its path.

    Without ``out`` it is comparison.html beside the first folder. Runs that differ in their seed alone share a column,
    with mean and standard deviation (of the sample, n - 1). Raises ``DualfuseError`` for a folder without a run, and if
    ``out`` is another file of the user.
    """
    out = out or runs[0].resolve().parent / PAGE
    if out.exists() and MARK not in read_bounded(out, MAX_TABLE).decode(errors="replace")[:2000]:
        raise DualfuseError(f"{out} exists and is not a comparison of runs; give another --out")
    if len({run.resolve() for run in runs}) < len(runs):
        raise DualfuseError("a run is given twice; give each folder once")
    write_text(out, comparison_page([_read(run) for run in runs]))
    return out


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """Return the page."""
    groups = _groups(runs)
    names = _names(groups)
    body = (
        f'<p class="eyebrow">dualfuse comparison</p><h1>{len(runs)} runs</h1>',
        markup.section("Runs", _table(groups, names), lead="Settings that differ, and results."),
        markup.section("Curves", _charts(groups, names)),
    )
    return markup.document(f"dualfuse: comparison of {len(runs)} runs", body)


def _read(run: Path) -> ComparedRun:
    check_run(run)
    try:
        recipe = read_json(run / RECIPE)
        settings, logged, lines = dict(flat(recipe)), history(run, str(recipe["name"])), read_log(run)
    except DualfuseError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # JSON of another shape
        raise DualfuseError(f"a file of the run {run} is damaged ({type(error).__name__}: {error})") from error
    seconds, samples, before = 0.0, 0.0, 0.0
    for line in lines:
        if math.isfinite(rate := line.get("samples_per_second", math.nan)):
            seconds, samples = seconds + line["seconds"] - before, samples + rate * (line["seconds"] - before)
        before = line["seconds"]
    return ComparedRun(run, settings, logged, samples / seconds if seconds else math.nan, _infos(run))


def _infos(run: Path) -> tuple[MetricInfo, ...]:
    """Return the declared metrics; empty if the recipe has classes of a plug-in that was not imported."""
    try:
        recipe = hub.recipe_from_file(run / RECIPE)
        return tuple(recipe.task.metrics(Plan(rerank=recipe.run.eval_rerank)))
    except DualfuseError:
        return ()


def _groups(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """Return the runs, those together whose settings differ in the seed alone."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        same = {name: value for name, value in run.settings.items() if name != SEED}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    return list(groups.values())


def _names(groups: Sequence[Sequence[ComparedRun]]) -> list[str]:
    """Return a short name of each group: the last parts of the folder of its first run that tell it from the others."""
    folders = [group[0].folder.resolve() for group in groups]
    names, depth = [folder.name for folder in folders], 1
    while len(set(names)) < len(set(folders)):
        depth += 1
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
    counts = (f" ({len(group)} seeds)" if len(group) > 1 else "" for group in groups)
    return [f"{name}{more}" for name, more in zip(names, counts, strict=True)]


def _table(groups: Sequence[Sequence[ComparedRun]], names: Sequence[str]) -> str:
    rows = [("", names)]
    rows += [("runs", [str(len(group)) for group in groups])] if any(len(group) > 1 for group in groups) else []
    rows += _differences(groups)
    rows.append(("steps", [_spread([run.logged.steps for run in group], "{:,.0f}") for group in groups]))
    rows.append(("time", [duration(mean(run.logged.seconds for run in group)) for group in groups]))
    rows.append(("samples/s", [_spread([run.speed for run in group], "{:,.1f}") for group in groups]))
    for name in dict.fromkeys(curve.name for group in groups for run in group for curve in run.logged.curves):
        if name == "loss" or name.startswith(VALIDATION):
            rows += _metric_rows(name, groups)
    return markup.comparison_table(rows)


def _differences(groups: Sequence[Sequence[ComparedRun]]) -> list[tuple[str, list[str]]]:
    settings = [group[0].settings for group in groups]
    keys = dict.fromkeys(key for each in settings for key in each if key != SEED)
    rows = [(key, [each.get(key, "") for each in settings]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _metric_rows(name: str, groups: Sequence[Sequence[ComparedRun]]) -> list[tuple[str, list[str]]]:
    """Return a row of the last values of a metric, and one of the best, where its direction is declared."""
    infos = [info for group in groups for run in group for info in run.infos]
    info = find_metric(infos, name.removeprefix(VALIDATION))
    if name == "loss":
        info = MetricInfo("loss", higher_is_better=False)
    form = "{:.1%}" if info and info.unit == "share" else "{:.4g}"
    values = [[_points(run, name) for run in group] for group in groups]
    rows = [(f"{name}, last", [_spread([each[-1] for each in group if each], form) for group in values])]
    if info and name != "loss":
        choose, word = (max, "highest") if info.higher_is_better else (min, "lowest")
        rows.append((f"{name}, {word}", [_spread([choose(each) for each in group if each], form) for group in values]))
    return rows


def _points(run: ComparedRun, name: str) -> list[float]:
    curve = run.logged.curve(name)
    return [value for _, _, value in curve.points] if curve else []


def _spread(values: Sequence[float], form: str) -> str:
    """Return the mean of values with the standard deviation of the sample; a dash without any."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "-"
    if len(finite) == 1 or len(set(finite)) == 1:
        return form.format(mean(finite))
    return f"{form.format(mean(finite))} ± {form.format(stdev(finite))}"


def _charts(groups: Sequence[Sequence[ComparedRun]], names: Sequence[str]) -> str:
    """Return the loss and each validation metric, one colour (and dashes) per column of the table."""
    entries = [(name, 1 + number % NUM_SERIES, number >= NUM_SERIES) for number, name in enumerate(names)]
    found = dict.fromkeys(curve.name for group in groups for run in group for curve in run.logged.curves)
    charts = []
    for name in (each for each in found if each == "loss" or each.startswith(VALIDATION)):
        lines = tuple(
            Line(curve, series, is_dashed=is_dashed)
            for group, (_, series, is_dashed) in zip(groups, entries, strict=True)
            for run in group
            if (curve := run.logged.curve(name)) and curve.points
        )
        charts += [markup.figure(name, figures.draw(Chart(lines, "steps")))] if lines else []
    return markup.legend(entries) + markup.grid(charts, "half")
