"""From a sample to an example, and from examples to a batch."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from PIL import Image

from dualfuse.data.image.transform import Augment, ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.pretrain.pair_batch import content_id, mlm_positions
from dualfuse.tasks.pretrain.pairs import PairsConfig

CAPTIONS = ("two dogs run along the beach", "a bird", "an unbelievably colourful butterfly sits on a leaf in the sun")
PREP = Processor(ImageTransform((16, 16), Augment()), TextTransform(12))
CLS, SEP, MASK = 101, 102, 103


def image(red: int = 9) -> bytes:
    pixels = np.random.default_rng(red).integers(255, size=(20, 24, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def sample(texts: tuple[str, ...] = CAPTIONS, red: int = 9, meta: Mapping[str, object] | None = None) -> Sample:
    return Sample("one", image(red), texts, meta or {})


def examples_of(cfg: PairsConfig, given: Sample, number: int = 60) -> list:
    return [cfg.read(given, PREP, np.random.default_rng(seed)) for seed in range(number)]


def test_an_example_is_a_function_of_the_rng() -> None:
    for one, other in zip(
        examples_of(PairsConfig(), sample(), 5), examples_of(PairsConfig(), sample(), 5), strict=True
    ):
        assert torch.equal(one["image"], other["image"])
        assert all(np.array_equal(one[name], other[name]) for name in ("ids", "masked_ids", "labels"))
    first, second, *_ = examples_of(PairsConfig(), sample())
    assert not torch.equal(first["image"], second["image"])


def test_every_caption_is_drawn_and_partly_masked() -> None:
    seen = set()
    for row in examples_of(PairsConfig(), sample()):
        ids, masked, labels = row["ids"], row["masked_ids"], row["labels"]
        assert row["image"].shape == (3, 16, 16) and ids[0] == CLS and ids[-1] == SEP and len(ids) <= 12
        is_hidden = labels != -100
        assert is_hidden.any() and not is_hidden[[0, -1]].any()
        assert np.array_equal(labels[is_hidden], ids[is_hidden])
        assert np.array_equal(masked[~is_hidden], ids[~is_hidden])
        seen.add(PREP.text.decode(ids))
    assert len(seen) == 3 and {CAPTIONS[0], CAPTIONS[1]} <= seen


def test_official_masking_can_mask_nothing_and_ours_never_does() -> None:
    short = sample(("a bird",))
    hidden = [(row["labels"] != -100).sum() for row in examples_of(PairsConfig(masking="official"), short, 100)]
    assert 0 in hidden and max(hidden) == 2
    assert all((row["labels"] != -100).sum() == 1 for row in examples_of(PairsConfig(), short, 100))
    many = examples_of(PairsConfig(mlm_probability=0.5), sample((CAPTIONS[0],)), 20)
    assert {int((row["labels"] != -100).sum()) for row in many} == {3}  # of six words
    assert any(MASK in row["masked_ids"] for row in many)


def test_ids_are_those_of_image_and_caption() -> None:
    rows = examples_of(PairsConfig(), sample(), 20) + examples_of(PairsConfig(), sample(red=8), 20)
    assert {row["image_id"] for row in rows[:20]} == {content_id(image())}
    assert {row["image_id"] for row in rows[20:]} == {content_id(image(8))} != {content_id(image())}
    by_text = {(PREP.text.decode(row["ids"]), row["text_id"]) for row in rows}
    assert len(by_text) == 3 == len({text_id for _, text_id in by_text})
    assert all(0 <= content_id(bytes([number])) < 2**63 for number in range(100))


def test_a_sample_without_text_is_broken() -> None:
    with pytest.raises(BrokenSample, match="one: it has no text"):
        PairsConfig().read(sample(()), PREP, np.random.default_rng(0))


def test_tags_extend_or_replace_captions() -> None:
    tags = ["red", "blue", "green", "brown", "black"]
    cfg, number = PairsConfig(tags="keywords"), 400
    texts = [
        PREP.text.decode(row["ids"]) for row in examples_of(cfg, sample(("a bird",), meta={"keywords": tags}), number)
    ]
    added = [text.removeprefix("a bird").split() for text in texts]
    assert all(set(some) <= set(tags) and len(set(some)) == len(some) for some in added)
    shares = np.bincount([len(some) for some in added], minlength=5) / number
    assert len(shares) == 5 and shares == pytest.approx([0.5, 0.125, 0.125, 0.125, 0.125], abs=0.06)
    assert {tag for some in added for tag in some} == set(tags)
    assert {tuple(some) for some in added} > {("red", "blue"), ("blue", "red")}


@pytest.mark.parametrize("meta", [{}, {"keywords": []}, {"keywords": "red"}, {"keywords": None}, {"other": ["red"]}])
def test_samples_without_tags_keep_their_captions(meta: dict[str, object]) -> None:
    rows = examples_of(PairsConfig(tags="keywords"), sample(("a bird",), meta=meta), 20)
    assert {PREP.text.decode(row["ids"]) for row in rows} == {"a bird"}


def test_tags_are_ignored_by_default() -> None:
    rows = examples_of(PairsConfig(), sample(("a bird",), meta={"keywords": ["red"]}), 20)
    assert {PREP.text.decode(row["ids"]) for row in rows} == {"a bird"}


def test_mlm_positions_by_hand() -> None:
    labels = [np.array([-100, 7, -100, 8]), np.array([-100, -100]), np.array([-100, -100, 9])]
    rows, targets = mlm_positions(labels)
    assert rows.tolist() == [[1, 3], [0, 0], [2, 0]]
    assert targets.tolist() == [[7, 8], [-100, -100], [9, -100]]
    rows, targets = mlm_positions(labels[1:2])
    assert rows.shape == targets.shape == (1, 0) and rows.dtype == torch.long


def test_a_batch_is_padded_to_its_longest_text_and_trainable() -> None:
    cfg = PairsConfig()
    rows = [
        cfg.read(sample((text,), red=number), PREP, np.random.default_rng(0)) for number, text in enumerate(CAPTIONS)
    ]
    batch = cfg.collate(rows)
    lengths = [len(row["ids"]) for row in rows]
    assert lengths == [8, 4, 12]
    assert batch["image"].shape == (3, 3, 16, 16) and batch["ids"].shape == batch["masked_ids"].shape == (3, 12)
    assert batch["mask"].dtype == torch.bool and batch["mask"].sum(1).tolist() == lengths
    assert not batch["ids"][~batch["mask"]].any() and not batch["masked_ids"][~batch["mask"]].any()
    for number, row in enumerate(rows):
        assert batch["ids"][number, : lengths[number]].tolist() == row["ids"].tolist()
        hidden = np.flatnonzero(row["labels"] != -100).tolist()
        assert batch["positions"][number, : len(hidden)].tolist() == hidden
        assert batch["targets"][number][batch["targets"][number] != -100].tolist() == row["ids"][hidden].tolist()
    assert [batch[name].tolist() for name in ("image_id", "text_id")] == [
        [row[name] for row in rows] for name in ("image_id", "text_id")
    ]
    model = VLMoConfig(
        width=8, depth=2, heads=2, vl_expert_start=1, patch_size=8, image_size=(16, 16), text_length=12
    ).build()
    assert cfg.build(model)(batch).loss.isfinite()


@pytest.mark.parametrize("masking", ["whole_word", "official"])
def test_a_caption_without_words_is_accepted(masking: str) -> None:
    cfg = PairsConfig(masking=masking)
    row = cfg.read(sample(("",)), PREP, np.random.default_rng(0))
    assert row["ids"].tolist() == [CLS, SEP] and (row["labels"] == -100).all()
    assert cfg.collate([row])["positions"].shape == (1, 0)
