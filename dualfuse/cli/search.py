"""``dualfuse search``: prints the hits of one query with their scores, and draws them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import printable
from dualfuse.cli.parser import Model
from dualfuse.errors import DualfuseError
from dualfuse.io import MAX_IMAGE, listing, read_bounded

if TYPE_CHECKING:
    from dualfuse.search.index import Hit, Index

EXAMPLES = """
dualfuse search runs/demo/pairs/final runs/demo/images "flag of Jamaica"
dualfuse search runs/demo/pairs/final photos "a red bicycle" --rerank 16 --save-image hits.png
dualfuse search runs/demo/pairs/final photos photos/cat.jpg --top 20
"""
COLUMNS, CELL = 5, 224  # tiles per row, and pixels per tile
SHOWN = 5  # skipped images that are named; all are counted


def run(
    model: Model,
    images: Annotated[Positional[str], arg(metavar="IMAGES", help="folder of images, or shards")],
    query: Annotated[Positional[str], arg(metavar="QUERY", help="a text, or the path of an image")],
    top: Annotated[int, arg(help="number of hits")] = 10,
    rerank: Annotated[int, arg(help="candidates that fusion re-ranks, for text queries; 0: none")] = 0,
    save_image: Annotated[Path | None, arg(metavar="FILE", help="draw the hits, as .png or .jpg")] = None,
    store: Annotated[
        str,
        arg(
            metavar="MODULE:FUNCTION",
            help="vector store of a plug-in: a function that opens the store of a model, given its fingerprint; empty: "
            "a file beside the images",
        ),
    ] = "",
) -> None:
    """Search images by text or by image.

    The images are embedded once; the index is stored beside them and follows added, changed and removed images.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.plugins import find
    from dualfuse.search.index import Index, fingerprint

    question = _question(query)
    if save_image and save_image.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DualfuseError(f"--save-image {save_image}: the file name must end in .png or .jpg")
    if rerank and isinstance(question, Path):
        raise DualfuseError(f"--rerank is for text queries, but {query} is an image; leave out --rerank")
    loaded = load(model, device=dist.device())
    index = Index.build(loaded, images, store=find(store)(fingerprint(loaded)) if store else None)
    echo("\n".join(describe(index)), file=sys.stderr)
    if isinstance(question, str) and loaded.processor.text.encode(question).truncated:
        print(f"the query is truncated to {loaded.processor.text.length} tokens", file=sys.stderr)
    hits = index.search(question, top=top, rerank=rerank)
    print("\n".join(table(hits)))
    if save_image:
        grid(index, hits, question, save_image)
        print(f"wrote {save_image}", file=sys.stderr)


def describe(index: Index) -> list[str]:
    """Return lines on the size of the index, on skipped images with their reasons, and on where it is stored."""
    lines = [f"{len(index)} images: {index.embedded} embedded now, {len(index) - index.embedded} from the index"]
    if index.skipped:
        lines.append(f"{len(index.skipped)} unreadable images skipped:")
        skipped = (f"{printable(each.name)}: {printable(each.reason)}" for each in index.skipped)
        lines.append("  " + listing(skipped, SHOWN, "\n  "))
    location, root = index.store.location, index.collection.root
    if not location:
        lines.append("the index could not be saved, neither beside the images nor in your cache folder")
    elif not Path(location).is_relative_to(root):
        lines.append(f"{root} is not writable; the index is {location}")
    return lines


def table(hits: Sequence[Hit]) -> list[str]:
    """Return a heading and one line per hit, best first: rank, scores, name."""
    if all(hit.match is None for hit in hits):
        rows = [f"{rank:4}  {hit.score:7.4f}  {printable(hit.name)}" for rank, hit in enumerate(hits, start=1)]
        return [f"{'rank':>4}  {'cosine':>7}  image", *rows]
    rows = [f"{rank:4}  {_scores(hit)}  {printable(hit.name)}" for rank, hit in enumerate(hits, start=1)]
    return [f"{'rank':>4}  {'score':>8}  {'cosine':>7}  {'ITM':>8}  image", *rows]


def grid(index: Index, hits: Sequence[Hit], query: str | Path, path: Path) -> None:
    """Draw an image query, then the hits, best first, with rank, name and score, to ``path``."""
    from dualfuse.data.image.image_grid import Tile, image_grid

    tiles = [Tile(read_bounded(query, MAX_IMAGE), query.name, title="query")] if isinstance(query, Path) else []
    for rank, hit in enumerate(hits, start=1):
        parts = "" if hit.match is None else f", cosine {hit.cosine:.4f}, ITM {hit.match:.2f}"
        tiles.append(Tile(_image(index, hit), printable(hit.name), title=str(rank), note=f"{hit.score:.4f}{parts}"))
    drawn = image_grid(tiles, columns=COLUMNS, cell=CELL, heading=printable(str(query)))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path)


def _question(query: str) -> str | Path:
    """Return a query that has the file name of an image as a path; ``DualfuseError`` if the file is missing."""
    from dualfuse.prepare.sources.pairs.folder import is_image_name

    path = Path(query)
    if not is_image_name(path.name):
        return query
    if not path.is_file():
        raise DualfuseError(f"{query} does not exist; a query with the ending of an image file is taken for its path")
    return path


def _scores(hit: Hit) -> str:
    match = "-" if hit.match is None else f"{hit.match:.3f}"
    return f"{hit.score:8.3f}  {hit.cosine:7.4f}  {match:>8}"


def _image(index: Index, hit: Hit) -> bytes:
    try:
        return index.image(hit.name)
    except (OSError, ValueError):  # removed since it was embedded: its tile stays empty
        return b""
