"""How the demo's runs trained: losses and validation recall, the joint run against contrast alone."""

from __future__ import annotations

from dualfuse.report import figures, markup
from dualfuse.report.curves import History, joined, merged
from dualfuse.report.demo.results import DemoResults
from dualfuse.report.demo.wording import duration, total_seconds
from dualfuse.report.figures import Chart, Line

LOSSES = {"loss/itc": "ITC loss", "loss/itm": "ITM loss", "loss/mlm": "MLM loss"}
JOINT, CONTROL = 1, 2
RECALL = "validation/text_to_image/R@1"


def losses(results: DemoResults) -> str:
    """Return the section of losses, each over steps and over time, with the boundary between the stages."""
    charts = []
    for name, title in LOSSES.items():
        lines = _lines(results, name)
        if lines:
            charts += [
                markup.figure(f"{title} over {over}", _draw(results, lines, over)) for over in ("steps", "minutes")
            ]
    first = results.joint[0]
    return markup.section(
        "Learning",
        _legend(),
        markup.grid(charts, "half"),
        lead=f"Training loss; thin lines are the logged means, thick ones run over a twentieth of them. Until the "
        f"dotted line ({first.steps:,} steps, {duration(first.seconds)}) both learn contrast alone and are one run. "
        f"Then the joint one learns all three ({_rest(results.joint)}), the control goes on as before "
        f"({_rest(results.control)}).",
    )


def validation(results: DemoResults) -> str:
    """Return the section of validation recall; nothing if it was not evaluated during training."""
    lines = tuple(
        Line(merged(curves), series, is_dashed)
        for stages, series, is_dashed in ((results.control, CONTROL, True), (results.joint, JOINT, False))
        if (curves := joined(stages, RECALL))
    )
    if not any(len(line.curve.values) > 2 for line in lines):
        return ""
    charts = [
        markup.figure(f"R@1, text to image, over {over}", _draw(results, lines, over, is_share=True))
        for over in ("steps", "minutes")
    ]
    return markup.section(
        "On the validation split",
        _legend(),
        markup.grid(charts, "half"),
        lead="Share of validation captions whose image the dual encoder puts first, without re-ranking.",
    )


def _lines(results: DemoResults, name: str) -> tuple[Line, ...]:
    """Return the joint run's curves above the control's, with which the first shares its first stage."""
    control = [Line(curve, CONTROL, is_dashed=True) for curve in joined(results.control, name)]
    return (*control, *(Line(curve, JOINT) for curve in joined(results.joint, name)))


def _draw(results: DemoResults, lines: tuple[Line, ...], over: str, *, is_share: bool = False) -> str:
    first = results.joint[0]
    boundary = 0.0
    if len(results.joint) > 1:
        boundary = first.steps if over == "steps" else first.seconds / 60
    return figures.draw(Chart(lines, over, boundary=boundary, is_share=is_share))


def _legend() -> str:
    return markup.legend((("all objectives", JOINT, False), ("contrast only", CONTROL, True)))


def _rest(stages: tuple[History, ...]) -> str:
    return f"{sum(stage.steps for stage in stages[1:]):,} steps, {duration(total_seconds(stages[1:]))}"
