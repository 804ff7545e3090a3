"""VLMo semantic segmentation on ADE20K with UPerNet and BEiT's settings (Table 3 of VLMo's paper gives no others).

Values are from the official code (microsoft/unilm, beit/semantic_segmentation/configs), with four differences: VLMo's
only position bias table has the learning rate of the decoder, where BEiT has one per layer with that of the layer;
images are resized bicubically with antialiasing, not bilinearly; the loss is the mean over labelled pixels, where
mmsegmentation also counts the others; and the class token is not decayed, where BEiT's rule of decay misses its name in
the segmenter (``backbone.cls_token``), which matters little, because the token only takes part in attention. Set
--start-from to the pre-trained model and --data.train to shards of ADE20K.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.small_pairs import NANO, QUICK
from dualfuse.recipes.vlmo import BASE, LARGE
from dualfuse.recipes.vlmo_images import IMAGENET
from dualfuse.tasks.finetune.segmentation import SegmentationConfig

Segmentation = Recipe[VLMoConfig, SegmentationConfig]

TASK = SegmentationConfig(ignore_zero=True)
"""150 classes; in ADE20K's label maps 0 means no class."""
OPTIM = Optim(
    lr=3e-5, betas=(0.9, 0.999), weight_decay=0.05, decay_rule="beit", warmup=1500, schedule="poly", layer_decay=0.9
)


def _large(side: int) -> Segmentation:
    task, optim = replace(TASK, feature_layers=(8, 12, 16, 24)), replace(OPTIM, lr=2e-5, layer_decay=0.95)
    return _recipe(replace(LARGE, drop_path=0.2), task, optim, side)


def _recipe(model: VLMoConfig, task: SegmentationConfig, optim: Optim, side: int) -> Segmentation:
    """Return a recipe of 160k steps of 16 images, for 8 GPUs with 2 images each."""
    return Recipe(
        name="segmentation",
        model=replace(model, image_size=(side, side)),
        task=task,
        data=Data(image_size=(side, side), preprocess=IMAGENET, augment=None, batch_size=16, num_workers=8),
        optim=optim,
        run=Run(steps=160_000, precision="bf16", save_every=4000, log_every=50),
    )


BASE_MODEL = replace(BASE, drop_path=0.1)
NANO_SEGMENTATION = Recipe(
    name="segmentation",
    model=NANO,
    task=SegmentationConfig(feature_layers=(1, 2, 3, 4)),
    data=Data(image_size=(64, 64), augment=None, text_length=16, batch_size=32, num_workers=1),
    optim=replace(QUICK, layer_decay=0.9),
    run=Run(steps=2000, save_every=500),
)


def _listed(size: str, side: int, note: str) -> tuple[str, tuple[str, Segmentation]]:
    recipe = _large(side) if size == "large" else _recipe(BASE_MODEL, TASK, OPTIM, side)
    summary = f"VLMo-{size.capitalize()} on ADE20K at {side} px after ImageNet-22k{note}."
    return f"ade20k-vlmo-{size}" + ("" if side == 512 else f"-{side}"), (summary, recipe)


RECIPES = dict(
    (
        _listed("base", 512, ", as in VLMo's paper"),
        _listed("base", 640, "; BEiT's mean IoU is 53.6 (multi-scale and flip: 54.2)"),
        _listed("large", 512, ", as in VLMo's paper"),
        _listed("large", 640, "; BEiT's mean IoU is 56.7 (multi-scale and flip: 57.0)"),
    )
) | {
    "ade20k-vlmo-base-direct": (
        "VLMo-Base on ADE20K at 512 px directly after the image stage.",
        _recipe(BASE_MODEL, TASK, replace(OPTIM, lr=7e-4, layer_decay=0.65), 512),
    ),
    "vlmo-nano-segmentation": (
        "VLMo-nano on your label maps, minutes on a laptop; needs --data.train with a labels.txt, or --task.labels.",
        NANO_SEGMENTATION,
    ),
}
"""Summary and recipe by name."""
