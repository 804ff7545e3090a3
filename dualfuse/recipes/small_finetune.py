"""Fine-tuning on a laptop: questions, entailment and pairs of images at 64 px, in minutes on a CPU.

Set --data.train and --data.validation to the samples. --start-from takes a model of the size of the demo, such as
runs/demo-scratch/pairs/final.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.image.transform import Augment
from dualfuse.models.base import ModelConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.small_pairs import BRIDGETOWER_NANO, METER_NANO, NANO, OPENPICS
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig

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


def demo_vqa() -> Recipe[ModelConfig, TaskConfig]:
    """VLMo-nano on easy-VQA, minutes on a laptop; needs --data.train and --task.answers."""
    return Recipe("vqa", NANO, VQAConfig(), DATA, OPTIM, Run(steps=7000, save_every=500, log_every=50))


def demo_vqa_bridgetower() -> Recipe[ModelConfig, TaskConfig]:
    """BridgeTower-nano on easy-VQA, minutes on a laptop; needs --data.train and --task.answers."""
    return replace(demo_vqa(), model=BRIDGETOWER_NANO)


def demo_vqa_meter() -> Recipe[ModelConfig, TaskConfig]:
    """METER-nano on easy-VQA, minutes on a laptop; needs --data.train and --task.answers."""
    return replace(demo_vqa_bridgetower(), model=METER_NANO)


def demo_entailment() -> Recipe[ModelConfig, TaskConfig]:
    """VLMo-nano classifies whether a text fits an image, minutes on a laptop; needs --data.train.

    Set --task.labels for labels of your own.
    """
    data = replace(DATA, augment=OPENPICS.augment)
    run = replace(demo_vqa().run, steps=1500)
    return replace(demo_vqa(), name="entailment", task=EntailmentConfig(("differs", "fits")), data=data, run=run)


def demo_entailment_bridgetower() -> Recipe[ModelConfig, TaskConfig]:
    """BridgeTower-nano classifies whether a text fits an image, minutes on a laptop; needs --data.train."""
    return replace(demo_entailment(), model=BRIDGETOWER_NANO)


def demo_nlvr2() -> Recipe[ModelConfig, TaskConfig]:
    """VLMo-nano classifies whether a sentence is true of two images, minutes on a laptop; needs --data.train."""
    model = replace(NANO, image_slots=2)
    return replace(demo_entailment(), name="nlvr2", model=model, task=NLVR2Config())


def demo_nlvr2_bridgetower() -> Recipe[ModelConfig, TaskConfig]:
    """BridgeTower-nano classifies whether a sentence is true of two images; needs --data.train."""
    return replace(demo_nlvr2(), model=replace(BRIDGETOWER_NANO, image_slots=2))
