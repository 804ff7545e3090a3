"""VLMo tells pictures apart: ImageNet, by BEiT's recipes (VLMo's paper, Table 3, gives no others).

Numbers are those of the released code (microsoft/unilm, beit: README.md, get_started_for_image_classification.md).
Where it has a position bias for each layer, which learns as its layer, VLMo's one table learns as the head. Give the
start with --start-from, the data with --data.train, and with --task.labels the names of the classes, where samples have
names.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.images import Augment, Looks
from dualfuse.data.mixing import Mix
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.small import NANO, QUICK
from dualfuse.recipes.vlmo import BASE, LARGE
from dualfuse.recipes.vlmo_images import NANO_AUGMENT, PICTURES_1K, PICTURES_22K
from dualfuse.tasks.image_classes import ImageClassesConfig

Classes = Recipe[VLMoConfig, ImageClassesConfig]

AUGMENT = Augment(crop=(0.08, 1.0), changes="timm")
"""Crops of 8 to 100 %, flips of every second picture, two random changes (rand-m9-mstd0.5-inc1)."""
MIDDLE = Looks("crop", kept=224 / 256)
"""In evaluation: the middle 224 of 256 pixels."""
OPTIM = Optim(
    lr=2e-5, betas=(0.9, 0.999), weight_decay=0.05, decay="beit", schedule="cosine", floor=1e-6, layer_decay=0.85
)
SPARING = 1e-8
"""The weight decay after intermediate fine-tuning."""
TASK = ImageClassesConfig(smoothing=0.1, erase=0.25)
MIXED = replace(TASK, mix=Mix(fade=0.8, cut=1.0))


def base_22k() -> Classes:
    """VLMo-Base on ImageNet-22k, between stage one and everything else: 90 epochs."""
    optim = replace(OPTIM, lr=3e-3, layer_decay=0.65, clip=3.0)
    return _recipe(replace(BASE, drop_path=0.2), replace(TASK, classes=21_841), optim, (4096, 90, 5), PICTURES_22K)


def large_22k() -> Classes:
    """VLMo-Large on ImageNet-22k, between stage one and everything else: 90 epochs."""
    optim = replace(OPTIM, lr=2e-3, layer_decay=0.75, clip=1.0)
    return _recipe(replace(LARGE, drop_path=0.2), replace(TASK, classes=21_841), optim, (2048, 90, 5), PICTURES_22K)


def base_1k() -> Classes:
    """VLMo-Base on ImageNet-1k after ImageNet-22k: 30 epochs; BEiT's accuracy is 85.2 (97.6 within five)."""
    optim = replace(OPTIM, weight_decay=SPARING)
    return _recipe(replace(BASE, drop_path=0.1), TASK, optim, (512, 30, 5), PICTURES_1K)


def large_1k() -> Classes:
    """VLMo-Large on ImageNet-1k after ImageNet-22k: 30 epochs; BEiT's accuracy is 87.4 (98.3 within five)."""
    optim = replace(OPTIM, weight_decay=SPARING, layer_decay=0.9)
    return _recipe(replace(LARGE, drop_path=0.4), TASK, optim, (512, 30, 5), PICTURES_1K)


def base_1k_direct() -> Classes:
    """VLMo-Base on ImageNet-1k straight after stage one: 100 epochs; BEiT's accuracy is 83.7 (96.6 within five)."""
    optim = replace(OPTIM, lr=4e-3, layer_decay=0.65)
    return _recipe(replace(BASE, drop_path=0.1), MIXED, optim, (1024, 100, 20), PICTURES_1K)


def large_1k_direct() -> Classes:
    """VLMo-Large on ImageNet-1k straight after stage one: 50 epochs; BEiT's accuracy is 86.0 (97.6 within five)."""
    optim = replace(OPTIM, lr=1e-3, layer_decay=0.75)
    return _recipe(replace(LARGE, drop_path=0.2), MIXED, optim, (1024, 50, 5), PICTURES_1K)


def base_1k_probe() -> Classes:
    """VLMo-Base on ImageNet-1k, frozen below one linear layer: what pictures taught it; 50 epochs (not in BEiT)."""
    recipe = base_1k()
    task, optim = ImageClassesConfig(), replace(OPTIM, lr=4e-3, weight_decay=0.0, layer_decay=1.0)
    made = _recipe(replace(BASE, drop_path=0.0), task, optim, (1024, 50, 5), PICTURES_1K)
    data = replace(recipe.data, augment=replace(AUGMENT, rand_augment=False), batch=made.data.batch)
    return replace(made, data=data, train_only=("head.*",))


def nano() -> Classes:
    """VLMo-nano on your own classes: give --data.train, and --task.labels or --task.classes; minutes on a laptop."""
    return Recipe(
        name="classes",
        model=NANO,
        task=replace(TASK, head_scale=1.0, mix=Mix(cut=1.0), erase=0.0),
        data=Data(image_size=(64, 64), augment=NANO_AUGMENT, text_length=16, batch=128, workers=1),
        optim=replace(QUICK, layer_decay=0.85),
        run=Run(steps=2000, save_every=500),
    )


def _recipe(
    model: VLMoConfig, task: ImageClassesConfig, optim: Optim, numbers: tuple[int, int, int], pictures: int
) -> Classes:
    """``numbers``: samples a step, epochs of so many ``pictures``, epochs of warm-up."""
    batch, epochs, warmup = numbers
    epoch = pictures // batch
    return Recipe(
        name="classes",
        model=model,
        task=task,
        data=Data(image_size=(224, 224), looks=MIDDLE, augment=AUGMENT, batch=batch, workers=8),
        optim=replace(optim, warmup=warmup * epoch),
        run=Run(steps=epochs * epoch, precision="bf16", save_every=2000, log_every=50),
    )
