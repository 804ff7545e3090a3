"""Answers one query for a person: prints what was found, with scores, and draws it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dualfuse import dist
from dualfuse.convert.load import load
from dualfuse.data.contact_sheet import Tile, contact_sheet
from dualfuse.prepare.sources.folder import is_picture_name
from dualfuse.search.index import Hit, Index

COLUMNS, CELL = 5, 224
SHOWN = 5  # pictures that could not be read; their number is always told


def answer(
    model: Path | str, images: str, query: str, *, top: int = 10, rerank: int = 0, sheet: Path | None = None
) -> tuple[Hit, ...]:
    """Searches ``images`` with a ``model`` that :func:`load` knows, prints the hits and draws them on ``sheet``.

    ``query`` is a text, or the path of a picture. See :meth:`Index.build` for what ``images`` may be, and
    :meth:`Index.search` for ``top`` and ``rerank``. The device is the GPU if there is one.
    """
    question = _question(query)
    if sheet and sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"the sheet {sheet} must be called .png or .jpg")
    if rerank and isinstance(question, Path):
        raise ValueError(f"{query} is a picture, and only a text can be matched with pictures; leave out rerank")
    loaded = load(model, device=dist.device())
    index = Index.build(loaded, images)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    for line in describe(index):
        console.print(line)
    if isinstance(question, str) and loaded.prep.text.encode(question).truncated:
        console.print(
            f"the query is longer than the {loaded.prep.text.length} word pieces of this model; its end is cut"
        )
    hits = index.search(question, top=top, rerank=rerank)
    print("\n".join(table(hits)))
    if sheet:
        grid(index, hits, question, sheet)
        console.print(f"the pictures are on {sheet}")
    return hits


def describe(index: Index) -> list[str]:
    """Gives lines that say what the index holds, what it leaves out and why, and where it is kept."""
    kept = len(index) - index.embedded
    lines = [f"{len(index)} pictures: {index.embedded} embedded now, {kept} from the index"]
    if index.left_out:
        lines.append(f"left out, because they cannot be read: {len(index.left_out)}")
        lines += [f"  {printable(each.name)}: {printable(each.reason)}" for each in index.left_out[:SHOWN]]
        lines += [f"  and {len(index.left_out) - SHOWN} more"] if len(index.left_out) > SHOWN else []
    if index.place is None:
        lines.append("the index could not be kept: neither beside the pictures nor in your cache folder")
    elif not index.place.is_relative_to(index.collection.home):
        lines.append(f"{index.collection.home} cannot be written to; the index is {index.place}")
    return lines


def table(hits: Sequence[Hit]) -> list[str]:
    """Gives one line for each hit, best first, and one above them: rank, scores, name."""
    if all(hit.match is None for hit in hits):
        rows = [f"{rank:4}  {hit.score:7.4f}  {printable(hit.name)}" for rank, hit in enumerate(hits, start=1)]
        return [f"{'rank':>4}  {'cosine':>7}  picture", *rows]
    rows = [f"{rank:4}  {_scores(hit)}  {printable(hit.name)}" for rank, hit in enumerate(hits, start=1)]
    return [f"{'rank':>4}  {'score':>8}  {'cosine':>7}  {'match':>8}  picture", *rows]


def grid(index: Index, hits: Sequence[Hit], query: str | Path, path: Path) -> Path:
    """Draws the hits, best first, with rank, name and score, and writes them as one picture (.png or .jpg).

    If the query is a picture, it comes first.
    """
    tiles = [Tile(query.read_bytes(), query.name, title="query")] if isinstance(query, Path) else []
    for rank, hit in enumerate(hits, start=1):
        odds = "" if hit.match is None else f", cosine {hit.cosine:.4f}, match {hit.match:.2f}"
        tiles.append(Tile(_picture(index, hit), printable(hit.name), title=str(rank), note=f"{hit.score:.4f}{odds}"))
    drawn = contact_sheet(tiles, columns=COLUMNS, cell=CELL, heading=printable(str(query)))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path)
    return path


def printable(name: str) -> str:
    """Gives a name of any file in a form that a terminal or a font can show."""
    name = name.encode(errors="backslashreplace").decode()  # bytes that are no UTF-8
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _question(query: str) -> str | Path:
    """Tells the path of a picture from a text."""
    path = Path(query)
    if not is_picture_name(path.name):
        return query
    if not path.is_file():
        raise ValueError(f"{query} is not there; a query that ends as picture files do is taken for the path of one")
    return path


def _scores(hit: Hit) -> str:
    odds = "-" if hit.match is None else f"{hit.match:.3f}"
    return f"{hit.score:8.3f}  {hit.cosine:7.4f}  {odds:>8}"


def _picture(index: Index, hit: Hit) -> bytes:
    try:
        return index.picture(hit.name)
    except (OSError, ValueError):  # gone since it was embedded: the sheet says so
        return b""
