"""A model that learnt contrast, made to tell classes apart by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dualfuse.engine.progress import following
from dualfuse.hub import Loaded
from dualfuse.tasks.zero_shot import PLAIN, ZeroShot, class_names, read_templates, zero_shot

AT_ONCE = 16  # names whose sentences are encoded between two looks at the progress bar


@dataclass(frozen=True)
class ByName:
    """What a command was told about names: see :func:`class_names` and :func:`read_templates`."""

    names: str = ""
    """Empty: the model is to do what it has learnt."""
    templates: str = ""


NO_NAMES = ByName()


def named(model: Loaded, wish: ByName) -> Loaded:
    """Gives the model as the wish has it; ``ValueError`` for templates without names."""
    if not wish.names:
        if wish.templates:
            raise ValueError(f"--templates {wish.templates} are sentences about names; give --zero-shot NAMES, too")
        return model
    return name_classes(model, class_names(wish.names), read_templates(wish.templates))


def name_classes(model: Loaded, names: Sequence[str], templates: Sequence[str] = PLAIN) -> Loaded:
    """Gives the model with a task that answers with one of ``names``, to be judged or asked as any that answers.

    Each name is put in the place of the {} of every template. ``ValueError`` for a model that learnt no contrast.
    """
    groups = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
    vectors = [
        zero_shot(model.task, model.prep, group, templates)
        for group in following(groups, total=len(groups), what=f"{len(names):,} names")
    ]
    task = ZeroShot(model.task, torch.cat(vectors), tuple(names)).eval()
    return replace(model, task=task)
