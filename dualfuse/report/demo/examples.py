"""Example queries and masked words as cards with images."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dualfuse.report import markup
from dualfuse.report.demo.results import DemoResults, Found, ImageResult, MaskedWord, Query
from dualfuse.report.demo.wording import percent

Pictures = dict[int, ImageResult]


def query_cards(results: DemoResults) -> str:
    """Return the section of example queries, those that succeeded and those that did not."""
    images = {image.number: image for image in results.images}
    found = results.queries
    kinds = (
        ("the {} captions whose image came first", found.first, [q for q in found.drawn if not q.reranked_place]),
        (
            "the {} captions whose image did not come first",
            found.texts - found.first,
            [q for q in found.drawn if q.reranked_place],
        ),
    )
    parts = [
        f"<h3>{len(drawn)} of {escape(words.format(number))}</h3>"
        + markup.grid([_query(query, images) for query in drawn], "half")
        for words, number, drawn in kinds
        if drawn
    ]
    return markup.section(
        "Queries",
        *parts,
        lead="Captions of the test split, drawn blindly from successes and failures alike. Each shows the image it "
        "belongs to, then the first five answers: by cosine, and by the sum of contrastive logit and matching "
        "log-odds. The right image is outlined in green.",
    )


def masked_cards(results: DemoResults) -> str:
    """Return the section of masked words; nothing if there are none."""
    if not results.masked:
        return ""
    images = {image.number: image for image in results.images}
    cards = [_masked(example, images) for example in results.masked]
    return markup.section(
        "Masked words",
        markup.grid(cards, "small"),
        lead="One word of a test caption is hidden; the model sees the rest and the image. Drawn blindly.",
    )


def _query(query: Query, images: Pictures) -> str:
    places = f"place {query.reranked_place + 1}"
    if query.reranked_place != query.place:
        places = f"from place {query.place + 1} to {query.reranked_place + 1} by re-ranking"
    kind, words = ("miss", f"right image: {places}") if query.reranked_place else ("hit", f"found: {places}")
    return (
        f'<article class="card query"><header>{_image(images[query.right], is_right=True)}'
        f'<div><b>{escape(query.caption)}</b><span class="badge {kind}">{words}</span></div></header>'
        f'<p class="how">dual encoder</p>{_row(query.nearest, query.right, images)}'
        f'<p class="how">re-ranked</p>{_row(query.reranked, query.right, images)}</article>'
    )


def _row(answers: Sequence[Found], right: int, pil_images: Pictures) -> str:
    images = (_image(pil_images[answer.image], is_right=answer.image == right) for answer in answers)
    cells = (
        f"<div>{image}<span>{_score(answer.score)}</span></div>" for image, answer in zip(images, answers, strict=True)
    )
    return f'<div class="row">{"".join(cells)}</div>'


def _score(score: float) -> str:
    return f"{score:.3f}" if abs(score) < 1 else f"{score:.2f}"


def _image(image: ImageResult, *, is_right: bool) -> str:
    kind = ' class="right"' if is_right else ""
    words = escape(image.caption)
    return f'<img{kind} alt="{words}" title="{words}" src="data:{escape(image.kind)};base64,{image.data}">'


def _masked(example: MaskedWord, images: Pictures) -> str:
    caption = escape(example.caption).replace("[MASK]", "<mark>?</mark>")
    bars = "".join(
        markup.bar(guess.probability, f"{guess.word} {percent(guess.probability)}").replace(
            'class="bar"', 'class="bar right"' if guess.word == example.word else 'class="bar"'
        )
        for guess in example.guesses
    )
    is_found = example.guesses[0].word == example.word
    kind, words = ("hit", "found") if is_found else ("miss", f"it was: {example.word}")
    return (
        f'<article class="card masked">{_image(images[example.image], is_right=False)}'
        f'<div><p>{caption}</p>{bars}<span class="badge {kind}">{escape(words)}</span></div></article>'
    )
