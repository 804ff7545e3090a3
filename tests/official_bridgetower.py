"""What tests against the official BridgeTower share: the shape of the model that was recorded."""

from __future__ import annotations

from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig

OFFICIAL = BridgeTowerConfig(
    image=CLIPViTConfig(width=64, depth=4, patch_size=8, image_size=(32, 32)),
    text=RobertaConfig(width=64, depth=4, heads=4, feed_forward=128, vocab_size=120, text_length=38),
    width=64,
    heads=4,
    feed_forward=128,
    layers=3,
    layer_norm_eps=1e-12,
    itc_image_feature="tower",
)
