"""Longer texts than the initial weights were trained on: their tables of text positions are extended."""

from __future__ import annotations

import logging
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.io import listing
from dualfuse.recipe import Recipe
from dualfuse.training.weight_transfer import model_outline, resizable_owner

logger = logging.getLogger(__name__)

LENGTH = "text_length"


def text_length(model: Any) -> int | None:  # Any: a model config
    """Return the maximum text length of a model, in tokens; None if its config has no such field."""
    holder = _holder(model)
    return None if holder is None else getattr(holder[1], LENGTH)


def with_text_length(model: Any, length: int) -> Any:  # Any: a model config
    """Return the config of a model with another maximum text length; raises ``DualfuseError`` if it has none."""
    holder = _holder(model)
    if holder is None:
        raise DualfuseError(f"{type(model).__name__} has no field {LENGTH}, so its text positions cannot be extended")
    part, config = holder
    changed = replace(config, **{LENGTH: length})
    return replace(model, **{part: changed}) if part else changed


def with_long_texts(recipe: Recipe) -> Recipe:
    """Return the recipe with a model for texts of ``data.text_length``, if ``extend_text_positions`` is set."""
    length = text_length(recipe.model)
    if not recipe.extend_text_positions or length is None or length >= recipe.data.text_length:
        return recipe
    return replace(recipe, model=with_text_length(recipe.model, recipe.data.text_length))


def extend_positions(start: Recipe, tensors: dict[str, Tensor], recipe: Recipe) -> tuple[Recipe, dict[str, Tensor]]:
    """Return a start for texts of ``recipe``: its recipe with their length, and its tensors with more positions.

    The rows that exist are kept, so that texts of the old length have the same states. See
    :func:`~dualfuse.layers.resizing.extend_positions` and :func:`~dualfuse.layers.relative_bias.extend_texts` for the
    new rows. Nothing changes if the texts of ``recipe`` are not longer.
    """
    before, after = text_length(start.model), text_length(recipe.model)
    if before is None or after is None or after <= before:
        return start, tensors
    longer = replace(start, model=with_text_length(start.model, after))
    source, target = model_outline(start), model_outline(longer)
    extended = {name: _extended(source, target, name, tensor) for name, tensor in tensors.items()}
    changed = {name: tensor for name, tensor in extended.items() if tensor is not None}
    logger.info("text positions extended from %s to %s tokens: %s", before, after, listing(changed))
    return longer, tensors | changed


def _holder(model: Any) -> tuple[str, Any] | None:  # Any: configs
    """Return the config that has the field, the model's or one of its parts, and the name of the part ("": itself)."""
    if hasattr(model, LENGTH):
        return "", model
    parts = [(field.name, getattr(model, field.name)) for field in fields(model)]
    found = [(name, part) for name, part in parts if is_dataclass(part) and hasattr(part, LENGTH)]
    return found[0] if len(found) == 1 else None


def _extended(source: nn.Module, target: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
    before, after = resizable_owner(source, name), resizable_owner(target, name)
    if before is None or after is None:
        return None
    return after[0].extend_tensor(after[1], tensor, before[0])
