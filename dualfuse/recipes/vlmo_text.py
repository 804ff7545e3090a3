"""VLMo's text stage: MLM on text alone, with the attention and the vision path frozen.

Values are from the official code (microsoft/unilm, vlmo: task_textmlm_*, step200k) unless a comment says otherwise;
where the paper (arXiv 2111.02358, appendix B) differs, both are given. Set --data.train to the text; the published runs
use Wikipedia and BookCorpus.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Recipe, Run
from dualfuse.recipes.small_pairs import NANO, QUICK
from dualfuse.recipes.vlmo import BASE, BASE_PLUS, LARGE, OPTIM, RUN
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig

TEXT = Data(text_length=196, batch_size=1024, num_workers=8)
"""Sequences of 196 tokens, 1,024 per step [official code]; the paper has 2,048."""

TRAINED = (
    "model.words.*",
    "model.types.*",
    "model.blocks.*.experts.text.*",
    "model.norm.*",
    "mlm_head.*",
)
"""All other parameters are frozen: attention with its norms and LayerScale, vision experts, patch embedding, class
token, pooler.

The paper freezes "attention and vision experts". The official code also trains the final norm, which a fine-tuned BEiT
lacks (it has ``fc_norm``), and the relative bias table, whose rows for images get no gradient and do not change."""

TRAINED_RELATIVE = (*TRAINED, "model.relative_bias.*")


def _text_only(model: VLMoConfig) -> VLMoConfig:
    """Return the model without vision-language experts, and with texts of 196 tokens."""
    return replace(model, vl_expert_start=model.depth, text_length=196)


BASE_TEXT = Recipe(
    name="text",
    model=_text_only(BASE),
    task=MaskedTextConfig(),
    data=TEXT,
    optim=OPTIM,
    run=RUN,
    start_from="microsoft/beit-base-patch16-224",
    train_only=TRAINED_RELATIVE,
)
"""Batch size and steps are those of the official code (its README adds step200k); the paper has batches of 2,048, and
probably 500k steps. Drop path, and with it the dropout of the text embedding, is 0.1."""
BASE_PLUS_TEXT = replace(BASE_TEXT, model=_text_only(BASE_PLUS), start_from="", train_only=TRAINED)
"""Settings are those of the base size, as in the official code; positions are absolute, so there is no bias table."""
LARGE_TEXT = replace(BASE_TEXT, model=_text_only(LARGE), start_from="microsoft/beit-large-patch16-224")
"""The official code has no configuration of this size; settings are those of the base size. The paper has batches of
2,048, and probably 200k steps."""
NANO_TEXT = Recipe(
    name="text",
    model=replace(NANO, vl_expert_start=NANO.depth, text_length=64),
    task=MaskedTextConfig(init_std=NANO.init.std),
    data=Data(text_length=64, batch_size=64, num_workers=1),
    optim=QUICK,
    run=Run(steps=2000, save_every=500),
    train_only=TRAINED,
)
RECIPES = {
    "vlmo-base-text": (
        "VLMo-Base text stage from BEiT-Base fine-tuned on ImageNet: 200k steps of 1,024 sequences.",
        BASE_TEXT,
    ),
    "vlmo-base-text-500k": (
        "VLMo-Base text stage of 500k steps: step500k of the official code, with which no result is published.",
        replace(BASE_TEXT, run=replace(RUN, steps=500_000)),
    ),
    "vlmo-base-plus-text": (
        "VLMo-Base-plus text stage; needs --start-from, an image stage of this size (none is published).",
        BASE_PLUS_TEXT,
    ),
    "vlmo-large-text": ("VLMo-Large text stage from BEiT-Large fine-tuned on ImageNet.", LARGE_TEXT),
    "vlmo-nano-text": (
        "VLMo-nano text stage on your text, minutes on a laptop; needs --data.train, and --start-from an image stage.",
        NANO_TEXT,
    ),
}
"""Summary and recipe by name."""
