"""The page of a run: its curves, example queries, its skipped samples and its recipe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_TABLE, read_bounded, read_json
from dualfuse.io import write_text
from dualfuse.report import figures, markup
from dualfuse.report.curves import Curve, History, history
from dualfuse.report.demo.page import REPORT, write_demo_page
from dualfuse.report.demo.results import RESULTS, DemoResults, load_results
from dualfuse.report.demo.starter_page import write_starter_page
from dualfuse.report.demo.wording import duration
from dualfuse.report.examples import example_queries
from dualfuse.report.figures import Chart, Line
from dualfuse.run_folder import FINAL, RECIPE
from dualfuse.training.run_log import SKIPPED

TITLES = {"loss": "Loss", "loss/itc": "ITC loss", "loss/itm": "ITM loss", "loss/mlm": "MLM loss", "lr": "Learning rate"}
SHOWN = 8
"""Number of skipped samples and reasons that are listed."""


def report(run: Path) -> Path:
    """Write RUN/report.html for the folder of a run or of the demo, and return its path.

    Raises ``DualfuseError`` for any other folder.
    """
    if (run / RESULTS).is_file():
        results = load_results(run)
        return write_demo_page(results, run) if isinstance(results, DemoResults) else write_starter_page(results, run)
    check_run(run)
    path = run / REPORT
    try:
        page = run_page(run)
    except DualfuseError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # JSON of another shape
        raise DualfuseError(f"a file of the run {run} is damaged ({type(error).__name__}: {error})") from error
    write_text(path, page)
    return path


def check_run(run: Path) -> None:
    """Raise ``DualfuseError`` unless ``run`` is the folder of a run."""
    if not (run / RECIPE).is_file():
        inner = sorted(path.parent.name for path in run.glob(f"*/{RECIPE}"))
        hint = (
            f"it has several: give {', '.join(str(run / name) for name in inner)}"
            if inner
            else "give the --out of train"
        )
        raise DualfuseError(f"{run} is not the folder of a run (it has no {RECIPE}); {hint}")


def run_page(run: Path) -> str:
    """Return the page of one run."""
    recipe = read_json(run / RECIPE)
    logged = history(run, recipe["name"])
    steps = recipe["run"]["steps"]
    is_finished = (run / FINAL).is_dir()
    state = "finished" if is_finished else "not finished"
    tiles = [
        markup.tile(f"{logged.steps:,}", f"of {steps:,} steps, {state}"),
        markup.tile(duration(logged.seconds), "of training"),
        *_final(logged),
    ]
    body = (
        f'<p class="eyebrow">dualfuse run</p><h1>{escape(recipe["name"])}</h1>'
        f'<p class="note">{escape(str(run))}</p><div class="tiles">{"".join(tiles)}</div>',
        _training(logged),
        _validation(logged),
        example_queries(run),
        _skipped(run),
        markup.section("Recipe", markup.pairs_table(tuple(flat(recipe)))),
    )
    return markup.document(f"dualfuse: {recipe['name']}", body)


def flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of a recipe's JSON with their dotted names; the value of a dataclass is its address."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, name if key == "is" else f"{name}.{key}".lstrip("."))
    elif name:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _final(logged: History) -> list[str]:
    """Return tiles of the last loss and recall, as far as they were logged."""
    tiles = (
        ("loss", "last loss", "{:.3g}"),
        ("validation/text_to_image/R@1", "R@1, text to image, validation", "{:.1%}"),
        ("validation/image_to_text/R@1", "R@1, image to text, validation", "{:.1%}"),
    )
    curves = ((logged.curve(name), meaning, form) for name, meaning, form in tiles)
    return [
        markup.tile(form.format(curve.points[-1][2]), meaning)
        for curve, meaning, form in curves
        if curve and curve.points
    ]


def _training(logged: History) -> str:
    shares = [curve for curve in logged.curves if curve.name.startswith("accuracy/")]
    single = [curve for curve in logged.curves if "/" not in curve.name and curve.points]
    single.sort(key=lambda curve: list(TITLES).index(curve.name) if curve.name in TITLES else len(TITLES))
    charts = [
        markup.figure(TITLES.get(curve.name, curve.name.replace("_", " ").capitalize()), _draw((curve,)))
        for curve in single
    ]
    if shares:
        charts.append(_together("Accuracy in training", shares, "accuracy/"))
    return markup.section("Training", markup.grid(charts), lead="Means since the previous line of the log.")


def _validation(logged: History) -> str:
    charts = []
    for way in ("text_to_image", "image_to_text"):
        curves = [curve for curve in logged.curves if curve.name.startswith(f"validation/{way}/") and curve.points]
        if curves:
            charts.append(_together(way.replace("_", " ").capitalize(), curves, f"validation/{way}/"))
    return markup.section("Validation recall", markup.grid(charts, "half")) if charts else ""


def _together(title: str, curves: list[Curve], prefix: str) -> str:
    entries = [
        (curve.name.removeprefix(prefix).replace("_", " "), 1 + number % 4, False)
        for number, curve in enumerate(curves)
    ]
    return markup.figure(title, markup.legend(entries) + _draw(tuple(curves), is_share=True))


def _draw(curves: tuple[Curve, ...], *, is_share: bool = False) -> str:
    lines = tuple(Line(curve, 1 + number % 4, is_exact=curve.name == "lr") for number, curve in enumerate(curves))
    return figures.draw(Chart(lines, "steps", is_share=is_share))


def _skipped(run: Path) -> str:
    files = sorted(run.glob(f"**/{SKIPPED}"))
    lines = [json.loads(line) for file in files for line in read_bounded(file, MAX_TABLE).decode().split("\n") if line]
    if not lines:
        return markup.section("Skipped samples", lead="None: every sample was readable.")
    reasons = Counter(line["reason"] for line in lines).most_common(SHOWN)
    counts = markup.pairs_table([(f"{count:,}", reason) for reason, count in reasons])
    first = markup.pairs_table([(line["key"], line["reason"]) for line in lines[:SHOWN]])
    return markup.section(
        "Skipped samples",
        markup.grid((counts, first), "half"),
        lead=f"{len(lines):,} times an unusable sample was replaced by another one. By reason, and the first ones.",
    )
