"""Transfer the weights of one task to another, whose model may have another image size and shorter texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.blocks import Block
from dualfuse.layers.resizing import Resizable
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Task

Shape = tuple[int, ...]
VL = "vl"
EXPERTS = {"language": "text", "vision": "image"}


@dataclass(frozen=True)
class Resized:
    """A tensor whose shape changed, and by which rule."""

    before: Shape
    after: Shape
    rule: str


@dataclass(frozen=True)
class TransferredWeights:
    """The tensors that a task takes from a checkpoint, and what became of every tensor of both."""

    tensors: dict[str, Tensor]
    copied: dict[str, Shape] = field(default_factory=dict[str, Shape])
    resized: dict[str, Resized] = field(default_factory=dict[str, Resized])
    experts: dict[str, str] = field(default_factory=dict[str, str])
    """Tensors of vision-language experts that the checkpoint lacks, and the tensors that they are copies of."""
    copies: dict[str, str] = field(default_factory=dict[str, str])
    """Tensors of heads that the checkpoint lacks, and the tensors that they are copies of."""
    new: dict[str, Shape] = field(default_factory=dict[str, Shape])
    """Tensors of the task that keep their initial values."""
    unused: dict[str, Shape] = field(default_factory=dict[str, Shape])
    """Tensors of the checkpoint that the task does not take."""


def transfer_weights(
    stored: Mapping[str, Tensor],
    start: Recipe,
    task: nn.Module,
    *,
    vl_expert_init: Literal["random", "language", "vision"],
) -> TransferredWeights:
    """Return what ``task`` takes from the tensors ``stored`` by a task of the recipe ``start``; ``task`` is unchanged.

    Tensors that agree in name and shape are copied. Position embeddings of images are resized to the grid of the task:
    absolute ones bicubically, without that of the class token; relative ones as BEiT does. Position embeddings of texts
    are truncated. Raises ``DualfuseError`` if the task has longer texts than the checkpoint, or if ``vl_expert_init``
    asks for copies of experts that do not exist.
    """
    source, targets, has_text = model_outline(start), task.state_dict(), has_text_embedding(stored, start, task)
    untrained = () if has_text else _text_prefixes(task)
    result = TransferredWeights({})
    for name, target in targets.items():
        if name not in stored or name.startswith(untrained):
            continue
        tensor, before, after = stored[name], tuple(stored[name].shape), tuple(target.shape)
        resized = _resize(name, tensor, source, task, has_text=has_text)
        if resized is not None and tuple(resized[0].shape) == after:
            result.tensors[name] = resized[0]
            result.resized[name] = Resized(before, after, resized[1])
        elif before == after:
            result.tensors[name] = tensor
            result.copied[name] = after
    if vl_expert_init != "random":
        result.experts.update(_expert_sources(task, result.tensors, EXPERTS[vl_expert_init]))
        result.tensors.update({name: result.tensors[other] for name, other in result.experts.items()})
    if isinstance(task, Task):
        missing = {name: other for name, other in task.initial_copies.items() if name not in result.tensors}
        result.copies.update({name: other for name, other in missing.items() if other in result.tensors})
        result.tensors.update({name: result.tensors[other] for name, other in result.copies.items()})
    result.new.update(_shapes(targets, without=result.tensors))
    result.unused.update(_shapes(stored, without={**result.copied, **result.resized}))
    return result


def model_outline(recipe: Recipe) -> nn.Module:
    """Return a module whose ``model`` is the model of a recipe on the meta device: shapes without values."""
    with torch.device("meta"):
        return nn.ModuleDict({"model": recipe.model.build()})


def has_text_embedding(stored: Mapping[str, Tensor], start: Recipe, task: nn.Module) -> bool:
    """Return whether a checkpoint has a trained text embedding; that of a model of images alone is untrained."""
    return start.task.reads_text and any(f"{name}word.weight" in stored for name in _text_prefixes(task))


def _text_prefixes(task: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the parameter names of text embeddings."""
    modules = task.named_modules()
    return tuple(f"{name}." for name, module in modules if isinstance(module, Resizable) and module.embeds_text)


def _resize(
    name: str, tensor: Tensor, source: nn.Module, task: nn.Module, *, has_text: bool
) -> tuple[Tensor, str] | None:
    """Return a tensor resized for ``task`` and the rule; None if it needs no resizing, or has no rule."""
    before, after = resizable_owner(source, name), resizable_owner(task, name)
    if before is None or after is None or type(before[0]).resize_tensor is not type(after[0]).resize_tensor:
        return None
    return after[0].resize_tensor(after[1], tensor, before[0], has_text=has_text)


def resizable_owner(task: nn.Module, name: str) -> tuple[Resizable, str] | None:
    """Return the module that can resize a tensor, its own or the one around it, and the name of the tensor there."""
    parts = name.split(".")
    for end in (len(parts) - 1, len(parts) - 2):
        try:
            module = task.get_submodule(".".join(parts[:end]))
        except AttributeError:
            continue
        if isinstance(module, Resizable):
            return module, ".".join(parts[end:])
    return None


def _expert_sources(task: nn.Module, available: Mapping[str, Tensor], expert: str) -> dict[str, str]:
    """Return the missing tensors of vision-language experts, each with the name of the tensor to copy."""
    sources = {
        f"{name}.experts.{VL}.{part}": f"{name}.experts.{expert}.{part}"
        for name, block in task.named_modules()
        if isinstance(block, Block) and VL in block.experts
        for part, _ in block.experts[VL].named_parameters()
    }
    missing = {name: other for name, other in sources.items() if name not in available}
    lacking = [other for other in missing.values() if other not in available]
    if not sources or lacking:
        reason = f"the start has no {lacking[0]}" if sources else "this recipe's model has no vision-language experts"
        raise DualfuseError(f"vl_expert_init asks for copies of the {expert} experts, but {reason}; set it to random")
    return missing


def _shapes(tensors: Mapping[str, Tensor], *, without: Mapping[str, object]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in sorted(tensors.items()) if name not in without}
