"""Fine-tuning on a laptop: questions, entailment and pairs of images at 64 px, in minutes on a CPU.

Set --data.train and --data.validation to the samples. --start-from takes a model of the size of the demo, such as
runs/demo-scratch/pairs/final.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.image.transform import Augment
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.small_pairs import BRIDGETOWER_NANO, METER_NANO, NANO, OPENPICS
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig

MODELS = {"VLMo": NANO, "BridgeTower": BRIDGETOWER_NANO, "METER": METER_NANO}

DATA = Data(
    image_size=(64, 64),
    augment=Augment(crop=(1.0, 1.0), flip=0.5, rand_augment=False),
    text_length=16,
    batch_size=64,
    num_workers=0,
)
"""Whole images in their original colours, because questions ask about shapes and colours."""

OPTIM = Optim(lr=3e-4, weight_decay=0.05, warmup=0.05, schedule="cosine", grad_clip_norm=1.0)
"""At first a model answers from the text alone; at 1e-3 it still does after 1,000 steps, at 3e-4 it uses the image."""


VQA = Recipe[VLMoConfig, TaskConfig](
    "vqa", NANO, VQAConfig(), DATA, OPTIM, Run(steps=7000, save_every=500, log_every=50)
)
ENTAILMENT = replace(
    VQA,
    name="entailment",
    task=EntailmentConfig(("differs", "fits")),
    data=replace(DATA, augment=OPENPICS.augment),
    run=replace(VQA.run, steps=1500),
)
NLVR2 = replace(ENTAILMENT, name="nlvr2", model=replace(NANO, image_slots=2), task=NLVR2Config())


def _listed(model: str, recipe: Recipe[VLMoConfig, TaskConfig], use: str) -> tuple[str, tuple[str, Recipe]]:
    config = replace(MODELS[model], image_slots=recipe.model.image_slots)
    name = f"demo-{recipe.name}" + ("" if model == "VLMo" else f"-{model.lower()}")
    return name, (f"{model}-nano {use}.", replace(recipe, model=config))


ANSWERS = "on easy-VQA, minutes on a laptop; needs --data.train and --task.answers"
FITS = "classifies whether a text fits an image, minutes on a laptop; needs --data.train"
IS_TRUE = "classifies whether a sentence is true of two images, minutes on a laptop; needs --data.train"
RECIPES = dict(
    (
        _listed("VLMo", VQA, ANSWERS),
        _listed("BridgeTower", VQA, ANSWERS),
        _listed("METER", VQA, ANSWERS),
        _listed("VLMo", ENTAILMENT, FITS),
        _listed("BridgeTower", ENTAILMENT, FITS),
        _listed("VLMo", NLVR2, IS_TRUE),
        _listed("BridgeTower", NLVR2, IS_TRUE),
    )
)
"""Summary and recipe by name; --task.labels sets labels of your own."""
