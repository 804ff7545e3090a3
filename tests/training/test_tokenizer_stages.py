"""A tuple that trains its tokenizer first: the same weights as in two commands, going on, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import MODEL, at_step, changed, interrupt, png_image, shards, weights

from dualfuse.data.image.block_mask import BlockMask
from dualfuse.data.sample import Sample
from dualfuse.layers.vq.autoencoder import AutoencoderConfig
from dualfuse.recipe import Recipe
from dualfuse.recipes.vlmo_stages import BASE, NANO
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig
from dualfuse.tasks.pretrain.vq_tokenizer import VQTokenizerConfig
from dualfuse.training import loop
from dualfuse.training.tokenizer_stages import with_tokenizers

WORDS = AutoencoderConfig(codes=16, stride=4, width=8, blocks=1, code_width=4)
TASK = MaskedImageConfig("tokenizer", codes=16, patch=8, stride=4, mask=BlockMask(patches=6, smallest=2))


@pytest.fixture(scope="module")
def two(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Recipe]:
    """A tokenizer, and masked images that it names; four steps each."""
    content = [Sample(f"{n:02d}", png_image(n)) for n in range(16)]  # without any text
    recipe = changed(tiny, train=(shards(tmp_path_factory.mktemp("images"), content),), steps=4, save_every=2)
    data = replace(recipe.data, image_size=(16, 16))
    words = replace(recipe, name="tokenizer", model=WORDS, task=VQTokenizerConfig(), data=data)
    return words, replace(recipe, name="images", model=MODEL, task=TASK)


def alike(one: Path, other: Path) -> bool:
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_one_command_or_two(
    two: tuple[Recipe, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words, images = two
    final = loop.train((words,), tmp_path / "words")
    alone = replace(images, task=replace(TASK, tokenizer=str(final)))
    loop.train((alone,), tmp_path / "alone")
    out = tmp_path / "both"
    with monkeypatch.context() as patch:  # the tokenizer is done, the images are not
        done = []
        seed_step = at_step(3, lambda: interrupt() if done else done.append(True))
        patch.setattr(loop, "seed_step", seed_step)
        with pytest.raises(KeyboardInterrupt):
            loop.train(two, out)
    assert (out / "tokenizer" / "final").is_dir() and not (out / "images" / "final").exists()
    caplog.clear()
    assert loop.train(two, out) == out / "images" / "final"
    assert "tokenizer: already finished" in caplog.text
    assert alike(tmp_path / "words", out / "tokenizer") and alike(tmp_path / "alone", out / "images")
    loop.train(two, out)
    assert "images: already finished" in caplog.text

    given = (words, alone)
    loop.train(given, tmp_path / "given")
    assert "tokenizer: skipped, because another tokenizer was given" in caplog.text
    assert not (tmp_path / "given" / "tokenizer").exists() and alike(tmp_path / "alone", tmp_path / "given" / "images")


def test_unsuitable_tokenizers_are_refused_before_training(two: tuple[Recipe, Recipe], tmp_path: Path) -> None:
    words, images = two
    for recipes, match in (
        ((images, words), "images has task.tokenizer 'tokenizer', a recipe that does not come before it; put it first"),
        ((replace(images, name="tokenizer"), images), "'tokenizer', a recipe that does not come before it"),
        ((replace(words, model=MODEL), images), "that recipe trains a VLMo, which is not a visual tokenizer"),
        ((changed(words, codes=8), images), "trains 8 codes .* expects 16 .*give --images.task.codes 8"),
        ((changed(words, stride=8), images), "with a stride of 8 pixels, .* --images.task.stride 8"),
    ):
        with pytest.raises(ValueError, match=match):
            loop.train(recipes, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_tokenizers_alone_are_all_trained(two: tuple[Recipe, Recipe]) -> None:
    words = two[0]
    pair = (words, replace(words, name="other"))
    assert with_tokenizers(pair, {"tokenizer": Path("a"), "other": Path("b")}) == pair


def test_published_stages_are_given_a_tokenizer_and_those_of_a_laptop_train_one() -> None:
    assert [recipe.name for recipe in BASE] == ["images", "text", "pairs"]
    small = NANO
    assert [recipe.name for recipe in small] == ["tokenizer", "images", "text", "pairs"]
    assert [recipe.start_from for recipe in small] == ["", "", "images", "text"]
    found = with_tokenizers(small, {recipe.name: Path("/runs") / recipe.name for recipe in small})
    assert found[1].task.tokenizer == "/runs/tokenizer" and found[:1] + found[2:] == small[:1] + small[2:]
