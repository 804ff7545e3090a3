"""``dualfuse embed``: a file of embeddings for any vector database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Flags, Model
from dualfuse.errors import DualfuseError
from dualfuse.printable import printable

EXAMPLES = """
dualfuse embed openai/clip-vit-base-patch32 photos --out embeddings.parquet
dualfuse embed runs/demo/starter/best products.csv --keep sku price --out embeddings.jsonl
dualfuse embed runs/demo/starter/best --texts queries.txt --out queries.npy
"""
SHOWN = 5  # skipped inputs that are named; all are counted


@dataclass(frozen=True)
class Options:
    """Flags of ``dualfuse embed``."""

    model: Model
    images: Annotated[Positional[str], arg(metavar="IMAGES")] = ""
    """folder of images, shards, or a csv, tsv, json, jsonl or parquet table with an image column"""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """file to write: .parquet or .jsonl with the columns name, those of --keep, and embedding; or .npy with the rest in
    FILE.names.jsonl"""
    texts: Annotated[Path | None, arg(metavar="FILE")] = None
    """embed the lines of this text file instead of images"""
    keep: Annotated[tuple[str, ...], arg(metavar="COLUMN ...")] = ()
    """columns of a table, such as id and sku, that are copied; those that prepare kept in shards are always copied"""
    image_folder: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """folder of the images of a table; default: the folder of the table"""
    batch_size: int = 64
    """images per forward pass"""


def run(options: Flags[Options]) -> None:
    """Write the embeddings of images or texts to a file.

    They have unit length, so their dot product is the cosine. Unusable images are skipped and listed in
    FILE.skipped.jsonl. An interrupted command resumes when it is given again.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.search.embeddings import check_out, image_entries, text_entries, write_embeddings

    if bool(options.images) == bool(options.texts):
        raise DualfuseError("give IMAGES, or --texts FILE")
    if options.out is None:
        raise DualfuseError("give the file to write: --out embeddings.parquet, .npy or .jsonl")
    if options.batch_size < 1:
        raise DualfuseError(f"--batch-size is {options.batch_size}; give 1 or more")
    check_out(options.out)
    opened = (
        text_entries(options.texts)
        if options.texts
        else image_entries(options.images, options.keep, options.image_folder)
    )
    entries, total = opened
    source = f"{Path(options.texts or options.images).expanduser().absolute()} {options.keep}"
    model = load(options.model, device=dist.device())
    result = write_embeddings(model, entries, options.out, total=total, source=source, batch_size=options.batch_size)
    lines = [f"{options.out}: {result.count:,} embeddings of width {result.width}"]
    lines += [f"  {result.resumed:,} of them from an interrupted run"] if result.resumed else []
    lines += [f"  {len(result.skipped):,} skipped, see {options.out}.skipped.jsonl"] if result.skipped else []
    lines += [f"    {printable(each.name)}: {printable(each.reason)}" for each in result.skipped[:SHOWN]]
    echo("\n".join(lines))
