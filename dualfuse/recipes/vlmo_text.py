"""VLMo's stage two: masked words on text alone, with attention and everything that sees images frozen.

Numbers are those of the official code (microsoft/unilm, vlmo: task_textmlm_*, step200k) unless a line says otherwise;
where they differ from the paper (arXiv 2111.02358, appendix B) both are named. Give the text with --data.train:
Wikipedia and BookCorpus as published.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Recipe, Run
from dualfuse.recipes.small_pairs import NANO, QUICK
from dualfuse.recipes.vlmo import BASE, BASE_PLUS, LARGE, OPTIM, RUN
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig

TEXT = Data(text_length=196, batch_size=1024, num_workers=8)
"""Rows of 196 tokens. 1,024 of them a step [official code]; the paper has 2,048."""

TRAINED = (
    "model.words.*",
    "model.types.*",
    "model.blocks.*.experts.text.*",
    "model.norm.*",
    "mlm_head.*",
)
"""Everything else is frozen: attention with its norms and LayerScale, vision experts, patches, class token, pooler.

The paper freezes "attention and vision experts"; the official code also leaves the final norm trainable, which a
fine-tuned BEiT does not bring (it has ``fc_norm``), and the table of relative positions, where rows of images get no
gradient and stay."""

TRAINED_RELATIVE = (*TRAINED, "model.relative_bias.*")


def _alone(model: VLMoConfig) -> VLMoConfig:
    """Return the model without vision-language experts, and with positions for texts of 196."""
    return replace(model, vl_expert_start=model.depth, text_length=196)


def base_text() -> Recipe:
    """VLMo-Base on text alone, from BEiT-Base fine-tuned on ImageNet: 200k steps of 1,024 rows.

    Batch and steps are the official code's (its README adds step200k); the paper has batches of 2,048, and probably
    500k steps. Drop-path 0.1, which is the text embedding's dropout too.
    """
    return Recipe(
        name="text",
        model=_alone(BASE),
        task=MaskedTextConfig(),
        data=TEXT,
        optim=OPTIM,
        run=RUN,
        start_from="microsoft/beit-base-patch16-224",
        train_only=TRAINED_RELATIVE,
    )


def base_plus_text() -> Recipe:
    """VLMo-Base-plus on text alone: give --start-from, weights of images of this size (none are published).

    Numbers are the base size's, as in the official code; positions are absolute, so there is no table to train.
    """
    return replace(base_text(), model=_alone(BASE_PLUS), start_from="", train_only=TRAINED)


def large_text() -> Recipe:
    """VLMo-Large on text alone, from BEiT-Large fine-tuned on ImageNet.

    The official code has no configuration of this size: numbers are the base size's. The paper has batches of 2,048,
    and probably 200k steps.
    """
    return replace(base_text(), model=_alone(LARGE), start_from="microsoft/beit-large-patch16-224")


def nano_text() -> Recipe:
    """VLMo-nano on your text: give --data.train, and --start-from a model of images; minutes on a laptop."""
    return Recipe(
        name="text",
        model=replace(NANO, vl_expert_start=NANO.depth, text_length=64),
        task=MaskedTextConfig(init_std=NANO.init.std),
        data=Data(text_length=64, batch_size=64, num_workers=1),
        optim=QUICK,
        run=Run(steps=2000, save_every=500),
        train_only=TRAINED,
    )
