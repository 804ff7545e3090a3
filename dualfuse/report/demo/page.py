"""The page of the demo from scratch: one HTML file, written from its results."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from dualfuse.io import write_text
from dualfuse.report import figures, markup
from dualfuse.report.curves import History, joined, merged
from dualfuse.report.demo import wording
from dualfuse.report.demo.results import DemoResults, ImageResult, MaskedWord, Named, Query, Recall, Scored
from dualfuse.report.demo.wording import duration, percent, total_seconds
from dualfuse.report.figures import Chart, Line

REPORT = "report.html"
LOSSES = {"loss/itc": "ITC loss", "loss/itm": "ITM loss", "loss/mlm": "MLM loss"}
JOINT, CONTROL = 1, 2
RECALL = "validation/text_to_image/R@1"
FUSION = {
    "itm/positive": "Matching pairs accepted",
    "itm/random_negative": "Random negatives rejected",
    "itm/hard_negative": "Hard negatives rejected",
    "itm/positive_above_hard": "Matching pair scores above its hard negative (chance 50%)",
    "mlm/accuracy": "Masked words predicted",
    "mlm/accuracy_other_image": "Masked words predicted with another image",
}
"""Labels of the metrics of ITM and MLM, in the order of the page."""


def write_demo_page(results: DemoResults, folder: Path) -> Path:
    """Write ``folder``/report.html and return its path."""
    path = folder / REPORT
    write_text(path, demo_page(results))
    return path


def demo_page(results: DemoResults) -> str:
    """Return the page, which loads nothing; it links to the list of the images' authors."""
    body = (
        _head(results),
        _retrieval(results),
        _fusion(results),
        _losses(results),
        _validation(results),
        _query_cards(results),
        _masked_cards(results),
        _how(results),
        footer(dict(results.machine)["dualfuse"]),
    )
    return markup.document("dualfuse demo", body)


def footer(version: str) -> str:
    """Return the last lines of the page, with the version of dualfuse."""
    return (
        "<footer>The images and captions are openly licensed; their authors and licences are in "
        '<a href="ATTRIBUTION.txt">ATTRIBUTION.txt</a>. Made by dualfuse '
        f"{escape(version)} from results.json; <code>dualfuse report</code> writes it again.</footer>"
    )


def _head(results: DemoResults) -> str:
    retrieval, seconds = results.retrieval, duration(total_seconds(results.joint))
    first = retrieval.joint.text_to_image  # what search gives by default
    tiles = (
        markup.tile(percent(first[0]), f"of captions have their image ranked first among {retrieval.images}"),
        markup.tile(percent(first[2]), "have it among the first ten"),
        markup.tile(percent(retrieval.chance.text_to_image[0]), "by chance"),
        markup.tile(seconds, "of training, both stages"),
    )
    sentences = " ".join(map(escape, wording.summary(results)))
    return (
        f'<p class="eyebrow">dualfuse demo</p><h1>A vision-language model, trained from scratch in {escape(seconds)}'
        f'</h1><p class="summary">{sentences}</p><div class="tiles">{"".join(tiles)}</div>'
    )


def _retrieval(results: DemoResults) -> str:
    retrieval = results.retrieval
    tables = recall_cards(retrieval.images, retrieval.texts, retrieval.rows())
    answers = "".join(
        f'<div class="verdict"><b>{escape(question)}</b>{escape(answer)}</div>'
        for question, answer in wording.verdicts(retrieval)
    )
    return markup.section(
        "Retrieval",
        markup.grid(tables, "half"),
        f'<h3>What helped and what did not</h3><div class="card">{answers}</div>',
        lead="Test split. R@k is the share of queries with a match among the first k results. "
        "Ties count against the model.",
    )


def recall_cards(images: int, texts: int, rows: Sequence[tuple[str, Recall]]) -> tuple[str, str]:
    """Return the tables of recall in both directions, with a row for each method."""
    return (
        _recall_card("Text to image", f"{texts} captions, {images} images", rows, "text_to_image"),
        _recall_card("Image to text", f"{images} images, {texts} captions", rows, "image_to_text"),
    )


def _recall_card(title: str, over: str, recalls: Sequence[tuple[str, Recall]], way: str) -> str:
    rows: list[tuple[str, tuple[float, ...]]] = [(name, getattr(each, way)) for name, each in recalls]
    best = max(shares[0] for _, shares in rows)
    lines = "".join(
        f"<tr{' class=best' if shares[0] == best else ''}><th>{escape(name[0].upper() + name[1:])}</th>"
        + "".join(f"<td>{markup.bar(share, percent(share))}</td>" for share in shares)
        + "</tr>"
        for name, shares in rows
    )
    return (
        f'<figure class="card"><figcaption>{title} <span class="note">{escape(over)}</span></figcaption>'
        '<table class="recall"><thead><tr><th></th><th>R@1</th><th>R@5</th><th>R@10</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></figure>"
    )


def _fusion(results: DemoResults) -> str:
    numbers = dict(results.fusion)
    lines = "".join(
        f"<tr><th>{escape(meaning)}</th><td>{markup.bar(numbers[name], percent(numbers[name]))}</td></tr>"
        for name, meaning in FUSION.items()
        if name in numbers
    )
    return markup.section(
        "Fusion encoder",
        f'<div class="card"><table class="fusion"><tbody>{lines}</tbody></table></div>',
        lead="Accuracy of the fusion encoder on test pairs. The hard negative of a caption is the other image that the "
        "dual encoder finds most similar. If the image helps, fewer masked words are predicted with another image.",
    )


def _losses(results: DemoResults) -> str:
    """Return the section of training losses, over steps and over time, with the boundary between the stages."""
    charts = list[str]()
    for name, title in LOSSES.items():  # the joint model on top; both share the first stage
        lines = [Line(curve, CONTROL, is_dashed=True) for curve in joined(results.control, name)]
        lines += [Line(curve, JOINT) for curve in joined(results.joint, name)]
        charts += _charts(results, title, lines)
    first = results.joint[0]
    return markup.section(
        "Training",
        _legend(results),
        markup.grid(charts, "half"),
        lead=f"Training losses; thin lines are the logged means, thick lines a running mean. Up to the dotted line "
        f"({first.steps:,} steps, {duration(first.seconds)}) the model trains with ITC only, then with ITC, ITM and "
        f"MLM ({_rest(results.joint)})."
        + (f" The control continues with ITC only ({_rest(results.control)})." if results.control else ""),
    )


def _validation(results: DemoResults) -> str:
    """Return the section of validation recall; empty if there was no validation during training."""
    lines = [
        Line(merged(curves), series, is_dashed=series == CONTROL)
        for stages, series in ((results.control, CONTROL), (results.joint, JOINT))
        if (curves := joined(stages, RECALL))
    ]
    if not any(len(line.curve.points) > 2 for line in lines):
        return ""
    return markup.section(
        "Validation recall",
        _legend(results),
        markup.grid(_charts(results, "R@1, text to image,", lines, is_share=True), "half"),
        lead="Share of validation captions whose image the dual encoder ranks first, without re-ranking.",
    )


def _charts(results: DemoResults, title: str, lines: list[Line], *, is_share: bool = False) -> list[str]:
    """Return the lines over steps and over minutes; nothing if there are none."""
    first, has_boundary = results.joint[0], len(results.joint) > 1
    ends = {"steps": float(first.steps), "minutes": first.seconds / 60} if lines else {}
    charts = {
        over: Chart(tuple(lines), over, boundary=end if has_boundary else 0.0, is_share=is_share)
        for over, end in ends.items()
    }
    return [markup.figure(f"{title} over {over}", figures.draw(chart)) for over, chart in charts.items()]


def _legend(results: DemoResults) -> str:
    control = (("ITC only", CONTROL, True),) if results.control else ()
    return markup.legend((("ITC, ITM and MLM", JOINT, False), *control))


def _rest(stages: tuple[History, ...]) -> str:
    return f"{sum(stage.steps for stage in stages[1:]):,} steps, {duration(total_seconds(stages[1:]))}"


def _query_cards(results: DemoResults) -> str:
    first, texts = results.retrieval.reranked.text_to_image[0], results.retrieval.texts
    return markup.section(
        "Example queries",
        *query_cards(results.queries, results.images, (round(first * texts), texts)),
        lead="Captions of the test split, drawn at random from successes and failures. Each card shows the image of "
        "the caption, then the first five results: ranked by cosine, and re-ranked by the sum of ITC and ITM logit. "
        "The image of the caption is outlined in green.",
    )


def query_cards(
    queries: Sequence[Query], images: Sequence[ImageResult], first_of: tuple[int, int] | None = None
) -> list[str]:
    """Return cards of queries, successes and failures under a heading each.

    ``first_of`` are the numbers of captions whose image came first, and of all captions, for the headings.
    """
    found, missed = ("", "") if first_of is None else (f"of the {first_of[0]} ", f"of the {first_of[1] - first_of[0]} ")
    shown = {image.number: image for image in images}
    kinds = (
        (f"{found}captions whose image came first", [each for each in queries if not each.reranked_rank]),
        (f"{missed}captions whose image did not come first", [each for each in queries if each.reranked_rank]),
    )
    return [
        f"<h3>{len(drawn)} {kind}</h3>" + markup.grid([_query(query, shown) for query in drawn], "half")
        for kind, drawn in kinds
        if drawn
    ]


def _query(query: Query, images: dict[int, ImageResult]) -> str:
    rank = f"rank {query.reranked_rank + 1}"
    if query.reranked_rank != query.rank:
        rank = f"from rank {query.rank + 1} to {query.reranked_rank + 1} by re-ranking"
    kind, label = ("miss", f"its image: {rank}") if query.reranked_rank else ("hit", f"found: {rank}")
    rows = _row(query.nearest, query.target, images)
    if query.reranked:
        rows = f'<p class="how">dual encoder</p>{rows}'
        rows += f'<p class="how">re-ranked</p>{_row(query.reranked, query.target, images)}'
    return (
        f'<article class="card query"><header>{_image(images[query.target], is_target=True)}'
        f'<div><b>{escape(query.caption)}</b><span class="badge {kind}">{label}</span></div></header>'
        f"{rows}</article>"
    )


def _row(results: tuple[Scored, ...], target: int, images: dict[int, ImageResult]) -> str:
    cells = ""
    for number, score in results:
        text = f"{score:.3f}" if abs(score) < 1 else f"{score:.2f}"
        cells += f"<div>{_image(images[number], is_target=number == target)}<span>{text}</span></div>"
    return f'<div class="row">{cells}</div>'


def _image(image: ImageResult, *, is_target: bool) -> str:
    mark = ' class="right"' if is_target else ""
    caption = escape(image.caption)
    return f'<img{mark} alt="{caption}" title="{caption}" src="data:{escape(image.kind)};base64,{escape(image.data)}">'


def _masked_cards(results: DemoResults) -> str:
    """Return the section of masked words; empty if there are none."""
    if not results.masked:
        return ""
    images = {image.number: image for image in results.images}
    return markup.section(
        "Masked words",
        markup.grid([_masked(example, images) for example in results.masked], "small"),
        lead="One word of a test caption is masked; the model predicts it from the rest and the image.",
    )


def _masked(example: MaskedWord, images: dict[int, ImageResult]) -> str:
    caption = escape(example.caption).replace("[MASK]", "<mark>?</mark>")
    bars = "".join(
        markup.bar(probability, f"{word} {percent(probability)}").replace(
            'class="bar"', 'class="bar right"' if word == example.word else 'class="bar"'
        )
        for word, probability in example.guesses
    )
    is_correct = example.guesses[0][0] == example.word
    kind, label = ("hit", "correct") if is_correct else ("miss", f"it was: {example.word}")
    return (
        f'<article class="card masked">{_image(images[example.image], is_target=False)}'
        f'<div><p>{caption}</p>{bars}<span class="badge {kind}">{escape(label)}</span></div></article>'
    )


def _how(results: DemoResults) -> str:
    versions = (*results.machine, ("seed", str(results.seed)), ("parameters", f"{results.parameters:,}"))
    return how(versions, results.parts, results.commands)


def how(versions: Sequence[tuple[str, str]], parts: Sequence[Named], commands: Sequence[str]) -> str:
    """Return the section of versions, durations and commands."""
    times = tuple((name, duration(seconds)) for name, seconds in parts)
    cards = markup.grid([markup.pairs_table(rows) for rows in (versions, times)])
    return markup.section("How this was made", markup.commands(commands), cards)
