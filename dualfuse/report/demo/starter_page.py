"""The page of the demo over pre-trained encoders: one HTML file, written from its results."""

from __future__ import annotations

from html import escape
from pathlib import Path

from dualfuse.io import write_text
from dualfuse.report import figures, markup
from dualfuse.report.demo.page import REPORT, footer, how, query_cards, recall_cards
from dualfuse.report.demo.results import Recall, StarterResults
from dualfuse.report.demo.wording import duration, percent
from dualfuse.report.figures import Chart, Line

FROM_SCRATCH = Recall(text_to_image=(0.171, 0.317, 0.397), image_to_text=(0.158, 0.310, 0.384))
"""VLMo-nano from random weights on the same data: means of three seeds, measured by bench/demo_seeds.py."""
RERANKING = (
    "Re-ranking is off, because this model is a dual encoder. The recipe fuse adds a fusion encoder to it; no gain of "
    "re-ranking was measured on this data (docs/fusion.md)."
)


def write_starter_page(results: StarterResults, folder: Path) -> Path:
    """Write ``folder``/report.html and return its path."""
    path = folder / REPORT
    write_text(path, starter_page(results))
    return path


def starter_page(results: StarterResults) -> str:
    """Return the page, which loads nothing; it links to the list of the images' authors."""
    versions = (
        *results.machine,
        ("seed", str(results.seed)),
        ("parameters", f"{results.parameters:,}"),
        ("trained parameters", f"{results.trained:,}"),
    )
    body = (
        _head(results),
        _try(results),
        _query_cards(results),
        _retrieval(results),
        _training(results),
        how(versions, results.parts, results.commands[:1]),
        footer(dict(results.machine)["dualfuse"]),
    )
    return markup.document("dualfuse demo", body)


def _head(results: StarterResults) -> str:
    first, chance = results.rows[-1][1].text_to_image, results.rows[0][1].text_to_image
    images, _ = results.images_and_texts
    took = duration(sum(seconds for _, seconds in results.parts))
    tiles = (
        markup.tile(percent(first[0]), f"of captions have their image ranked first among {images}"),
        markup.tile(percent(first[2]), "have it among the first ten"),
        markup.tile(percent(chance[0]), "by chance"),
        markup.tile(took, "for data, training and evaluation"),
    )
    sentences = (
        f"Two encoders that were trained before, EfficientNet-Lite0 on ImageNet and MiniLM-L6 on sentences, stay as "
        f"they are; {results.trained / 1e6:.1f} million parameters on top of them were trained on "
        f"{results.train_images:,} images with captions."
    )
    if not results.is_final:
        sentences += " This is a first model; a better one is training, and this page will be replaced. Reload it then."
    return (
        f'<p class="eyebrow">dualfuse demo</p><h1>Image search, trained in {escape(took)}</h1>'
        f'<p class="summary">{escape(sentences)}</p><div class="tiles">{"".join(tiles)}</div>'
    )


def _try(results: StarterResults) -> str:
    return markup.section(
        "Try it",
        markup.commands(results.commands[1:]),
        lead="Search the test images for a text of your own: in the terminal, or in the browser at the address that "
        "serve prints.",
    )


def _query_cards(results: StarterResults) -> str:
    texts = results.images_and_texts[1]
    first = round(results.rows[-1][1].text_to_image[0] * texts)
    return markup.section(
        "Example queries",
        *query_cards(results.queries, results.images, (first, texts)),
        lead="Captions of the test split, drawn at random from successes and failures. Each card shows the image of "
        "the caption, then the first five results by cosine. The image of the caption is outlined in green.",
    )


def _retrieval(results: StarterResults) -> str:
    chance, *measured = results.rows
    scratch = ("VLMo from scratch (earlier, three seeds)", FROM_SCRATCH)
    tables = recall_cards(*results.images_and_texts, (chance, scratch, *measured))
    return markup.section(
        "Retrieval",
        markup.grid(tables, "half"),
        f'<p class="note">{escape(RERANKING)}</p>',
        lead="Test split. R@k is the share of queries with a match among the first k results. Ties count against the "
        "model. The row from scratch was measured earlier and is not part of this run; dualfuse demo --scratch repeats "
        "it.",
    )


def _training(results: StarterResults) -> str:
    last = results.stages[-1]
    charts = [
        markup.figure(title, figures.draw(Chart((Line(curve, 1),), "steps", is_share=is_share)))
        for name, title, is_share in (
            ("loss/itc", "ITC loss", False),
            ("validation/text_to_image/R@1", "R@1, text to image, validation", True),
        )
        if (curve := last.curve(name)) and curve.points
    ]
    return markup.section(
        "Training",
        markup.grid(charts, "half"),
        lead=f"{last.steps:,} steps. The encoders ran once on each image and text before the first step.",
    )
