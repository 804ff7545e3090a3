"""The contract of a vision-language model: four verbs, and what training and tools need to know of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention import gather_positions
from dualfuse.layers.attention_flow import AttentionFlow
from dualfuse.layers.embeddings import MaskedPatches
from dualfuse.layers.resizing import Resizable
from dualfuse.models.kv_cache import KVCache

if TYPE_CHECKING:
    from dualfuse.models.towers.base import StateSource, Tower

MAX_DEPTH = 1000  # a config file may ask for any number of layers, and each takes time to build


@dataclass(frozen=True)
class Tokens:
    """A batch of one modality, ready to be encoded alone or fused with the other.

    ``states`` are where encoding and fusion start: for VLMo the input embeddings (B, N, D), for BridgeTower the states
    of the top layers of the modality's tower. ``mask`` (B, N) is True at tokens and False at padding. ``grid`` is the
    height and width of an image in patches, and empty for text.
    """

    modality: Literal["image", "text"]
    states: tuple[Tensor, ...]
    mask: Tensor
    grid: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Return the batch size B."""
        return len(self.mask)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.mask.device

    @property
    def first(self) -> Tensor:
        """The position (B, 1) of the first token of each example."""
        return torch.zeros(len(self), 1, dtype=torch.long, device=self.device)

    def select(self, positions: Tensor) -> Tokens:
        """Return the tokens at ``positions`` (B, K) of each example; the result has no ``grid``."""
        states = tuple(gather_positions(state, positions) for state in self.states)
        return Tokens(self.modality, states, self.mask.gather(1, positions))

    def take(self, index: Tensor) -> Tokens:
        """Return the examples ``index`` (K,), in that order: negatives, candidates, repeats."""
        states = tuple(state.index_select(0, index) for state in self.states)
        return Tokens(self.modality, states, self.mask.index_select(0, index), self.grid)

    @staticmethod
    def join(parts: Sequence[Tokens]) -> Tokens:
        """Concatenate batches of one modality, length and grid."""
        if len({part.grid for part in parts}) > 1:
            raise DualfuseError(f"images of {sorted({part.grid for part in parts})} patches cannot be one batch")
        states = tuple(torch.cat(layer) for layer in zip(*(part.states for part in parts), strict=True))
        return Tokens(parts[0].modality, states, torch.cat([part.mask for part in parts]), parts[0].grid)


@dataclass(frozen=True)
class Fused:
    """The states of an image and a text after fusion.

    ``text`` (B, T, D) and ``image`` (B, 1 + P, D) are the final states of all tokens. If
    :meth:`VisionLanguageModel.fuse` was called with ``positions`` (B, R), ``text`` is (B, R, D) and ``image`` is
    (B, 0, D). ``pool`` computes ``pooled``, on first use: MLM alone does not need it.
    """

    text: Tensor
    image: Tensor
    pool: Callable[[], Tensor]

    @cached_property
    def pooled(self) -> Tensor:
        """The state (B, fused_width) that stands for the pair."""
        return self.pool()


@dataclass(frozen=True)
class Capabilities:
    """What a model can do beyond the four verbs; a task that needs more refuses the model when it is built."""

    fusion: bool = True
    """:meth:`VisionLanguageModel.fuse` is defined; without it the model is a dual encoder alone."""
    generation: bool = False
    """:meth:`VisionLanguageModel.fuse` takes ``attention_mask``; ``prefill`` and ``decode_step`` are defined."""
    patch_dropout: bool = False
    """:meth:`VisionLanguageModel.encode` takes images that lost patches by :meth:`Tokens.select`."""
    unimodal_states: bool = False
    """``token_states`` and ``embed_masked_image`` are defined: masked images and masked texts can be trained on."""


class VisionLanguageModel(Resizable, ABC):
    """A model that works as a dual encoder and as a fusion encoder, through four verbs."""

    width: int
    """Width of the states of images alone, and of :meth:`encode` unless ``encode_widths`` differ."""
    fused_width: int
    """Width of ``fuse(...).pooled``."""
    text_width: int
    """Width of ``fuse(...).text``."""
    vocab_size: int
    """Number of tokens that :meth:`embed_text` embeds and the MLM head predicts."""
    mlm_head_eps: float = 1e-12
    """Epsilon of the MLM head's LayerNorm, which published checkpoints share with the model."""
    num_itc_features: int = 1
    """Number of embeddings that :meth:`itc_features` returns."""
    capabilities: Capabilities = Capabilities()

    @abstractmethod
    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        """Embed images (B, 3, H, W) for both paths; ``slot`` numbers the images of one text (NLVR2 has two)."""

    @abstractmethod
    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        """Embed texts for both paths: ``ids`` (B, T), and ``mask`` (B, T), True at tokens and False at padding."""

    @abstractmethod
    def encode(self, tokens: Tokens) -> Tensor:
        """Return one embedding (B, W) of one modality alone; W is that of ``encode_widths``."""

    @abstractmethod
    def fuse(
        self, image: Tokens, text: Tokens, positions: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Fused:
        """Run image and text with attention to each other.

        With ``positions`` (B, R) the states of those text tokens alone are returned, and the last layer computes only
        them and what ``pooled`` needs; R may be 0. ``attention_mask`` (T + P, T + P) is True where a token (row) may
        attend to another (column), the text's tokens first; padding is always masked. Without it attention is full.
        Raises DualfuseError for an ``attention_mask`` if the model lacks the capability ``generation``.
        """

    @property
    def encode_widths(self) -> tuple[int, int]:
        """Widths of :meth:`encode` of an image and of a text."""
        return self.width, self.width

    @abstractmethod
    def fsdp_blocks(self) -> Iterable[nn.Module]:
        """Return the modules to shard, checkpoint and compile one by one."""

    def towers(self) -> dict[str, Tower]:
        """Return the pre-trained encoders by modality, "image" and "text"; a model of one network has none."""
        return {}

    stored_states: StateSource | None = None
    """During training, outputs of frozen towers that need not be computed again."""

    reads_pooled_states = False
    """Whether only the pooled states of towers are read, so that others need not be stored."""

    def layers_to_read(self, tower: Tower) -> tuple[int, ...]:
        """Return the numbers of the layers of a tower whose states are read; empty: they cannot be stored."""
        return ()

    def fusion_modules(self) -> Iterable[nn.Module]:
        """Return the modules that fusion alone uses, for ``fusion_lr_mult``; there may be none."""
        return ()

    def lr_layers(self) -> Iterable[tuple[nn.Module, ...]]:
        """Return the modules of each level, embeddings (0) first, for layer-wise learning rate decay.

        A module that is listed twice counts at its last level; a module that is not listed counts with the heads.
        """
        return ((block,) for block in self.fsdp_blocks())

    def resize_tensor(
        self, name: str, tensor: Tensor, source: VisionLanguageModel, *, has_text: bool
    ) -> tuple[Tensor, str] | None:
        """Add or remove types of images: a second image starts as the first (NLVR2)."""
        if name != "types.weight" or (size := len(self.get_parameter(name))) == len(tensor):
            return None
        more = tensor[-1:].expand(max(0, size - len(tensor)), -1)
        return torch.cat([tensor[:size], more]), f"types {len(tensor)} to {size}"

    def attention_flow(self, flow: AttentionFlow, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the relevance of text (T, M) and image (1 + P, M) after fusion, given that of their input tokens.

        Raises DualfuseError if the model does not say how attention maps combine through its layers.
        """
        raise DualfuseError(f"{type(self).__name__} does not define attention_flow: its attention cannot be explained")

    def average_patches(self, image: Tokens) -> Tensor:
        """Return one embedding (B, width) of images alone: the mean over patches before the final norm.

        A model without states of patches returns :meth:`encode`.
        """
        return self.encode(image)

    def patch_states(self, images: Tensor) -> Tensor:
        """Return the final states (B, P, width) of the patches of images (B, 3, H, W) alone, without class token."""
        tokens = self.embed_image(images)
        positions = torch.arange(1, tokens.states[0].shape[1], device=images.device)
        return self.token_states(tokens, positions.expand(len(images), -1))

    @property
    def local_widths(self) -> tuple[int, int]:
        """Widths of :meth:`local_states` of an image and of a text."""
        return self.width, self.text_width

    def local_states(self, tokens: Tokens) -> Tensor:
        """Return the states (B, N, W) of all tokens of one modality alone, which late interaction compares."""
        raise DualfuseError(
            f"{type(self).__name__} has no states of single words and patches for late interaction; set late.weight to "
            "0, or add a fusion encoder: dualfuse train fuse"
        )

    def patch_maps(self, image: Tokens, after: Sequence[int]) -> tuple[Tensor, ...]:
        """Return maps (B, D, h, w) of the patches in :meth:`layer_states`."""
        states = self.layer_states(image, after)
        return tuple(x[:, 1:].transpose(1, 2).reshape(*x.shape[::2], *image.grid) for x in states)

    def layer_states(self, image: Tokens, after: Sequence[int]) -> tuple[Tensor, ...]:
        """Return states (B, 1 + P, D) of images alone after the layers ``after``, from 1, class token first."""
        raise DualfuseError(f"{type(self).__name__} has no maps of patch states; use a VLMo")

    def itc_features(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """Return the embeddings (B, width) that ITC compares; the first is :meth:`encode`."""
        return (self.encode(tokens),)

    def embed_masked_image(self, images: Tensor, hidden: MaskedPatches) -> Tokens:
        """Embed images (B, 3, H, W) as :meth:`embed_image` does, with the ``hidden`` patches masked."""
        raise DualfuseError(_no_unimodal_states(self))

    def token_states(self, tokens: Tokens, positions: Tensor) -> Tensor:
        """Return the final states (B, R, width) at ``positions`` (B, R) of one modality alone."""
        raise DualfuseError(_no_unimodal_states(self))

    def prefill(self, image: Tokens, max_length: int) -> KVCache:
        """Run images, which attend to themselves alone, for texts of up to ``max_length`` tokens about them."""
        raise generation_error(self)

    def decode_step(self, cache: KVCache, text: Tokens) -> tuple[Tensor, KVCache]:
        """Return the final state (R, D) of the last token of each text, and the cache of all tokens before it.

        Each token attends to its image, to earlier tokens and to itself. ``text`` (R, t) holds all tokens so far,
        without padding; those in ``cache`` are not computed again. The last token is not cached, because decoding
        reads a [MASK] there and then replaces it.
        """
        raise generation_error(self)


def seq2seq_attention_mask(text_length: int, image_length: int, device: torch.device | None = None) -> Tensor:
    """Return UniLM's mask: image tokens attend to the image; a text token to the image, earlier text and itself."""
    length = text_length + image_length
    attention_mask = torch.ones(length, length, dtype=torch.bool, device=device)
    attention_mask[:, :text_length] = attention_mask[:, :text_length].tril()
    attention_mask[text_length:, :text_length] = False
    return attention_mask


def generation_error(model: VisionLanguageModel) -> DualfuseError:
    """Return the error of a model that cannot generate text."""
    return DualfuseError(
        f"{type(model).__name__} cannot generate captions: its images attend to whole texts from the first cross-modal "
        "layer on, so each word would depend on later words, and without that cross-attention it is not the model that "
        "was pre-trained. Use a VLMo, whose images can attend to themselves alone"
    )


def fusion_error(model: VisionLanguageModel) -> DualfuseError:
    """Return the error of a model without a fusion encoder."""
    return DualfuseError(
        f"{type(model).__name__} has no fusion encoder: it searches and classifies by the embeddings of images and of "
        "texts alone, and cannot match, re-rank, answer or explain. Train a fusion encoder on top of it with: dualfuse "
        "train fuse --start-from MODEL --data.train SHARDS"
    )


def check_fusion(model: VisionLanguageModel) -> None:
    """Raise DualfuseError if a model has no fusion encoder."""
    if not model.capabilities.fusion:
        raise fusion_error(model)


def _no_unimodal_states(model: VisionLanguageModel) -> str:
    return (
        f"{type(model).__name__} cannot train on masked images or masked texts alone, because its towers come "
        "pre-trained; use a VLMo for these stages"
    )


class ModelConfig(Protocol):
    """A frozen dataclass that builds a model: a :class:`VisionLanguageModel`, or the network that a task needs."""

    def build(self) -> nn.Module:
        """Return the model with initial weights, without reading a file."""
        ...
