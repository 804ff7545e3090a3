"""VLMo's three stages in order (section 3.4): images, text, pairs. Each starts from the model of the stage before."""

from __future__ import annotations

from dataclasses import replace

from dualfuse.recipe import Recipe
from dualfuse.recipes.small_pairs import nano_pairs
from dualfuse.recipes.vlmo import base_pairs, large_pairs
from dualfuse.recipes.vlmo_images import base_images, large_images, nano_images, nano_tokenizer
from dualfuse.recipes.vlmo_text import base_text, large_text, nano_text


def base() -> tuple[Recipe, ...]:
    """VLMo-Base in three stages; needs --images.task.tokenizer and --images., --text. and --pairs.data.train.

    The published runs start from BEiT fine-tuned on ImageNet instead of the image stage, as ``vlmo-base-text`` does.
    """
    return _chain(base_images(), base_text(), base_pairs())


def large() -> tuple[Recipe, ...]:
    """VLMo-Large in three stages; needs the flags of vlmo-base."""
    return _chain(large_images(), large_text(), large_pairs())


def nano() -> tuple[Recipe, ...]:
    """VLMo-nano tokenizer and three stages, for a laptop; needs --data.train of all four.

    With --images.task.tokenizer no tokenizer is trained.
    """
    tokenizer, images = nano_tokenizer(), nano_images()
    images = replace(images, task=replace(images.task, tokenizer=tokenizer.name))
    return tokenizer, *_chain(images, nano_text(), nano_pairs())


def _chain(images: Recipe, text: Recipe, pairs: Recipe) -> tuple[Recipe, ...]:
    return images, replace(text, start_from=images.name), replace(pairs, start_from=text.name)
