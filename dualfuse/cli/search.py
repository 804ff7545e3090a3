"""``dualfuse search``: prints the hits of one query or of many with their scores, and draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Flags, Force, Model, check_drawing, check_new
from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_IMAGE, read_bounded
from dualfuse.io import listing
from dualfuse.printable import brief, json_line, percent, printable

if TYPE_CHECKING:
    from dualfuse.search.index import Hit, Index
    from dualfuse.search.queries import Answer

EXAMPLES = """
dualfuse search runs/demo/starter/best runs/demo/images "flag of Jamaica"
dualfuse search runs/demo-scratch/pairs/final photos "a red bicycle" --rerank 16 --save-image hits.png
dualfuse search runs/demo/starter/best photos photos/cat.jpg --top 20
dualfuse search runs/demo/starter/best photos "a red bicycle" --min-probability 0.5
dualfuse search runs/demo/starter/best photos --queries queries.txt --json
dualfuse search runs/demo/starter/best photos "a red bicycle" --where "folder ^= 2024/ and not folder in (2024/drafts)"
dualfuse search runs/demo/starter/best photos "a red bicycle" --precision int8
"""
COLUMNS, CELL = 5, 224  # tiles per row, and pixels per tile
NOTHING = "no image is probable enough"
SHOWN = 5  # skipped images that are named; all are counted


@dataclass(frozen=True)
class Options:
    """Flags of ``dualfuse search``."""

    model: Model
    images: Annotated[Positional[str], arg(metavar="IMAGES")]
    """folder of images, or shards"""
    query: Annotated[Positional[str], arg(metavar="QUERY")] = ""
    """a text, or the path of an image"""
    queries: Annotated[Path | None, arg(metavar="FILE")] = None
    """search for many queries: a text file with one per line, or a csv, tsv, json, jsonl or parquet table with a column
    query, text or image, and maybe id"""
    top: int = 10
    """number of hits"""
    rerank: int | None = None
    """candidates that fusion re-ranks, for text queries; 0: none; by default as many as helped on the validation set of
    the model, if they did"""
    min_probability: float = 0.0
    """only hits with at least this probability, 0 to 1, of showing what the text describes; needs a calibrated model"""
    where: Annotated[str, arg(metavar="FILTER")] = ""
    """only images whose fields match, such as "folder ^= 2024/ and price < 20", or the same as JSON"""
    json: bool = False
    """print one JSON object per query, with its hits"""
    save_image: Annotated[Path | None, arg(metavar="FILE")] = None
    """draw the hits of one query, as .png or .jpg"""
    store: Annotated[str, arg(metavar="STORE")] = "exact"
    """where embeddings are kept: exact (files beside the images), pgvector (the database of DATABASE_URL, or of PGHOST
    and the other variables of libpq), postgresql://..., or MODULE:FUNCTION of a plug-in: a function that opens the
    store of a model, given its fingerprint"""
    precision: Literal["fp32", "fp16", "int8", "bits"] = "fp32"
    """what the exact store scans first; fp16 and int8 have the same hits as fp32, bits are approximate"""
    dimensions: int = 0
    """first dimensions that the exact store scans; 0: all; fewer are approximate, for embeddings trained for it"""
    force: Force = False


def run(options: Flags[Options]) -> int:
    """Search images by text or by image.

    The images are embedded once; the index is stored beside them and follows added, changed and removed images. A query
    that is the path of an existing file is that image. The exit status is 1 if none of many queries could be used.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.plugins import find
    from dualfuse.search.index import Index, check_probability, fingerprint
    from dualfuse.search.queries import Query, SearchOptions, answer, answers, interpret, read_queries
    from dualfuse.search.stores.filter_text import parse_text
    from dualfuse.search.stores.options import StoreOptions

    _check(options)
    where = parse_text(options.where) if options.where else None
    shipped = StoreOptions.of(options.store, options.precision, options.dimensions)
    many = tuple(read_queries(options.queries)) if options.queries else ()
    loaded = load(options.model, device=dist.device())
    if options.min_probability:
        check_probability(loaded, options.min_probability)
    store = shipped or find(options.store)(fingerprint(loaded))
    index = Index.build(loaded, options.images, store=store)
    echo("\n".join([*describe(index), *_announce(index, options)]), to_stderr=True)
    search = SearchOptions(options.top, options.rerank, where, options.min_probability)
    if options.queries:
        folder = options.queries.parent
        results = answers(index, many, search, folder)
        return 0 if sum([_show(each, options.json, f"query: {printable(each.query.text)}") for each in results]) else 1
    result = answer(index, Query(options.query), search)
    _show(result, options.json)
    if options.save_image:
        grid(index, result.hits, interpret(options.query), options.save_image)
        echo(f"wrote {options.save_image}", to_stderr=True)
    return 0


def _check(options: Options) -> None:
    """Raise ``DualfuseError`` for options that contradict each other, before the model is loaded."""
    from dualfuse.search.queries import interpret

    query = options.query
    if bool(query) == bool(options.queries):
        raise DualfuseError("give one query, or --queries FILE with many")
    if options.save_image and options.queries:
        raise DualfuseError("--save-image draws the hits of one query; leave out --queries or --save-image")
    if options.save_image:
        check_drawing(options.save_image, options.images)
        check_new(options.save_image, force=options.force)
    if query and isinstance(interpret(query), Path) and options.rerank:
        raise DualfuseError(f"--rerank is for text queries, but {query} is an image; leave out --rerank")


def _show(answer: Answer, as_json: bool, heading: str = "") -> bool:
    """Print an answer, and return whether the query could be used."""
    if as_json:
        echo(json_line(answer.record()))
    else:
        lines = [f"problem: {answer.problem}"] if answer.problem else table(answer.hits) or [NOTHING]
        echo("\n".join([heading, *lines, ""] if heading else lines))
    if answer.is_truncated:
        echo(f"the query {brief(answer.query.text)} is truncated to the model's text length", to_stderr=True)
    return not answer.problem


def _announce(index: Index, options: Options) -> list[str]:
    """Return lines on re-ranking by default, and on what a least probability keeps."""
    lines, task = list[str](), index.loaded.task
    count = index.default_rerank if options.rerank is None else options.rerank
    if options.rerank is None and count and task.reranking:
        lines.append(f"re-ranks {count} candidates: {task.reranking.text} (--rerank 0 turns it off)")
    if options.min_probability and task.calibration:
        fitted = (task.calibration.match if count else None) or task.calibration.cosine
        share = fitted.kept(fitted.hit.score(options.min_probability))
        lines.append(
            f"hits of at least {percent(options.min_probability)}: {percent(share)} of the {task.calibration.texts:,} "
            "right images of the calibration set reach that"
        )
    return lines


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
    elif not Path(location).is_absolute():
        lines.append(f"the index is {location}")
    elif not Path(location).is_relative_to(root):
        lines.append(f"{root} is not writable; the index is {location}")
    return lines


def table(hits: Sequence[Hit]) -> list[str]:
    """Return a heading and one line per hit, best first: rank, scores, name, fields."""
    if not hits:
        return []
    fused = any(hit.match is not None for hit in hits)
    probable = f"{'match':>5}  " if hits[0].probability is not None else ""
    scores = f"{'score':>8}  {'cosine':>7}  {'ITM':>8}" if fused else f"{'cosine':>7}"
    rows = [
        f"{rank:4}  {_probability(hit)}{_scores(hit) if fused else f'{hit.score:7.4f}'}  {_name(hit)}"
        for rank, hit in enumerate(hits, start=1)
    ]
    return [f"{'rank':>4}  {probable}{scores}  image", *rows]


def grid(index: Index, hits: Sequence[Hit], query: str | Path, path: Path) -> None:
    """Draw an image query, then the hits, best first, with rank, name and score, to ``path``."""
    from dualfuse.data.image.image_grid import Tile, image_grid, save_drawing

    tiles = [Tile(read_bounded(query, MAX_IMAGE), query.name, title="query")] if isinstance(query, Path) else []
    for rank, hit in enumerate(hits, start=1):
        parts = "" if hit.match is None else f", cosine {hit.cosine:.4f}, ITM {hit.match:.2f}"
        tiles.append(
            Tile(
                _image(index, hit),
                printable(hit.name),
                title=str(rank),
                note=f"{_probability(hit)}{hit.score:.4f}{parts}".lstrip(),
            )
        )
    save_drawing(image_grid(tiles, columns=COLUMNS, cell=CELL, heading=printable(str(query))), path)


def _name(hit: Hit) -> str:
    fields = (f"{printable(name)}={brief(str(value))}" for name, value in hit.fields.items())
    return "  ".join([printable(hit.name), *fields])


def _probability(hit: Hit) -> str:
    return "" if hit.probability is None else f"{percent(hit.probability):>5}  "


def _scores(hit: Hit) -> str:
    match = "-" if hit.match is None else f"{hit.match:.3f}"
    return f"{hit.score:8.3f}  {hit.cosine:7.4f}  {match:>8}"


def _image(index: Index, hit: Hit) -> bytes:
    try:
        return index.image(hit.name)
    except (OSError, ValueError):  # removed since it was embedded: its tile stays empty
        return b""
