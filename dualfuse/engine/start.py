"""What a run starts from: the weights of an earlier one, and which parameters are trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from dualfuse import hub
from dualfuse.engine.log import say
from dualfuse.tasks.base import Batch, Task

SHOWN = 8  # names of a list; their number is always told


def begin_with(task: Task, folder: Path) -> None:
    """Copies from a model folder every tensor that fits by name and shape, and says which did not."""
    given, wanted = hub.read_tensors(folder), task.state_dict()
    fits = {name: tensor for name, tensor in given.items() if name in wanted and wanted[name].shape == tensor.shape}
    if not fits:
        raise ValueError(
            f"nothing in {folder} fits this recipe's model: no name and shape agree; "
            f"there it is {_listed(given)}, here {_listed(wanted)}"
        )
    task.load_state_dict(fits, strict=False)
    say(f"starting from {folder}: {len(fits)} of {len(wanted)} tensors")
    for word, names in (("new", wanted.keys() - fits.keys()), ("unused", given.keys() - fits.keys())):
        if names:
            say(f"  {word}: {_listed(sorted(names))}")


def freeze(task: Task, train_only: Sequence[str]) -> None:
    """Freezes every parameter that no pattern matches; no pattern freezes nothing."""
    names = [name for name, _ in task.named_parameters()]
    for pattern in train_only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"pattern {pattern!r} of train_only matches no parameter; there are {_listed(names)}")
    for name, parameter in task.named_parameters():
        if train_only and not any(fnmatchcase(name, pattern) for pattern in train_only):
            parameter.requires_grad_(False)


def freeze_unreached(task: Task, batch: Batch) -> None:
    """Freezes every parameter that the loss of a batch does not depend on, and says which.

    They would not learn, but processes that train together would wait for their gradients for ever. Which ones they
    are follows from task, model and weights of the objectives (without matching nothing reads the pooler), and here
    nobody has to list them.
    """
    named = [(name, parameter) for name, parameter in task.named_parameters() if parameter.requires_grad]
    loss = task(batch).loss
    if not loss.requires_grad:
        raise ValueError("the loss depends on no trainable parameter; look at the recipe's train_only and task weights")
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    unreached = [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]
    for name in unreached:
        task.get_parameter(name).requires_grad_(False)
    if unreached:
        say(f"not trained, because the loss does not depend on them: {_listed(unreached)}")


def _listed(names: Collection[str]) -> str:
    first = ", ".join(list(names)[:SHOWN])
    return first + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
