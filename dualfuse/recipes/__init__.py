"""Recipes as values, and how one is found: by a listed name, file.py:function, module:function or model folder."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualfuse import hub, plugins, upgrade
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe
from dualfuse.recipes import bridgetower_unimodal, finetune_vlmo
from dualfuse.recipes.files import is_recipe_file, read_recipe_file
from dualfuse.run_folder import model_of

FUNCTIONS = {
    "vlmo-base-pairs": "dualfuse.recipes.vlmo:base_pairs",
    "vlmo-base-plus-pairs": "dualfuse.recipes.vlmo:base_plus_pairs",
    "vlmo-large-pairs": "dualfuse.recipes.vlmo:large_pairs",
    "vlmo-base": "dualfuse.recipes.vlmo_stages:base",
    "vlmo-large": "dualfuse.recipes.vlmo_stages:large",
    "vlmo-base-images": "dualfuse.recipes.vlmo_images:base_images",
    "vlmo-base-images-1k": "dualfuse.recipes.vlmo_images:base_images_1k",
    "vlmo-large-images": "dualfuse.recipes.vlmo_images:large_images",
    "vlmo-nano-images": "dualfuse.recipes.vlmo_images:nano_images",
    "vlmo-base-images-taught": "dualfuse.recipes.vlmo_images:base_images_taught",
    "vlmo-nano-images-taught": "dualfuse.recipes.vlmo_images:nano_images_taught",
    "vlmo-tokenizer": "dualfuse.recipes.vlmo_images:tokenizer",
    "vlmo-nano-tokenizer": "dualfuse.recipes.vlmo_images:nano_tokenizer",
    "vlmo-base-text": "dualfuse.recipes.vlmo_text:base_text",
    "vlmo-base-text-500k": "dualfuse.recipes.vlmo_text:base_text_500k",
    "vlmo-base-plus-text": "dualfuse.recipes.vlmo_text:base_plus_text",
    "vlmo-large-text": "dualfuse.recipes.vlmo_text:large_text",
    "vlmo-nano": "dualfuse.recipes.vlmo_stages:nano",
    "vlmo-nano-text": "dualfuse.recipes.vlmo_text:nano_text",
    "bridgetower-base-pairs": "dualfuse.recipes.bridgetower:base_pairs",
    "bridgetower-base-pairs-itc": "dualfuse.recipes.bridgetower:base_pairs_itc",
    "bridgetower-base-pairs-itc-random": "dualfuse.recipes.bridgetower:base_pairs_itc_random",
    "bridgetower-large-pairs": "dualfuse.recipes.bridgetower:large_pairs",
    "meter-base-pairs": "dualfuse.recipes.bridgetower:meter_base_pairs",
    "meter-base-pairs-224": "dualfuse.recipes.bridgetower:meter_base_pairs_224",
    "vlmo-small-pairs": "dualfuse.recipes.small_pairs:small_pairs",
    "vlmo-nano-pairs": "dualfuse.recipes.small_pairs:nano_pairs",
    "bridgetower-nano-pairs": "dualfuse.recipes.small_pairs:bridgetower_nano_pairs",
    "meter-nano-pairs": "dualfuse.recipes.small_pairs:meter_nano_pairs",
    "demo": "dualfuse.recipes.small_pairs:demo",
    "demo-itc": "dualfuse.recipes.small_pairs:demo_itc",
    "demo-bridgetower": "dualfuse.recipes.small_pairs:demo_bridgetower",
    "demo-meter": "dualfuse.recipes.small_pairs:demo_meter",
    "demo-vqa": "dualfuse.recipes.small_finetune:demo_vqa",
    "demo-vqa-bridgetower": "dualfuse.recipes.small_finetune:demo_vqa_bridgetower",
    "demo-vqa-meter": "dualfuse.recipes.small_finetune:demo_vqa_meter",
    "demo-entailment": "dualfuse.recipes.small_finetune:demo_entailment",
    "demo-entailment-bridgetower": "dualfuse.recipes.small_finetune:demo_entailment_bridgetower",
    "demo-nlvr2": "dualfuse.recipes.small_finetune:demo_nlvr2",
    "demo-nlvr2-bridgetower": "dualfuse.recipes.small_finetune:demo_nlvr2_bridgetower",
    "imagenet22k-vlmo-base": "dualfuse.recipes.vlmo_classification:base_22k",
    "imagenet22k-vlmo-large": "dualfuse.recipes.vlmo_classification:large_22k",
    "imagenet-vlmo-base": "dualfuse.recipes.vlmo_classification:base_1k",
    "imagenet-vlmo-large": "dualfuse.recipes.vlmo_classification:large_1k",
    "imagenet-vlmo-base-384": "dualfuse.recipes.vlmo_classification:base_1k_384",
    "imagenet-vlmo-large-384": "dualfuse.recipes.vlmo_classification:large_1k_384",
    "imagenet-vlmo-large-512": "dualfuse.recipes.vlmo_classification:large_1k_512",
    "imagenet-vlmo-base-direct": "dualfuse.recipes.vlmo_classification:base_1k_direct",
    "imagenet-vlmo-large-direct": "dualfuse.recipes.vlmo_classification:large_1k_direct",
    "imagenet-vlmo-base-probe": "dualfuse.recipes.vlmo_probe:base_1k",
    "vlmo-nano-classes": "dualfuse.recipes.vlmo_classification:nano",
    "ade20k-vlmo-base": "dualfuse.recipes.vlmo_segmentation:base",
    "ade20k-vlmo-base-direct": "dualfuse.recipes.vlmo_segmentation:base_direct",
    "ade20k-vlmo-base-640": "dualfuse.recipes.vlmo_segmentation:base_640",
    "ade20k-vlmo-large": "dualfuse.recipes.vlmo_segmentation:large",
    "ade20k-vlmo-large-640": "dualfuse.recipes.vlmo_segmentation:large_640",
    "vlmo-nano-segmentation": "dualfuse.recipes.vlmo_segmentation:nano",
    "caption-vlmo-base": "dualfuse.recipes.vlmo_captioning:base",
    "caption-vlmo-large": "dualfuse.recipes.vlmo_captioning:large",
    "nocaps-vlmo-base": "dualfuse.recipes.vlmo_captioning:nocaps_base",
    "nocaps-vlmo-large": "dualfuse.recipes.vlmo_captioning:nocaps_large",
    "vlmo-nano-captions": "dualfuse.recipes.vlmo_captioning:nano",
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
VALUES = finetune_vlmo.RECIPES | bridgetower_unimodal.RECIPES
"""Summary and recipe of listed recipes that are values, by name."""
NAMES = (*FUNCTIONS, *VALUES)
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
        return (VALUES[name][1],)
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
