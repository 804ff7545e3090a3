"""VLMo's image stage: masked image modelling as in BEiT, and the visual tokenizers that it needs.

Values are from the official code (microsoft/unilm, beit) unless a comment says otherwise. Set --data.train to the
images, and --task.tokenizer to DALL-E's published encoder.pkl or to a tokenizer trained here.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.image.block_mask import BlockMask
from dualfuse.data.image.transform import Augment, Preprocess
from dualfuse.layers.vq.autoencoder import AutoencoderConfig
from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.small_pairs import NANO, QUICK
from dualfuse.recipes.vlmo import BASE, LARGE
from dualfuse.tasks.pretrain.masked_feature import MaskedFeatureConfig
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig
from dualfuse.tasks.pretrain.vq_tokenizer import VQTokenizerConfig

IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
IMAGES_22K, IMAGES_1K = 14_197_122, 1_281_167
BATCH = 2048
"""128 images on each of 16 GPUs."""

AUGMENT = Augment(crop=(0.08, 1.0), rand_augment=False, color_jitter=0.4)
"""Crops of 8 to 100 %, flips with probability 0.5, brightness, contrast and saturation times 0.6 to 1.4."""

OPTIM = Optim(
    lr=1.5e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.05,
    decay_rule="beit",
    warmup=10_000,
    schedule="cosine",
    min_lr=1e-5,
    grad_clip_norm=3.0,
)
"""As BEiT; the bias table and the mask token are decayed."""

NANO_AUGMENT = Augment(crop=(0.5, 1.0), rand_augment=False, color_jitter=0.2)


def _as_beit(model: VLMoConfig, *, layer_scale: float) -> VLMoConfig:
    """Return the model with one relative bias table for all layers and BEiT's initialization of the vision path."""
    return replace(model, share_relative_bias=True, init=InitConfig(layer_scale=layer_scale, rule="beit"))


BASE_IMAGES = Recipe(
    name="images",
    model=_as_beit(BASE, layer_scale=0.1),
    task=MaskedImageConfig(),
    data=Data(image_size=(224, 224), augment=AUGMENT, batch_size=BATCH, num_workers=8),
    optim=OPTIM,
    run=Run(steps=150 * (IMAGES_22K // BATCH), precision="bf16", save_every=2000, log_every=50),
)
BASE_IMAGES_1K = replace(
    BASE_IMAGES,
    data=replace(BASE_IMAGES.data, preprocess=IMAGENET),
    optim=replace(OPTIM, warmup=10 * (IMAGES_1K // BATCH)),
    run=replace(BASE_IMAGES.run, steps=800 * (IMAGES_1K // BATCH)),
)
LARGE_IMAGES = replace(BASE_IMAGES, model=_as_beit(LARGE, layer_scale=1e-5))
NANO_IMAGES = Recipe(
    name="images",
    model=NANO,
    task=MaskedImageConfig(codes=256, mask=BlockMask(patches=6, smallest=2)),
    data=Data(image_size=(64, 64), augment=NANO_AUGMENT, batch_size=128, num_workers=1),
    optim=QUICK,
    run=Run(steps=2000, save_every=500),
)
BASE_IMAGES_TAUGHT = replace(BASE_IMAGES, task=MaskedFeatureConfig())
"""The teacher is the only difference from ``vlmo-base-images``; EVA and BEiT v2 have others as well."""
NANO_TAUGHT = MaskedFeatureConfig(channels=NANO.width, mask=NANO_IMAGES.task.mask)
TOKENIZER = Recipe(
    name="tokenizer",
    model=AutoencoderConfig(),
    task=VQTokenizerConfig(),
    data=Data(image_size=(112, 112), augment=replace(AUGMENT, color_jitter=0.0), batch_size=512, num_workers=8),
    optim=Optim(lr=4e-4, betas=(0.9, 0.99), weight_decay=1e-4, warmup=1000, schedule="cosine", grad_clip_norm=1.0),
    run=Run(steps=100_000, precision="bf16", save_every=2000, log_every=50),
)
"""The settings are our own: those of DALL-E's training are not public in full."""
NANO_TOKENIZER = replace(
    TOKENIZER,
    model=AutoencoderConfig(codes=256, width=32, blocks=1, code_width=16),
    data=Data(image_size=(32, 32), augment=replace(NANO_AUGMENT, color_jitter=0.0), batch_size=128, num_workers=1),
    optim=replace(TOKENIZER.optim, lr=2e-3, warmup=100),
    run=Run(steps=2000, save_every=500),
)
RECIPES = {
    "vlmo-base-images": ("VLMo-Base image stage as BEiT: 150 epochs of ImageNet-22k.", BASE_IMAGES),
    "vlmo-base-images-1k": (
        "VLMo-Base image stage as BEiT: 800 epochs of ImageNet-1k, with 10 epochs of warm-up.",
        BASE_IMAGES_1K,
    ),
    "vlmo-large-images": ("VLMo-Large image stage as BEiT: 150 epochs of ImageNet-22k, LayerScale 1e-5.", LARGE_IMAGES),
    "vlmo-nano-images": (
        "VLMo-nano image stage on your images, minutes on a laptop; needs --data.train and --task.tokenizer.",
        NANO_IMAGES,
    ),
    "vlmo-base-images-taught": (
        "VLMo-Base image stage with the features of a teacher as targets; needs --task.teacher, such as a converted "
        "CLIP.",
        BASE_IMAGES_TAUGHT,
    ),
    "vlmo-nano-images-taught": (
        "VLMo-nano image stage with another VLMo-nano as teacher, minutes on a laptop; needs --task.teacher.",
        replace(NANO_IMAGES, task=NANO_TAUGHT),
    ),
    "vlmo-tokenizer": (
        "Visual tokenizer with 8,192 codes for vlmo-base-images, a day on one GPU; needs --data.train.",
        TOKENIZER,
    ),
    "vlmo-nano-tokenizer": (
        "Visual tokenizer with 256 codes for vlmo-nano-images, minutes on a laptop; needs --data.train.",
        NANO_TOKENIZER,
    ),
}
"""Summary and recipe by name."""
