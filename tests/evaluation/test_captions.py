"""Evaluation of captions, and the file of COCO's server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import png_image, samples, shards
from torch import nn

from dualfuse import hub
from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.evaluation.predictions import PredictedCaption, write_predictions
from dualfuse.evaluation.runner import Plan, check_outputs, evaluate
from dualfuse.inference.predict import predict
from dualfuse.metrics.captions import caption_metrics
from dualfuse.recipe import Recipe
from dualfuse.tasks.finetune.captioning import CaptioningConfig

PLAN = Plan(batch_size=4, num_workers=0)


@pytest.fixture(scope="module")
def model(tiny: Recipe) -> hub.LoadedModel:
    torch.manual_seed(0)
    recipe = replace(tiny, model=replace(tiny.model, drop_path=0.0), task=CaptioningConfig(beam=2))
    task = recipe.build().eval()
    nn.init.normal_(task.mlm_head.decoder.weight, std=1.0)
    processor = Processor(
        ImageTransform(recipe.data.image_size), TextTransform(recipe.data.text_length, recipe.data.tokenizer)
    )
    return hub.LoadedModel(task, processor, recipe)


def numbered(number: int) -> list[Sample]:
    """Return samples some of which have COCO's number, by either key; the last has no captions."""
    named = [{}, {"cocoid": 7}, {"image_id": 9, "cocoid": 8}, {"image_id": "x"}]
    made = [replace(sample, meta=named[n % 4]) for n, sample in enumerate(samples(number))]
    return [*made[:-1], replace(made[-1], texts=())]


def test_loss_of_each_caption(model: hub.LoadedModel, tmp_path: Path) -> None:
    """Equal to cross-entropy over the tokens that training masks; without captions there is none."""
    images = numbered(4)
    plan = replace(PLAN, answers=True)
    found = evaluate(model, shards(tmp_path, images), plan).predictions
    assert [caption.loss is None for caption in found] == [False, False, False, True]
    again = evaluate(model, str(tmp_path / "train-*.tar"), replace(plan, batch_size=1)).predictions
    assert [caption.loss for caption in again[:3]] == pytest.approx([caption.loss for caption in found[:3]])
    assert all(2 < caption.loss < 40 for caption in found[:3])
    assert not any(caption.loss for caption in evaluate(model, str(tmp_path / "train-*.tar"), PLAN).predictions)


def test_captions_of_a_set_equal_those_of_predict(model: hub.LoadedModel, tmp_path: Path) -> None:
    images = numbered(6)
    found = evaluate(model, shards(tmp_path, images), PLAN)
    each = [predict(model, sample.image, top=5).answers for sample in images]
    assert [caption.caption for caption in found.predictions] == [answers[0].answer for answers in each]
    assert [caption.probability for caption in found.predictions] == pytest.approx(
        [answers[0].probability for answers in each], rel=1e-4
    )
    assert all(len(answers) == 2 for answers in each)  # as many as the beam keeps
    expected = caption_metrics([answers[0].answer for answers in each[:5]], [sample.texts for sample in images[:5]])
    assert found.metrics == pytest.approx(expected) and expected["BLEU-1"] > 0
    assert found.size == "6 images, 5 of them with reference captions"
    assert [caption.image_id for caption in found.predictions] == [
        "train-00000/000",
        7,
        9,
        "train-00000/003",
        "train-00000/004",
        7,
    ]
    assert (
        f"CIDEr-D  {expected['CIDEr-D']:7.3f}" in found.lines()
        and f"BLEU-1   {100 * expected['BLEU-1']:5.1f} %" in found.lines()
    )


def test_unlabelled_set_has_captions_and_no_metrics(model: hub.LoadedModel, tmp_path: Path) -> None:
    found = evaluate(model, shards(tmp_path, [replace(sample, texts=()) for sample in samples(3)]), PLAN)
    assert len(found.predictions) == 3 and found.metrics == {}


def test_broken_image_is_excluded_and_reported(model: hub.LoadedModel, tmp_path: Path) -> None:
    broken = [*samples(3), Sample("bad", png_image(0)[:60], ("a cat",))]
    data = shards(tmp_path, broken)
    with pytest.raises(ValueError, match="bad"):
        evaluate(model, data, PLAN)
    found = evaluate(model, data, replace(PLAN, exclude_broken=True))
    assert len(found.predictions) == 3 and [skipped.key for skipped in found.excluded] == ["train-00000/bad"]


def test_captions_are_written_in_coco_format(model: hub.LoadedModel, tmp_path: Path) -> None:
    check_outputs(model.task, answers=tmp_path / "a.json", save_image=None)
    found = evaluate(model, shards(tmp_path, numbered(4)), PLAN)
    found.write(tmp_path / "a.json")
    captions = [caption.caption for caption in found.predictions]
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {"image_id": name, "caption": caption}
        for name, caption in zip(["train-00000/000", 7, 9, "train-00000/003"], captions, strict=True)
    ]
    found.write(tmp_path / "a.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [PredictedCaption(**line) for line in lines] == list(found.predictions)


def test_invalid_submission_is_refused(tmp_path: Path) -> None:
    captions = [PredictedCaption("a", 7, "a cat", 0.5), PredictedCaption("b", 7, "a dog", 0.5)]
    with pytest.raises(ValueError, match="1 images have more than one caption, such as 7"):
        write_predictions(captions, tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"should end in \.json \(COCO\) or \.jsonl"):
        write_predictions(captions, tmp_path / "a.csv")


def test_unsupported_inputs_are_refused(model: hub.LoadedModel) -> None:
    for image, text, why in (
        (samples(1)[0].image, "a cat", "writes captions and takes an image alone; omit the text"),
        (None, "", "there is no image"),
        ((samples(1)[0].image,) * 2, "", "2 images are given, but this model takes 1"),
    ):
        with pytest.raises(ValueError, match=why):
            predict(model, image, text)
