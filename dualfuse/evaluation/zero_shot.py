"""A model that trained contrast, made to tell classes apart by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.progress import track
from dualfuse.tasks.finetune.zero_shot import PLAIN, ZeroShot, class_names, read_templates, zero_shot

AT_ONCE = 16  # names whose sentences are encoded between two looks at the progress bar


@dataclass(frozen=True)
class ZeroShotClasses:
    """What a command was told about names: see :func:`class_names` and :func:`read_templates`."""

    names: str = ""
    """Empty: the model is to do what it has trained."""
    templates: str = ""


NO_NAMES = ZeroShotClasses()


def with_zero_shot(model: LoadedModel, wish: ZeroShotClasses) -> LoadedModel:
    """Return the model as the wish has it; ``DualfuseError`` for templates without names."""
    if not wish.names:
        if wish.templates:
            raise DualfuseError(f"--templates {wish.templates} are sentences about names; give --zero-shot NAMES, too")
        return model
    return zero_shot_model(model, class_names(wish.names), read_templates(wish.templates))


def zero_shot_model(model: LoadedModel, names: Sequence[str], templates: Sequence[str] = PLAIN) -> LoadedModel:
    """Return the model with a task that answers with one of ``names``, to be judged or asked as any that answers.

    Each name is put in the place of the {} of every template. ``DualfuseError`` for a model that trained no contrast.
    """
    groups = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
    embeddings = [
        zero_shot(model.task, model.processor, group, templates)
        for group in track(groups, total=len(groups), what=f"{len(names):,} names")
    ]
    task = ZeroShot(model.task, torch.cat(embeddings), tuple(names)).eval()
    return replace(model, task=task)
