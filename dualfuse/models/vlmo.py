"""VLMo: one Transformer whose blocks share self-attention and switch experts by modality (arXiv 2111.02358)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow
from dualfuse.layers.blocks import SHARED, Block, Route, one_expert
from dualfuse.layers.embeddings import MaskedPatches, PatchEmbedding, Stem, TextEmbedding
from dualfuse.layers.init import init_weights, init_weights_as_beit
from dualfuse.layers.relative_bias import Grid, RelativeBias
from dualfuse.models.base import MAX_DEPTH, Capabilities, Fused, Tokens, VisionLanguageModel
from dualfuse.models.kv_cache import KVCache, Stack, decode_step, prefill

TEXT, IMAGE, VL = "text", "image", "vl"
"""Names of the experts: language, vision and vision-language."""


@dataclass(frozen=True)
class InitConfig:
    """Initial weights."""

    std: float = 0.02
    """Standard deviation of linear layers; narrow models train faster with more, about 1 / sqrt(width)."""
    layer_scale: float = 0.1
    """Initial value of LayerScale; 0 disables it."""
    rule: Literal["vlmo", "beit"] = "vlmo"
    """"beit": the weights on the path of images are truncated at one ``std``, and the output weights of attention and
    vision expert in layer n (from 1) are divided by sqrt(2 n)."""


@dataclass(frozen=True)
class VLMoConfig:
    """The sizes and options of a VLMo; the defaults are the paper's base size with relative positions."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    vl_expert_start: int = 10
    """First layer (from 0) with a vision-language expert; with ``depth`` or more no layer has one."""
    patch_size: int = 16
    image_size: tuple[int, int] = (224, 224)
    """Height and width that the positions are made for; other image sizes use resized positions."""
    vocab_size: int = 30_522
    text_length: int = 196
    """Longest text that has positions, in tokens."""
    positions: Literal["relative", "absolute"] = "relative"
    init: InitConfig = InitConfig()
    drop_path: float = 0.1
    """Stochastic depth of the last layer, rising from 0; also the text embedding's dropout, as in the official code."""
    experts: Literal["modality", "shared"] = "modality"
    """"modality": experts per modality; "shared": the standard Transformer of the paper's Table 5."""
    share_relative_bias: bool = False
    """Average the per-layer tables of relative positions, so that all layers share one, as in BEiT; a later stage can
    continue with a table per layer."""
    separate_attention_until: int = 0
    """Layers below this have one attention per modality, to itself alone (Table 7, there ``vl_expert_start``)."""
    stem: Stem = "linear"
    """Patch embedding: one linear map, or "convolution", which trains faster at small scale (not in the paper)."""
    image_slots: int = 1
    """Number of images per text, each with its own type embedding (NLVR2: 2)."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        if not 1 <= self.depth <= MAX_DEPTH or self.vl_expert_start < 0:
            raise DualfuseError(
                f"depth is {self.depth}, vl_expert_start {self.vl_expert_start}; give 1 to {MAX_DEPTH}, and at least 0"
            )
        if any(side < self.patch_size or side % self.patch_size for side in self.image_size):
            raise DualfuseError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    def build(self) -> VLMo:
        """Return the model with its initial weights."""
        return VLMo(self)


class VLMo(VisionLanguageModel):
    """One Transformer for images, texts and pairs.

    The three modes of the paper are three routes through the same blocks; in pairs the text comes first.
    """

    def __init__(self, cfg: VLMoConfig) -> None:
        """Initialize weights by the rule of the official code (std 0.02; the relative bias starts at zero)."""
        super().__init__()
        self.width = self.fused_width = self.text_width = cfg.width
        self.vocab_size, self.share_relative_bias = cfg.vocab_size, cfg.share_relative_bias
        self.vl_expert_start, self.separate_attention_until = cfg.vl_expert_start, cfg.separate_attention_until
        if cfg.separate_attention_until > min(cfg.vl_expert_start, cfg.depth - 1):
            raise DualfuseError(
                f"separate_attention_until is {cfg.separate_attention_until}, but the last of {cfg.depth} layers and "
                f"those with a vision-language expert (from {cfg.vl_expert_start}) attend to pairs as one sequence; "
                f"give at most {min(cfg.vl_expert_start, cfg.depth - 1)}"
            )
        self.num_itc_features = 2 if cfg.experts == "modality" and cfg.vl_expert_start < cfg.depth else 1
        window = (cfg.image_size[0] // cfg.patch_size, cfg.image_size[1] // cfg.patch_size)
        relative = cfg.positions == "relative"
        # relative positions index whole grids of patches
        self.capabilities = Capabilities(generation=True, patch_dropout=not relative, unimodal_states=True)
        grid, length = (None, 0) if relative else (window, cfg.text_length)
        self.patches = PatchEmbedding(cfg.width, patch=cfg.patch_size, stem=cfg.stem, positions=grid)
        self.words = TextEmbedding(cfg.width, vocabulary=cfg.vocab_size, positions=length, dropout=cfg.drop_path)
        self.types = nn.Embedding(1 + cfg.image_slots, cfg.width)  # row 0 text, then one row per image
        self.relative_bias = (
            RelativeBias(window=window, text=cfg.text_length, layers=cfg.depth, heads=cfg.heads) if relative else None
        )
        self.blocks = nn.ModuleList(_blocks(cfg))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)
        self.pooler = nn.Linear(cfg.width, cfg.width)
        init_weights(self, cfg.init.std)
        if cfg.init.rule == "beit":
            init_weights_as_beit(self.patches, self.blocks, cfg.init.std)

    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        """Embed class token and patches of images (B, 3, H, W) with the type of their ``slot``."""
        if slot + 1 >= self.types.num_embeddings:
            raise DualfuseError(f"slot {slot}: image_slots of this model is {self.types.num_embeddings - 1}")
        tokens, grid = self.patches(images)
        return self._image_tokens(tokens, grid, slot)

    def embed_masked_image(self, images: Tensor, hidden: MaskedPatches) -> Tokens:
        """Embed images (B, 3, H, W); the embeddings of ``hidden`` patches are replaced before positions are added."""
        tokens, grid = self.patches(images, hidden)
        return self._image_tokens(tokens, grid, 0)

    def _image_tokens(self, tokens: Tensor, grid: Grid, slot: int) -> Tokens:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Tokens(IMAGE, (tokens + self.types.weight[1 + slot],), mask, grid)

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        """Embed the tokens of texts (B, T)."""
        return Tokens(TEXT, (self.words(ids) + self.types.weight[0],), mask.bool())

    def encode(self, tokens: Tokens) -> Tensor:
        """Return the final state (B, D) of the first token, with the modality's expert in every layer."""
        return self.token_states(tokens, tokens.first)[:, 0]

    def token_states(self, tokens: Tokens, positions: Tensor) -> Tensor:
        """Return the final states (B, R, D) at ``positions`` (B, R), with the modality's expert in every layer.

        The last layer computes those positions alone.
        """
        bias, last = self._bias(tokens), len(self.blocks) - 1
        x = self._run(tokens.states[0], tokens, bias, range(last), tokens.modality)
        return self._finish(x, tokens, bias, positions, start=last, expert=tokens.modality)

    def local_states(self, tokens: Tokens) -> Tensor:
        """Return the final states (B, N, D) of all tokens, with the modality's expert in every layer."""
        positions = torch.arange(tokens.mask.shape[1], device=tokens.device).expand_as(tokens.mask)
        return self.token_states(tokens, positions)

    def average_patches(self, image: Tokens) -> Tensor:
        """Return the mean (B, D) of the last layer's patch states, without the class token and the final norm."""
        x = self._run(image.states[0], image, self._bias(image), range(len(self.blocks)), IMAGE)
        return x[:, 1:].mean(1)

    def layer_states(self, image: Tokens, after: Sequence[int]) -> tuple[Tensor, ...]:
        """Return states (B, 1 + P, D) after the layers ``after``, from 1, without the final norm, class token first."""
        if not 1 <= min(after) <= max(after) <= len(self.blocks):
            raise DualfuseError(f"layers {tuple(after)} are not all from 1 to {len(self.blocks)}, this model's layers")
        x, bias, states = image.states[0], self._bias(image), dict[int, Tensor]()
        for layer in range(max(after)):
            x = self._run(x, image, bias, range(layer, layer + 1), IMAGE)
            if layer + 1 in after:
                states[layer + 1] = x
        return tuple(states[layer] for layer in after)

    def itc_features(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """Return the embedding of :meth:`encode`, and the one with vision-language experts in the upper layers.

        Both share the layers below ``vl_expert_start``. The second is in the official code and not in the paper.
        """
        if self.num_itc_features == 1:
            return (self.encode(tokens),)
        bias, start = self._bias(tokens), self.vl_expert_start
        x = self._run(tokens.states[0], tokens, bias, range(start), tokens.modality)
        return tuple(
            self._finish(x, tokens, bias, tokens.first, start=start, expert=expert)[:, 0]
            for expert in (tokens.modality, VL)
        )

    def fuse(
        self, image: Tokens, text: Tokens, positions: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Fused:
        """Run text and image as one sequence; ``pooled`` is tanh(W x + b) of the first text token's state x."""
        length = text.mask.shape[1]
        bias = self._bias(image, text)
        x, y = text.states[0], image.states[0]
        text_mask = text.mask if attention_mask is None else text.mask[:, None] & attention_mask[:length, :length]
        for layer, block in enumerate(self.blocks[: self.separate_attention_until]):
            text_bias = None if bias is None else bias[layer, :, :length, :length]
            image_bias = None if bias is None else bias[layer, :, length:, length:]
            x = block(x, one_expert(TEXT, x), mask=text_mask, bias=text_bias)
            y = block(y, one_expert(IMAGE, y), bias=image_bias)
        x = torch.cat([x, y], dim=1)
        mask = torch.cat([text.mask, image.mask], dim=1)
        mask = mask if attention_mask is None else mask[:, None] & attention_mask
        for layer in range(self.separate_attention_until, len(self.blocks) - 1):
            x = self.blocks[layer](x, self._route(layer, text, image), mask=mask, bias=_layer(bias, layer))
        last = len(self.blocks) - 1
        if positions is None:
            x = self.norm(self.blocks[last](x, self._route(last, text, image), mask=mask, bias=_layer(bias, last)))
            return Fused(x[:, :length], x[:, length:], lambda: torch.tanh(self.pooler(x[:, 0])))
        positions = torch.cat([positions.new_zeros(len(positions), 1), positions], dim=1)
        route = one_expert(VL if last >= self.vl_expert_start else TEXT, positions)
        x = self.norm(self.blocks[last](x, route, mask=mask, bias=_layer(bias, last), positions=positions))
        return Fused(x[:, 1:], x[:, :0], lambda: torch.tanh(self.pooler(x[:, 0])))

    def prefill(self, image: Tokens, max_length: int) -> KVCache:
        """Run images with the experts of fusion, and return the cache for texts of up to ``max_length`` tokens."""
        bias, image_bias, text_bias = self._relative_bias(max_length, image.grid), None, None
        if bias is not None:  # the keys of text tokens are the image, then the text
            image_bias = bias[:, :, max_length:, max_length:]
            text_bias = bias[:, :, :max_length].roll(-max_length, dims=3)
        images = prefill(self._stack(IMAGE), image.states[0], image_bias)
        return KVCache(images, torch.arange(len(image), device=image.device), text_bias)

    def decode_step(self, cache: KVCache, text: Tokens) -> tuple[Tensor, KVCache]:
        """Run the tokens of ``text`` that are not in ``cache``, with the experts of fusion."""
        x, cache = decode_step(self._stack(TEXT), cache, text.states[0][:, len(cache) :])
        return self.norm(x[:, -1]), cache

    def attention_flow(self, flow: AttentionFlow, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the relevance of text and image; text and image are one sequence where they share an attention."""
        blocks = [block.get_submodule("attention") for block in self.blocks]
        for attention in blocks[: self.separate_attention_until]:
            text = flow.attend(attention.get_submodule(TEXT), text)
            image = flow.attend(attention.get_submodule(IMAGE), image)
        x = torch.cat([text, image])
        for attention in blocks[self.separate_attention_until :]:
            x = flow.attend(attention.get_submodule(SHARED), x)
        return x[: len(text)], x[len(text) :]

    def fsdp_blocks(self) -> Iterable[nn.Module]:
        """Return the blocks."""
        return iter(self.blocks)

    def lr_layers(self) -> Iterable[tuple[nn.Module, ...]]:
        """Return the embeddings, then each block; the relative bias serves all layers and counts with the heads."""
        return (self.patches, self.words, self.types), *((block,) for block in self.blocks)

    def _bias(self, tokens: Tokens, text: Tokens | None = None) -> Tensor | None:
        """Return the relative bias (L, H, N, N) of one modality, or of an image and a ``text``; None without one."""
        of_text = tokens if text is None else text
        return self._relative_bias(of_text.mask.shape[1] if of_text.modality == TEXT else 0, tokens.grid)

    def _relative_bias(self, length: int, grid: tuple[int, ...]) -> Tensor | None:
        if self.relative_bias is None:
            return None
        bias = self.relative_bias(text=length, grid=(grid[0], grid[1]) if grid else ())
        return bias.mean(0, keepdim=True).expand_as(bias) if self.share_relative_bias else bias

    def _stack(self, modality: str) -> Stack:
        """Return the blocks with the expert of one modality in fusion."""
        layers = ((layer, block) for layer, block in enumerate(self.blocks) if isinstance(block, Block))
        return tuple((block, VL if layer >= self.vl_expert_start else modality) for layer, block in layers)

    def _route(self, layer: int, text: Tokens, image: Tokens) -> Route:
        lengths = text.mask.shape[1], image.mask.shape[1]
        return ((VL, sum(lengths)),) if layer >= self.vl_expert_start else ((TEXT, lengths[0]), (IMAGE, lengths[1]))

    def _run(self, x: Tensor, tokens: Tokens, bias: Tensor | None, layers: range, expert: str) -> Tensor:
        """Run some layers on one modality alone, with one expert."""
        for layer in layers:
            x = self.blocks[layer](x, one_expert(expert, x), mask=_mask(tokens), bias=_layer(bias, layer))
        return x

    def _finish(
        self, x: Tensor, tokens: Tokens, bias: Tensor | None, positions: Tensor, *, start: int, expert: str
    ) -> Tensor:
        """Run the layers from ``start`` with one expert; the last layer computes ``positions`` (B, R) alone."""
        last, route = len(self.blocks) - 1, one_expert(expert, positions)
        x = self._run(x, tokens, bias, range(start, last), expert)
        x = self.blocks[last](x, route, mask=_mask(tokens), bias=_layer(bias, last), positions=positions)
        return self.norm(x)


def _blocks(cfg: VLMoConfig) -> Iterable[Block]:
    for layer in range(cfg.depth):
        experts = (TEXT, IMAGE, VL) if layer >= cfg.vl_expert_start else (TEXT, IMAGE)
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
