"""Runs of several recipes in which one trains the visual tokenizer that a later one predicts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.layers.vq.visual_tokenizer import VisualTokenizer
from dualfuse.recipe import Recipe
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
    used = [predicted[0] for other in later if (predicted := other.task.visual_tokenizer)]
    return recipe.task.trains_tokenizer and bool(used) and recipe.name not in used


def _resolve(recipe: Recipe, before: Sequence[Recipe], finals: Mapping[str, Path]) -> Recipe:
    predicted = recipe.task.visual_tokenizer
    if predicted is None or predicted[0] not in finals:
        return recipe
    name, codes, stride = predicted
    earlier = next((other for other in before if other.name == name), None)
    if earlier is None:
        raise DualfuseError(
            f"{recipe.name} has task.tokenizer {name!r}, a recipe that does not come before it; put it first"
        )
    model = model_outline(earlier).get_submodule("model")
    if not isinstance(model, VisualTokenizer):
        raise DualfuseError(
            f"{recipe.name} has task.tokenizer {name!r}, but that recipe trains a {type(model).__name__}, which is not "
            "a visual tokenizer"
        )
    if (model.codes, model.stride) != (codes, stride):
        raise DualfuseError(
            f"{name} trains {model.codes} codes with a stride of {model.stride} pixels, but {recipe.name} expects "
            f"{codes} with a stride of {stride}; give --{recipe.name}.task.codes {model.codes} "
            f"--{recipe.name}.task.stride {model.stride}, or change the tokenizer"
        )
    return replace(recipe, task=replace(recipe.task, tokenizer=str(finals[name].absolute())))
