"""A checkpoint under our names, and the task that is built of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from dualfuse.convert.rename import Sorted
from dualfuse.convert.report import Report, shapes
from dualfuse.convert.tokenizer import check_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Task

HEADS = ("itc_heads.0.", "itc_heads.1.", "itm_head.", "mlm_head.", "classifier.")
"""Prefixes of our tensors that a file may lack altogether."""


@dataclass(frozen=True)
class ThirdPartyCheckpoint:
    """A checkpoint under our names, before a task is built of it."""

    recipe: Recipe
    tensors: dict[str, Tensor]
    kept: dict[str, Tensor]
    """Tensors without effect that only the way back needs."""
    report: Report
    may_be_new: tuple[str, ...] = ()
    """Patterns of our names that this kind of file need not hold, heads aside."""


@dataclass(frozen=True)
class Converted:
    """A task with the weights of a checkpoint, and what became of each of them."""

    task: Task
    recipe: Recipe
    kept: dict[str, Tensor]
    report: Report


def build(foreign: ThirdPartyCheckpoint) -> Converted:
    """Build the task and gives it the weights; heads that the file lacks are new, and the same every time.

    Raises ``DualfuseError`` if tensors are missing or of other shapes.
    """
    recipe = foreign.recipe
    outline = recipe.build_on_meta()  # a config.json may ask for more memory than there is
    check_tokenizer(recipe.data.text_transform, outline.model.vocab_size)
    wanted, given = outline.state_dict(), foreign.tensors
    new = [name for name in wanted if name not in given]
    missing = [name for name in new if not name.startswith(_may_lack(given)) and not _fits(name, foreign.may_be_new)]
    if missing:
        raise DualfuseError(
            f"{foreign.report.source} lacks {len(missing)} tensors of the model, such as {', '.join(missing[:4])} "
            "(names of dualfuse): the file is not complete, or does not belong to its config.json"
        )
    left = {name: tensor for name, tensor in given.items() if name not in wanted}
    used = {name: tensor for name, tensor in given.items() if name in wanted}
    try:
        outline.load_state_dict(used, strict=False, assign=True)
    except RuntimeError as error:
        raise DualfuseError(
            f"the tensors of {foreign.report.source} do not have the shapes of its model: {error}"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        task = recipe.build()
    task.load_state_dict(used, strict=False)
    report = replace(foreign.report, new=shapes({name: wanted[name] for name in new}))
    report = replace(report, unexpected={**report.unexpected, **shapes(left)}, notes=(*report.notes, *_types(given)))
    return Converted(task.eval(), recipe, foreign.kept, report)


def report_of(source: str, found: Sorted, notes: list[str]) -> Report:
    """Return what is known of a file before a task is built."""
    return Report(source, shapes(found.used), shapes(found.unused), shapes(found.unexpected), notes=tuple(notes))


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _may_lack(given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the prefixes of heads that a file does not have; a temperature alone, as official ones do, is no head."""
    weights = [name for name in given if name.endswith(".weight")]
    return tuple(head for head in HEADS if not any(name.startswith(head) for name in weights))


def _types(tensors: Mapping[str, Tensor]) -> list[str]:
    others = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"})
    return [f"{' and '.join(others)} became float32"] if others else []
