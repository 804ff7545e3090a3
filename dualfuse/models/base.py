"""The four verbs of a vision-language model, and what they hand to each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dualfuse.layers.embeddings import Hidden


@dataclass(frozen=True)
class Tokens:
    """One modality, ready to be encoded alone or fused with the other.

    ``states`` is what encoding and fusion start from: for VLMo the input embeddings (B, N, D), for BridgeTower what
    the top layers of that modality's tower give. ``mask`` is (B, N), True where there is a token. ``grid`` is the
    height and width of a picture in patches; for text it is empty.
    """

    modality: Literal["image", "text"]
    states: tuple[Tensor, ...]
    mask: Tensor
    grid: tuple[int, ...] = ()

    def __len__(self) -> int:
        """The number of rows B."""
        return len(self.mask)

    def take(self, index: Tensor) -> Tokens:
        """Gives the rows ``index`` (K,), in that order: negatives, candidates, repeats."""
        states = tuple(state.index_select(0, index) for state in self.states)
        return Tokens(self.modality, states, self.mask.index_select(0, index), self.grid)

    @staticmethod
    def join(parts: Sequence[Tokens]) -> Tokens:
        """Puts batches of one modality, length and grid under each other."""
        if len({part.grid for part in parts}) > 1:
            raise ValueError(f"pictures of {sorted({part.grid for part in parts})} patches cannot be one batch")
        states = tuple(torch.cat(layer) for layer in zip(*(part.states for part in parts), strict=True))
        return Tokens(parts[0].modality, states, torch.cat([part.mask for part in parts]), parts[0].grid)


@dataclass(frozen=True)
class Fused:
    """A picture and a text that have seen each other.

    ``text`` (B, T, D) and ``image`` (B, 1 + P, D) are the final states of their tokens. When
    :meth:`VisionLanguageModel.fuse` was asked for some text rows only, ``text`` is (B, R, D) and ``image`` is
    (B, 0, D). ``pool`` computes ``pooled``; who predicts words alone never calls it.
    """

    text: Tensor
    image: Tensor
    pool: Callable[[], Tensor]

    @cached_property
    def pooled(self) -> Tensor:
        """Stands for the pair: (B, fused_width)."""
        return self.pool()


class VisionLanguageModel(nn.Module, ABC):
    """A model that works as a dual encoder and as a fusion encoder, through four verbs."""

    width: int
    """Width of :meth:`encode`."""
    fused_width: int
    """Width of ``fuse(...).pooled``."""
    text_width: int
    """Width of ``fuse(...).text``."""
    vocabulary: int
    """Number of word pieces that :meth:`embed_text` knows, and the word head predicts."""
    head_epsilon: float = 1e-12
    """Of the LayerNorm of a word head, which published weights have in common with their model."""

    @abstractmethod
    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        """Gives what both paths share of pictures (B, 3, H, W); ``slot`` tells several pictures of one text apart."""

    @abstractmethod
    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        """Gives what both paths share of texts: ``ids`` (B, T), ``mask`` (B, T), True where there is a token."""

    @abstractmethod
    def encode(self, tokens: Tokens) -> Tensor:
        """Gives one vector (B, width) for one modality alone."""

    @abstractmethod
    def fuse(self, image: Tokens, text: Tokens, rows: Tensor | None = None) -> Fused:
        """Lets both modalities see each other.

        ``rows`` (B, R) are the positions of the text tokens whose states are wanted; the last layer then computes
        only those and what ``pooled`` needs. R may be 0. Without ``rows`` every state is computed.
        """

    @abstractmethod
    def units(self) -> Iterable[nn.Module]:
        """Lists the modules to shard, checkpoint and compile one by one."""

    def fusing(self) -> Iterable[nn.Module]:
        """Lists the parts that serve fusion alone, and may learn at a rate of their own; there may be none."""
        return ()

    def levels(self) -> Iterable[tuple[nn.Module, ...]]:
        """Lists what lies at each level, from the embeddings (0) up, for learning rates that fall with depth.

        What is listed twice lies where it is listed last; what is not listed lies as high as the heads.
        """
        return ((unit,) for unit in self.units())

    def average_patches(self, image: Tokens) -> Tensor:
        """Gives one vector (B, width) for pictures alone: the mean over patches, before the last norm.

        A model that keeps no states of patches alone gives :meth:`encode`'s.
        """
        return self.encode(image)

    def views(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """Gives the vectors that the contrastive objective compares, one per view, the plain one first."""
        return (self.encode(tokens),)

    @property
    def num_views(self) -> int:
        """The number of vectors that :meth:`views` gives."""
        return 1

    def embed_masked_image(self, images: Tensor, hidden: Hidden) -> Tokens:
        """Gives pictures (B, 3, H, W) as :meth:`embed_image` does, some of their patches hidden."""
        raise ValueError(_learns_no_modality_alone(self))

    def states(self, tokens: Tokens, rows: Tensor) -> Tensor:
        """Gives the final states (B, R, width) of the positions ``rows`` (B, R) of one modality alone."""
        raise ValueError(_learns_no_modality_alone(self))


def _learns_no_modality_alone(model: VisionLanguageModel) -> str:
    return (
        f"{type(model).__name__} learns no masked patches or words of one modality alone: its towers come pre-trained; "
        "take a VLMo for these stages"
    )


class ModelConfig(Protocol):
    """Anything frozen that builds a model: a :class:`VisionLanguageModel`, or what a task of its own needs."""

    def build(self) -> nn.Module:
        """Gives the model with its initial weights, without reading a file."""
        ...
