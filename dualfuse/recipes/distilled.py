"""VLMo whose image and text paths learn from a model that searches already, before it is trained on pairs."""

from __future__ import annotations

from dataclasses import replace

from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.base import ModelConfig
from dualfuse.recipe import Recipe, Run
from dualfuse.recipes.small_pairs import NANO, OPENPICS, QUICK, nano_pairs
from dualfuse.tasks.pretrain.distillation import DistillationConfig

HEAD = ITCHeadConfig(width=512)
"""As wide as the embeddings of the recipe starter."""


def nano() -> tuple[Recipe[ModelConfig, DistillationConfig], Recipe]:
    """VLMo-nano taught by a model that searches, then pairs; needs --distil.task.teacher and --data.train of both.

    --distil.data.train also takes images without texts, and .txt, .jsonl or .parquet files of texts without images.
    """
    pairs = nano_pairs()
    distil = Recipe(
        name="distil",
        model=NANO,
        task=DistillationConfig(itc_head=HEAD, init_std=NANO.init.std),
        data=replace(OPENPICS, train=(), validation=""),
        optim=QUICK,
        run=Run(steps=1200, save_every=400),
    )
    joint = replace(
        pairs,
        task=replace(pairs.task, itc_head=HEAD),
        optim=replace(QUICK, lr=1e-3),
        run=Run(steps=500, save_every=250),
        start_from=distil.name,
    )
    return distil, joint
