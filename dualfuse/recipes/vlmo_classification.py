"""VLMo image classification on ImageNet with BEiT's settings (Table 3 of VLMo's paper gives no others).

Values are from the official code (microsoft/unilm, beit: README.md, get_started_for_image_classification.md). BEiT has
a position bias per layer with the learning rate of the layer; VLMo's only table has the learning rate of the head. Set
--start-from to the pre-trained model, --data.train to the data, and --task.labels to the class names if the samples
have names.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.image.mixup import Mixup
from dualfuse.data.image.transform import Augment, Preprocess
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.small_pairs import NANO, QUICK
from dualfuse.recipes.vlmo import BASE, LARGE
from dualfuse.recipes.vlmo_images import IMAGES_1K, IMAGES_22K, NANO_AUGMENT
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig

Classes = Recipe[VLMoConfig, ImageClassificationConfig]
Listed = tuple[str, tuple[str, Classes]]

SIZES = {"base": BASE, "large": LARGE}

AUGMENT = Augment(crop=(0.08, 1.0), rand_augment_policy="timm")
"""Crops of 8 to 100 %, flips with probability 0.5, two random transforms (rand-m9-mstd0.5-inc1)."""
CENTER = Preprocess("crop", crop_fraction=224 / 256)
"""The center 224 of 256 pixels, for evaluation."""
OPTIM = Optim(
    lr=2e-5, betas=(0.9, 0.999), weight_decay=0.05, decay_rule="beit", schedule="cosine", min_lr=1e-6, layer_decay=0.85
)
LITTLE_DECAY = 1e-8
"""The weight decay after intermediate fine-tuning."""
TASK = ImageClassificationConfig(label_smoothing=0.1, random_erasing=0.25)
TASK_MIXED = replace(TASK, mixup=Mixup(mixup_alpha=0.8, cutmix_alpha=1.0))


def _at_size(recipe: Classes, side: int) -> Classes:
    """Return the recipe at 384 px or more, where evaluation shows the center of an image without a margin."""
    size = (side, side)
    data = replace(recipe.data, image_size=size, preprocess=Preprocess("crop"))
    return replace(recipe, model=replace(recipe.model, image_size=size), data=data)


def _recipe(
    model: VLMoConfig, task: ImageClassificationConfig, optim: Optim, numbers: tuple[int, int, int], images: int
) -> Classes:
    """``numbers`` are the batch size, the epochs of ``images`` images, and the epochs of warm-up."""
    batch, epochs, warmup = numbers
    epoch = images // batch
    return Recipe(
        name="classes",
        model=model,
        task=task,
        data=Data(image_size=(224, 224), preprocess=CENTER, augment=AUGMENT, batch_size=batch, num_workers=8),
        optim=replace(optim, warmup=warmup / epochs),
        run=Run(steps=epochs * epoch, epochs=epochs, precision="bf16", save_every=2000, log_every=50),
    )


def _listed(size: str, kind: str, summary: str, recipe: Classes) -> Listed:
    return kind.format(f"vlmo-{size}"), (f"VLMo-{size.capitalize()} {summary}.", recipe)


def _on_22k(size: str, optim: Optim, batch: int) -> Listed:
    task, model = replace(TASK, num_classes=21_841), replace(SIZES[size], drop_path=0.2)
    summary = "on ImageNet-22k, intermediate fine-tuning after the image stage: 90 epochs"
    return _listed(size, "imagenet22k-{}", summary, _recipe(model, task, optim, (batch, 90, 5), IMAGES_22K))


def _on_1k(size: str, side: int, accuracies: str) -> Listed:
    """Return the recipe after ImageNet-22k, and BEiT's accuracies."""
    layer_decay, drop_path = {"base": (0.85, 0.1), "large": (0.9, 0.4)}[size]
    optim = replace(OPTIM, weight_decay=LITTLE_DECAY, layer_decay=layer_decay)
    recipe = _recipe(replace(SIZES[size], drop_path=drop_path), TASK, optim, (512, 30, 5), IMAGES_1K)
    at = "" if side == 224 else f" at {side} px"
    summary = f"on ImageNet-1k{at} after ImageNet-22k: 30 epochs; BEiT's accuracy is {accuracies}"
    kind = "imagenet-{}" + (f"-{side}" if at else "")
    return _listed(size, kind, summary, _at_size(recipe, side) if at else recipe)


def _directly(size: str, lr: float, layer_decay: float, numbers: tuple[int, int, int], accuracies: str) -> Listed:
    model = replace(SIZES[size], drop_path={"base": 0.1, "large": 0.2}[size])
    recipe = _recipe(model, TASK_MIXED, replace(OPTIM, lr=lr, layer_decay=layer_decay), numbers, IMAGES_1K)
    summary = f"directly after the image stage: {numbers[1]} epochs; BEiT's accuracy is {accuracies}"
    return _listed(size, "imagenet-{}-direct", f"on ImageNet-1k {summary}", recipe)


NANO_CLASSES = Recipe(
    name="classes",
    model=NANO,
    task=replace(TASK, head_scale=1.0, mixup=Mixup(cutmix_alpha=1.0), random_erasing=0.0),
    data=Data(image_size=(64, 64), augment=NANO_AUGMENT, text_length=16, batch_size=128, num_workers=1),
    optim=replace(QUICK, layer_decay=0.85),
    run=Run(steps=2000, save_every=500),
)
RECIPES = dict(
    (
        _on_22k("base", replace(OPTIM, lr=3e-3, layer_decay=0.65, grad_clip_norm=3.0), 4096),
        _on_22k("large", replace(OPTIM, lr=2e-3, layer_decay=0.75, grad_clip_norm=1.0), 2048),
        _on_1k("base", 224, "85.2 (top 5: 97.6)"),
        _on_1k("large", 224, "87.4 (top 5: 98.3)"),
        _on_1k("base", 384, "86.8 (top 5: 98.1)"),
        _on_1k("large", 384, "88.4 (top 5: 98.6)"),
        _on_1k("large", 512, "88.6 (top 5: 98.7)"),
        _directly("base", 4e-3, 0.65, (1024, 100, 20), "83.7 (top 5: 96.6)"),
        _directly("large", 1e-3, 0.75, (1024, 50, 5), "86.0 (top 5: 97.6)"),
    )
) | {
    "vlmo-nano-classes": (
        "VLMo-nano on your classes, minutes on a laptop; needs --data.train with a labels.txt, or --task.labels.",
        NANO_CLASSES,
    ),
}
"""Summary and recipe by name."""
