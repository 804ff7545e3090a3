"""``dualfuse prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from dualfuse.prepare.options import PrepareOptions

EXAMPLES = """
dualfuse prepare photos data/photos --split val=0.05,test=0.05
dualfuse prepare captions.csv data/captions --image file --text caption title
dualfuse prepare flowers data/flowers --label folder
"""


def run(
    source: Annotated[
        Positional[Path],
        arg(
            metavar="SOURCE",
            help="folder of images with .txt files, csv, tsv, jsonl or parquet table, COCO or Karpathy json, tar "
            "files, or an official data set folder (VQAv2, Visual Genome, NLVR2, SNLI-VE)",
        ),
    ],
    out: Annotated[Positional[Path], arg(metavar="OUT", help="folder for the shards")],
    conversion: OmitArgPrefixes[PrepareOptions],
) -> None:
    """Convert images and texts to indexed tar shards.

    The format of SOURCE is recognized. Unusable items are skipped, counted and listed in OUT/skipped.jsonl. The command
    can be interrupted at any time; rerunning it resumes.
    """
    from dualfuse.prepare.pipeline import prepare
    from dualfuse.progress import PlainConsole

    PlainConsole().print(prepare(source, out, conversion))
