from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.loader import Draw, sample_rng
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.prepare.shard_writer import ShardWriter
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig
from dualfuse.tasks.pretrain.pairs_evaluation import evaluate_pairs

TINY = VLMoConfig(width=32, depth=2, heads=2, vl_expert_start=1, patch_size=8, image_size=(16, 16), text_length=12)
PREP = Processor(ImageTransform((16, 16)), TextTransform(12))
CAPTIONS = (("a red fish",), ("blue house", "a small house"), ("green tree",), ("the sun and the moon",), ("a cat",))
PLAN = Plan(batch_size=3, num_workers=0)


def image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, samples: list[tuple[bytes, tuple[str, ...]]]) -> Shards:
    writer = ShardWriter(folder, "set")
    for number, (image, texts) in enumerate(samples):
        writer.add(Sample(f"{number:03d}", image, texts))
    writer.close()
    return Shards.open(folder)


def task(seed: int = 0, cfg: PairsConfig | None = None) -> Pairs:
    """Perturb the weights: with initial ones every pair has the same score."""
    torch.manual_seed(seed)
    built = (cfg or PairsConfig(mlm_probability=0.5)).build(TINY.build()).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return built


def tokens(task: Pairs, row: dict, name: str = "ids"):
    image = task.model.embed_image(row["image"][None])
    ids = torch.from_numpy(row[name])[None]
    return image, task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))


@torch.inference_mode()
def naive(task: Pairs, shards: Shards) -> dict[str, float]:
    """Compute one pair at a time, without batches or padding."""
    rows = [task.cfg.read(shards[n], PREP, sample_rng(0, Draw(0, n, 0))) for n in range(len(shards))]
    both = [tokens(task, row) for row in rows]
    accepted, rejected, beats, words = [], [], [], []
    for number, (row, (image, text)) in enumerate(zip(rows, both, strict=True)):
        right = float(task.match_logit(image, text))
        accepted.append(right > 0)
        others = [n for n, other in enumerate(rows) if shards[n].image != shards[number].image]
        others = [n for n in others if not np.array_equal(rows[n]["ids"], row["ids"])]
        vector = task.text_features(text)[0]
        hard = max(others, key=lambda n: float(task.image_features(both[n][0])[0] @ vector))
        score = float(task.match_logit(both[hard][0], text))
        rejected.append(score <= 0)
        beats.append(right > score)
        states = task.model.fuse(*tokens(task, row, "masked_ids")).text[0]
        answers = task.mlm_head(states).argmax(1).numpy()
        words += [answers[place] == row["labels"][place] for place in np.flatnonzero(row["labels"] != -100)]
    names = ("itm/positive", "itm/hard_negative", "itm/positive_above_hard", "mlm/accuracy")
    return {
        name: float(np.mean(answers)) for name, answers in zip(names, (accepted, rejected, beats, words), strict=True)
    }


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_those_of_one_pair_at_a_time(tmp_path: Path, seed: int) -> None:
    samples = [(image(number), texts) for number, texts in enumerate(CAPTIONS)]
    samples += [(image(0), ("the same fish",)), (image(9), ("green tree",))]  # neither is a wrong pair
    shards, evaluated = write(tmp_path, samples), task(seed)
    result = evaluate_pairs(evaluated, EvaluationData(shards, PREP), PLAN).metrics
    expected = naive(evaluated, shards)
    assert {name: result[name] for name in expected} == pytest.approx(expected)


@torch.inference_mode()
def test_mlm_accuracy_with_own_and_other_image(tmp_path: Path) -> None:
    """An MLM head that always predicts "fish" is right as often as fish is masked, with any image."""
    shards = write(tmp_path, [(image(n), ("fish",)) for n in range(4)] + [(image(9), ("house",))])
    evaluated = task()
    evaluated.mlm_head.decoder.weight.zero_()
    evaluated.mlm_head.decoder.bias.zero_()[int(PREP.text.encode("fish").ids[1])] = 1
    result = evaluate_pairs(evaluated, EvaluationData(shards, PREP), PLAN).metrics
    assert (result["mlm/accuracy"], result["mlm/accuracy_other_image"]) == pytest.approx((0.8, 0.8))


@torch.inference_mode()
def test_random_negatives_are_negatives(tmp_path: Path) -> None:
    """With two different images, one stored twice, the random negative can only be the hard one."""
    shards = write(tmp_path, [(image(0), ("one",)), (image(1), ("two",)), (image(0), ("three",))])
    for seed in range(6):
        result = evaluate_pairs(task(seed), EvaluationData(shards, PREP), PLAN).metrics
        assert result["itm/random_negative"] == result["itm/hard_negative"]


def test_untrained_heads_have_no_metrics(tmp_path: Path) -> None:
    shards = write(tmp_path, [(image(n), texts) for n, texts in enumerate(CAPTIONS)])
    everything = evaluate_pairs(task(), EvaluationData(shards, PREP), PLAN).metrics
    assert len(everything) == 6
    only_words = evaluate_pairs(task(cfg=PairsConfig(itm_weight=0.0)), EvaluationData(shards, PREP), PLAN).metrics
    assert set(only_words) == {"mlm/accuracy", "mlm/accuracy_other_image"}
    assert (
        evaluate_pairs(
            task(cfg=PairsConfig(itm_weight=0.0, mlm_weight=0.0)), EvaluationData(shards, PREP), PLAN
        ).metrics
        == {}
    )


def test_metrics_do_not_depend_on_batch_size_and_broken_samples(tmp_path: Path) -> None:
    good = [(image(number), texts) for number, texts in enumerate(CAPTIONS)]
    shards = write(tmp_path / "good", good)
    before = evaluate_pairs(task(), EvaluationData(shards, PREP), PLAN).metrics
    for batch in (1, 2, 5):
        after = evaluate_pairs(task(), EvaluationData(shards, PREP), replace(PLAN, batch_size=batch)).metrics
        after["mlm/accuracy_other_image"] = before["mlm/accuracy_other_image"]  # which other image depends on the batch
        assert json.dumps(after) == json.dumps(before)
    broken = write(tmp_path / "broken", [*good, (image(7)[:60], ("half an image",))])
    with pytest.raises(ValueError, match="set-00000/005"):
        evaluate_pairs(task(), EvaluationData(broken, PREP), PLAN)
    left = evaluate_pairs(task(), EvaluationData(broken, PREP), replace(PLAN, exclude_broken=True)).metrics
    assert left["itm/positive"] == before["itm/positive"]


@pytest.mark.parametrize("second", [(image(0), ("two",)), (image(1), ("one",))])
def test_itm_needs_two_images_and_two_texts(tmp_path: Path, second: tuple[bytes, tuple[str, ...]]) -> None:
    shards = write(tmp_path, [(image(0), ("one",)), second])
    with pytest.raises(ValueError, match="2 pairs have one image or one text"):
        evaluate_pairs(task(), EvaluationData(shards, PREP), PLAN)
