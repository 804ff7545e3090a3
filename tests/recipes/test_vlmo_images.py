"""The first stage's recipes have the published numbers, and each of them builds."""

from __future__ import annotations

from dataclasses import replace

from dualfuse.config import from_json, to_json
from dualfuse.recipe import Recipe
from dualfuse.recipes import vlmo_images
from dualfuse.recipes.vlmo import BASE, LARGE


def test_the_published_numbers() -> None:
    """Section 3.2 and appendix of BEiT, and its released command lines."""
    base, thousand, large = vlmo_images.BASE_IMAGES, vlmo_images.BASE_IMAGES_1K, vlmo_images.LARGE_IMAGES
    for recipe in (base, thousand, large):
        optim, mask, augment = recipe.optim, recipe.task.mask, recipe.data.augment
        assert (optim.lr, optim.betas, optim.eps, optim.weight_decay) == (1.5e-3, (0.9, 0.999), 1e-8, 0.05)
        assert (optim.schedule, optim.grad_clip_norm, recipe.data.batch_size, recipe.data.image_size) == (
            "cosine",
            3.0,
            2048,
            (224, 224),
        )
        assert (recipe.task.codes, recipe.task.patch, recipe.task.stride) == (8192, 16, 8)
        assert (mask.patches, mask.smallest, mask.aspect) == (75, 16, 0.3)
        assert augment is not None and not augment.rand_augment
        assert (augment.crop, augment.flip, augment.color_jitter, augment.aspect) == (
            (0.08, 1.0),
            0.5,
            0.4,
            (3 / 4, 4 / 3),
        )
        assert (recipe.model.drop_path, recipe.model.share_relative_bias, recipe.model.init.rule) == (0.1, True, "beit")
        assert recipe.model.init.std == 0.02
    assert (base.model.init.layer_scale, large.model.init.layer_scale) == (0.1, 1e-5)
    assert replace(base.model, share_relative_bias=False, init=BASE.init) == BASE
    assert replace(large.model, share_relative_bias=False, init=LARGE.init) == LARGE
    assert (base.run.steps, base.optim.warmup) == (1_039_800, 10_000)
    assert (thousand.run.steps, thousand.optim.warmup) == (500_000, 6250)
    assert base.data.preprocess.mean == (0.5, 0.5, 0.5) and thousand.data.preprocess.std == (0.229, 0.224, 0.225)


def test_small_recipes_build_and_fit_each_other() -> None:
    tokenizer, images = vlmo_images.NANO_TOKENIZER, vlmo_images.NANO_IMAGES
    assert isinstance(tokenizer, Recipe) and from_json(to_json(tokenizer)) == tokenizer
    assert from_json(to_json(images)) == images
    words = tokenizer.build().model
    assert (words.codes, words.stride) == (images.task.codes, images.task.stride)
    assert images.build().head.out_features == 256
    grid = tuple(side // images.task.patch for side in images.data.image_size)
    assert tuple(side * images.task.stride for side in grid) == tokenizer.data.image_size
    big = vlmo_images.TOKENIZER
    assert (big.model.codes, big.model.stride, big.data.image_size) == (8192, 8, (112, 112))


def test_teacher_recipes_differ_only_in_their_targets() -> None:
    base, nano = (vlmo_images.RECIPES[f"vlmo-{size}-images-taught"][1] for size in ("base", "nano"))
    assert replace(base, task=vlmo_images.BASE_IMAGES.task) == vlmo_images.BASE_IMAGES
    assert from_json(to_json(nano)) == nano and nano.task.mask == vlmo_images.NANO_IMAGES.task.mask
    assert (base.task.channels, base.task.mask.patches, base.task.teacher_patch) == (768, 75, 16)
    assert nano.build().head.out_features == nano.model.width
