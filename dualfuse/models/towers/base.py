"""What BridgeTower needs of a pre-trained encoder of one modality."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow


@dataclass(frozen=True)
class TowerOutput:
    """The states (B, N, width) after the chosen layers, and for images the grid of patches (height, width)."""

    states: tuple[Tensor, ...]
    grid: tuple[int, ...] = ()


class Tower(nn.Module, ABC):
    """A pre-trained encoder: ``tower(images, layers=...)`` or ``tower(ids, mask, layers=...)`` returns a TowerOutput.

    ``layers`` are numbers of layers, counted from 0; their states come in the order in which they are listed, and
    layers above the highest are not run. Image states are a class token and the patches row by row.
    """

    @abstractmethod
    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """Return the layers from bottom to top: what ``layers`` counts, and FSDP shards one by one."""

    def pooled(self, top: Tensor) -> Tensor:
        """Return the state (B, width) that stands for the whole input, given the top layer's states."""
        return top[:, 0]

    def lr_layers(self) -> list[tuple[nn.Module, ...]]:
        """Return the modules of each level for layer-wise learning rates, the embeddings (the tower itself) first."""
        return [(self,), *((block,) for block in self.fsdp_blocks())]

    def attention_flow(self, flow: AttentionFlow, x: Tensor) -> list[Tensor]:
        """Return the relevance (N, M) after each layer, given that of the input. Raises DualfuseError if undefined."""
        raise DualfuseError(f"{type(self).__name__} does not define attention_flow: its attention cannot be explained")


@dataclass(frozen=True)
class ImageTowerConfig(ABC):
    """The fields that every image tower has; a subclass, also a frozen dataclass, adds its own and builds the tower."""

    width: int
    """Width of the states."""
    depth: int
    """Number of layers."""
    image_size: tuple[int, int]
    """Height and width of the images that the positions are made for."""

    @abstractmethod
    def build(self) -> Tower:
        """Return the tower with initial weights."""


@dataclass(frozen=True)
class TextTowerConfig(ABC):
    """The fields that every text tower has; a subclass, also a frozen dataclass, adds its own and builds the tower."""

    width: int
    """Width of the states."""
    depth: int
    """Number of layers."""
    vocab_size: int
    """Number of token embeddings."""
    text_length: int
    """Longest text that has positions, in tokens."""

    @abstractmethod
    def build(self, dropout: float) -> Tower:
        """Return the tower with initial weights; ``dropout`` is that of embeddings, attention weights and branches."""
