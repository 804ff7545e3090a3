"""VLMo: one Transformer whose blocks share self-attention and switch experts by modality (arXiv 2111.02358)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dualfuse.layers.blocks import SHARED, Block, Route, one_expert
from dualfuse.layers.embeddings import Hidden, Patches, Stem, Words
from dualfuse.layers.initial import initialise, initialise_as_beit
from dualfuse.layers.relative_bias import Grid, RelativeBias
from dualfuse.models.base import DEEPEST, Fused, Past, Tokens, VisionLanguageModel
from dualfuse.models.word_by_word import Stack, go_on, remember

TEXT, IMAGE, BOTH = "text", "image", "both"
"""The experts: language, vision, vision-language."""


@dataclass(frozen=True)
class Initial:
    """What the weights start from."""

    std: float = 0.02
    """Standard deviation of the linear layers; narrow models learn sooner with more, about 1 / sqrt(width)."""
    layer_scale: float = 0.1
    """First value of LayerScale; 0: none."""
    rule: Literal["vlmo", "beit"] = "vlmo"
    """"beit": what pictures pass is drawn within one ``std``, and the outputs of attention and vision expert in layer
    n (from 1) are divided by sqrt(2 n)."""


@dataclass(frozen=True)
class VLMoConfig:
    """The numbers of a VLMo; the defaults are the paper's base size with relative positions."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    both_from: int = 10
    """First layer (from 0) with a vision-language expert; ``depth`` or more: none has one."""
    patch: int = 16
    image_size: tuple[int, int] = (224, 224)
    """Height and width the positions are made for; pictures of other sizes read resized positions."""
    vocabulary: int = 30_522
    text_length: int = 196
    """Longest text the positions know."""
    positions: Literal["relative", "absolute"] = "relative"
    initial: Initial = Initial()
    """What the weights start from."""
    drop_path: float = 0.1
    """Stochastic depth of the last layer, rising from 0; as in the released code also the text embedding's dropout."""
    experts: Literal["modality", "shared"] = "modality"
    """"shared" is the standard Transformer of the paper's Table 5."""
    bias: Literal["each", "alike"] = "each"
    """"alike": all layers read the mean of their relative positions, which start alike and stay so: as if they had one
    table, BEiT's, and later stages can go on with a table for each."""
    separate_until: int = 0
    """Layers below this give each modality its own attention, to itself alone (Table 7; there: ``both_from``)."""
    stem: Stem = "linear"
    """How patches are made; "convolution" learns quicker at small scale (not in the paper)."""
    image_slots: int = 1
    """Pictures per text that the model can tell apart (NLVR2: 2)."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no model."""
        if not 1 <= self.depth <= DEEPEST or self.both_from < 0:
            raise ValueError(f"depth is {self.depth}, both_from {self.both_from}; give 1 to {DEEPEST}, and at least 0")
        if any(side < self.patch or side % self.patch for side in self.image_size):
            raise ValueError(f"image_size {self.image_size} is no multiple of the patch, {self.patch}")

    def build(self) -> VLMo:
        """Gives the model with its initial weights."""
        return VLMo(self)


class VLMo(VisionLanguageModel):
    """One Transformer for pictures, texts and pairs.

    The three modes of the paper are three routes through the same blocks; in pairs the text comes first.
    """

    can_write = True

    def __init__(self, cfg: VLMoConfig) -> None:
        """Draws initial weights by the rule of the released code (its std is 0.02; the bias table starts at zero)."""
        super().__init__()
        self.width = self.fused_width = self.text_width = cfg.width
        self.vocabulary, self.both_from, self.separate_until = cfg.vocabulary, cfg.both_from, cfg.separate_until
        if cfg.separate_until > min(cfg.both_from, cfg.depth - 1):
            raise ValueError(
                f"separate_until={cfg.separate_until}: the last of {cfg.depth} layers, and those with a "
                f"vision-language expert (from {cfg.both_from}), see pairs as one sequence; give at most "
                f"{min(cfg.both_from, cfg.depth - 1)}"
            )
        self.has_both = cfg.experts == "modality" and cfg.both_from < cfg.depth
        window = (cfg.image_size[0] // cfg.patch, cfg.image_size[1] // cfg.patch)
        relative = cfg.positions == "relative"
        self.can_drop_patches = not relative  # relative positions speak of whole grids
        self.patches = Patches(cfg.width, patch=cfg.patch, stem=cfg.stem, positions=None if relative else window)
        self.words = Words(
            cfg.width,
            vocabulary=cfg.vocabulary,
            positions=0 if relative else cfg.text_length,
            dropout=cfg.drop_path,
        )
        self.types = nn.Embedding(1 + cfg.image_slots, cfg.width)  # row 0 text, then one row per picture
        self.relative_bias = (
            RelativeBias(window=window, text=cfg.text_length, layers=cfg.depth, heads=cfg.heads) if relative else None
        )
        self.biased_alike = cfg.bias == "alike"
        self.blocks = nn.ModuleList(_blocks(cfg))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)
        self.pooler = nn.Linear(cfg.width, cfg.width)
        initialise(self, cfg.initial.std)
        if cfg.initial.rule == "beit":
            initialise_as_beit(self.patches, self.blocks, cfg.initial.std)

    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        """Gives patches and class token of pictures (B, 3, H, W) with the type of their ``slot``."""
        if slot + 1 >= self.types.num_embeddings:
            raise ValueError(f"slot {slot}: this model tells {self.types.num_embeddings - 1} pictures apart")
        tokens, grid = self.patches(images)
        return self._typed(tokens, grid, slot)

    def embed_masked_image(self, images: Tensor, hidden: Hidden) -> Tokens:
        """Gives pictures (B, 3, H, W), the embeddings of some patches replaced before positions are added."""
        tokens, grid = self.patches(images, hidden)
        return self._typed(tokens, grid, 0)

    def _typed(self, tokens: Tensor, grid: Grid, slot: int) -> Tokens:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Tokens(IMAGE, (tokens + self.types.weight[1 + slot],), mask, grid)

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        """Gives word embeddings of texts (B, T)."""
        return Tokens(TEXT, (self.words(ids) + self.types.weight[0],), mask.bool())

    def encode(self, tokens: Tokens) -> Tensor:
        """Gives the final state (B, D) of the first token, through the modality's own experts in every layer."""
        return self.states(tokens, tokens.first)[:, 0]

    def states(self, tokens: Tokens, rows: Tensor) -> Tensor:
        """Gives the final states (B, R, D) of ``rows`` (B, R), through the modality's own experts in every layer.

        The last layer computes those rows alone.
        """
        bias, last = self._bias(tokens), len(self.blocks) - 1
        x = self._alone(tokens, bias, until=last)
        return self._finish(x, tokens, bias, rows, start=last, expert=tokens.modality)

    def average_patches(self, image: Tokens) -> Tensor:
        """Gives the mean (B, D) over the patches of what the last layer gives, the class token left out."""
        return self._alone(image, self._bias(image), until=len(self.blocks))[:, 1:].mean(1)

    def patch_maps(self, image: Tokens, after: Sequence[int]) -> tuple[Tensor, ...]:
        """Gives maps (B, D, h, w) of the states of patches after some layers, counted from 1, before the last norm."""
        if not 1 <= min(after) <= max(after) <= len(self.blocks):
            raise ValueError(
                f"states after the layers {tuple(after)} are wanted; this model has 1 to {len(self.blocks)}"
            )
        x, bias, maps = image.states[0], self._bias(image), dict[int, Tensor]()
        for layer in range(max(after)):
            x = self.blocks[layer](x, one_expert(IMAGE, x), bias=_layer(bias, layer))
            if layer + 1 in after:
                maps[layer + 1] = x[:, 1:].transpose(1, 2).unflatten(2, image.grid)
        return tuple(maps[layer] for layer in after)

    def views(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """Gives the plain vector, and the one whose upper layers are the vision-language experts'.

        Both share the layers below ``both_from``. The second view is the released code's, not the paper's text.
        """
        if self.num_views == 1:
            return (self.encode(tokens),)
        bias = self._bias(tokens)
        x = self._alone(tokens, bias, until=self.both_from)
        first, start = tokens.first, self.both_from
        return tuple(
            self._finish(x, tokens, bias, first, start=start, expert=name)[:, 0] for name in (tokens.modality, BOTH)
        )

    @property
    def num_views(self) -> int:
        """Two if any layer has a vision-language expert, else one."""
        return 2 if self.has_both else 1

    def fuse(self, image: Tokens, text: Tokens, rows: Tensor | None = None, sees: Tensor | None = None) -> Fused:
        """Lets words and patches attend to each other; ``pooled`` is tanh(W x + b) of the first word's state."""
        length = text.mask.shape[1]
        bias = self._bias(image, text)
        words, patches = text.states[0], image.states[0]
        word_mask = text.mask if sees is None else text.mask[:, None] & sees[:length, :length]
        for layer, block in enumerate(self.blocks[: self.separate_until]):
            word_bias, patch_bias = _layer(bias, layer), _layer(bias, layer)
            if bias is not None:
                word_bias, patch_bias = bias[layer, :, :length, :length], bias[layer, :, length:, length:]
            words = block(words, one_expert(TEXT, words), mask=word_mask, bias=word_bias)
            patches = block(patches, one_expert(IMAGE, patches), bias=patch_bias)
        x = torch.cat([words, patches], dim=1)
        mask = torch.cat([text.mask, image.mask], dim=1)
        mask = mask if sees is None else mask[:, None] & sees
        for layer in range(self.separate_until, len(self.blocks) - 1):
            x = self.blocks[layer](x, self._route(layer, text, image), mask=mask, bias=_layer(bias, layer))
        last = len(self.blocks) - 1
        if rows is None:
            x = self.norm(self.blocks[last](x, self._route(last, text, image), mask=mask, bias=_layer(bias, last)))
            return Fused(x[:, :length], x[:, length:], lambda: self.pool(x[:, 0]))
        rows = torch.cat([rows.new_zeros(len(rows), 1), rows], dim=1)
        route = one_expert(BOTH if last >= self.both_from else TEXT, rows)
        x = self.norm(self.blocks[last](x, route, mask=mask, bias=_layer(bias, last), rows=rows))
        return Fused(x[:, 1:], x[:, :0], lambda: self.pool(x[:, 0]))

    def begin(self, image: Tokens, longest: int) -> Past:
        """Remembers pictures layer by layer, through the experts of pairs."""
        bias, of_image, of_words = self._biases(longest, image.grid), None, None
        if bias is not None:  # keys of words: the picture, then the text
            of_image, of_words = bias[:, :, longest:, longest:], bias[:, :, :longest].roll(-longest, dims=3)
        pictures = remember(self._stack(IMAGE), image.states[0], of_image)
        return Past(pictures, torch.arange(len(image), device=image.device), of_words)

    def go_on(self, past: Past, text: Tokens) -> tuple[Tensor, Past]:
        """Runs the words that are new, through the experts of pairs."""
        x, past = go_on(self._stack(TEXT), past, text.states[0][:, len(past) :])
        return self.norm(x[:, -1]), past

    def pool(self, x: Tensor) -> Tensor:
        """Gives tanh(W x + b)."""
        return torch.tanh(self.pooler(x))

    def units(self) -> Iterable[nn.Module]:
        """Lists the blocks."""
        return iter(self.blocks)

    def levels(self) -> Iterable[tuple[nn.Module, ...]]:
        """Lists the embeddings, then the blocks; the position bias of all layers is one, and lies above them."""
        return (self.patches, self.words, self.types), *((block,) for block in self.blocks)

    def _bias(self, tokens: Tokens, text: Tokens | None = None) -> Tensor | None:
        """Gathers the bias of all layers once for one mode: (L, H, N, N)."""
        words = text if text is not None else tokens
        return self._biases(words.mask.shape[1] if words.modality == TEXT else 0, tokens.grid)

    def _biases(self, length: int, grid: tuple[int, ...]) -> Tensor | None:
        if self.relative_bias is None:
            return None
        bias = self.relative_bias(text=length, grid=(grid[0], grid[1]) if grid else ())
        return bias.mean(0, keepdim=True).expand_as(bias) if self.biased_alike else bias

    def _stack(self, modality: str) -> Stack:
        """Gives the blocks with the experts that a modality passes in pairs."""
        layers = ((layer, block) for layer, block in enumerate(self.blocks) if isinstance(block, Block))  # all are
        return tuple((block, BOTH if layer >= self.both_from else modality) for layer, block in layers)

    def _route(self, layer: int, text: Tokens, image: Tokens) -> Route:
        lengths = text.mask.shape[1], image.mask.shape[1]
        return ((BOTH, sum(lengths)),) if layer >= self.both_from else ((TEXT, lengths[0]), (IMAGE, lengths[1]))

    def _alone(self, tokens: Tokens, bias: Tensor | None, *, until: int) -> Tensor:
        x, mask = tokens.states[0], _mask(tokens)
        for layer in range(until):
            x = self.blocks[layer](x, one_expert(tokens.modality, x), mask=mask, bias=_layer(bias, layer))
        return x

    def _finish(
        self, x: Tensor, tokens: Tokens, bias: Tensor | None, rows: Tensor, *, start: int, expert: str
    ) -> Tensor:
        """Runs the layers from ``start`` with one expert; the last computes ``rows`` (B, R) only."""
        mask, last = _mask(tokens), len(self.blocks) - 1
        for layer in range(start, last):
            x = self.blocks[layer](x, one_expert(expert, x), mask=mask, bias=_layer(bias, layer))
        return self.norm(self.blocks[last](x, one_expert(expert, rows), mask=mask, bias=_layer(bias, last), rows=rows))


def _blocks(cfg: VLMoConfig) -> Iterable[Block]:
    for layer in range(cfg.depth):
        experts = (TEXT, IMAGE, BOTH) if layer >= cfg.both_from else (TEXT, IMAGE)
        yield Block(
            cfg.width,
            heads=cfg.heads,
            attentions=(TEXT, IMAGE) if layer < cfg.separate_until else (SHARED,),
            experts=(SHARED,) if cfg.experts == SHARED else experts,
            layer_scale=cfg.initial.layer_scale,
            drop_path=cfg.drop_path * layer / max(1, cfg.depth - 1),
        )


def _layer(bias: Tensor | None, layer: int) -> Tensor | None:
    return None if bias is None else bias[layer]


def _mask(tokens: Tokens) -> Tensor | None:
    return None if tokens.modality == IMAGE else tokens.mask
