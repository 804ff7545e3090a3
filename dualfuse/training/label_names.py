"""The names of the classes of a data set, which ``prepare`` writes beside the shards."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.prepare.sources.label_names import LABELS_FILE
from dualfuse.recipe import Recipe

logger = logging.getLogger(__name__)


def with_labels(recipe: Recipe) -> Recipe:
    """Return a recipe whose task has the classes of labels.txt beside its training data, unless it has its own.

    Raises ``DualfuseError`` if several sets have different classes.
    """
    sources = [Path(source).expanduser() for source in recipe.data.train]
    files = [(source if source.is_dir() else source.parent) / LABELS_FILE for source in sources]
    names = {read_vocabulary(file): file for file in files if file.is_file()}
    if not names or (task := recipe.task.with_labels(next(iter(names)))) is recipe.task:
        return recipe
    if len(names) > 1:
        listed = ", ".join(f"{file} ({len(labels)} names)" for labels, file in names.items())
        raise DualfuseError(f"the training sets have different classes: {listed}; give --task.labels FILE with all")
    (labels, file) = next(iter(names.items()))
    logger.info("%s: the %d classes of %s", recipe.name, len(labels), file)
    return replace(recipe, task=task)
