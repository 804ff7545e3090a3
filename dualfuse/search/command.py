"""Answers one query for a person: prints what was found, with scores, and draws it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dualfuse import distributed as dist
from dualfuse.convert.load import load
from dualfuse.data.image.image_grid import Tile, image_grid
from dualfuse.errors import DualfuseError
from dualfuse.io import listing
from dualfuse.prepare.sources.pairs.folder import is_image_name
from dualfuse.search.index import Hit, Index

COLUMNS, CELL = 5, 224
SHOWN = 5  # images that could not be read; their number is always told


def search_command(
    model: Path | str, images: str, query: str, *, top: int = 10, rerank: int = 0, save_image: Path | None = None
) -> tuple[Hit, ...]:
    """Search ``images`` with a ``model`` that :func:`load` knows, prints the hits and draws them on ``save_image``.

    ``query`` is a text, or the path of an image. See :meth:`Index.build` for what ``images`` may be, and
    :meth:`Index.search` for ``top`` and ``rerank``. The device is the GPU if there is one.
    """
    question = _question(query)
    if save_image and save_image.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DualfuseError(f"the sheet {save_image} must be called .png or .jpg")
    if rerank and isinstance(question, Path):
        raise DualfuseError(f"{query} is an image, and only a text can be matched with images; leave out rerank")
    loaded = load(model, device=dist.device())
    index = Index.build(loaded, images)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    for line in describe(index):
        console.print(line)
    if isinstance(question, str) and loaded.processor.text.encode(question).truncated:
        console.print(
            f"the query is longer than the {loaded.processor.text.length} tokens of this model; its end is cut"
        )
    hits = index.search(question, top=top, rerank=rerank)
    print("\n".join(table(hits)))
    if save_image:
        grid(index, hits, question, save_image)
        console.print(f"the images are on {save_image}")
    return hits


def describe(index: Index) -> list[str]:
    """Return lines that say what the index holds, what it leaves out and why, and where it is kept."""
    kept = len(index) - index.embedded
    lines = [f"{len(index)} images: {index.embedded} embedded now, {kept} from the index"]
    if index.skipped:
        lines.append(f"left out, because they cannot be read: {len(index.skipped)}")
        skipped = (f"{printable(each.name)}: {printable(each.reason)}" for each in index.skipped)
        lines.append("  " + listing(skipped, SHOWN, "\n  "))
    location, root = index.store.location, index.collection.root
    if not location:
        lines.append("the index could not be saved, neither beside the images nor in your cache folder")
    elif not Path(location).is_relative_to(root):
        lines.append(f"{root} is not writable; the index is {location}")
    return lines


def table(hits: Sequence[Hit]) -> list[str]:
    """Return one line for each hit, best first, and one above them: rank, scores, name."""
    if all(hit.match is None for hit in hits):
        rows = [f"{rank:4}  {hit.score:7.4f}  {printable(hit.name)}" for rank, hit in enumerate(hits, start=1)]
        return [f"{'rank':>4}  {'cosine':>7}  image", *rows]
    rows = [f"{rank:4}  {_scores(hit)}  {printable(hit.name)}" for rank, hit in enumerate(hits, start=1)]
    return [f"{'rank':>4}  {'score':>8}  {'cosine':>7}  {'match':>8}  image", *rows]


def grid(index: Index, hits: Sequence[Hit], query: str | Path, path: Path) -> Path:
    """Draw the hits, best first, with rank, name and score, and writes them as one image (.png or .jpg).

    If the query is an image, it comes first.
    """
    tiles = [Tile(query.read_bytes(), query.name, title="query")] if isinstance(query, Path) else []
    for rank, hit in enumerate(hits, start=1):
        odds = "" if hit.match is None else f", cosine {hit.cosine:.4f}, match {hit.match:.2f}"
        tiles.append(Tile(_image(index, hit), printable(hit.name), title=str(rank), note=f"{hit.score:.4f}{odds}"))
    drawn = image_grid(tiles, columns=COLUMNS, cell=CELL, heading=printable(str(query)))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path)
    return path


def printable(name: str) -> str:
    """Return a name of any file in a form that a terminal or a font can show."""
    name = name.encode(errors="backslashreplace").decode()  # bytes that are no UTF-8
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _question(query: str) -> str | Path:
    """Return the path of an image from a text."""
    path = Path(query)
    if not is_image_name(path.name):
        return query
    if not path.is_file():
        raise DualfuseError(f"{query} is not there; a query that ends as image files do is taken for the path of one")
    return path


def _scores(hit: Hit) -> str:
    odds = "-" if hit.match is None else f"{hit.match:.3f}"
    return f"{hit.score:8.3f}  {hit.cosine:7.4f}  {odds:>8}"


def _image(index: Index, hit: Hit) -> bytes:
    try:
        return index.image(hit.name)
    except (OSError, ValueError):  # gone since it was embedded: the sheet says so
        return b""
