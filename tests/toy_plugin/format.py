"""A checkpoint format: the tensors of a toy model, each name with a prefix."""

from __future__ import annotations

from dualfuse.convert.checkpoint import Converted, Format, Source, ThirdPartyCheckpoint, WrittenCheckpoint
from dualfuse.convert.report import Report, shapes
from dualfuse.recipe import Recipe
from toy_plugin.model import ToyModelConfig

PREFIX = "toy_format."


def _recognize(source: Source) -> bool:
    return source.path.suffix == ".safetensors" and all(name.startswith(PREFIX) for name in source.tensors)


def _read(source: Source, tokenizer: str) -> ThirdPartyCheckpoint:
    from toy_plugin.recipes import toy

    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in source.tensors.items()}
    report = Report(str(source.path), shapes(source.tensors))
    return ThirdPartyCheckpoint(toy(tokenizer), tensors, {}, report)


def _stores(recipe: Recipe) -> bool:
    return isinstance(recipe.model, ToyModelConfig)


def _write(converted: Converted) -> WrittenCheckpoint:
    tensors = converted.task.state_dict()
    renamed = {PREFIX + name: tensor for name, tensor in tensors.items()}
    return WrittenCheckpoint("toy.safetensors", renamed, Report("toy", shapes(tensors)))


FORMAT = Format("toy", "toy", _recognize, _read, _stores, _write)
