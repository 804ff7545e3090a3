"""Masked image modeling: the visual tokens of hidden patches are predicted from the visible ones (BEiT, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
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
from dualfuse.evaluation.runner import Plan
from dualfuse.layers.embeddings import MaskedPatches
from dualfuse.layers.vq.dalle import DalleEncoder
from dualfuse.layers.vq.visual_tokenizer import VisualTokenizer
from dualfuse.metrics.base import LOSS, MetricInfo, shares
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput
from dualfuse.tasks.frozen_model import load_frozen
from dualfuse.tensor_files import read_weights

STD = 0.02


class MaskedImageExample(TypedDict):
    """One image (3, H, W), the view (3, h, w) uint8 for the visual tokenizer, and whether each patch is hidden (P,)."""

    image: Tensor
    view: Tensor
    hidden: np.ndarray


class MaskedImageBatch(TypedDict):
    """B images: image (B, 3, H, W), view (B, 3, h, w) uint8, hidden (B, P).

    ``positions`` (B, R) are those of hidden patches in the sequence after the class token; 0 where an image has fewer.
    """

    image: Tensor
    view: Tensor
    hidden: Tensor
    positions: Tensor


@dataclass(frozen=True)
class MaskedImageConfig(TaskConfig):
    """Hidden patches and visual tokenizer; the defaults are BEiT's."""

    reads_text: ClassVar[bool] = False
    pipeline_tag: ClassVar[str] = "image-feature-extraction"

    tokenizer: str = ""
    """Visual tokenizer: the name of an earlier recipe of the same tuple, the model folder of a tokenizer, or a file of
    DALL-E's encoder (.pkl, .pt or .safetensors)."""
    codes: int = 8192
    """Number of codes of the tokenizer."""
    patch: int = 16
    """Patch size of the model, in pixels."""
    stride: int = 8
    """Stride of the tokenizer, in pixels; its view has as many strides as the image has patches."""
    mask: BlockMask = field(default_factory=BlockMask)
    """Patches to hide."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        if min(self.codes, self.patch, self.stride) < 1:
            raise DualfuseError(f"codes={self.codes}, patch={self.patch}, stride={self.stride}; all must be at least 1")

    @property
    def visual_tokenizer(self) -> tuple[str, int, int]:
        """The tokenizer of the recipe."""
        return self.tokenizer, self.codes, self.stride

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> MaskedImageExample:
        """Draw two views of one crop and the patches to hide; texts are ignored."""
        height, width = (side // self.patch for side in processor.image.size)
        image, view = two_views(sample.image, processor.image, (height * self.stride, width * self.stride), rng)
        return {"image": image, "view": view, "hidden": self.mask.draw((height, width), rng).flatten()}

    def collate(self, examples: Sequence[MaskedImageExample]) -> MaskedImageBatch:
        """Return a batch of images of one size."""
        positions = [1 + np.flatnonzero(example["hidden"]) for example in examples]
        return {
            "image": torch.stack([example["image"] for example in examples]),
            "view": torch.stack([example["view"] for example in examples]),
            "hidden": torch.from_numpy(np.stack([example["hidden"] for example in examples])),
            "positions": torch.from_numpy(pad_arrays(positions, 0)),
        }

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare loss and accuracy."""
        return (LOSS, *shares("accuracy/patches"))

    def build(self, model: VisionLanguageModel) -> MaskedImage:
        """Return the task with a freshly initialized head."""
        return MaskedImage(self, model)


class MaskedImage(Task):
    """Predicts the visual tokens of hidden patches.

    The visual tokenizer is not a submodule: the config holds its path, and it is loaded on first use.
    """

    def __init__(self, cfg: MaskedImageConfig, model: VisionLanguageModel) -> None:
        """Initialize head and mask token from a normal of 0.02 truncated at one standard deviation, as BEiT does."""
        super().__init__()
        self.cfg, self.model = cfg, model
        self.mask_token = nn.Parameter(torch.empty(1, 1, model.width))
        self.head = nn.Linear(model.width, cfg.codes)
        nn.init.zeros_(self.head.bias)
        for weight in (self.mask_token, self.head.weight):
            nn.init.trunc_normal_(weight, std=STD, a=-STD, b=STD)

    def forward(self, batch: MaskedImageBatch) -> TaskOutput:
        """Return the mean cross-entropy over the hidden patches of all processes."""
        targets = self.visual_tokens(batch["view"], patches=batch["hidden"].shape[1])[batch["hidden"]]
        logits = self.logits(batch)
        number = dist.all_reduce_mean(batch["hidden"].sum().float()).clamp(min=1)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum") / number
        accuracy = (logits.argmax(1) == targets).sum() / number
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy/patches": accuracy})

    def logits(self, batch: MaskedImageBatch) -> Tensor:
        """Return logits (M, codes) of the M hidden patches of a batch, in order."""
        hidden = MaskedPatches(batch["hidden"], self.mask_token)
        states = self.model.token_states(self.model.embed_masked_image(batch["image"], hidden), batch["positions"])
        return self.head(states[batch["positions"] > 0])

    def visual_tokens(self, view: Tensor, *, patches: int) -> Tensor:
        """Return the visual tokens (B, P) of views (B, 3, h, w) uint8.

        Raises ``DualfuseError`` if the tokenizer does not match the task.
        """
        tokenizer = open_tokenizer(self.cfg.tokenizer, view.device)
        if tokenizer.codes != self.cfg.codes:
            raise DualfuseError(
                f"{self.cfg.tokenizer} has {tokenizer.codes} codes, but the task {self.cfg.codes}; set --task.codes "
                f"{tokenizer.codes}"
            )
        with torch.no_grad(), torch.autocast(view.device.type, enabled=False):
            tokens = tokenizer(view.float() / 255)
        if tokens.shape[1] != patches:
            raise DualfuseError(
                f"{self.cfg.tokenizer} has a stride of {tokenizer.stride} and makes {tokens.shape[1]} visual tokens, "
                f"but the model has {patches} patches; set --task.stride {tokenizer.stride}"
            )
        return tokens


@lru_cache(maxsize=2)
def open_tokenizer(path: str, device: torch.device) -> VisualTokenizer:
    """Load the frozen visual tokenizer of a model folder, or a file of DALL-E's encoder; cached per process.

    The file is the published encoder.pkl, whose code is not executed, or its state dict as .pt or .safetensors. Raises
    ``DualfuseError`` for anything else.
    """
    if not path:
        raise DualfuseError(
            "no visual tokenizer: set --task.tokenizer to the folder of a trained one (dualfuse train vlmo-tokenizer, "
            "then OUT/final) or to DALL-E's encoder.pkl"
        )
    source = Path(path).expanduser()
    if not source.is_dir():
        return _load_dalle(source).requires_grad_(False).eval().to(device)
    tokenizer = load_frozen(path, device).model
    if not isinstance(tokenizer, VisualTokenizer):
        raise DualfuseError(f"{source} holds a {type(tokenizer).__name__}, which is not a visual tokenizer")
    return tokenizer


def _load_dalle(path: Path) -> VisualTokenizer:
    if not path.is_file():
        raise DualfuseError(
            f"{path} is neither a file nor a folder; a tokenizer is a model folder, or DALL-E's encoder.pkl"
        )
    tensors = read_weights(path).tensors
    try:
        return DalleEncoder.of(tensors)
    except ValueError as error:
        raise DualfuseError(f"{path}: {error}") from error
