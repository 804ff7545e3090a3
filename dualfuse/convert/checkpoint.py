"""A checkpoint on its way through a conversion: its source, its content under dualfuse names, the task, the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualfuse.convert.rename import ExportedTensors, matches
from dualfuse.convert.report import Report, shapes
from dualfuse.convert.tokenizer import check_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json_object
from dualfuse.recipe import Recipe, Run
from dualfuse.tasks.base import Task, TaskConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.tensor_files import Weights, find_weights, read_weights

BATCH_SIZE, RUN = 64, Run(steps=2000)
"""Training settings of the recipe of a third-party checkpoint."""
HEADS = ("itc_heads.0.", "itc_heads.1.", "itm_head.", "mlm_head.", "classifier.")
"""Prefixes of the dualfuse heads that a checkpoint may lack altogether."""


@dataclass(frozen=True)
class Source:
    """A third-party file or folder; its parts are read when they are needed, once."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:  # Any: whatever JSON holds
        """The config.json of a folder; empty for a file, and for a folder without it."""
        path = self.path / "config.json"
        return read_json_object(path) if path.is_file() else {}

    @cached_property
    def weights(self) -> Weights:
        """The tensors of the file, or of the weights in the folder."""
        return read_weights(find_weights(self.path) if self.path.is_dir() else self.path)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their third-party names."""
        return self.weights.tensors


@dataclass(frozen=True)
class ThirdPartyCheckpoint:
    """A third-party checkpoint under dualfuse names, before a task is built from it."""

    recipe: Recipe
    tensors: dict[str, Tensor]
    kept: dict[str, Tensor]
    """Tensors without effect, for the conversion back."""
    report: Report
    may_be_new: tuple[str, ...] = ()
    """Patterns of dualfuse names that this format may lack, besides whole heads."""


@dataclass(frozen=True)
class Converted:
    """A task with the weights of a checkpoint, and the report on them."""

    task: Task
    recipe: Recipe
    kept: dict[str, Tensor]
    report: Report


@dataclass(frozen=True)
class WrittenCheckpoint:
    """The content of a third-party checkpoint, before it is saved."""

    file: str
    """Name of the file of the tensors: .safetensors, or a pickle."""
    tensors: dict[str, Tensor]
    report: Report
    key: str = ""
    """Key of the tensors in a pickle; empty: the pickle is the tensors by name."""
    beside: Mapping[str, object] = field(default_factory=dict[str, object])
    """The other items of a pickle."""
    json_files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Further files of a Hugging Face folder, which also gets the tokenizer."""


@dataclass(frozen=True)
class Format:
    """A third-party checkpoint format, in both directions."""

    name: str
    """The name in messages, such as "official VLMo"."""
    target: str
    """The value of ``convert --to`` that writes this format."""
    recognize: Callable[[Source], bool]
    """Whether a file or folder is in this format."""
    read: Callable[[Source, str], ThirdPartyCheckpoint]
    """Read a source; the second argument is a tokenizer (path or hub name), or empty."""
    stores: Callable[[Recipe], bool]
    """Whether the format is one for the model class and task of a recipe."""
    write: Callable[[Converted], WrittenCheckpoint]
    """Return the content in this format; raises ``DualfuseError`` if it cannot store the model."""


def export_report(
    converted: Converted, exported: ExportedTensors, new: Mapping[str, Tensor] | None = None, notes: Sequence[str] = ()
) -> Report:
    """Return the report on a conversion to a third-party format; ``new`` are tensors that the model lacks."""
    used, dropped = shapes(exported.used), shapes(exported.dropped)
    return Report(converted.report.source, used, new=shapes(new or {}), dropped=dropped, notes=tuple(notes))


def build(checkpoint: ThirdPartyCheckpoint) -> Converted:
    """Build the task and load the weights; heads that the checkpoint lacks are initialized with the recipe's seed.

    Raises ``DualfuseError`` if tensors are missing or have other shapes.
    """
    recipe, tensors, source = checkpoint.recipe, checkpoint.tensors, checkpoint.report.source
    outline = recipe.build_on_meta()  # a config.json may ask for more memory than there is
    check_tokenizer(recipe.data.text_transform, outline.model.vocab_size)
    expected = outline.state_dict()
    new = {name: tensor for name, tensor in expected.items() if name not in tensors}
    absent = _absent_heads(tensors)
    if missing := [name for name in new if not name.startswith(absent) and not matches(name, checkpoint.may_be_new)]:
        raise DualfuseError(
            f"{source} lacks {len(missing)} tensors of the model, such as {', '.join(missing[:4])} "
            "(names of dualfuse): the file is not complete, or does not belong to its config.json"
        )
    used = {name: tensor for name, tensor in tensors.items() if name in expected}
    unexpected = {name: tensor for name, tensor in tensors.items() if name not in expected}
    try:
        outline.load_state_dict(used, strict=False, assign=True)
    except RuntimeError as error:
        raise DualfuseError(f"the tensors of {source} do not have the shapes of its model: {error}") from error
    with torch.random.fork_rng(devices=[]):  # the program's random state does not change
        torch.manual_seed(recipe.run.seed)
        task = recipe.build()
    task.load_state_dict(used, strict=False)
    report = checkpoint.report
    report = replace(
        report,
        new=shapes(new),
        unexpected={**report.unexpected, **shapes(unexpected)},
        notes=(*report.notes, *_dtype_notes(tensors)),
    )
    return Converted(task.eval(), recipe, checkpoint.kept, report)


def reject_any(format_name: str, obstacles: Mapping[str, bool]) -> None:
    """Raise ``DualfuseError`` that lists the properties of a model, of ``obstacles``, that a format cannot store."""
    if present := [obstacle for obstacle, is_present in obstacles.items() if is_present]:
        raise DualfuseError(f"{format_name} has no {', no '.join(present)}: this model cannot be written for it")


def untrained_heads(task: TaskConfig) -> tuple[str, ...]:
    """Return the patterns of a pairs task's heads without an objective; official files hold only their temperature."""
    if not isinstance(task, PairsConfig):
        return ()
    itc = dict.fromkeys(("itc_heads.*.weight", "itc_heads.*.bias", "itc_heads.*.logit_scale"), task.itc_weight)
    weights = itc | {"itm_head.*": task.itm_weight, "mlm_head.*": task.mlm_weight}
    return tuple(pattern for pattern, weight in weights.items() if not weight)


def _absent_heads(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the prefixes of the heads without weights; official files hold a temperature even without an ITC head."""
    weights = [name for name in tensors if name.endswith(".weight")]
    return tuple(head for head in HEADS if not any(name.startswith(head) for name in weights))


def _dtype_notes(tensors: Mapping[str, Tensor]) -> list[str]:
    others = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"})
    return [f"{' and '.join(others)} became float32"] if others else []
