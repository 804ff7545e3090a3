"""The parameters that a run trains: those that ``train_only`` names, without those that no batch can reach."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from dualfuse import distributed as dist
from dualfuse.errors import DualfuseError
from dualfuse.io import listing, write_text
from dualfuse.tasks.base import Batch, Task

logger = logging.getLogger(__name__)

FROZEN = "frozen.txt"


def freeze(task: Task, train_only: Sequence[str]) -> None:
    """Freeze every parameter that no pattern matches; without patterns, nothing is frozen."""
    names = [name for name, _ in task.named_parameters()]
    for pattern in train_only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DualfuseError(
                f"pattern {pattern!r} of train_only matches no parameter; the parameters are {listing(names)}"
            )
    for name, parameter in task.named_parameters():
        if train_only and not any(fnmatchcase(name, pattern) for pattern in train_only):
            parameter.requires_grad_(False)


def has_fixed_graph(task: nn.Module) -> bool:
    """Return whether the loss of every batch depends on the same parameters.

    That holds if all modules are of dualfuse and torch: there the recipe alone decides which parameters are used.
    A third-party module may decide by the batch, such as one with a head per data set, unless its own class declares
    ``fixed_graph = True``; subclasses do not inherit the declaration.
    """
    return all(vars(type(module)).get("fixed_graph", _is_own(type(module))) for module in task.modules())


def _is_own(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("dualfuse", "torch")


def freeze_unused(task: Task, batch: Batch) -> None:
    """Freeze the parameters that the loss of ``batch`` does not depend on in any process, for a task of fixed graph.

    They would never change, but distributed training would wait for their gradients forever. Without ITM, for example,
    the pooler is unused. The loss is computed by a copy of the task that shares only its parameters, so buffers,
    attributes and random states stay as they are.
    """
    named = [(name, parameter) for name, parameter in task.named_parameters() if parameter.requires_grad]
    copy = deepcopy(task, {id(parameter): parameter for parameter in task.parameters()})
    with torch.random.fork_rng(devices=[task.device] if task.device.type == "cuda" else []):
        loss = copy(batch).loss
    check_depends(loss)
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    used = torch.tensor([gradient is not None for gradient in gradients], dtype=torch.float32)
    unused = [item for item, share in zip(named, dist.all_reduce_mean(used).tolist(), strict=True) if not share]
    for _, parameter in unused:
        parameter.requires_grad_(False)
    if unused:
        logger.info("frozen, because the loss does not depend on them: %s", listing([name for name, _ in unused]))


def check_depends(loss: torch.Tensor) -> None:
    """Raise ``DualfuseError`` if no gradient can be computed for a loss."""
    if not loss.requires_grad:
        raise DualfuseError(
            "the loss depends on no trainable parameter; check train_only and the loss weights of the recipe"
        )


def report_trainable(task: nn.Module, out: Path) -> None:
    """Log the numbers of trained and frozen parameters, and list the frozen ones in ``out``/frozen.txt."""
    counts, names = {True: 0, False: 0}, list[str]()
    for name, parameter in task.named_parameters():
        counts[parameter.requires_grad] += parameter.numel()
        if not parameter.requires_grad:
            names.append(name)
    logger.info(
        "%s parameters are trained, %s are frozen (%s)", f"{counts[True]:,}", f"{counts[False]:,}", out / FROZEN
    )
    if dist.rank() == 0:
        write_text(out / FROZEN, "".join(f"{name}\n" for name in names))
