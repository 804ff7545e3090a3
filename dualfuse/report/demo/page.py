"""The page of the demo: one HTML file, written from its results."""

from __future__ import annotations

from html import escape
from pathlib import Path

from dualfuse.io import write_text
from dualfuse.report import markup
from dualfuse.report.demo import sections, wording
from dualfuse.report.demo.results import DemoResults, Recall
from dualfuse.report.demo.wording import duration, percent

REPORT = "report.html"


def write_demo_page(results: DemoResults, folder: Path) -> Path:
    """Write ``folder``/report.html and return its path."""
    path = folder / REPORT
    write_text(path, demo_page(results))
    return path


def demo_page(results: DemoResults) -> str:
    """Return the page, which loads nothing; it links to the list of the images' authors."""
    seconds = duration(wording.total_seconds(results.joint))
    body = (
        _head(results, f"A vision-language model, trained from scratch in {seconds}"),
        _retrieval(results),
        _fusion(results),
        sections.losses(results),
        sections.validation(results),
        sections.query_cards(results),
        sections.masked_cards(results),
        _how(results),
        "<footer>The images and captions are openly licensed; their authors and licences are in "
        '<a href="ATTRIBUTION.txt">ATTRIBUTION.txt</a>. Made by dualfuse '
        f"{escape(results.machine.dualfuse)} from results.json; <code>dualfuse report</code> writes it again.</footer>",
    )
    return markup.document("dualfuse demo", body)


def _head(results: DemoResults, title: str) -> str:
    found = results.retrieval
    first = found.joint.text_to_image  # what search gives by default
    tiles = (
        markup.tile(percent(first[0]), f"of captions have their image ranked first among {found.images}"),
        markup.tile(percent(first[2]), "have it among the first ten"),
        markup.tile(percent(found.chance.text_to_image[0]), "by chance"),
        markup.tile(duration(wording.total_seconds(results.joint)), "of training, both stages"),
    )
    sentences = " ".join(map(escape, wording.summary(results)))
    return (
        f'<p class="eyebrow">dualfuse demo</p><h1>{escape(title)}</h1><p class="summary">{sentences}</p>'
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def _retrieval(results: DemoResults) -> str:
    found = results.retrieval
    tables = (
        _recall_card("Text to image", f"{found.texts} captions, {found.images} images", results, "text_to_image"),
        _recall_card("Image to text", f"{found.images} images, {found.texts} captions", results, "image_to_text"),
    )
    answers = "".join(
        f'<div class="verdict"><b>{escape(question)}</b>{escape(answer)}</div>'
        for question, answer in wording.verdicts(found)
    )
    return markup.section(
        "Retrieval",
        markup.grid(tables, "half"),
        f'<h3>What helped and what did not</h3><div class="card">{answers}</div>',
        lead="Test split. R@k is the share of queries with a match among the first k results. "
        "Ties count against the model.",
    )


def _recall_card(title: str, over: str, results: DemoResults, way: str) -> str:
    found = results.retrieval
    rows = [(name, _direction(recall, way)) for name, recall in found.rows()]
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


def _direction(recall: Recall, way: str) -> tuple[float, ...]:
    return recall.text_to_image if way == "text_to_image" else recall.image_to_text


FUSION = {
    "itm/positive": "Matching pairs accepted",
    "itm/random_negative": "Random negatives rejected",
    "itm/hard_negative": "Hard negatives rejected",
    "itm/positive_above_hard": "Matching pair scores above its hard negative (chance 50%)",
    "mlm/accuracy": "Masked words predicted",
    "mlm/accuracy_other_image": "Masked words predicted with another image",
}
"""Labels of the metrics of ``evaluate_pairs``, in the order of the page."""


def _fusion(results: DemoResults) -> str:
    numbers = {number.name: number.value for number in results.fusion}
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


def _how(results: DemoResults) -> str:
    machine = results.machine
    versions = (
        ("dualfuse", machine.dualfuse),
        ("torch", machine.torch),
        ("Python", machine.python),
        ("device", machine.device),
        ("processors, threads", f"{machine.cpus}, {machine.threads}"),
        ("seed", str(results.seed)),
        ("parameters", f"{results.parameters:,}"),
    )
    parts = tuple((part.name, duration(part.value)) for part in results.parts)
    return markup.section(
        "How this was made",
        markup.commands(results.commands),
        markup.grid(
            (
                f'<div class="card">{markup.pairs_table(versions)}</div>',
                f'<div class="card">{markup.pairs_table(parts)}</div>',
            )
        ),
    )
