"""BridgeTower and METER as published: pre-training on pairs.

Values are from the official scripts (microsoft/BridgeTower, pre-training base and large); the appendix of the paper
(arXiv 2206.08657) agrees with them. Start from pre-trained towers, as the published runs do: ``dualfuse convert`` makes
a model folder from CLIP and RoBERTa weights.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.image.transform import OFFICIAL_CLIP
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

BASE = BridgeTowerConfig()
"""CLIP ViT-B/16, RoBERTa base, 6 cross-modal layers of 768."""

LARGE = BridgeTowerConfig(
    image=CLIPViTConfig(width=1024, depth=24, patch_size=14, image_size=(294, 294)),
    text=RobertaConfig(width=1024, depth=24, heads=16, feed_forward=4096),
    width=1024,
    heads=16,
    feed_forward=4096,
)
"""CLIP ViT-L/14, RoBERTa large, 6 cross-modal layers of 1024."""

METER = replace(BASE, bridge="none", image=replace(BASE.image, depth=11))
"""METER: without bridges, and without the last block of CLIP, as the published weights."""

ITM_MLM = PairsConfig(
    itc_weight=0.0,
    itm_weight=1.0,
    mlm_weight=1.0,
    itc_head=ITCHeadConfig(width=256, bias=True, temperature="plain"),
    negatives="source",
    negative_hardness=0.0,
    negatives_per_pair=0,
    masking="token",
)
"""ITM and MLM with equal weights; half of the pairs get a random image of the same training set. The official code
draws it from the whole set, where it can be the matching one; here it is another image of the global batch."""

ITC_ITM_MLM = replace(ITM_MLM, itc_weight=1.0, negatives="local", negative_hardness=1.0, negatives_per_pair=2)
"""With ITC, whose similarities select hard negatives within a process (``itm_itc`` of the official code)."""

PAIRS = Data(
    sample_by="caption",
    image_size=BASE.image.image_size,
    preprocess=OFFICIAL_CLIP,
    augment=None,
    text_length=50,
    batch_size=4096,
    num_workers=8,
)
"""COCO, Visual Genome, SBU and Conceptual Captions: 4 M images, 9 M pairs. Set --data.train to them and
--data.tokenizer to RoBERTa's tokenizer.json. As in the official code an epoch has every caption once, so that Visual
Genome is 53 % of the pairs. Images are not augmented."""

OPTIM = Optim(
    lr=1e-5,
    betas=(0.9, 0.98),
    eps=1e-8,
    weight_decay=0.01,
    warmup=10_000,
    schedule="linear",
    head_lr_mult=5.0,
    fusion_lr_mult=5.0,
)
"""Cross-modal layers and heads have five times the learning rate. Norms and biases are not decayed;
``decay_rule="official"`` and ``adamw="official"`` reproduce the official code, which decays some."""

RUN = Run(steps=100_000, micro_batch=32, save_every=1000, log_every=50)
"""For 64 GPUs with 32 pairs each, two micro-batches per step; float32 as in the official code."""


def at_data_size(recipe: Recipe[BridgeTowerConfig, TaskConfig]) -> Recipe[BridgeTowerConfig, TaskConfig]:
    """Return the recipe with the image size of its data in its model."""
    image = replace(recipe.model.image, image_size=recipe.data.image_size)
    return replace(recipe, model=replace(recipe.model, image=image))


BASE_PAIRS = Recipe(name="pairs", model=BASE, task=ITM_MLM, data=PAIRS, optim=OPTIM, run=RUN)
"""Expected after fine-tuning: VQAv2 test-dev 78.7, Flickr30k R@1 94.7 / 85.8 (paper, Tables 3 and 4)."""
LARGE_PAIRS = replace(
    BASE_PAIRS,
    model=LARGE,
    data=replace(PAIRS, image_size=LARGE.image.image_size),
    run=replace(RUN, micro_batch=16),
)
METER_PAIRS = replace(BASE_PAIRS, model=METER, optim=replace(OPTIM, warmup=0.1))
"""The warm-up of 0.1 of METER's and BridgeTower's configurations is that of BridgeTower's paper, 10k of 100k steps."""

RECIPES = {
    "bridgetower-base-pairs": (
        "BridgeTower-Base pre-training with ITM and MLM: 100k steps of 4,096 pairs.",
        BASE_PAIRS,
    ),
    # no results of the next two are published: the official code has their configurations, task_mlm_itm_itc_hard and
    # task_mlm_itm_itc
    "bridgetower-base-pairs-itc": (
        "BridgeTower-Base pre-training with ITC, ITM of hard negatives, and MLM: one model that searches and re-ranks.",
        replace(BASE_PAIRS, task=ITC_ITM_MLM),
    ),
    "bridgetower-base-pairs-itc-random": (
        "BridgeTower-Base pre-training with ITC, ITM of random negatives, and MLM.",
        replace(BASE_PAIRS, task=replace(ITM_MLM, itc_weight=1.0)),
    ),
    "bridgetower-large-pairs": (
        "BridgeTower-Large pre-training with ITM and MLM at 294 px; VQAv2 test-dev 81.3 after fine-tuning.",
        LARGE_PAIRS,
    ),
    "meter-base-pairs": (
        "METER-Base pre-training with ITM and MLM; VQAv2 test-dev 77.7 after fine-tuning.",
        METER_PAIRS,
    ),
    "meter-base-pairs-224": (
        "METER-Base pre-training at 224 px; VQAv2 test-dev 77.2 after fine-tuning (METER's README).",
        at_data_size(replace(METER_PAIRS, data=replace(PAIRS, image_size=(224, 224)))),
    ),
}
"""Summary and recipe by name."""
