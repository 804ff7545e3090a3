"""Sections of the page of the demo: training curves, example queries and masked words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dualfuse.report import figures, markup
from dualfuse.report.curves import History, joined, merged
from dualfuse.report.demo.results import DemoResults, ImageResult, MaskedWord, Query, RetrievedImage
from dualfuse.report.demo.wording import duration, percent, total_seconds
from dualfuse.report.figures import Chart, Line

LOSSES = {"loss/itc": "ITC loss", "loss/itm": "ITM loss", "loss/mlm": "MLM loss"}
JOINT, CONTROL = 1, 2
RECALL = "validation/text_to_image/R@1"


def losses(results: DemoResults) -> str:
    """Return the section of training losses, over steps and over time, with the boundary between the stages."""
    charts = []
    for name, title in LOSSES.items():
        lines = _lines(results, name)
        if lines:
            charts += [
                markup.figure(f"{title} over {over}", _draw(results, lines, over)) for over in ("steps", "minutes")
            ]
    first = results.joint[0]
    return markup.section(
        "Training",
        _legend(),
        markup.grid(charts, "half"),
        lead=f"Training losses; thin lines are the logged means, thick lines a running mean. Up to the dotted line "
        f"({first.steps:,} steps, {duration(first.seconds)}) both models are one run that trains with ITC only. Then "
        f"the joint model trains with ITC, ITM and MLM ({_rest(results.joint)}), and the control continues with ITC "
        f"only ({_rest(results.control)}).",
    )


def validation(results: DemoResults) -> str:
    """Return the section of validation recall; empty if there was no validation during training."""
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
        "Validation recall",
        _legend(),
        markup.grid(charts, "half"),
        lead="Share of validation captions whose image the dual encoder ranks first, without re-ranking.",
    )


def _lines(results: DemoResults, name: str) -> tuple[Line, ...]:
    """Return the curves of both models, the joint one on top; they share the first stage."""
    control = [Line(curve, CONTROL, is_dashed=True) for curve in joined(results.control, name)]
    return (*control, *(Line(curve, JOINT) for curve in joined(results.joint, name)))


def _draw(results: DemoResults, lines: tuple[Line, ...], over: str, *, is_share: bool = False) -> str:
    first = results.joint[0]
    boundary = 0.0
    if len(results.joint) > 1:
        boundary = first.steps if over == "steps" else first.seconds / 60
    return figures.draw(Chart(lines, over, boundary=boundary, is_share=is_share))


def _legend() -> str:
    return markup.legend((("ITC, ITM and MLM", JOINT, False), ("ITC only", CONTROL, True)))


def _rest(stages: tuple[History, ...]) -> str:
    return f"{sum(stage.steps for stage in stages[1:]):,} steps, {duration(total_seconds(stages[1:]))}"


def query_cards(results: DemoResults) -> str:
    """Return the section of example queries, with successes and failures."""
    images = {image.number: image for image in results.images}
    found = results.queries
    kinds = (
        ("the {} captions whose image came first", found.first, [q for q in found.drawn if not q.reranked_rank]),
        (
            "the {} captions whose image did not come first",
            found.texts - found.first,
            [q for q in found.drawn if q.reranked_rank],
        ),
    )
    parts = [
        f"<h3>{len(drawn)} of {escape(kind.format(number))}</h3>"
        + markup.grid([_query(query, images) for query in drawn], "half")
        for kind, number, drawn in kinds
        if drawn
    ]
    return markup.section(
        "Example queries",
        *parts,
        lead="Captions of the test split, drawn at random from successes and failures. Each card shows the image of "
        "the caption, then the first five results: ranked by cosine, and re-ranked by the sum of ITC and ITM logit. "
        "The image of the caption is outlined in green.",
    )


def masked_cards(results: DemoResults) -> str:
    """Return the section of masked words; empty if there are none."""
    if not results.masked:
        return ""
    images = {image.number: image for image in results.images}
    cards = [_masked(example, images) for example in results.masked]
    return markup.section(
        "Masked words",
        markup.grid(cards, "small"),
        lead="One word of a test caption is masked; the model predicts it from the rest and the image.",
    )


def _query(query: Query, images: dict[int, ImageResult]) -> str:
    rank = f"rank {query.reranked_rank + 1}"
    if query.reranked_rank != query.rank:
        rank = f"from rank {query.rank + 1} to {query.reranked_rank + 1} by re-ranking"
    kind, label = ("miss", f"its image: {rank}") if query.reranked_rank else ("hit", f"found: {rank}")
    return (
        f'<article class="card query"><header>{_image(images[query.target], is_target=True)}'
        f'<div><b>{escape(query.caption)}</b><span class="badge {kind}">{label}</span></div></header>'
        f'<p class="how">dual encoder</p>{_row(query.nearest, query.target, images)}'
        f'<p class="how">re-ranked</p>{_row(query.reranked, query.target, images)}</article>'
    )


def _row(results: Sequence[RetrievedImage], target: int, images: dict[int, ImageResult]) -> str:
    cells = ""
    for result in results:
        image = _image(images[result.image], is_target=result.image == target)
        cells += f"<div>{image}<span>{_score(result.score)}</span></div>"
    return f'<div class="row">{cells}</div>'


def _score(score: float) -> str:
    return f"{score:.3f}" if abs(score) < 1 else f"{score:.2f}"


def _image(image: ImageResult, *, is_target: bool) -> str:
    mark = ' class="right"' if is_target else ""
    caption = escape(image.caption)
    return f'<img{mark} alt="{caption}" title="{caption}" src="data:{escape(image.kind)};base64,{image.data}">'


def _masked(example: MaskedWord, images: dict[int, ImageResult]) -> str:
    caption = escape(example.caption).replace("[MASK]", "<mark>?</mark>")
    bars = "".join(
        markup.bar(guess.probability, f"{guess.word} {percent(guess.probability)}").replace(
            'class="bar"', 'class="bar right"' if guess.word == example.word else 'class="bar"'
        )
        for guess in example.guesses
    )
    is_found = example.guesses[0].word == example.word
    kind, label = ("hit", "correct") if is_found else ("miss", f"it was: {example.word}")
    return (
        f'<article class="card masked">{_image(images[example.image], is_target=False)}'
        f'<div><p>{caption}</p>{bars}<span class="badge {kind}">{escape(label)}</span></div></article>'
    )
