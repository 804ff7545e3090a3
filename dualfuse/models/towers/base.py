"""What BridgeTower and a dual encoder need of a pre-trained encoder of one modality."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow


@dataclass(frozen=True)
class TowerOutput:
    """The states (B, N, width) after the chosen layers, and for images the grid of patches (height, width).

    ``pooled`` (B, pooled_width) stands for the whole input, if the top layer is the last of the chosen ones; None: the
    top layer's state of the first token does.
    """

    states: tuple[Tensor, ...]
    grid: tuple[int, ...] = ()
    pooled: Tensor | None = None


def pooled_output(output: TowerOutput) -> TowerOutput:
    """Return an output whose only state (B, 1, pooled_width) is the pooled one: what a dual encoder reads."""
    pooled = output.states[-1][:, 0] if output.pooled is None else output.pooled
    return TowerOutput((pooled[:, None],), output.grid)


class Tower(nn.Module, ABC):
    """A pre-trained encoder: ``tower(images, layers=...)`` or ``tower(ids, mask, layers=...)`` returns a TowerOutput.

    ``layers`` are numbers of layers, counted from 0; their states come in the order in which they are listed, and
    layers above the highest are not run. Image states are a class token and the patches row by row; a tower without a
    class token puts the mean over its patches there.
    """

    is_frozen = False
    """Whether the tower stays in evaluation mode, without dropout, while the model is trained."""

    def freeze(self) -> None:
        """Freeze the parameters, and switch dropout off for good."""
        self.is_frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set training mode, unless the tower is frozen."""
        return super().train(mode and not self.is_frozen)

    @abstractmethod
    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """Return the layers from bottom to top: what ``layers`` counts, and FSDP shards one by one."""

    def lr_layers(self) -> list[tuple[nn.Module, ...]]:
        """Return the modules of each level for layer-wise learning rates, the embeddings (the tower itself) first."""
        return [(self,), *((block,) for block in self.fsdp_blocks())]

    def attention_flow(self, flow: AttentionFlow, x: Tensor) -> list[Tensor]:
        """Return the relevance (N, M) after each layer, given that of the input. Raises DualfuseError if undefined."""
        raise DualfuseError(f"{type(self).__name__} does not define attention_flow: its attention cannot be explained")


class StateSource(Protocol):
    """Outputs of frozen towers that were stored; computes those that were not."""

    def image(self, tower: Tower, images: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the output for images, which are pixels or the addresses of stored states."""
        ...

    def text(self, tower: Tower, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the output for texts."""
        ...


@dataclass(frozen=True)
class TowerConfig(ABC):
    """The fields that every tower has."""

    width: int
    """Width of the states."""
    depth: int
    """Number of layers."""

    @property
    def pooled_width(self) -> int:
        """Width of the pooled state."""
        return self.width


@dataclass(frozen=True)
class ImageTowerConfig(TowerConfig):
    """The fields that every image tower has; a subclass, also a frozen dataclass, adds its own and builds the tower."""

    image_size: tuple[int, int]
    """Height and width of the images that the positions are made for."""

    @abstractmethod
    def build(self) -> Tower:
        """Return the tower with initial weights."""


@dataclass(frozen=True)
class TextTowerConfig(TowerConfig):
    """The fields that every text tower has; a subclass, also a frozen dataclass, adds its own and builds the tower."""

    vocab_size: int
    """Number of token embeddings."""
    text_length: int
    """Longest text that has positions, in tokens."""

    @abstractmethod
    def build(self, dropout: float) -> Tower:
        """Return the tower with initial weights; ``dropout`` is that of embeddings, attention weights and branches."""
