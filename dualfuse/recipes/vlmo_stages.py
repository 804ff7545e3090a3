"""VLMo's three stages in order (section 3.4): images, text, pairs. Each starts from the model of the stage before."""

from __future__ import annotations

from dataclasses import replace

from dualfuse.recipe import Recipe
from dualfuse.recipes.small_pairs import nano_pairs
from dualfuse.recipes.vlmo import BASE_PAIRS, LARGE_PAIRS
from dualfuse.recipes.vlmo_images import BASE_IMAGES, LARGE_IMAGES, NANO_IMAGES, NANO_TOKENIZER
from dualfuse.recipes.vlmo_text import BASE_TEXT, LARGE_TEXT, NANO_TEXT


def _chain(images: Recipe, text: Recipe, pairs: Recipe) -> tuple[Recipe, ...]:
    return images, replace(text, start_from=images.name), replace(pairs, start_from=text.name)


BASE = _chain(BASE_IMAGES, BASE_TEXT, BASE_PAIRS)
"""The published runs start from BEiT fine-tuned on ImageNet instead of the image stage, as ``vlmo-base-text`` does."""
NANO_IMAGE_STAGE = replace(NANO_IMAGES, task=replace(NANO_IMAGES.task, tokenizer=NANO_TOKENIZER.name))
NANO = (NANO_TOKENIZER, *_chain(NANO_IMAGE_STAGE, NANO_TEXT, nano_pairs()))
"""With --images.task.tokenizer no tokenizer is trained."""
RECIPES = {
    "vlmo-base": (
        "VLMo-Base in three stages; needs --images.task.tokenizer and --images., --text. and --pairs.data.train.",
        BASE,
    ),
    "vlmo-large": (
        "VLMo-Large in three stages; needs the flags of vlmo-base.",
        _chain(LARGE_IMAGES, LARGE_TEXT, LARGE_PAIRS),
    ),
    "vlmo-nano": ("VLMo-nano tokenizer and three stages, for a laptop; needs --data.train of all four.", NANO),
}
"""Summary and recipes by name."""
