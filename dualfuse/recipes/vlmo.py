"""VLMo pre-training on image-text pairs as published, at three sizes.

Values are from the official code (microsoft/unilm, vlmo: task_mlm_itm_itc_*, step200k) unless a comment says otherwise;
where the paper (arXiv 2111.02358) differs, both are given.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.tasks.pretrain.pairs import PairsConfig

BASE = VLMoConfig()
"""12 layers of 768, 12 heads, vision-language experts in the last 2; relative positions, LayerScale 0.1."""

BASE_PLUS = VLMoConfig(
    width=544,
    depth=24,
    heads=16,
    vl_expert_start=21,
    positions="absolute",
    init=InitConfig(layer_scale=0.0),
    text_length=40,
)
"""24 layers of 544, 16 heads, experts in the last 3; absolute positions, no LayerScale."""

LARGE = VLMoConfig(width=1024, depth=24, heads=16, vl_expert_start=21)
"""24 layers of 1024, 16 heads, experts in the last 3."""

PAIRS = Data(sample_by="caption", image_size=(224, 224), text_length=40, batch_size=1024, num_workers=8)
"""COCO, Visual Genome, SBU and Conceptual Captions: 4 M images, about 10 M pairs; set --data.train to them. As in the
official code an epoch has every caption once: Visual Genome, whose images have about 50 each, is half of the pairs."""

OPTIM = Optim(lr=2e-4, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01, warmup=2500, schedule="linear")
"""Values of the official code; of the paper, the learning rate can be compared, and agrees. Norms and biases are not
decayed; ``decay_rule="official"`` decays those that the official code does."""

RUN = Run(steps=200_000, precision="bf16", save_every=2000, log_every=50)
"""200k steps [official code and README]; in bf16, where the official code uses fp16 with loss scaling."""


BASE_PAIRS = Recipe(name="pairs", model=BASE, task=PairsConfig(), data=PAIRS, optim=OPTIM, run=RUN)
"""Expected after fine-tuning, if started from the published image and text stages: VQA test-dev 76.6, NLVR2 test-P
83.3, Flickr30k R@1 92.3 / 79.3 (paper, Tables 1 and 2)."""
LARGE_PAIRS = replace(BASE_PAIRS, model=LARGE, optim=replace(OPTIM, lr=5e-5))
"""The official configuration of this size names a plain ViT and fails; this is the architecture of the paper."""

RECIPES = {
    "vlmo-base-pairs": ("VLMo-Base pre-training with ITC, ITM and MLM: 200k steps of 1,024 pairs.", BASE_PAIRS),
    "vlmo-base-plus-pairs": (
        "VLMo-Base-plus pre-training with ITC, ITM and MLM, learning rate 1e-4 (README only, not in the paper).",
        replace(BASE_PAIRS, model=BASE_PLUS, optim=replace(OPTIM, lr=1e-4)),
    ),
    "vlmo-large-pairs": ("VLMo-Large pre-training with ITC, ITM and MLM, learning rate 5e-5.", LARGE_PAIRS),
}
"""Summary and recipe by name."""
