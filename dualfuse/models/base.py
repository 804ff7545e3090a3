"""The four verbs of a vision-language model, and what they hand to each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dualfuse.layers.attention import Remembered, take_rows
from dualfuse.layers.embeddings import Hidden

DEEPEST = 1000  # a file from outside may ask for any number of layers; each costs time before its size is known


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

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.mask.device

    @property
    def first(self) -> Tensor:
        """The position (B, 1) of the first token of each row."""
        return torch.zeros(len(self), 1, dtype=torch.long, device=self.device)

    def keep(self, places: Tensor) -> Tokens:
        """Gives the tokens at ``places`` (B, K) of each row; what is left of a picture has no ``grid`` any more."""
        states = tuple(take_rows(state, places) for state in self.states)
        return Tokens(self.modality, states, self.mask.gather(1, places))

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


@dataclass(frozen=True)
class Past:
    """Pictures and the words so far, layer by layer: what comes next sees them, and they are not computed again.

    ``image`` are the B pictures; row r of R texts is about the picture ``about[r]``. ``words`` (R, t, D) are their
    first t tokens, none at the start. ``bias`` (L, H, T, P + T) are the biases of texts of up to T tokens, whose keys
    are the picture, then the text; None for a model without.
    """

    image: tuple[Remembered, ...]
    about: Tensor
    bias: Tensor | None = None
    words: tuple[Remembered, ...] = ()

    def __len__(self) -> int:
        """The number of words t."""
        return len(self.words[0]) if self.words else 0

    def take(self, index: Tensor) -> Past:
        """Gives the texts ``index`` (K,), in that order; pictures are not copied."""
        words = tuple(layer.take(index) for layer in self.words)
        return replace(self, about=self.about.index_select(0, index), words=words)


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
    can_write: bool = False
    """Whether words can see earlier words alone: whether :meth:`fuse` takes ``sees``, and :meth:`go_on` goes on."""
    can_drop_patches: bool = False
    """Whether :meth:`encode` reads pictures of which :meth:`Tokens.keep` has left patches out."""

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
    def fuse(self, image: Tokens, text: Tokens, rows: Tensor | None = None, sees: Tensor | None = None) -> Fused:
        """Lets both modalities see each other.

        ``rows`` (B, R) are the positions of the text tokens whose states are wanted; the last layer then computes
        only those and what ``pooled`` needs. R may be 0. Without ``rows`` every state is computed.

        ``sees`` (T + P, T + P) is True where a token, the text's first and the picture's after them, may see another;
        padding is never seen. Without it all see each other. ``ValueError`` if this model cannot (``can_write``).
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

    def patch_maps(self, image: Tokens, after: Sequence[int]) -> tuple[Tensor, ...]:
        """Gives maps (B, D, h, w) of the states of patches after some layers, counted from 1, for pictures alone."""
        raise ValueError(f"{type(self).__name__} gives no states of patches after its layers; take a VLMo")

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

    def begin(self, image: Tokens, longest: int) -> Past:
        """Runs pictures, which see themselves alone, for texts of up to ``longest`` tokens about them."""
        raise ValueError(cannot_write(self))

    def go_on(self, past: Past, text: Tokens) -> tuple[Tensor, Past]:
        """Gives the final state (R, D) of the last token of each text, and the past with all tokens before it.

        Every token sees its picture, earlier tokens and itself. ``text`` (R, t) are all tokens so far, without
        padding; those in the ``past`` are not computed again, and the last is not kept.
        """
        raise ValueError(cannot_write(self))


def reading_order(words: int, patches: int, device: torch.device | None = None) -> Tensor:
    """Gives UniLM's ``sees``: pictures see pictures; a word sees the picture, earlier words and itself."""
    sees = torch.ones(words + patches, words + patches, dtype=torch.bool, device=device)
    sees[:, :words] = sees[:, :words].tril()
    sees[words:, :words] = False
    return sees


def cannot_write(model: VisionLanguageModel) -> str:
    """Says why a model writes no text."""
    return (
        f"{type(model).__name__} writes no captions: its pictures see whole texts from the first cross-modal layer on, "
        "so every word would know those after it, and without that cross-attention it is not the model that was "
        "pre-trained. Take a VLMo, whose pictures can be told to see themselves alone"
    )


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
