"""Recipes as values, and how one is found: by a listed name, file.py:function, module:function or model folder."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualfuse import hub, plugins, upgrade
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe
from dualfuse.recipes import (
    bridgetower,
    bridgetower_unimodal,
    finetune_vlmo,
    small_finetune,
    vlmo,
    vlmo_captioning,
    vlmo_classification,
    vlmo_images,
    vlmo_probe,
    vlmo_segmentation,
    vlmo_stages,
    vlmo_text,
)
from dualfuse.recipes.files import is_recipe_file, read_recipe_file
from dualfuse.run_folder import model_of

FUNCTIONS = {
    "vlmo-small-pairs": "dualfuse.recipes.small_pairs:small_pairs",
    "vlmo-nano-pairs": "dualfuse.recipes.small_pairs:nano_pairs",
    "bridgetower-nano-pairs": "dualfuse.recipes.small_pairs:bridgetower_nano_pairs",
    "meter-nano-pairs": "dualfuse.recipes.small_pairs:meter_nano_pairs",
    "vlmo-nano-distilled": "dualfuse.recipes.distilled:nano",
    "demo": "dualfuse.recipes.small_pairs:demo",
    "demo-itc": "dualfuse.recipes.small_pairs:demo_itc",
    "demo-bridgetower": "dualfuse.recipes.small_pairs:demo_bridgetower",
    "demo-meter": "dualfuse.recipes.small_pairs:demo_meter",
    "vqa-bridgetower-base": "dualfuse.recipes.finetune_bridgetower:vqa_base",
    "vqa-bridgetower-large": "dualfuse.recipes.finetune_bridgetower:vqa_large",
    "vqa-genome-bridgetower-base": "dualfuse.recipes.bridgetower_vqa:vqa_base_genome",
    "vqa-genome-bridgetower-large": "dualfuse.recipes.bridgetower_vqa:vqa_large_genome",
    "vqa-bridgetower-base-ftfs": "dualfuse.recipes.bridgetower_vqa:vqa_base_ftfs",
    "vqa-bridgetower-large-ftfs": "dualfuse.recipes.bridgetower_vqa:vqa_large_ftfs",
    "vqa-meter-base-ftfs": "dualfuse.recipes.bridgetower_vqa:meter_vqa_base_ftfs",
    "vqa-meter-base-ftfs-fusion": "dualfuse.recipes.bridgetower_vqa:meter_vqa_base_ftfs_fusion",
    "nlvr2-bridgetower-base": "dualfuse.recipes.finetune_bridgetower:nlvr2_base",
    "entailment-bridgetower-base": "dualfuse.recipes.finetune_bridgetower:entailment_base",
    "coco-bridgetower-base": "dualfuse.recipes.finetune_bridgetower:coco_base",
    "flickr30k-bridgetower-base": "dualfuse.recipes.finetune_bridgetower:flickr30k_base",
    "flickr30k-bridgetower-base-ranking": "dualfuse.recipes.finetune_bridgetower:flickr30k_base_ranking",
    "vqa-meter-base": "dualfuse.recipes.finetune_bridgetower:meter_vqa_base",
    "nlvr2-meter-base": "dualfuse.recipes.finetune_bridgetower:meter_nlvr2_base",
    "entailment-meter-base": "dualfuse.recipes.finetune_bridgetower:meter_entailment_base",
    "coco-meter-base": "dualfuse.recipes.finetune_bridgetower:meter_coco_base",
    "flickr30k-meter-base": "dualfuse.recipes.finetune_bridgetower:meter_flickr30k_base",
    "starter": "dualfuse.recipes.starter:starter",
    "fuse": "dualfuse.recipes.fuse:fuse",
    "fuse-vqa": "dualfuse.recipes.fuse:vqa",
    "fuse-entailment": "dualfuse.recipes.fuse:entailment",
    "fuse-nlvr2": "dualfuse.recipes.fuse:nlvr2",
    "ten-seconds": "dualfuse.recipes.small_pairs:ten_seconds",
}
"""Addresses of the functions of listed recipes, by name."""
VALUES: dict[str, tuple[str, Recipe | tuple[Recipe, ...]]] = {}
"""Summary and recipe, or its stages, of listed recipes that are values, by name."""
for _module in (
    vlmo,
    vlmo_stages,
    vlmo_images,
    vlmo_text,
    bridgetower,
    small_finetune,
    vlmo_classification,
    vlmo_probe,
    vlmo_segmentation,
    vlmo_captioning,
    finetune_vlmo,
    bridgetower_unimodal,
):
    VALUES |= _module.RECIPES
NAMES = (*VALUES, *FUNCTIONS)
"""The recipes that ``dualfuse recipes`` lists."""


def find_recipe(name: str, **given: str) -> tuple[Recipe, ...]:
    """Return the recipes of a listed name, of ``path/file.py:function``, of ``module:function`` or of a model folder.

    ``given`` are values of flags, such as start_from, for functions with parameters of these names. A .yaml or .json
    file is read by :func:`read_recipe_file`. The recipe of a model folder starts from its weights. A file is read again
    if it has changed since. Raises ``DualfuseError`` if there is no such recipe.
    """
    if is_recipe_file(name):
        return read_recipe_file(Path(name), find_recipe)
    name = upgrade.RECIPES.get(name, name)
    folder = Path(name) if name in NAMES else model_of(Path(name))
    if hub.recipe_path(folder).is_file():
        recipe = hub.with_tokenizer(hub.read_recipe(folder), folder)
        data = replace(recipe.data, train=(), weights=(), validation="")
        return (replace(recipe, start_from=str(folder), data=data),)
    if name in VALUES:
        listed = VALUES[name][1]
        return listed if isinstance(listed, tuple) else (listed,)
    address = FUNCTIONS.get(name, name)
    if ":" not in address:
        names = "\n  ".join(NAMES)
        raise DualfuseError(
            f"no recipe is called {name!r}; give file.py:function, a .yaml or .json file, a folder, or:\n  {names}"
        )
    make = plugins.find(address)
    if not callable(make):
        raise DualfuseError(f"{address} is a {type(make).__name__}, not a function that returns a recipe")
    wanted = inspect.signature(make).parameters
    made = make(**{key: value for key, value in given.items() if key in wanted})
    recipes: tuple[Any, ...] = made if isinstance(made, tuple) else (made,)  # Any: the function is the user's
    if not recipes or not all(isinstance(recipe, Recipe) for recipe in recipes):
        raise DualfuseError(f"{address} returns a {type(made).__name__}, but must return a Recipe or a tuple of them")
    return recipes


def summary(name: str) -> str:
    """Return the summary of a listed recipe."""
    if name in VALUES:
        return VALUES[name][0]
    return (inspect.getdoc(plugins.find(FUNCTIONS[name])) or "").splitlines()[0]
