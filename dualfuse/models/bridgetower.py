"""BridgeTower: two towers, and a cross-modal encoder with a bridge from every top layer of both (arXiv 2206.08657).

METER (arXiv 2111.02387) is the same without bridges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.bridges import AddLinear, AllLayers, BridgeKind, bridge
from dualfuse.layers.post_norm import CrossLayer
from dualfuse.models.base import MAX_DEPTH, Fused, Tokens, VisionLanguageModel, cannot_generate
from dualfuse.models.towers import ImageTower, ImageTowerConfig, TextTower, TextTowerConfig

MODALITIES = ("text", "image")
TEXT, IMAGE = MODALITIES


@dataclass(frozen=True)
class BridgeTowerConfig:
    """The numbers of a BridgeTower or METER; the defaults are the paper's base size."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    width: int = 768
    heads: int = 12
    feed_forward: int = 3072
    layers: int = 6
    """Cross-modal layers, of each modality."""
    bridge: BridgeKind | Literal["none"] = "add"
    """How a tower's layer joins the cross-modal state; "none": METER, whose towers feed the first layer only."""
    tower_layers: tuple[int, ...] = ()
    """Which layer of the towers feeds each cross-modal layer, counted down from their top (0); layers beyond the list
    are fed by none. Empty: the top ones in order, (5, 4, 3, 2, 1, 0)."""
    shared_transform: bool = True
    """One matrix per modality brings all tower layers to ``width``; or each layer has its own."""
    all_layers: bool = False
    """METER's gated sum of all layers of a tower in the place of the top one."""
    layer_norm_eps: float = 1e-12
    """Of the LayerNorms of cross-modal layers and word head: 1e-12 in the official code, 1e-5 in Hugging Face's."""
    itc_image_feature: Literal["tower", "transformed"] = "tower"
    """The image's contrastive vector: of its tower, as in the official code; or transformed, as in Hugging Face's."""
    dropout: float = 0.1
    """Of the text tower and of cross-modal layers."""
    image_slots: int = 1
    """Images per text that the model can tell apart (NLVR2: 2)."""
    init_std: float = 0.02
    """Standard deviation of first weights; narrow models learn sooner with more, about 1 / sqrt(width)."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no model."""
        shallowest = min(self.image.depth, self.text.depth)
        fed = self.resolved_tower_layers
        if self.layers > MAX_DEPTH:
            raise DualfuseError(f"layers is {self.layers}; give 1 to {MAX_DEPTH}")
        if self.layers < 1 or len(fed) > self.layers or any(not 0 <= depth < shallowest for depth in fed):
            raise DualfuseError(
                f"{self.layers} cross-modal layers cannot be fed by the layers {fed} below the top of towers that have "
                f"{shallowest}; name at most as many as there are cross-modal layers, each from 0 to {shallowest - 1}"
            )
        if self.bridge == "none" and self.tower_layers not in ((), (0,)):
            raise DualfuseError(
                f"without bridges the top layers alone feed the first one: leave tower_layers={self.tower_layers} out"
            )
        if self.all_layers and self.bridge != "none":
            raise DualfuseError('all_layers is METER\'s: it goes with bridge="none"')
        if self.itc_image_feature == "transformed" and self.resolved_tower_layers[-1] != 0:
            raise DualfuseError(
                f'itc_image_feature="transformed" needs the top layer (0) to feed last, and not {self.resolved_tower_layers}'
            )
        widths = {"tower": self.image.width, "transformed": self.width}
        if self.text.width != widths[self.itc_image_feature]:
            raise DualfuseError(
                f"contrast compares texts of width {self.text.width} with images of width "
                f"{widths[self.itc_image_feature]}; they must be equal (itc_image_feature is {self.itc_image_feature!r})"
            )

    @property
    def resolved_tower_layers(self) -> tuple[int, ...]:
        """The layers that feed, with the default filled in."""
        if self.bridge == "none":
            return (0,)
        return self.tower_layers or tuple(reversed(range(self.layers)))

    def build(self) -> BridgeTower:
        """Return the model with its initial weights."""
        return BridgeTower(self)


class BridgeTower(VisionLanguageModel):
    """Two towers that can be used alone, and cross-modal layers above them.

    ``Tokens.states`` are the contrastive vector (B, 1, W) and what each fed cross-modal layer gets from the tower,
    (B, N, D) each: transformed, with the modality's type.
    """

    def __init__(self, cfg: BridgeTowerConfig) -> None:
        """Draw initial weights: linear ones and embeddings from a normal, biases zero."""
        super().__init__()
        self.width, self.text_width, self.fused_width = cfg.text.width, cfg.width, 2 * cfg.width
        self.vocab_size, self.mlm_head_eps = cfg.text.vocab_size, cfg.layer_norm_eps
        self.contrast_image = cfg.itc_image_feature
        self.image_tower, self.text_tower = ImageTower(cfg.image), TextTower(cfg.text, dropout=cfg.dropout)
        self.depths = {TEXT: cfg.text.depth, IMAGE: cfg.image.depth}
        self.fed = cfg.resolved_tower_layers
        widths = {TEXT: cfg.text.width, IMAGE: cfg.image.width}
        self.transforms = _both(
            lambda m: (
                nn.Linear(widths[m], cfg.width)
                if cfg.shared_transform
                else nn.ModuleList(nn.Linear(widths[m], cfg.width) for _ in cfg.resolved_tower_layers)
            )
        )
        self.gates = _both(lambda m: AllLayers(widths[m])) if cfg.all_layers else None
        self.types = nn.Embedding(1 + cfg.image_slots, cfg.width)  # row 0 text, then one row per image
        self.first_norms = _both(lambda _: nn.LayerNorm(cfg.width, eps=1e-5)) if cfg.bridge != "none" else None
        make = partial(
            CrossLayer, cfg.width, heads=cfg.heads, feed_forward=cfg.feed_forward, epsilon=cfg.layer_norm_eps
        )
        self.layers = _both(lambda _: nn.ModuleList(make(dropout=cfg.dropout) for _ in range(cfg.layers)))
        self.bridges = _both(lambda _: nn.ModuleList(_bridges(cfg)))
        self.poolers = _both(lambda _: nn.Linear(cfg.width, cfg.width))
        _initialise(self, cfg.init_std)

    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        """Run the image tower on images (B, 3, H, W), and gives its layers the type of their ``slot``."""
        if slot + 1 >= self.types.num_embeddings:
            raise DualfuseError(f"slot {slot}: this model tells {self.types.num_embeddings - 1} images apart")
        states, grid = self.image_tower(images, self._wanted(IMAGE))
        fed = self._feed(IMAGE, states, slot + 1)
        alone = states[-1] if self.contrast_image == "tower" else fed[-1]
        mask = torch.ones(alone.shape[:2], dtype=torch.bool, device=alone.device)
        return Tokens(IMAGE, (alone[:, :1], *fed), mask, grid)

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        """Run the text tower on texts (B, T)."""
        mask = mask.bool()
        states = self.text_tower(ids, mask, self._wanted(TEXT))
        return Tokens(TEXT, (states[-1][:, :1], *self._feed(TEXT, states, 0)), mask)

    def encode(self, tokens: Tokens) -> Tensor:
        """Return the final state (B, W) of the tower's first token."""
        return tokens.states[0][:, 0]

    def fuse(
        self, image: Tokens, text: Tokens, positions: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Fused:
        """Let words and patches attend to each other in the cross-modal layers; they see no less than all others.

        ``pooled`` is tanh(W x + b) of the first word, and of the class token behind it. The last layer of the images
        is run when it is asked for.
        """
        if attention_mask is not None:
            raise DualfuseError(cannot_generate(self))
        (_, x, *text_feeds), (_, y, *image_feeds) = text.states, image.states
        if self.first_norms is not None:
            x, y = self.first_norms[TEXT](x), self.first_norms[IMAGE](y)
        *layers, (last_text, last_image) = zip(*(_each(self.layers[m]) for m in MODALITIES), strict=True)
        bridges = tuple(zip(*(_each(self.bridges[m]) for m in MODALITIES), text_feeds, image_feeds, strict=True))
        for number, (text_layer, image_layer) in enumerate(layers):
            x, y = text_layer(x, y, mask=text.mask), image_layer(y, x, context_mask=text.mask)
            if number < len(bridges):
                text_bridge, image_bridge, words, patches = bridges[number]
                x, y = text_bridge(words, x, text.mask), image_bridge(patches, y, None)
        first = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        if positions is None:
            words, patches = last_text(x, y, mask=text.mask), last_image(y, x, context_mask=text.mask)
            return Fused(words, patches, lambda: self.pool(words[:, 0], patches[:, 0]))
        some = last_text(x, y, mask=text.mask, positions=torch.cat([first, positions], dim=1))
        pil_image = partial(last_image, y, x, context_mask=text.mask, positions=first)
        return Fused(some[:, 1:], y[:, :0], lambda: self.pool(some[:, 0], pil_image()[:, 0]))

    def pool(self, text: Tensor, image: Tensor) -> Tensor:
        """Return [tanh(W x + b); tanh(V y + c)]: (B, 2 D)."""
        return torch.cat([self.poolers[TEXT](text).tanh(), self.poolers[IMAGE](image).tanh()], dim=-1)

    def fsdp_blocks(self) -> Iterable[nn.Module]:
        """List the layers of towers and cross-modal encoder."""
        for layers in (self.image_tower.blocks, self.text_tower.layers, *self.layers.values()):
            yield from layers.children()

    def fusion_modules(self) -> Iterable[nn.Module]:
        """List everything above the towers but the types."""
        parts = (self.transforms, self.first_norms, self.layers, self.bridges, self.poolers)
        return (part for part in parts if part is not None)

    def lr_layers(self) -> Iterable[tuple[nn.Module, ...]]:
        """List what is below the towers' layers, these counted down from their tops, and the cross-modal layers."""
        towers = _each(self.image_tower.blocks), _each(self.text_tower.layers)
        yield self.image_tower, self.text_tower
        for below in reversed(range(1, max(map(len, towers)))):
            yield tuple(layers[-1 - below] for layers in towers if below < len(layers))
        yield *(layers[-1] for layers in towers), self.image_tower.norm_after
        yield from zip(*map(_each, self.layers.values()), strict=True)

    def _wanted(self, modality: str) -> tuple[int, ...]:
        """Return the tower's layers that are read, the top one last."""
        depth = self.depths[modality]
        if self.gates is not None:
            return tuple(range(depth))
        wanted = tuple(depth - 1 - below for below in self.fed)
        return wanted if wanted[-1] == depth - 1 else (*wanted, depth - 1)

    def _feed(self, modality: str, states: tuple[Tensor, ...], row: int) -> tuple[Tensor, ...]:
        """Turn layers of a tower into what the cross-modal layers get."""
        states = (self.gates[modality](states),) if self.gates is not None else states[: len(self.fed)]
        transform, kind = self.transforms[modality], self.types.weight[row]
        each = transform if isinstance(transform, nn.ModuleList) else [transform] * len(states)
        return tuple(linear(state) + kind for linear, state in zip(each, states, strict=True))


def _both(make: Callable[[str], nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({modality: make(modality) for modality in MODALITIES})


def _each(modules: nn.Module) -> list[nn.Module]:
    return list(modules.children())


def _bridges(cfg: BridgeTowerConfig) -> Iterable[nn.Module]:
    for _ in cfg.resolved_tower_layers[1:]:
        assert cfg.bridge != "none"  # feeds one layer
        yield bridge(cfg.bridge, cfg.width, cfg.heads)


def _initialise(model: BridgeTower, std: float) -> None:
    """Linear weights: normal of ``std``; embeddings: normal 0.02; biases 0; the rest as it builds itself."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for module in model.modules():
        if isinstance(module, AddLinear):
            module.start()
