"""The contract test of a checkpoint format."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dualfuse.convert.checkpoint import Converted, Format, Source
from dualfuse.convert.convert import save_checkpoint
from dualfuse.convert.report import Report
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe


def check_format(checkpoint_format: Format, recipe: Recipe, folder: Path, tokenizer: str = "") -> None:
    """Check that a format keeps the contract of :class:`~dualfuse.convert.checkpoint.Format` for the task of a recipe.

    The task is written to ``folder`` and read back, with ``tokenizer`` if the format stores none. Raises
    ``AssertionError`` that names the broken part of the contract.
    """
    task = recipe.build().eval()
    converted, tensors = Converted(task, recipe, {}, Report(recipe.name, {})), task.state_dict()
    _require(checkpoint_format.stores(recipe), "stores() accepts the recipe")
    written = checkpoint_format.write(converted)
    used, dropped = written.report.used.keys(), written.report.dropped.keys()
    _require(used | dropped == tensors.keys() and not used & dropped, "every tensor of the task is used or dropped")
    save_checkpoint(written, recipe, folder)
    source = Source(folder if written.json_files else folder / written.file)
    _require(checkpoint_format.recognize(source), "recognize() accepts what write() made")
    read = checkpoint_format.read(source, tokenizer)
    _require(not read.report.unexpected, "read() names every tensor that write() made")
    _require(type(read.recipe.task) is type(recipe.task), "read() gives the task that was written")
    _require(used <= read.tensors.keys(), "read() gives every tensor that write() used")
    for name in used:
        # the first axis may differ: BEiT's table has no rows for text
        _require(read.tensors[name].shape[1:] == tensors[name].shape[1:], f"{name} keeps the shape of its rows")
    task.register_parameter("extra", nn.Parameter(torch.zeros(3)))
    try:
        extended = checkpoint_format.write(converted)
    except DualfuseError as error:
        _require("extra" in str(error), "the error names the tensor that the format has no name for")
    else:
        stored = "extra" in extended.report.used and len(extended.tensors) > len(written.tensors)
        _require(stored, "write() refuses a tensor that the format has no name for")


def _require(holds: bool, contract: str) -> None:
    if not holds:
        raise AssertionError(f"the contract of Format is broken: {contract}")
