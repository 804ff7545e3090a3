"""BridgeTower and METER on VQAv2, further published runs: with Visual Genome's questions, and without pre-training.

Values are from the official scripts (microsoft/BridgeTower, ftfpt_*_vqa and ftfs_*_vqa) and its paper (arXiv
2206.08657). Runs with Visual Genome start from the pre-trained model; runs without vision-language pre-training (ftfs)
start from a folder that ``dualfuse convert`` makes of CLIP and RoBERTa.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.recipe import Recipe
from dualfuse.recipes.bridgetower import BASE, METER
from dualfuse.recipes.finetune_bridgetower import METER_DATA, QUESTIONS, meter_vqa_base, vqa_base, vqa_large
from dualfuse.tasks.finetune.vqa import VQAConfig

GENOME = 931_866
"""Visual Genome's questions that have an answer in the vocabulary."""


def vqa_base_genome() -> Recipe:
    """BridgeTower-Base on VQAv2 and Visual Genome's questions, 10 epochs: test-dev 79.1; needs --task.answers.

    Give both sets with --data.train; the paper's result with the questions about COCO's images alone is 78.8.
    """
    return _with_genome(vqa_base())


def vqa_large_genome() -> Recipe:
    """BridgeTower-Large on VQAv2 and Visual Genome's questions, 10 epochs: test-dev 81.5; needs --task.answers.

    Give both sets with --data.train; the paper's result with the questions about COCO's images alone is 81.3.
    """
    return _with_genome(vqa_large())


def vqa_base_ftfs() -> Recipe:
    """BridgeTower-Base on VQAv2 without vision-language pre-training: test-dev 75.2; needs --task.answers."""
    return _without_pretraining(vqa_base(), lr=2e-5)


def vqa_large_ftfs() -> Recipe:
    """BridgeTower-Large on VQAv2 without vision-language pre-training; needs --task.answers."""
    return _without_pretraining(vqa_large(), lr=1e-5)


def meter_vqa_base_ftfs() -> Recipe:
    """METER-Base on VQAv2 without vision-language pre-training: test-dev 74.0; needs --task.answers.

    The learning rate is that of the script for BridgeTower, which has METER's augmentation; no script of METER for this
    run was found, so its own rate may differ. CLIP has all 12 layers, as in BridgeTower's code.
    """
    recipe = _without_pretraining(meter_vqa_base(), lr=2e-5)
    image = replace(BASE.image, image_size=recipe.data.image_size)
    return replace(recipe, model=replace(METER, image=image))


def meter_vqa_base_ftfs_fusion() -> Recipe:
    """METER-Base, with gated sums of all layers of the towers, without pre-training: VQAv2 test-dev 74.5.

    Needs --task.answers.
    """
    recipe = meter_vqa_base_ftfs()
    return replace(recipe, model=replace(recipe.model, all_layers=True))


def _with_genome(recipe: Recipe) -> Recipe:
    steps = 10 * (QUESTIONS + GENOME) // recipe.data.batch_size
    return replace(recipe, run=replace(recipe.run, steps=steps))


def _without_pretraining(recipe: Recipe, *, lr: float) -> Recipe:
    """Return the recipe with the augmentation of METER (``clip_randaug``), and the smaller head."""
    data = replace(METER_DATA, image_size=recipe.data.image_size, batch_size=recipe.data.batch_size)
    optim = replace(recipe.optim, lr=lr, weight_decay=0.01, warmup=0.1)
    return replace(recipe, task=VQAConfig(hidden_scale=1.0), data=data, optim=optim)
