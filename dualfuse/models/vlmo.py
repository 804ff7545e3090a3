"""VLMo: one Transformer whose blocks share self-attention and switch experts by modality (arXiv 2111.02358)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.blocks import SHARED, Block, Route, one_expert
from dualfuse.layers.embeddings import MaskedPatches, PatchEmbedding, Stem, TextEmbedding
from dualfuse.layers.init import init_weights, init_weights_as_beit
from dualfuse.layers.relative_bias import Grid, RelativeBias
from dualfuse.models.base import MAX_DEPTH, Fused, KVCache, Tokens, VisionLanguageModel
from dualfuse.models.kv_cache import Stack, decode_step, prefill

TEXT, IMAGE, BOTH = "text", "image", "vl"
"""The experts: language, vision, vision-language."""


@dataclass(frozen=True)
class InitConfig:
    """What the weights start from."""

    std: float = 0.02
    """Standard deviation of the linear layers; narrow models learn sooner with more, about 1 / sqrt(width)."""
    layer_scale: float = 0.1
    """First value of LayerScale; 0: none."""
    rule: Literal["vlmo", "beit"] = "vlmo"
    """"beit": what images pass is drawn within one ``std``, and the outputs of attention and vision expert in layer
    n (from 1) are divided by sqrt(2 n)."""


@dataclass(frozen=True)
class VLMoConfig:
    """The numbers of a VLMo; the defaults are the paper's base size with relative positions."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    vl_expert_start: int = 10
    """First layer (from 0) with a vision-language expert; ``depth`` or more: none has one."""
    patch_size: int = 16
    image_size: tuple[int, int] = (224, 224)
    """Height and width the positions are made for; images of other sizes read resized positions."""
    vocab_size: int = 30_522
    text_length: int = 196
    """Longest text the positions know."""
    positions: Literal["relative", "absolute"] = "relative"
    init: InitConfig = InitConfig()
    """What the weights start from."""
    drop_path: float = 0.1
    """Stochastic depth of the last layer, rising from 0; as in the official code also the text embedding's dropout."""
    experts: Literal["modality", "shared"] = "modality"
    """"shared" is the standard Transformer of the paper's Table 5."""
    share_relative_bias: bool = False
    """"alike": all layers read the mean of their relative positions, which start alike and stay so: as if they had one
    table, BEiT's, and later stages can go on with a table for each."""
    separate_attention_until: int = 0
    """Layers below this give each modality its own attention, to itself alone (Table 7; there: ``vl_expert_start``)."""
    stem: Stem = "linear"
    """How patches are made; "convolution" learns quicker at small scale (not in the paper)."""
    image_slots: int = 1
    """Images per text that the model can tell apart (NLVR2: 2)."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no model."""
        if not 1 <= self.depth <= MAX_DEPTH or self.vl_expert_start < 0:
            raise DualfuseError(
                f"depth is {self.depth}, vl_expert_start {self.vl_expert_start}; give 1 to {MAX_DEPTH}, and at least 0"
            )
        if any(side < self.patch_size or side % self.patch_size for side in self.image_size):
            raise DualfuseError(f"image_size {self.image_size} is no multiple of the patch, {self.patch_size}")

    def build(self) -> VLMo:
        """Return the model with its initial weights."""
        return VLMo(self)


class VLMo(VisionLanguageModel):
    """One Transformer for images, texts and pairs.

    The three modes of the paper are three routes through the same blocks; in pairs the text comes first.
    """

    can_generate = True

    def __init__(self, cfg: VLMoConfig) -> None:
        """Draw initial weights by the rule of the official code (its std is 0.02; the bias table starts at zero)."""
        super().__init__()
        self.width = self.fused_width = self.text_width = cfg.width
        self.vocab_size, self.vl_expert_start, self.separate_attention_until = (
            cfg.vocab_size,
            cfg.vl_expert_start,
            cfg.separate_attention_until,
        )
        if cfg.separate_attention_until > min(cfg.vl_expert_start, cfg.depth - 1):
            raise DualfuseError(
                f"separate_attention_until={cfg.separate_attention_until}: the last of {cfg.depth} layers, and those with a "
                f"vision-language expert (from {cfg.vl_expert_start}), see pairs as one sequence; give at most "
                f"{min(cfg.vl_expert_start, cfg.depth - 1)}"
            )
        self.has_vl_experts = cfg.experts == "modality" and cfg.vl_expert_start < cfg.depth
        window = (cfg.image_size[0] // cfg.patch_size, cfg.image_size[1] // cfg.patch_size)
        relative = cfg.positions == "relative"
        self.can_drop_patches = not relative  # relative positions speak of whole grids
        self.patches = PatchEmbedding(
            cfg.width, patch=cfg.patch_size, stem=cfg.stem, positions=None if relative else window
        )
        self.words = TextEmbedding(
            cfg.width,
            vocabulary=cfg.vocab_size,
            positions=0 if relative else cfg.text_length,
            dropout=cfg.drop_path,
        )
        self.types = nn.Embedding(1 + cfg.image_slots, cfg.width)  # row 0 text, then one row per image
        self.relative_bias = (
            RelativeBias(window=window, text=cfg.text_length, layers=cfg.depth, heads=cfg.heads) if relative else None
        )
        self.share_relative_bias = cfg.share_relative_bias
        self.blocks = nn.ModuleList(_blocks(cfg))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)
        self.pooler = nn.Linear(cfg.width, cfg.width)
        init_weights(self, cfg.init.std)
        if cfg.init.rule == "beit":
            init_weights_as_beit(self.patches, self.blocks, cfg.init.std)

    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        """Return patches and class token of images (B, 3, H, W) with the type of their ``slot``."""
        if slot + 1 >= self.types.num_embeddings:
            raise DualfuseError(f"slot {slot}: this model tells {self.types.num_embeddings - 1} images apart")
        tokens, grid = self.patches(images)
        return self._typed(tokens, grid, slot)

    def embed_masked_image(self, images: Tensor, hidden: MaskedPatches) -> Tokens:
        """Return images (B, 3, H, W), the embeddings of some patches replaced before positions are added."""
        tokens, grid = self.patches(images, hidden)
        return self._typed(tokens, grid, 0)

    def _typed(self, tokens: Tensor, grid: Grid, slot: int) -> Tokens:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Tokens(IMAGE, (tokens + self.types.weight[1 + slot],), mask, grid)

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        """Return word embeddings of texts (B, T)."""
        return Tokens(TEXT, (self.words(ids) + self.types.weight[0],), mask.bool())

    def encode(self, tokens: Tokens) -> Tensor:
        """Return the final state (B, D) of the first token, through the modality's own experts in every layer."""
        return self.token_states(tokens, tokens.first)[:, 0]

    def token_states(self, tokens: Tokens, positions: Tensor) -> Tensor:
        """Return the final states (B, R, D) of ``positions`` (B, R), through the modality's own experts in every layer.

        The last layer computes those rows alone.
        """
        bias, last = self._bias(tokens), len(self.blocks) - 1
        x = self._alone(tokens, bias, until=last)
        return self._finish(x, tokens, bias, positions, start=last, expert=tokens.modality)

    def average_patches(self, image: Tokens) -> Tensor:
        """Return the mean (B, D) over the patches of what the last layer gives, the class token left out."""
        return self._alone(image, self._bias(image), until=len(self.blocks))[:, 1:].mean(1)

    def patch_maps(self, image: Tokens, after: Sequence[int]) -> tuple[Tensor, ...]:
        """Return maps (B, D, h, w) of the states of patches after some layers, counted from 1, before the last norm."""
        if not 1 <= min(after) <= max(after) <= len(self.blocks):
            raise DualfuseError(
                f"states after the layers {tuple(after)} are wanted; this model has 1 to {len(self.blocks)}"
            )
        x, bias, maps = image.states[0], self._bias(image), dict[int, Tensor]()
        for layer in range(max(after)):
            x = self.blocks[layer](x, one_expert(IMAGE, x), bias=_layer(bias, layer))
            if layer + 1 in after:
                maps[layer + 1] = x[:, 1:].transpose(1, 2).unflatten(2, image.grid)
        return tuple(maps[layer] for layer in after)

    def itc_features(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """Return the plain vector, and the one whose upper layers are the vision-language experts'.

        Both share the layers below ``vl_expert_start``. The second view is the official code's, not the paper's text.
        """
        if self.num_itc_features == 1:
            return (self.encode(tokens),)
        bias = self._bias(tokens)
        x = self._alone(tokens, bias, until=self.vl_expert_start)
        first, start = tokens.first, self.vl_expert_start
        return tuple(
            self._finish(x, tokens, bias, first, start=start, expert=name)[:, 0] for name in (tokens.modality, BOTH)
        )

    @property
    def num_itc_features(self) -> int:
        """Two if any layer has a vision-language expert, else one."""
        return 2 if self.has_vl_experts else 1

    def fuse(
        self, image: Tokens, text: Tokens, positions: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Fused:
        """Let words and patches attend to each other; ``pooled`` is tanh(W x + b) of the first word's state."""
        length = text.mask.shape[1]
        bias = self._bias(image, text)
        words, patches = text.states[0], image.states[0]
        word_mask = text.mask if attention_mask is None else text.mask[:, None] & attention_mask[:length, :length]
        for layer, block in enumerate(self.blocks[: self.separate_attention_until]):
            word_bias, patch_bias = _layer(bias, layer), _layer(bias, layer)
            if bias is not None:
                word_bias, patch_bias = bias[layer, :, :length, :length], bias[layer, :, length:, length:]
            words = block(words, one_expert(TEXT, words), mask=word_mask, bias=word_bias)
            patches = block(patches, one_expert(IMAGE, patches), bias=patch_bias)
        x = torch.cat([words, patches], dim=1)
        mask = torch.cat([text.mask, image.mask], dim=1)
        mask = mask if attention_mask is None else mask[:, None] & attention_mask
        for layer in range(self.separate_attention_until, len(self.blocks) - 1):
            x = self.blocks[layer](x, self._route(layer, text, image), mask=mask, bias=_layer(bias, layer))
        last = len(self.blocks) - 1
        if positions is None:
            x = self.norm(self.blocks[last](x, self._route(last, text, image), mask=mask, bias=_layer(bias, last)))
            return Fused(x[:, :length], x[:, length:], lambda: self.pool(x[:, 0]))
        positions = torch.cat([positions.new_zeros(len(positions), 1), positions], dim=1)
        route = one_expert(BOTH if last >= self.vl_expert_start else TEXT, positions)
        x = self.norm(self.blocks[last](x, route, mask=mask, bias=_layer(bias, last), positions=positions))
        return Fused(x[:, 1:], x[:, :0], lambda: self.pool(x[:, 0]))

    def prefill(self, image: Tokens, longest: int) -> KVCache:
        """Remember images layer by layer, through the experts of pairs."""
        bias, of_image, of_words = self._biases(longest, image.grid), None, None
        if bias is not None:  # keys of words: the image, then the text
            of_image, of_words = bias[:, :, longest:, longest:], bias[:, :, :longest].roll(-longest, dims=3)
        images = prefill(self._stack(IMAGE), image.states[0], of_image)
        return KVCache(images, torch.arange(len(image), device=image.device), of_words)

    def decode_step(self, past: KVCache, text: Tokens) -> tuple[Tensor, KVCache]:
        """Run the words that are new, through the experts of pairs."""
        x, past = decode_step(self._stack(TEXT), past, text.states[0][:, len(past) :])
        return self.norm(x[:, -1]), past

    def pool(self, x: Tensor) -> Tensor:
        """Return tanh(W x + b)."""
        return torch.tanh(self.pooler(x))

    def fsdp_blocks(self) -> Iterable[nn.Module]:
        """List the blocks."""
        return iter(self.blocks)

    def lr_layers(self) -> Iterable[tuple[nn.Module, ...]]:
        """List the embeddings, then the blocks; the position bias of all layers is one, and lies above them."""
        return (self.patches, self.words, self.types), *((block,) for block in self.blocks)

    def _bias(self, tokens: Tokens, text: Tokens | None = None) -> Tensor | None:
        """Gather the bias of all layers once for one mode: (L, H, N, N)."""
        words = text if text is not None else tokens
        return self._biases(words.mask.shape[1] if words.modality == TEXT else 0, tokens.grid)

    def _biases(self, length: int, grid: tuple[int, ...]) -> Tensor | None:
        if self.relative_bias is None:
            return None
        bias = self.relative_bias(text=length, grid=(grid[0], grid[1]) if grid else ())
        return bias.mean(0, keepdim=True).expand_as(bias) if self.share_relative_bias else bias

    def _stack(self, modality: str) -> Stack:
        """Return the blocks with the experts that a modality passes in pairs."""
        layers = ((layer, block) for layer, block in enumerate(self.blocks) if isinstance(block, Block))  # all are
        return tuple((block, BOTH if layer >= self.vl_expert_start else modality) for layer, block in layers)

    def _route(self, layer: int, text: Tokens, image: Tokens) -> Route:
        lengths = text.mask.shape[1], image.mask.shape[1]
        return ((BOTH, sum(lengths)),) if layer >= self.vl_expert_start else ((TEXT, lengths[0]), (IMAGE, lengths[1]))

    def _alone(self, tokens: Tokens, bias: Tensor | None, *, until: int) -> Tensor:
        x, mask = tokens.states[0], _mask(tokens)
        for layer in range(until):
            x = self.blocks[layer](x, one_expert(tokens.modality, x), mask=mask, bias=_layer(bias, layer))
        return x

    def _finish(
        self, x: Tensor, tokens: Tokens, bias: Tensor | None, positions: Tensor, *, start: int, expert: str
    ) -> Tensor:
        """Run the layers from ``start`` with one expert; the last computes ``positions`` (B, R) only."""
        mask, last = _mask(tokens), len(self.blocks) - 1
        for layer in range(start, last):
            x = self.blocks[layer](x, one_expert(expert, x), mask=mask, bias=_layer(bias, layer))
        return self.norm(
            self.blocks[last](x, one_expert(expert, positions), mask=mask, bias=_layer(bias, last), positions=positions)
        )


def _blocks(cfg: VLMoConfig) -> Iterable[Block]:
    for layer in range(cfg.depth):
        experts = (TEXT, IMAGE, BOTH) if layer >= cfg.vl_expert_start else (TEXT, IMAGE)
        yield Block(
            cfg.width,
            heads=cfg.heads,
            attentions=(TEXT, IMAGE) if layer < cfg.separate_attention_until else (SHARED,),
            experts=(SHARED,) if cfg.experts == SHARED else experts,
            layer_scale=cfg.init.layer_scale,
            drop_path=cfg.drop_path * layer / max(1, cfg.depth - 1),
        )


def _layer(bias: Tensor | None, layer: int) -> Tensor | None:
    return None if bias is None else bias[layer]


def _mask(tokens: Tokens) -> Tensor | None:
    return None if tokens.modality == IMAGE else tokens.mask
