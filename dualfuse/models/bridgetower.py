"""BridgeTower: two towers, and a cross-modal encoder with bridges from their top layers (arXiv 2206.08657).

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
from dualfuse.layers.attention_flow import AttentionFlow
from dualfuse.layers.bridges import AddLinear, AllLayers, Bridge, BridgeKind, bridge
from dualfuse.layers.init import init_normal
from dualfuse.layers.post_norm import CrossLayer
from dualfuse.models.base import MAX_DEPTH, Fused, Tokens, generation_error
from dualfuse.models.towers.base import ImageTowerConfig, TextTowerConfig, Tower
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.models.two_towers import TwoTowers, first_state

MODALITIES = ("text", "image")
TEXT, IMAGE = MODALITIES


@dataclass(frozen=True)
class BridgeTowerConfig:
    """The sizes and options of a BridgeTower or METER; the defaults are the paper's base size."""

    image: ImageTowerConfig = field(default_factory=CLIPViTConfig)
    text: TextTowerConfig = field(default_factory=RobertaConfig)
    width: int = 768
    heads: int = 12
    feed_forward: int = 3072
    layers: int = 6
    """Number of cross-modal layers of each modality."""
    bridge: BridgeKind | Literal["none"] = "add"
    """How a tower's layer joins the cross-modal state; "none": METER, whose towers feed the first layer alone."""
    tower_layers: tuple[int, ...] = ()
    """The tower layer that feeds each cross-modal layer, counted down from the top (0); cross-modal layers beyond the
    list have no bridge. Empty: the top layers in order, (5, 4, 3, 2, 1, 0)."""
    shared_transform: bool = True
    """Map all tower layers of a modality to ``width`` by one matrix; False: by one matrix per layer."""
    all_layers: bool = False
    """Replace a tower's top layer by METER's gated sum of all layers."""
    layer_norm_eps: float = 1e-12
    """Epsilon of LayerNorms in cross-modal layers and MLM head: 1e-12 in the official code, 1e-5 in Hugging Face's."""
    itc_image_feature: Literal["tower", "transformed"] = "tower"
    """Image state that ITC compares: the tower's, as in the official code, or after the transform to ``width``, as in
    Hugging Face's."""
    dropout: float = 0.1
    """Dropout of the text tower and of cross-modal layers."""
    image_slots: int = 1
    """Number of images per text, each with its own type embedding (NLVR2: 2)."""
    init_std: float = 0.02
    """Standard deviation of initial linear weights; narrow models train faster with more, about 1 / sqrt(width)."""

    def __post_init__(self) -> None:
        """Validate the sizes and the layers that feed each other."""
        shallowest = min(self.image.depth, self.text.depth)
        fed = self.resolved_tower_layers
        if self.layers > MAX_DEPTH:
            raise DualfuseError(f"layers is {self.layers}; give 1 to {MAX_DEPTH}")
        if self.layers < 1 or len(fed) > self.layers or any(not 0 <= depth < shallowest for depth in fed):
            raise DualfuseError(
                f"{self.layers} cross-modal layers cannot be fed by the layers {fed} below the top of towers that have "
                f"{shallowest}; give at most as many as there are cross-modal layers, each from 0 to {shallowest - 1}"
            )
        if self.bridge == "none" and self.tower_layers not in ((), (0,)):
            raise DualfuseError(
                f'with bridge="none" the top tower layers feed the first cross-modal layer; remove '
                f"tower_layers={self.tower_layers}"
            )
        if self.all_layers and self.bridge != "none":
            raise DualfuseError('all_layers is an option of METER: it needs bridge="none"')
        if self.itc_image_feature == "transformed" and self.resolved_tower_layers[-1] != 0:
            raise DualfuseError(
                'itc_image_feature="transformed" needs tower_layers that end in the top layer (0), not '
                f"{self.resolved_tower_layers}"
            )

    @property
    def resolved_tower_layers(self) -> tuple[int, ...]:
        """``tower_layers`` with the default filled in."""
        if self.bridge == "none":
            return (0,)
        return self.tower_layers or tuple(reversed(range(self.layers)))

    def build(self) -> BridgeTower:
        """Return the model with its initial weights."""
        return BridgeTower(self)


class BridgeTower(TwoTowers):
    """Two towers, which alone are a dual encoder, and cross-modal layers above them.

    ``Tokens.states`` are the state that ITC compares (B, 1, W), then for each cross-modal layer with a bridge the tower
    states (B, N, D) that feed it: transformed to ``width``, plus the modality's type embedding.
    """

    def __init__(self, cfg: BridgeTowerConfig) -> None:
        """Initialize linear weights and embeddings from a normal distribution, and biases with zero."""
        super().__init__()
        image_width = cfg.image.pooled_width if cfg.itc_image_feature == "tower" else cfg.width
        self.width, self._encode_widths = cfg.image.width, (image_width, cfg.text.pooled_width)
        self.text_width, self.fused_width = cfg.width, 2 * cfg.width
        self.vocab_size, self.mlm_head_eps = cfg.text.vocab_size, cfg.layer_norm_eps
        self.itc_image_feature, self.tower_layers = cfg.itc_image_feature, cfg.resolved_tower_layers
        self.image_tower, self.text_tower = cfg.image.build(), cfg.text.build(cfg.dropout)
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
        init_normal(self, cfg.init_std)
        for module in self.modules():
            if isinstance(module, AddLinear):
                module.start()

    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        """Run the image tower on images (B, 3, H, W), and add the type of their ``slot`` to the states that feed."""
        if slot + 1 >= self.types.num_embeddings:
            raise DualfuseError(f"slot {slot}: image_slots of this model is {self.types.num_embeddings - 1}")
        output = self.run_image_tower(images)
        feeds = self._feeds(IMAGE, output.states, slot + 1)
        pooled = first_state(output) if self.itc_image_feature == "tower" else feeds[-1][:, 0]
        mask = torch.ones(feeds[0].shape[:2], dtype=torch.bool, device=pooled.device)
        return Tokens(IMAGE, (pooled[:, None], *feeds), mask, output.grid)

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        """Run the text tower on texts (B, T)."""
        mask = mask.bool()
        output = self.run_text_tower(ids, mask)
        return Tokens(TEXT, (first_state(output)[:, None], *self._feeds(TEXT, output.states, 0)), mask)

    @property
    def local_widths(self) -> tuple[int, int]:
        """The width of the cross-modal layers."""
        return self.text_width, self.text_width

    def local_states(self, tokens: Tokens) -> Tensor:
        """Return the highest states (B, N, D) of the tower that feed a cross-modal layer: what fusion starts from."""
        return tokens.states[1 + min(range(len(self.tower_layers)), key=self.tower_layers.__getitem__)]

    def fuse(
        self, image: Tokens, text: Tokens, positions: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Fused:
        """Run the cross-modal layers, in which text and image attend to each other; ``attention_mask`` is refused.

        ``pooled`` concatenates tanh(W x + b) of the first text token and of the class token. With ``positions`` the
        last image layer runs only when ``pooled`` is read.
        """
        if attention_mask is not None:
            raise generation_error(self)
        (_, x, *text_feeds), (_, y, *image_feeds) = text.states, image.states
        if self.first_norms is not None:
            x, y = self.first_norms[TEXT](x), self.first_norms[IMAGE](y)
        *layers, (last_text, last_image) = self._pairs(self.layers)
        bridges = tuple(zip(self._pairs(self.bridges), text_feeds, image_feeds, strict=True))
        for number, (text_layer, image_layer) in enumerate(layers):
            x, y = text_layer(x, y, mask=text.mask), image_layer(y, x, context_mask=text.mask)
            if number < len(bridges):
                (text_bridge, image_bridge), text_feed, image_feed = bridges[number]
                x, y = text_bridge(text_feed, x, text.mask), image_bridge(image_feed, y, None)
        if positions is None:
            final_x, final_y = last_text(x, y, mask=text.mask), last_image(y, x, context_mask=text.mask)
            return Fused(final_x, final_y, lambda: self.pool(final_x[:, 0], final_y[:, 0]))
        some = last_text(x, y, mask=text.mask, positions=torch.cat([text.first, positions], dim=1))
        class_token = partial(last_image, y, x, context_mask=text.mask, positions=text.first)
        return Fused(some[:, 1:], y[:, :0], lambda: self.pool(some[:, 0], class_token()[:, 0]))

    def attention_flow(self, flow: AttentionFlow, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the relevance of text and image: through both towers, then through cross-modal layers and bridges.

        A query of one modality takes what the keys of the other hold. (Chefer et al. normalize what cross-attention
        takes; here every model follows one rule.)
        """
        towers = self.text_tower.attention_flow(flow, text), self.image_tower.attention_flow(flow, image)
        (x, y), *feeds = ([states[-1 - below] for states in towers] for below in self.tower_layers)
        bridges = tuple(zip(self._pairs(self.bridges), feeds, strict=True))
        for number, (text_layer, image_layer) in enumerate(self._pairs(self.layers)):
            x, y = _cross_flow(text_layer, flow, x, y), _cross_flow(image_layer, flow, y, x)
            if number < len(bridges):
                (text_bridge, image_bridge), (text_feed, image_feed) = bridges[number]
                x, y = _bridge_flow(text_bridge, flow, text_feed, x), _bridge_flow(image_bridge, flow, image_feed, y)
        return x, y

    def pool(self, text: Tensor, image: Tensor) -> Tensor:
        """Return [tanh(W x + b); tanh(V y + c)]: (B, 2 D)."""
        return torch.cat([self.poolers[TEXT](text).tanh(), self.poolers[IMAGE](image).tanh()], dim=-1)

    def fsdp_blocks(self) -> Iterable[nn.Module]:
        """Return the layers of both towers and the cross-modal layers."""
        yield from super().fsdp_blocks()
        for layers in self.layers.children():
            yield from layers.children()

    def fusion_modules(self) -> Iterable[nn.Module]:
        """Return everything above the towers except the type embeddings."""
        parts = (self.transforms, self.first_norms, self.layers, self.bridges, self.poolers)
        return (part for part in parts if part is not None)

    def lr_layers(self) -> Iterable[tuple[nn.Module, ...]]:
        """Return the towers' embeddings, the towers' layers level with their tops, then the cross-modal layers."""
        yield from super().lr_layers()
        yield from self._pairs(self.layers)

    def _pairs(self, modules: nn.ModuleDict) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Return the text and the image part of each of the layers, or of each of the bridges."""
        return zip(modules[TEXT].children(), modules[IMAGE].children(), strict=True)

    def layers_to_read(self, tower: Tower) -> tuple[int, ...]:
        """Return the numbers of the layers to read, in the order of ``tower_layers``, the top layer last."""
        depth = len(tower.fsdp_blocks())
        if self.gates is not None:
            return tuple(range(depth))
        layers = tuple(depth - 1 - below for below in self.tower_layers)
        return layers if layers[-1] == depth - 1 else (*layers, depth - 1)

    def _feeds(self, modality: str, states: tuple[Tensor, ...], type_id: int) -> tuple[Tensor, ...]:
        """Return the states (B, N, D) that feed the cross-modal layers, given those of the layers that are read."""
        states = (self.gates[modality](states),) if self.gates is not None else states[: len(self.tower_layers)]
        transform, type_embedding = self.transforms[modality], self.types.weight[type_id]
        linears = transform if isinstance(transform, nn.ModuleList) else [transform] * len(states)
        return tuple(linear(state) + type_embedding for linear, state in zip(linears, states, strict=True))


def _cross_flow(layer: nn.Module, flow: AttentionFlow, x: Tensor, context: Tensor) -> Tensor:
    x = flow.attend(layer.get_submodule("attention"), x)
    return flow.attend(layer.get_submodule("cross_attention"), x, context)


def _bridge_flow(module: nn.Module, flow: AttentionFlow, u: Tensor, z: Tensor) -> Tensor:
    if not isinstance(module, Bridge):
        raise DualfuseError(f"{type(module).__name__} is not a Bridge, so its attention cannot be explained")
    return module.attention_flow(flow, u, z)


def _both(make: Callable[[str], nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({modality: make(modality) for modality in MODALITIES})


def _bridges(cfg: BridgeTowerConfig) -> Iterable[nn.Module]:
    for _ in cfg.resolved_tower_layers[1:]:
        assert cfg.bridge != "none"  # without bridges one tower layer feeds
        yield bridge(cfg.bridge, cfg.width, cfg.heads)
