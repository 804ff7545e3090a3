"""Transfer the weights of one task to another, whose model may have another image size and shorter texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.blocks import Block
from dualfuse.layers.embeddings import PatchEmbedding, TextEmbedding, resize_positions
from dualfuse.layers.relative_bias import RelativeBias, cut_texts, num_image_rows, resize_table
from dualfuse.models.bridgetower import BridgeTower
from dualfuse.models.towers.clip_vit import CLIPViT
from dualfuse.models.towers.roberta import RobertaEmbeddings
from dualfuse.models.vlmo import VLMo
from dualfuse.recipe import Recipe

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
    source, targets = model_outline(start), task.state_dict()
    untrained = () if has_text_embedding(stored, start, task) else _text_prefixes(task)
    result = TransferredWeights({})
    for name, target in targets.items():
        if name not in stored or name.startswith(untrained):
            continue
        tensor, before, after = stored[name], tuple(stored[name].shape), tuple(target.shape)
        resized = _resize_image_part(name, tensor, source, task) if untrained else _resize(name, tensor, source, task)
        if resized is not None and tuple(resized[0].shape) == after:
            result.tensors[name] = resized[0]
            result.resized[name] = Resized(before, after, resized[1])
        elif before == after:
            result.tensors[name] = tensor
            result.copied[name] = after
    if vl_expert_init != "random":
        result.experts.update(_expert_sources(task, result.tensors, EXPERTS[vl_expert_init]))
        result.tensors.update({name: result.tensors[other] for name, other in result.experts.items()})
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
    return tuple(
        f"{name}." for name, module in task.named_modules() if isinstance(module, TextEmbedding | RobertaEmbeddings)
    )


def _resize_image_part(name: str, tensor: Tensor, source: nn.Module, task: nn.Module) -> tuple[Tensor, str] | None:
    """As :func:`_resize` for a start without texts: a relative bias table keeps its own rows for texts."""
    before, after = _owner(source, name), _owner(task, name)
    if not (isinstance(before, RelativeBias) and isinstance(after, RelativeBias)):
        return _resize(name, tensor, source, task)
    images = resize_table(tensor[: num_image_rows(before.window)].float(), before.window, after.window)
    if images.shape[1] != after.table.shape[1]:
        return None
    table = torch.cat([images.to(tensor), after.table.detach()[len(images) :].to(tensor)])
    return table, f"patches {_times(before.window)} to {_times(after.window)}, texts keep their initial values"


def _resize(name: str, tensor: Tensor, source: nn.Module, task: nn.Module) -> tuple[Tensor, str] | None:
    """Return a tensor resized for ``task`` and the rule; None if it needs no resizing, or has no rule."""
    before, after = _owner(source, name), _owner(task, name)
    if isinstance(before, RelativeBias) and isinstance(after, RelativeBias):
        return _resize_relative(tensor, before, after)
    if isinstance(before, PatchEmbedding) and isinstance(after, PatchEmbedding) and name.endswith(".position"):
        return _resize_grid(tensor, before.window, after.window)
    if isinstance(before, CLIPViT) and isinstance(after, CLIPViT) and name.endswith(".positions"):
        resized = _resize_grid(tensor[None], before.window, after.window)
        return resized and (resized[0][0], resized[1])
    embeddings, models = TextEmbedding | RobertaEmbeddings, VLMo | BridgeTower
    is_text = isinstance(before, embeddings) and isinstance(after, type(before)) and ".position." in name
    is_type = isinstance(before, models) and isinstance(after, models) and name.endswith(".types.weight")
    if not (is_text or is_type) or (size := len(task.get_parameter(name))) == len(tensor):
        return None
    if is_text:
        extra = after.pad + 1 if isinstance(after, RobertaEmbeddings) else 0
        _refuse_longer(len(tensor) - extra, size - extra)
        return tensor[:size], f"texts {len(tensor) - extra} to {size - extra}"
    more = tensor[-1:].expand(max(0, size - len(tensor)), -1)  # a second image starts as the first (NLVR2)
    return torch.cat([tensor[:size], more]), f"types {len(tensor)} to {size}"


def _resize_relative(tensor: Tensor, before: RelativeBias, after: RelativeBias) -> tuple[Tensor, str] | None:
    if (before.window, before.text) == (after.window, after.text) or len(tensor) != len(before.table):
        return None
    _refuse_longer(before.text, after.text)
    table = resize_table(tensor.float(), before.window, after.window)
    rule = f"patches {_times(before.window)} to {_times(after.window)}, texts {before.text} to {after.text}"
    return cut_texts(table, after.window, before.text, after.text).to(tensor.dtype), rule


def _resize_grid(
    tensor: Tensor, before: tuple[int, int] | None, after: tuple[int, int] | None
) -> tuple[Tensor, str] | None:
    if before is None or after is None or before == after:
        return None
    return resize_positions(tensor, before, after), f"patches {_times(before)} to {_times(after)}, bicubic"


def _owner(task: nn.Module, name: str) -> nn.Module | None:
    """Return the module that a position embedding belongs to: its own module or the one around it."""
    parts = name.split(".")[:-1]
    for end in (len(parts), len(parts) - 1):
        try:
            module = task.get_submodule(".".join(parts[:end]))
        except AttributeError:
            continue
        if isinstance(
            module, RelativeBias | PatchEmbedding | CLIPViT | TextEmbedding | RobertaEmbeddings | VLMo | BridgeTower
        ):
            return module
    return None


def _refuse_longer(before: int, after: int) -> None:
    if after > before:
        raise DualfuseError(
            f"the start was trained on texts of {before} tokens, the model of this recipe takes {after}: the positions "
            f"beyond are untrained. Set --model.text-length {before} (and --data.text-length to at most that), or "
            "start from a model of longer texts"
        )


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


def _times(grid: Shape) -> str:
    return " x ".join(map(str, grid))
