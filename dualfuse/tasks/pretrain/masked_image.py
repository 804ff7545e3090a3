"""Masked image modelling: the words of hidden patches, predicted from the others (BEiT, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.image.block_mask import BlockMask
from dualfuse.data.image.two_views import two_views
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.text.padding import pad_arrays
from dualfuse.errors import DualfuseError
from dualfuse.layers.embeddings import MaskedPatches
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput
from dualfuse.tasks.pretrain.visual_tokenizer import open_tokenizer

STD = 0.02


class MaskedImageExample(TypedDict):
    """One image: pixels (3, H, W), its second view (3, h, w) uint8, and which patches are hidden (P,)."""

    image: Tensor
    view: Tensor
    hidden: np.ndarray


class MaskedImageBatch(TypedDict):
    """B images: image (B, 3, H, W), view (B, 3, h, w) uint8, hidden (B, P).

    ``positions`` (B, R) are the positions of the hidden patches behind the class token; 0 where an image has fewer.
    """

    image: Tensor
    view: Tensor
    hidden: Tensor
    positions: Tensor


@dataclass(frozen=True)
class MaskedImageConfig(TaskConfig):
    """Which patches are hidden, and who names them; the defaults are BEiT's."""

    pipeline_tag: ClassVar[str] = "image-feature-extraction"

    tokenizer: str = ""
    """What names the patches: the name of an earlier recipe of the same tuple, the folder of a tokenizer trained here,
    or DALL-E's encoder.pkl, .pt or .safetensors."""
    codes: int = 8192
    """Visual words that the tokenizer knows."""
    patch: int = 16
    """Side in pixels of the model's patches."""
    stride: int = 8
    """Side in pixels of what the tokenizer names, in the second view, which is the smaller by as much."""
    mask: BlockMask = field(default_factory=BlockMask)
    """What is hidden."""

    def __post_init__(self) -> None:
        """Refuse what makes no grid."""
        if min(self.codes, self.patch, self.stride) < 1:
            raise DualfuseError(f"codes={self.codes}, patch={self.patch}, stride={self.stride}; all must be at least 1")

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> MaskedImageExample:
        """Draw two views of one crop, and what is hidden; texts are not looked at."""
        rows, columns = (side // self.patch for side in processor.image.size)
        image, view = two_views(sample.image, processor.image, (rows * self.stride, columns * self.stride), rng)
        return {"image": image, "view": view, "hidden": self.mask.draw((rows, columns), rng).flatten()}

    def collate(self, rows: Sequence[MaskedImageExample]) -> MaskedImageBatch:
        """Put images of one size together."""
        return {
            "image": torch.stack([row["image"] for row in rows]),
            "view": torch.stack([row["view"] for row in rows]),
            "hidden": torch.from_numpy(np.stack([row["hidden"] for row in rows])),
            "positions": torch.from_numpy(pad_arrays([1 + np.flatnonzero(row["hidden"]) for row in rows], 0)),
        }

    def build(self, model: VisionLanguageModel) -> MaskedImage:
        """Return the task with a fresh head."""
        return MaskedImage(self, model)


class MaskedImage(Task):
    """A head that names hidden patches.

    The tokenizer is no part of it: as with text, the config says where it is, and it is opened when it is needed.
    """

    def __init__(self, cfg: MaskedImageConfig, model: VisionLanguageModel) -> None:
        """Head and mask token start as BEiT's: a normal of 0.02, cut at one standard deviation."""
        super().__init__()
        self.cfg, self.model = cfg, model
        self.mask_token = nn.Parameter(torch.empty(1, 1, model.width))
        self.head = nn.Linear(model.width, cfg.codes)
        nn.init.zeros_(self.head.bias)
        for weight in (self.mask_token, self.head.weight):
            nn.init.trunc_normal_(weight, std=STD, a=-STD, b=STD)

    def forward(self, batch: MaskedImageBatch) -> TaskOutput:
        """Hide patches, and learns to name them: the mean over those of all processes."""
        wanted = self.name(batch["view"], patches=batch["hidden"].shape[1])[batch["hidden"]]
        logits = self.logits(batch)
        number = dist.all_reduce_mean(batch["hidden"].sum().float()).clamp(min=1)
        loss = F.cross_entropy(logits.float(), wanted, reduction="sum") / number
        accuracy = (logits.argmax(1) == wanted).sum() / number
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy/patches": accuracy})

    def logits(self, batch: MaskedImageBatch) -> Tensor:
        """Return logits (M, codes) of the M hidden patches of a batch, image by image, row by row."""
        hidden = MaskedPatches(batch["hidden"], self.mask_token)
        states = self.model.token_states(self.model.embed_masked_image(batch["image"], hidden), batch["positions"])
        return self.head(states[batch["positions"] > 0])

    def name(self, view: Tensor, *, patches: int) -> Tensor:
        """Return the visual words (B, P) of second views (B, 3, h, w) uint8."""
        tokenizer = open_tokenizer(self.cfg.tokenizer, view.device)
        if tokenizer.codes != self.cfg.codes:
            raise DualfuseError(
                f"{self.cfg.tokenizer} knows {tokenizer.codes} visual words, but the task {self.cfg.codes}; give "
                f"--task.codes {tokenizer.codes}"
            )
        with torch.no_grad(), torch.autocast(view.device.type, enabled=False):
            words = tokenizer(view.float() / 255)
        if words.shape[1] != patches:
            raise DualfuseError(
                f"{self.cfg.tokenizer} sees {words.shape[1]} squares of {tokenizer.stride} pixels where the model sees "
                f"{patches} patches; give --task.stride {tokenizer.stride}"
            )
        return words
