"""The demo's page: results in, one HTML file out."""

from __future__ import annotations

from html import escape
from pathlib import Path

from dualfuse.io import write_text
from dualfuse.report import markup
from dualfuse.report.demo import learning, wording
from dualfuse.report.demo.examples import masked_cards, query_cards
from dualfuse.report.demo.results import DemoResults, Recall
from dualfuse.report.demo.wording import duration, percent

REPORT = "report.html"


def write_demo_page(results: DemoResults, folder: Path) -> Path:
    """Write ``folder``/report.html and gives its path."""
    path = folder / REPORT
    write_text(path, demo_page(results))
    return path


def demo_page(results: DemoResults) -> str:
    """Return the whole page, which loads nothing but a link to the images' authors."""
    took = duration(wording.total_seconds(results.joint))
    body = (
        _head(results, f"A vision-language model, trained from nothing in {took}"),
        _retrieval(results),
        _fusion(results),
        learning.losses(results),
        learning.validation(results),
        query_cards(results),
        masked_cards(results),
        _how(results),
        "<footer>The images and captions are openly licensed; their authors and licences are in "
        '<a href="ATTRIBUTION.txt">ATTRIBUTION.txt</a>. Made by dualfuse '
        f"{escape(results.machine.dualfuse)} from results.json; <code>dualfuse report</code> makes it again.</footer>",
    )
    return markup.document("dualfuse demo", body)


def _head(results: DemoResults, title: str) -> str:
    found = results.retrieval
    first = found.joint.text_to_image  # what search gives by default
    tiles = (
        markup.tile(percent(first[0]), f"of captions find their image first among {found.images}"),
        markup.tile(percent(first[2]), "find it among the first ten"),
        markup.tile(percent(found.chance.text_to_image[0]), "would come first by chance"),
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
        "Finding images and captions",
        markup.grid(tables, "half"),
        f'<h3>What helped, and what did not</h3><div class="card">{answers}</div>',
        lead="Test split. R@k is the share of queries whose right answer is among the first k. "
        "Ties count against the model.",
    )


def _recall_card(title: str, over: str, results: DemoResults, way: str) -> str:
    found = results.retrieval
    best = max(_of(recall, way)[0] for _, recall in found.rows())
    lines = "".join(
        f"<tr{' class=best' if _of(recall, way)[0] == best else ''}><th>{escape(name[0].upper() + name[1:])}</th>"
        + "".join(f"<td>{markup.bar(share, percent(share))}</td>" for share in _of(recall, way))
        + "</tr>"
        for name, recall in found.rows()
    )
    return (
        f'<figure class="card"><figcaption>{title} <span class="note">{escape(over)}</span></figcaption>'
        '<table class="recall"><thead><tr><th></th><th>R@1</th><th>R@5</th><th>R@10</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></figure>"
    )


def _of(recall: Recall, way: str) -> tuple[float, ...]:
    return recall.text_to_image if way == "text_to_image" else recall.image_to_text


FUSION = {
    "itm/positive": "Right pairs accepted",
    "itm/random_negative": "Random negatives rejected",
    "itm/hard_negative": "Hardest negatives rejected",
    "itm/positive_above_hard": "Right pair scores above the hardest wrong one (chance 50%)",
    "mlm/accuracy": "Masked words found",
    "mlm/accuracy_other_image": "Masked words found beside another image",
}
"""What the numbers of ``pair_accuracy`` mean, in the order in which they are shown."""


def _fusion(results: DemoResults) -> str:
    numbers = {number.name: number.value for number in results.fusion}
    lines = "".join(
        f"<tr><th>{escape(meaning)}</th><td>{markup.bar(numbers[name], percent(numbers[name]))}</td></tr>"
        for name, meaning in FUSION.items()
        if name in numbers
    )
    return markup.section(
        "Seeing both at once",
        f'<div class="card"><table class="fusion"><tbody>{lines}</tbody></table></div>',
        lead="What the fusion path gets right on test pairs. The hardest wrong image of a caption is the one that "
        "the dual encoder finds most similar. If the image helps, fewer masked words are found beside another one.",
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
