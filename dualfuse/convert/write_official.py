"""What a checkpoint of the official VLMo code holds for one of our models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dualfuse.convert.build import Converted
from dualfuse.convert.report import Report, shapes
from dualfuse.convert.vlmo import INDICES, Kind, to_official
from dualfuse.errors import DualfuseError
from dualfuse.layers.relative_bias import joint_index
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

FILE = "vlmo.ckpt"
KINDS: Mapping[type[TaskConfig], Kind] = {
    MaskedTextConfig: "text",
    PairsConfig: "pairs",
    VQAConfig: "vqa",
    NLVR2Config: "nlvr2",
}


@dataclass(frozen=True)
class Checkpoint:
    """The tensors, what is said about them, and what became of ours."""

    tensors: dict[str, Tensor]
    hyper_parameters: dict[str, object]
    report: Report


def write_official(converted: Converted) -> Checkpoint:
    """Return the content of the file; ``DualfuseError`` says what of the model the official code does not have."""
    model, task, data = converted.recipe.model, converted.recipe.task, converted.recipe.data
    kind = KINDS.get(type(task))
    if not isinstance(model, VLMoConfig) or kind is None:
        raise DualfuseError(
            f"the official layout is written of a VLMo for {', '.join(cfg.__name__ for cfg in KINDS)}; this is a "
            f"{type(model).__name__} for {type(task).__name__}"
        )
    _refuse(model, task)
    ours = converted.task.state_dict()
    untrained = _unlearnt(task) if isinstance(task, PairsConfig) else ()
    wanted = {name: tensor for name, tensor in ours.items() if not name.startswith(untrained)}
    added = {} if converted.kept else _buffers(model, data.text_length)
    tensors = to_official(wanted, converted.kept or added, kind, relative=model.positions == "relative")
    report = Report(
        converted.report.source,
        used=shapes(wanted),
        unused=shapes({name: tensor for name, tensor in ours.items() if name not in wanted}),
        new=shapes(added),
    )
    return Checkpoint(tensors, _said(model, data.text_length), report)


def _refuse(model: VLMoConfig, task: TaskConfig) -> None:
    reasons = {
        "experts that all modalities share": model.experts == "shared",
        "layers with an attention of each modality": model.separate_attention_until > 0,
        "convolutional stem": model.stem != "linear",
        "mean bias for all layers": model.share_relative_bias,
        "relative positions of images that are not square": model.positions == "relative"
        and model.image_size[0] != model.image_size[1],
    }
    if isinstance(task, PairsConfig):
        projection = task.itc_head
        reasons |= {
            "projections with biases": projection.bias,
            "plain temperature": projection.temperature != "log",
            "contrast with fused vectors": projection.fused,
            f"projections to a width of {projection.width}": projection.width not in (0, model.width),
        }
    if impossible := [reason for reason, holds in reasons.items() if holds]:
        raise DualfuseError(f"the official VLMo has no {', no '.join(impossible)}: this model cannot be written for it")


def _unlearnt(task: PairsConfig) -> tuple[str, ...]:
    """Return the prefixes of heads without objective, which official files do not hold."""
    weights = {"itc_heads.": task.itc_weight, "itm_head.": task.itm_weight, "mlm_head.": task.mlm_weight}
    return tuple(prefix for prefix, weight in weights.items() if not weight)


def _buffers(model: VLMoConfig, text: int) -> dict[str, Tensor]:
    """Return what published files hold besides and the released loader looks for; nothing of it is trained."""
    if model.positions == "absolute":
        return {"position_numbers": torch.arange(model.text_length)[None]}
    grid = (model.image_size[0] // model.patch_size, model.image_size[1] // model.patch_size)
    modes = ((0, grid), (text, ()), (text, grid))
    return {
        "position_numbers": torch.arange(text)[None],
        "word_positions": torch.zeros(text, model.width),
        **{
            name: joint_index(length, images, grid, model.text_length).clone()
            for name, (length, images) in zip(INDICES, modes, strict=True)
        },
    }


def _said(model: VLMoConfig, text: int) -> dict[str, object]:
    """Return what shapes do not tell, under the names of the official configuration where it has one."""
    return {
        "num_heads": model.heads,
        "image_size": model.image_size[0] if len(set(model.image_size)) == 1 else list(model.image_size),
        "max_text_len": text,
        "max_text_len_of_initckpt": model.text_length,
        "drop_path_rate": model.drop_path,
    }
