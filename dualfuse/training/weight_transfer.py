"""Hands the weights of one task over to another, whose model may be made for other images and shorter texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.blocks import Block
from dualfuse.layers.embeddings import PatchEmbedding, TextEmbedding, resize_positions
from dualfuse.layers.relative_bias import RelativeBias, cut_texts, of_images, resize_table
from dualfuse.models.bridgetower import BridgeTower
from dualfuse.models.towers.clip_vit import CLIPViT
from dualfuse.models.towers.roberta import RobertaEmbeddings
from dualfuse.models.vlmo import VLMo
from dualfuse.recipe import Recipe
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig
from dualfuse.tasks.finetune.segmentation import SegmentationConfig
from dualfuse.tasks.pretrain.masked_feature import MaskedFeatureConfig
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig
from dualfuse.tasks.pretrain.vq_tokenizer import VQTokenizerConfig

Shape = tuple[int, ...]
BOTH = "vl"
IMAGES_ONLY = (ImageClassificationConfig, MaskedImageConfig, VQTokenizerConfig, SegmentationConfig, MaskedFeatureConfig)
"""Tasks that look at no text; whatever their model has for words is as it began."""
EXPERTS = {"language": "text", "vision": "image"}


@dataclass(frozen=True)
class Resized:
    """A tensor that became another size, and by which rule."""

    before: Shape
    after: Shape
    rule: str


@dataclass(frozen=True)
class TransferredWeights:
    """What a task is given by another, and what became of every tensor of both."""

    tensors: dict[str, Tensor]
    copied: dict[str, Shape] = field(default_factory=dict[str, Shape])
    resized: dict[str, Resized] = field(default_factory=dict[str, Resized])
    experts: dict[str, str] = field(default_factory=dict[str, str])
    """Of vision-language experts that the start has none of: whose values each tensor took."""
    new: dict[str, Shape] = field(default_factory=dict[str, Shape])
    """Of the task: left at its initial values."""
    unused: dict[str, Shape] = field(default_factory=dict[str, Shape])
    """Of the start."""


def transfer_weights(
    given: Mapping[str, Tensor], start: Recipe, task: nn.Module, *, both: Literal["random", "language", "vision"]
) -> TransferredWeights:
    """Return ``task`` the tensors ``given`` by a task of the recipe ``start``; nothing is written into the task yet.

    What agrees by name and shape is copied. Positions of images are resized to the grid of the task: absolute ones
    bicubically, without the class token's; relative ones as BEiT does. Positions of texts are cut; where the task
    knows longer texts than the start, ``DualfuseError`` says what to do. ``both`` is the recipe's ``vl_expert_init``.
    """
    source, wanted = model_outline(start), task.state_dict()
    untrained = () if has_text_embedding(given, start, task) else _words(task)
    result = TransferredWeights({})
    for name, target in wanted.items():
        if name not in given or name.startswith(untrained):
            continue
        tensor, before, after = given[name], tuple(given[name].shape), tuple(target.shape)
        resized = _resized(name, tensor, source, task) if not untrained else _of_images(name, tensor, source, task)
        if resized is not None and tuple(resized[0].shape) == after:
            result.tensors[name] = resized[0]
            result.resized[name] = Resized(before, after, resized[1])
        elif before == after:
            result.tensors[name] = tensor
            result.copied[name] = after
    if both != "random":
        result.experts.update(_experts(task, result.tensors, EXPERTS[both]))
        result.tensors.update({name: result.tensors[other] for name, other in result.experts.items()})
    result.new.update(_shapes(wanted, without=result.tensors))
    result.unused.update(_shapes(given, without={**result.copied, **result.resized}))
    return result


def model_outline(recipe: Recipe) -> nn.Module:
    """Return a module whose ``model`` is that of a recipe, without any numbers in it."""
    with torch.device("meta"):
        return nn.ModuleDict({"model": recipe.model.build()})


def has_text_embedding(given: Mapping[str, Tensor], start: Recipe, task: nn.Module) -> bool:
    """Whether the start has trained the words of a tokenizer: a model may have them and have seen images alone."""
    return not isinstance(start.task, IMAGES_ONLY) and any(f"{name}word.weight" in given for name in _words(task))


def _words(task: nn.Module) -> tuple[str, ...]:
    """List the beginnings of the names of what stands for words."""
    return tuple(
        f"{name}." for name, module in task.named_modules() if isinstance(module, TextEmbedding | RobertaEmbeddings)
    )


def _of_images(name: str, tensor: Tensor, source: nn.Module, task: nn.Module) -> tuple[Tensor, str] | None:
    """As :func:`_resized` for a start that knows no texts: a table of relative positions keeps its own rows of them."""
    before, after = _owner(source, name), _owner(task, name)
    if not (isinstance(before, RelativeBias) and isinstance(after, RelativeBias)):
        return _resized(name, tensor, source, task)
    images = resize_table(tensor[: of_images(before.window)].float(), before.window, after.window)
    if images.shape[1] != after.table.shape[1]:
        return None
    table = torch.cat([images.to(tensor), after.table.detach()[len(images) :].to(tensor)])
    return table, f"patches {_times(before.window)} to {_times(after.window)}, texts as they begin"


def _resized(name: str, tensor: Tensor, source: nn.Module, task: nn.Module) -> tuple[Tensor, str] | None:
    """Return a tensor of positions in the size of ``task``, and the rule; None for all others, and where none is due."""
    before, after = _owner(source, name), _owner(task, name)
    if isinstance(before, RelativeBias) and isinstance(after, RelativeBias):
        if (before.window, before.text) == (after.window, after.text) or len(tensor) != len(before.table):
            return None
        _refuse_longer(before.text, after.text)
        table = resize_table(tensor.float(), before.window, after.window)
        return cut_texts(table, after.window, before.text, after.text).to(tensor.dtype), (
            f"patches {_times(before.window)} to {_times(after.window)}, texts {before.text} to {after.text}"
        )
    if isinstance(before, PatchEmbedding) and isinstance(after, PatchEmbedding) and name.endswith(".position"):
        if before.window is None or after.window is None or before.window == after.window:
            return None
        return resize_positions(tensor, before.window, after.window), _bicubic(before.window, after.window)
    if isinstance(before, CLIPViT) and isinstance(after, CLIPViT) and name.endswith(".positions"):
        if before.window == after.window:
            return None
        return resize_positions(tensor[None], before.window, after.window)[0], _bicubic(before.window, after.window)
    if (
        isinstance(before, TextEmbedding | RobertaEmbeddings)
        and isinstance(after, type(before))
        and ".position." in name
    ):
        rows = len(task.get_parameter(name))
        if rows == len(tensor):
            return None
        extra = after.pad + 1 if isinstance(after, RobertaEmbeddings) else 0
        _refuse_longer(len(tensor) - extra, rows - extra)
        return tensor[:rows], f"texts {len(tensor) - extra} to {rows - extra}"
    have_types = isinstance(before, VLMo | BridgeTower) and isinstance(after, VLMo | BridgeTower)
    if have_types and name.endswith(".types.weight"):
        rows = len(task.get_parameter(name))
        more = tensor[-1:].expand(max(0, rows - len(tensor)), -1)  # a second image begins as the first (NLVR2)
        return None if rows == len(tensor) else (torch.cat([tensor[:rows], more]), f"types {len(tensor)} to {rows}")
    return None


def _owner(task: nn.Module, name: str) -> nn.Module | None:
    """Return the module that a tensor of positions belongs to: its own, or that of the table it is in."""
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


def _refuse_longer(known: int, wanted: int) -> None:
    if wanted > known:
        raise DualfuseError(
            f"the start knows texts of {known} tokens, the model of this recipe texts of {wanted}: the positions "
            f"beyond were never trained. Set --model.text-length {known} (and --data.text-length to at most that), "
            "or start from a model of longer texts"
        )


def _experts(task: nn.Module, known: Mapping[str, Tensor], expert: str) -> dict[str, str]:
    """Return the tensors of vision-language experts that are not known yet, and whose values they take."""
    blocks = [(name, block) for name, block in task.named_modules() if isinstance(block, Block)]
    found = [
        (f"{name}.experts.{BOTH}.{part}", f"{name}.experts.{expert}.{part}")
        for name, block in blocks
        if BOTH in block.experts
        for part, _ in block.experts[BOTH].named_parameters()
    ]
    missing = {name: other for name, other in found if name not in known}
    lacking = [other for other in missing.values() if other not in known]
    if not found or lacking:
        reason = f"the start has no {lacking[0]}" if found else "this recipe's model has no vision-language experts"
        raise DualfuseError(f"vl_expert_init asks for copies of the {expert} experts, but {reason}; set it to random")
    return missing


def _shapes(tensors: Mapping[str, Tensor], *, without: Mapping[str, object]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in sorted(tensors.items()) if name not in without}


def _bicubic(before: Shape, after: Shape) -> str:
    return f"patches {_times(before)} to {_times(after)}, bicubic"


def _times(grid: Shape) -> str:
    return " x ".join(map(str, grid))
