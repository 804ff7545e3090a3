"""BridgeTower and METER as published: pre-training on pairs.

Numbers are those of the released scripts (microsoft/BridgeTower, pre-training base and large); the paper (arXiv
2206.08657, appendix) agrees where it names them. Start from towers that were trained before: ``dualfuse convert``
makes a model folder of CLIP and RoBERTa weights, and the published runs start from exactly that.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.image.transform import OFFICIAL_CLIP
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
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
"""Without bridges, and without CLIP's last block, as METER's published weights."""

MASKED_AND_MATCHED = PairsConfig(
    itc_weight=0.0,
    itm_weight=1.0,
    mlm_weight=1.0,
    itc_head=ITCHeadConfig(width=256, bias=True, temperature="plain"),
    negatives="source",
    negative_hardness=0.0,
    negatives_per_pair=0,
    masking="token",
)
"""Masked words and matching, weighted alike; half of the pairs get a random image of the same training set. Theirs
is drawn from the whole set and can be the right one; ours is another one of the batch of all processes."""

WITH_CONTRAST = replace(
    MASKED_AND_MATCHED, itc_weight=1.0, negatives="local", negative_hardness=1.0, negatives_per_pair=2
)
"""And contrast, whose similarities choose the negatives within a process (released for retrieval, ``itm_itc``)."""

PAIRS = Data(
    image_size=BASE.image.image_size,
    preprocess=OFFICIAL_CLIP,
    augment=None,
    text_length=50,
    batch_size=4096,
    num_workers=8,
)
"""COCO, Visual Genome, SBU and Conceptual Captions: 4 M images, 9 M pairs; give them with --data.train, RoBERTa's
tokenizer.json with --data.tokenizer. Images are not augmented."""

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
"""Cross-modal layers and heads learn five times as fast. Decay: ours spares all norms and biases; ``decay_rule="official"``
and ``adamw="official"`` repeat theirs."""

RUN = Run(steps=100_000, micro_batch=32, save_every=1000, log_every=50)
"""On 64 GPUs: 32 pairs each, twice per step; in float32, as they did (``--run.precision bf16`` is not theirs)."""


def base_pairs() -> Recipe:
    """BridgeTower-Base on image-text pairs, masked words and matching: 100k steps of 4,096 pairs.

    Expect VQAv2 test-dev 78.7, Flickr30k R@1 94.7 / 85.8 after fine-tuning (paper, Tables 3 and 4).
    """
    return Recipe(name="pairs", model=BASE, task=MASKED_AND_MATCHED, data=PAIRS, optim=OPTIM, run=RUN)


def large_pairs() -> Recipe:
    """BridgeTower-Large on image-text pairs, images of 294 pixels; VQAv2 test-dev 81.3 after fine-tuning."""
    data = replace(PAIRS, image_size=LARGE.image.image_size)
    return replace(base_pairs(), model=LARGE, data=data, run=replace(RUN, micro_batch=16))


def base_pairs_contrast() -> Recipe:
    """BridgeTower-Base with contrast and hard negatives too, so that one model searches and re-ranks.

    The objectives of the release's retrieval fine-tuning with the schedule of its pre-training; no published run.
    """
    return replace(base_pairs(), task=WITH_CONTRAST)


def meter_base_pairs() -> Recipe:
    """METER-Base on image-text pairs, as BridgeTower-Base but for 10 % of warm-up: VQAv2 test-dev 77.7."""
    return replace(base_pairs(), model=METER, optim=replace(OPTIM, warmup=0.1))
