"""Zero-shot classification by a model that was trained with ITC: from names on the command line to a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.prepare.sources.label_names import LABELS_FILE
from dualfuse.tasks.finetune.zero_shot import CLIP, PLAIN, ZeroShot, class_embeddings


def with_zero_shot(model: LoadedModel, names: str = "", templates: str = "") -> LoadedModel:
    """Return the model as :func:`zero_shot_model` does, or unchanged without ``names``.

    ``names`` is read by :func:`class_names`, ``templates`` by :func:`read_templates`. Raises DualfuseError for
    templates without names.
    """
    if names:
        return zero_shot_model(model, class_names(names), read_templates(templates))
    if templates:
        raise DualfuseError(f"--templates {templates} needs the names of the classes: give --zero-shot NAMES, too")
    return model


def zero_shot_model(model: LoadedModel, names: Sequence[str], templates: Sequence[str] = PLAIN) -> LoadedModel:
    """Return the model with a task that answers with one of ``names``; DualfuseError if ITC was not trained.

    Each name replaces the {} of every template.
    """
    embeddings = class_embeddings(model.task, model.processor, names, templates)
    return replace(model, task=ZeroShot(model.task, embeddings, tuple(names)).eval())


def class_names(names: str) -> tuple[str, ...]:
    """Return class names: the lines of a file, of the labels.txt of a folder, or a list such as "cat, red fox".

    Raises DualfuseError for fewer than two names, and for duplicates.
    """
    path = Path(names).expanduser()
    path = path / LABELS_FILE if path.is_dir() else path
    if not path.is_file() and ("," not in names or path.name == LABELS_FILE):
        raise DualfuseError(
            f"{names!r} names no classes: give a file with one name per line, the folder that prepare wrote its "
            f'{LABELS_FILE} into, or a list such as "cat, dog, red fox"'
        )
    parsed = read_vocabulary(path) if path.is_file() else tuple(filter(None, map(str.strip, names.split(","))))
    if len(set(parsed)) < max(2, len(parsed)):
        raise DualfuseError(f"{names} has {len(parsed)} names, {len(set(parsed))} of them different; give two or more")
    return parsed


def read_templates(templates: str) -> tuple[str, ...]:
    """Return the lines of a file; CLIP's templates for "clip", the plain one for an empty string."""
    if templates in ("", "clip"):
        return CLIP if templates else PLAIN
    if not Path(templates).expanduser().is_file():
        raise DualfuseError(
            f'there is no file {templates}; give one with sentences such as "a photo of a {{}}.", or clip'
        )
    return read_vocabulary(Path(templates).expanduser())
