"""Masked image modeling with a teacher: its features of hidden patches are predicted from the visible ones.

The targets are those of EVA (section 2.1), or of BEiT v2's teacher without its codebook: the last states of a frozen
model, compared by cosine similarity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.image.block_mask import BlockMask
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan
from dualfuse.metrics.base import LOSS, MetricInfo
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import TaskConfig, TaskOutput
from dualfuse.tasks.frozen_model import load_frozen
from dualfuse.tasks.pretrain.masked_image import MaskedImage, MaskedImageBatch, MaskedImageConfig, MaskedImageExample


@dataclass(frozen=True)
class MaskedFeatureConfig(TaskConfig):
    """Hidden patches, and the teacher whose features of them are predicted."""

    reads_text: ClassVar[bool] = False
    pipeline_tag: ClassVar[str] = "image-feature-extraction"

    teacher: str = ""
    """Model folder of the teacher: a VLMo (also a converted BEiT), or a model with CLIP's image encoder."""
    channels: int = 768
    """Width of the teacher's features."""
    patch: int = 16
    """Patch size of the model, in pixels."""
    teacher_patch: int = 16
    """Patch size of the teacher, in pixels; its view of the crop has as many patches as that of the model."""
    mask: BlockMask = field(default_factory=BlockMask)
    """Patches to hide."""

    @property
    def masked_image(self) -> MaskedImageConfig:
        """The config of masked image modeling with the same patches."""
        return MaskedImageConfig(codes=self.channels, patch=self.patch, stride=self.teacher_patch, mask=self.mask)

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> MaskedImageExample:
        """Draw two views of one crop and the patches to hide; texts are ignored."""
        return self.masked_image.read(sample, processor, rng)

    def collate(self, examples: Sequence[MaskedImageExample]) -> MaskedImageBatch:
        """Return a batch of images of one size."""
        return self.masked_image.collate(examples)

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare loss and cosine similarity."""
        return (LOSS, MetricInfo("cosine"))

    def build(self, model: VisionLanguageModel) -> MaskedFeature:
        """Return the task with a freshly initialized head."""
        return MaskedFeature(self, model)


class MaskedFeature(MaskedImage):
    """Predicts a teacher's features of hidden patches; the teacher is not a submodule."""

    def __init__(self, cfg: MaskedFeatureConfig, model: VisionLanguageModel) -> None:
        """Initialize head and mask token as BEiT does."""
        super().__init__(cfg.masked_image, model)
        self.teacher = cfg.teacher

    def forward(self, batch: MaskedImageBatch) -> TaskOutput:
        """Return the mean of one minus the cosine over the hidden patches of all processes."""
        targets = self.features(batch["view"], patches=batch["hidden"].shape[1])[batch["hidden"]]
        number = dist.all_reduce_mean(batch["hidden"].sum().float()).clamp(min=1)
        cosine = F.cosine_similarity(self.logits(batch).float(), targets, dim=1)
        loss = (1 - cosine).sum() / number
        return TaskOutput(loss, {"loss": loss.detach(), "cosine": cosine.detach().sum() / number})

    def features(self, view: Tensor, *, patches: int) -> Tensor:
        """Return the teacher's features (B, P, channels) of views (B, 3, h, w) uint8.

        Raises ``DualfuseError`` if the teacher does not match the task.
        """
        if not self.teacher:
            raise DualfuseError("no teacher: set --task.teacher to a model folder, such as runs/demo/starter/best")
        teacher = load_frozen(self.teacher, view.device)
        mean, std = (
            view.new_tensor(numbers, dtype=torch.float).view(3, 1, 1)
            for numbers in (teacher.preprocess.mean, teacher.preprocess.std)
        )
        with torch.no_grad(), torch.autocast(view.device.type, enabled=False):
            features = patch_states(teacher.model, (view.float() / 255 - mean) / std)
        if features.shape[1:] != (patches, self.cfg.codes):
            raise DualfuseError(
                f"{self.teacher} gives {features.shape[1]} patches of {features.shape[2]} channels, but the task "
                f"expects {patches} patches of {self.cfg.codes} channels; set --task.channels {features.shape[2]}, and "
                "--task.teacher-patch to the patch size of the teacher"
            )
        return features


def patch_states(model: object, images: Tensor) -> Tensor:
    """Return the final states (B, P, D) of image patches. Raises DualfuseError for a model that has none."""
    if not isinstance(model, VisionLanguageModel):
        raise DualfuseError(
            f"a {type(model).__name__} has no patch states to teach; give the folder of a VLMo, BridgeTower or METER"
        )
    return model.patch_states(images)
