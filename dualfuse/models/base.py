"""The four verbs of a vision-language model, and what they hand to each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention import LayerKVCache, gather_positions
from dualfuse.layers.embeddings import MaskedPatches

MAX_DEPTH = 1000  # a file from outside may ask for any number of layers; each costs time before its size is known


@dataclass(frozen=True)
class Tokens:
    """One modality, ready to be encoded alone or fused with the other.

    ``states`` is what encoding and fusion start from: for VLMo the input embeddings (B, N, D), for BridgeTower what
    the top layers of that modality's tower give. ``mask`` is (B, N), True where there is a token. ``grid`` is the
    height and width of an image in patches; for text it is empty.
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

    def select(self, places: Tensor) -> Tokens:
        """Return the tokens at ``places`` (B, K) of each row; what is left of an image has no ``grid`` any more."""
        states = tuple(gather_positions(state, places) for state in self.states)
        return Tokens(self.modality, states, self.mask.gather(1, places))

    def take(self, index: Tensor) -> Tokens:
        """Return the rows ``index`` (K,), in that order: negatives, candidates, repeats."""
        states = tuple(state.index_select(0, index) for state in self.states)
        return Tokens(self.modality, states, self.mask.index_select(0, index), self.grid)

    @staticmethod
    def join(parts: Sequence[Tokens]) -> Tokens:
        """Put batches of one modality, length and grid under each other."""
        if len({part.grid for part in parts}) > 1:
            raise DualfuseError(f"images of {sorted({part.grid for part in parts})} patches cannot be one batch")
        states = tuple(torch.cat(layer) for layer in zip(*(part.states for part in parts), strict=True))
        return Tokens(parts[0].modality, states, torch.cat([part.mask for part in parts]), parts[0].grid)


@dataclass(frozen=True)
class Fused:
    """An image and a text that have seen each other.

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
class KVCache:
    """Images and the words so far, layer by layer: what comes next sees them, and they are not computed again.

    ``image`` are the B images; row r of R texts is about the image ``about[r]``. ``words`` (R, t, D) are their
    first t tokens, none at the start. ``bias`` (L, H, T, P + T) are the biases of texts of up to T tokens, whose keys
    are the image, then the text; None for a model without.
    """

    image: tuple[LayerKVCache, ...]
    about: Tensor
    bias: Tensor | None = None
    words: tuple[LayerKVCache, ...] = ()

    def __len__(self) -> int:
        """The number of words t."""
        return len(self.words[0]) if self.words else 0

    def take(self, index: Tensor) -> KVCache:
        """Return the texts ``index`` (K,), in that order; images are not copied."""
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
    vocab_size: int
    """Number of tokens that :meth:`embed_text` knows, and the word head predicts."""
    mlm_head_eps: float = 1e-12
    """Of the LayerNorm of a word head, which published weights have in common with their model."""
    can_generate: bool = False
    """Whether words can see earlier words alone: whether :meth:`fuse` takes ``sees``, and :meth:`go_on` goes on."""
    can_drop_patches: bool = False
    """Whether :meth:`encode` reads images of which :meth:`Tokens.keep` has left patches out."""

    @abstractmethod
    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        """Return what both paths share of images (B, 3, H, W); ``slot`` tells several images of one text apart."""

    @abstractmethod
    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        """Return what both paths share of texts: ``ids`` (B, T), ``mask`` (B, T), True where there is a token."""

    @abstractmethod
    def encode(self, tokens: Tokens) -> Tensor:
        """Return one vector (B, width) for one modality alone."""

    @abstractmethod
    def fuse(
        self, image: Tokens, text: Tokens, positions: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Fused:
        """Let both modalities see each other.

        ``positions`` (B, R) are the positions of the text tokens whose states are wanted; the last layer then computes
        only those and what ``pooled`` needs. R may be 0. Without ``positions`` every state is computed.

        ``sees`` (T + P, T + P) is True where a token, the text's first and the image's after them, may see another;
        padding is never seen. Without it all see each other. ``DualfuseError`` if this model cannot (``can_generate``).
        """

    @abstractmethod
    def fsdp_blocks(self) -> Iterable[nn.Module]:
        """List the modules to shard, checkpoint and compile one by one."""

    def fusion_modules(self) -> Iterable[nn.Module]:
        """List the parts that serve fusion alone, and may learn at a rate of their own; there may be none."""
        return ()

    def lr_layers(self) -> Iterable[tuple[nn.Module, ...]]:
        """List what lies at each level, from the embeddings (0) up, for learning rates that fall with depth.

        What is listed twice lies where it is listed last; what is not listed lies as high as the heads.
        """
        return ((unit,) for unit in self.fsdp_blocks())

    def average_patches(self, image: Tokens) -> Tensor:
        """Return one vector (B, width) for images alone: the mean over patches, before the last norm.

        A model that keeps no states of patches alone gives :meth:`encode`'s.
        """
        return self.encode(image)

    def patch_maps(self, image: Tokens, after: Sequence[int]) -> tuple[Tensor, ...]:
        """Return maps (B, D, h, w) of the states of patches after some layers, counted from 1, for images alone."""
        raise DualfuseError(f"{type(self).__name__} gives no states of patches after its layers; take a VLMo")

    def itc_features(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """Return the vectors that the contrastive objective compares, one per view, the plain one first."""
        return (self.encode(tokens),)

    @property
    def num_itc_features(self) -> int:
        """The number of vectors that :meth:`views` gives."""
        return 1

    def embed_masked_image(self, images: Tensor, hidden: MaskedPatches) -> Tokens:
        """Return images (B, 3, H, W) as :meth:`embed_image` does, some of their patches hidden."""
        raise DualfuseError(_learns_no_modality_alone(self))

    def token_states(self, tokens: Tokens, positions: Tensor) -> Tensor:
        """Return the final states (B, R, width) of the positions ``positions`` (B, R) of one modality alone."""
        raise DualfuseError(_learns_no_modality_alone(self))

    def prefill(self, image: Tokens, longest: int) -> KVCache:
        """Run images, which see themselves alone, for texts of up to ``longest`` tokens about them."""
        raise DualfuseError(cannot_generate(self))

    def decode_step(self, past: KVCache, text: Tokens) -> tuple[Tensor, KVCache]:
        """Return the final state (R, D) of the last token of each text, and the past with all tokens before it.

        Every token sees its image, earlier tokens and itself. ``text`` (R, t) are all tokens so far, without
        padding; those in the ``past`` are not computed again, and the last is not kept.
        """
        raise DualfuseError(cannot_generate(self))


def seq2seq_attention_mask(words: int, patches: int, device: torch.device | None = None) -> Tensor:
    """Return UniLM's ``sees``: images see images; a word sees the image, earlier words and itself."""
    attention_mask = torch.ones(words + patches, words + patches, dtype=torch.bool, device=device)
    attention_mask[:, :words] = attention_mask[:, :words].tril()
    attention_mask[words:, :words] = False
    return attention_mask


def cannot_generate(model: VisionLanguageModel) -> str:
    """Return why a model writes no text."""
    return (
        f"{type(model).__name__} writes no captions: its images see whole texts from the first cross-modal layer on, "
        "so every word would know those after it, and without that cross-attention it is not the model that was "
        "pre-trained. Take a VLMo, whose images can be told to see themselves alone"
    )


def _learns_no_modality_alone(model: VisionLanguageModel) -> str:
    return (
        f"{type(model).__name__} learns no masked patches or words of one modality alone: its towers come pre-trained; "
        "take a VLMo for these stages"
    )


class ModelConfig(Protocol):
    """Anything frozen that builds a model: a :class:`VisionLanguageModel`, or what a task of its own needs."""

    def build(self) -> nn.Module:
        """Return the model with its initial weights, without reading a file."""
        ...
