"""``dualfuse doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Force, check_drawing, check_new

if TYPE_CHECKING:
    from rich.console import Console

    from dualfuse.doctor.findings import Report

EXAMPLES = """
dualfuse doctor data/photos
dualfuse doctor 'data/photos/train-*.tar' --text-length 77 --save-image reports/photos.jpg
"""
SHOWN = 3  # examples per finding; the json file has more


def run(
    path: Annotated[Positional[Path], arg(metavar="PATH", help="shards: a tar file, a folder of them, or a pattern")],
    text_length: Annotated[int, arg(help="maximum text length in tokens; longer texts are reported")] = 40,
    save_image: Annotated[
        Path | None,
        arg(metavar="FILE", help="draw a grid of samples, those with findings first, and write all findings beside it"),
    ] = None,
    force: Force = False,
) -> None:
    """Check a data set for defects.

    Finds unreadable, tiny, huge, animated and duplicate images, empty, over-long and duplicate texts, and images and
    texts that two splits share. With --save-image FILE.jpg the findings are also written to FILE.json.
    """
    from dualfuse.doctor.examine import examine
    from dualfuse.progress import PlainConsole

    if save_image:
        check_drawing(save_image, path)
        check_new(save_image, save_image.with_suffix(".json"), force=force)
    print_report(examine(path, text_length=text_length, save_image=save_image), PlainConsole())
    if save_image:
        echo(f"wrote {save_image} and {save_image.with_suffix('.json')}")


def print_report(report: Report, console: Console) -> None:
    """Print the splits, then each finding with a few examples and advice."""
    from rich.table import Table
    from rich.text import Text

    from dualfuse.doctor.findings import ADVICE

    splits = Table("split", "shards", "images", "texts", title=Text(report.path), title_justify="left")
    for name, counts in report.splits.items():
        splits.add_row(name, *(f"{counts[what]:,}" for what in ("shards", "images", "texts")))
    console.print(splits)
    if not report.findings:
        console.print("no findings")
        return
    table = Table("finding", "count", "advice")
    for finding in report.findings:
        table.add_row(finding.name, f"{finding.count:,}", ADVICE[finding.name])
    console.print(table)
    for finding in report.findings:
        lines = (f"{finding.name}, such as", *finding.examples[:SHOWN])
        console.print(Text("\n    ".join(lines)), soft_wrap=True)  # unbroken, so that keys can be copied
