"""A loaded model in Python: the same embeddings for every form of an image, in batches, and what is refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import WORDS, clip_recipe, png_image, recipe
from torch.testing import assert_close

from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    built = clip_recipe(tmp_path_factory.mktemp("clip"))
    return loaded(built)


def loaded(built) -> LoadedModel:
    torch.manual_seed(0)
    processor = replace(built.data.processor(), image=replace(built.data.image_transform, augment=None))
    return LoadedModel(built.build().eval(), processor, built)


def test_every_form_of_an_image_has_one_embedding(model: LoadedModel, tmp_path: Path) -> None:
    data = png_image(1, 40)
    (tmp_path / "a.png").write_bytes(data)
    image = Image.open(io.BytesIO(data))
    forms = [data, tmp_path / "a.png", str(tmp_path / "a.png"), image, np.array(image)]
    embeddings = model.encode_image(forms)
    assert embeddings.shape == (5, 24) and embeddings.dtype == np.float32
    assert_close(embeddings, np.tile(embeddings[:1], (5, 1)))
    assert_close(np.linalg.norm(embeddings, axis=1), np.ones(5, dtype=np.float32))
    assert_close(model.encode_image(data), embeddings[:1])


def test_batches_make_no_difference(model: LoadedModel) -> None:
    images, texts = [png_image(seed) for seed in range(5)], [" ".join(WORDS[: 1 + n]) for n in range(5)]
    assert_close(model.encode_image(images, batch_size=2), model.encode_image(images))
    assert_close(model.encode_text(texts, batch_size=2), model.encode_text(texts), atol=1e-6, rtol=1e-5)
    similarity = model.similarity(images, texts[:3])
    assert_close(similarity, model.encode_image(images) @ model.encode_text(texts[:3]).T, atol=1e-6, rtol=1e-5)
    assert model.encode_text([]).shape[0] == 0


def test_zero_shot_answers_with_the_most_similar_name(model: LoadedModel) -> None:
    image, names = png_image(3), ("cat", "dog", "tree")
    answers = model.predict(image, labels=names, templates=("{}",), top=3).answers
    cosines = model.similarity(image, list(names))[0]
    assert [each.answer for each in answers] == [names[number] for number in np.argsort(-cosines)]


def test_matching_needs_a_fusion_encoder(model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(DualfuseError, match="dualfuse train fuse --start-from"):
        model.match(png_image(0), "a cat")
    fused = loaded(recipe(tmp_path))
    images, texts = [png_image(seed) for seed in range(3)], ["a cat", "the dog runs", "red"]
    matches = fused.match(images, texts, batch_size=2)
    assert matches.shape == (3,) and matches.dtype == np.float32
    alone = [fused.predict(image, text).match for image, text in zip(images, texts, strict=True)]
    assert_close(matches, np.array(alone, dtype=np.float32), atol=1e-5, rtol=1e-5)
    with pytest.raises(DualfuseError, match="3 images and 2 texts"):
        fused.match(images, texts[:2])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", "image 1 cannot be used"),
        (np.zeros((4, 4, 3), dtype=np.float32), r"array of float32 with shape \(4, 4, 3\) .* uint8"),
        (np.zeros((4, 4, 7), dtype=np.uint8), r"uint8 with shape \(4, 4, 7\)"),
        (7, "a int is not an image"),
    ],
)
def test_what_is_not_an_image_is_refused(model: LoadedModel, image: object, message: str) -> None:
    with pytest.raises(DualfuseError, match=message):
        model.encode_image([png_image(0), image])  # type: ignore[list-item]
