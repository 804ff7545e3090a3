"""What a task is: a model, the heads it needs, and what to do with one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.loader import Batch, Example
from dualfuse.data.sample import Sample
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.models.base import VisionLanguageModel


@dataclass(frozen=True)
class TaskOutput:
    """What one step gives: the loss that is differentiated, and detached scalars for people."""

    loss: Tensor
    log: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def detached(log: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values without their gradient, for :attr:`Output.log`."""
    return {name: value.detach() for name, value in log.items()}


@dataclass(frozen=True)
class Processor:
    """How a loader worker turns bytes and strings into tensors."""

    image: ImageTransform
    text: TextTransform


class Task(nn.Module, ABC):
    """A model, the heads it needs, and what to do with one batch."""

    model: VisionLanguageModel

    @abstractmethod
    def forward(self, batch: Any) -> TaskOutput:  # Any: what its config's collate gives
        """Learn: gives the loss of one batch."""


class TaskConfig(Protocol):
    """Anything frozen that reads samples in a loader worker and builds a task on the device."""

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Turn one sample into one row; raises ``BrokenSample`` for one that cannot be used."""
        ...

    def collate(self, rows: Sequence[Any]) -> Batch:  # Any: what read gives
        """Put rows together to a batch, padded to the longest of them."""
        ...

    def build(self, model: Any) -> Task:  # Any: what the model's config builds
        """Return the task with freshly initialised heads on ``model``."""
        ...
