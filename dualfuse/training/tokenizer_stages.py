"""Runs of several recipes in which one trains the visual tokenizer that a later one predicts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.layers.vq.visual_tokenizer import VisualTokenizer
from dualfuse.recipe import Recipe
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig
from dualfuse.tasks.pretrain.vq_tokenizer import VQTokenizerConfig
from dualfuse.training.weight_transfer import model_outline

logger = logging.getLogger(__name__)


def with_tokenizers(recipes: Sequence[Recipe], finals: Mapping[str, Path]) -> tuple[Recipe, ...]:
    """Return the recipes to run, with the path from ``finals`` where a task names the recipe of its tokenizer.

    The recipe of a tokenizer is skipped if all later tasks were given another tokenizer. Raises ``DualfuseError`` if
    the named recipe does not come earlier, does not train a tokenizer, or has other codes than the task expects.
    """
    kept = tuple(recipe for number, recipe in enumerate(recipes) if not _is_unneeded(recipe, recipes[number + 1 :]))
    for recipe in recipes:
        if recipe not in kept:
            logger.info("%s: skipped, because another tokenizer was given", recipe.name)
    return tuple(_resolve(recipe, kept[:number], finals) for number, recipe in enumerate(kept))


def _is_unneeded(recipe: Recipe, later: Sequence[Recipe]) -> bool:
    used = [other.task.tokenizer for other in later if isinstance(other.task, MaskedImageConfig)]
    return isinstance(recipe.task, VQTokenizerConfig) and bool(used) and recipe.name not in used


def _resolve(recipe: Recipe, before: Sequence[Recipe], finals: Mapping[str, Path]) -> Recipe:
    task = recipe.task
    if not isinstance(task, MaskedImageConfig) or task.tokenizer not in finals:
        return recipe
    earlier = next((other for other in before if other.name == task.tokenizer), None)
    if earlier is None:
        raise DualfuseError(
            f"{recipe.name} has task.tokenizer {task.tokenizer!r}, a recipe that does not come before it; put it first"
        )
    _compare(recipe.name, task, earlier)
    return replace(recipe, task=replace(task, tokenizer=str(finals[earlier.name].absolute())))


def _compare(name: str, task: MaskedImageConfig, earlier: Recipe) -> None:
    model = model_outline(earlier).get_submodule("model")
    if not isinstance(model, VisualTokenizer):
        raise DualfuseError(
            f"{name} has task.tokenizer {earlier.name!r}, but that recipe trains a {type(model).__name__}, which "
            "is not a visual tokenizer"
        )
    if (model.codes, model.stride) != (task.codes, task.stride):
        raise DualfuseError(
            f"{earlier.name} trains {model.codes} codes with a stride of {model.stride} pixels, but {name} expects "
            f"{task.codes} with a stride of {task.stride}; give --{name}.task.codes {model.codes} --{name}.task.stride "
            f"{model.stride}, or change the tokenizer"
        )
