from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualfuse.data.images import ImageTransform
from dualfuse.data.loader import Draw, sample_rng
from dualfuse.data.sample import Sample
from dualfuse.data.shards import Shards
from dualfuse.data.text import Text
from dualfuse.engine.evaluate import Plan
from dualfuse.engine.pair_accuracy import pair_accuracy
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.prepare.write import ShardWriter
from dualfuse.tasks.base import Prep
from dualfuse.tasks.pairs import Pairs, PairsConfig

TINY = VLMoConfig(width=32, depth=2, heads=2, both_from=1, patch=8, image_size=(16, 16), text_length=12)
PREP = Prep(ImageTransform((16, 16)), Text(12))
CAPTIONS = (("a red fish",), ("blue house", "a small house"), ("green tree",), ("the sun and the moon",), ("a cat",))
PLAN = Plan(batch=3, workers=0)


def picture(seed: int) -> bytes:
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
    """A task whose answers vary: fresh weights are so small that every pair gets one score."""
    torch.manual_seed(seed)
    built = (cfg or PairsConfig(mask_share=0.5)).build(TINY.build()).eval()
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
    """One pair at a time, no batch, no padding."""
    rows = [task.cfg.read(shards[n], PREP, sample_rng(0, Draw(0, n, 0))) for n in range(len(shards))]
    both = [tokens(task, row) for row in rows]
    accepted, rejected, beats, words = [], [], [], []
    for number, (row, (image, text)) in enumerate(zip(rows, both, strict=True)):
        right = float(task.match_score(image, text))
        accepted.append(right > 0)
        others = [n for n, other in enumerate(rows) if shards[n].image != shards[number].image]
        others = [n for n in others if not np.array_equal(rows[n]["ids"], row["ids"])]
        vector = task.text_features(text)[0]
        hard = max(others, key=lambda n: float(task.image_features(both[n][0])[0] @ vector))
        score = float(task.match_score(both[hard][0], text))
        rejected.append(score <= 0)
        beats.append(right > score)
        states = task.model.fuse(*tokens(task, row, "masked_ids")).text[0]
        answers = task.word_head(states).argmax(1).numpy()
        words += [answers[place] == row["labels"][place] for place in np.flatnonzero(row["labels"] != -100)]
    names = ("match/right", "match/hard", "match/right_beats_hard", "words")
    return {
        name: float(np.mean(answers)) for name, answers in zip(names, (accepted, rejected, beats, words), strict=True)
    }


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_one_pair_at_a_time(tmp_path: Path, seed: int) -> None:
    samples = [(picture(number), texts) for number, texts in enumerate(CAPTIONS)]
    samples += [(picture(0), ("the same fish",)), (picture(9), ("green tree",))]  # neither is a wrong pair
    shards, judged = write(tmp_path, samples), task(seed)
    result = pair_accuracy(judged, PREP, shards, PLAN)
    expected = naive(judged, shards)
    assert {name: result[name] for name in expected} == pytest.approx(expected)


@torch.inference_mode()
def test_masked_words_are_counted_beside_both_pictures(tmp_path: Path) -> None:
    """A word head that always says "fish" is right as often as fish is masked, whatever the picture."""
    shards = write(tmp_path, [(picture(n), ("fish",)) for n in range(4)] + [(picture(9), ("house",))])
    judged = task()
    judged.word_head.decoder.weight.zero_()
    judged.word_head.decoder.bias.zero_()[int(PREP.text.encode("fish").ids[1])] = 1
    result = pair_accuracy(judged, PREP, shards, PLAN)
    assert (result["words"], result["words/other_picture"]) == pytest.approx((0.8, 0.8))


@torch.inference_mode()
def test_random_pairs_are_wrong_ones(tmp_path: Path) -> None:
    """With two different pictures, one of them stored twice, the random wrong picture can only be the hard one."""
    shards = write(tmp_path, [(picture(0), ("one",)), (picture(1), ("two",)), (picture(0), ("three",))])
    for seed in range(6):
        result = pair_accuracy(task(seed), PREP, shards, PLAN)
        assert result["match/random"] == result["match/hard"]


def test_what_was_not_trained_is_not_judged(tmp_path: Path) -> None:
    shards = write(tmp_path, [(picture(n), texts) for n, texts in enumerate(CAPTIONS)])
    everything = pair_accuracy(task(), PREP, shards, PLAN)
    assert len(everything) == 6
    only_words = pair_accuracy(task(cfg=PairsConfig(match=0.0)), PREP, shards, PLAN)
    assert set(only_words) == {"words", "words/other_picture"}
    assert pair_accuracy(task(cfg=PairsConfig(match=0.0, words=0.0)), PREP, shards, PLAN) == {}


def test_batches_and_broken_samples_change_nothing(tmp_path: Path) -> None:
    good = [(picture(number), texts) for number, texts in enumerate(CAPTIONS)]
    shards = write(tmp_path / "good", good)
    before = pair_accuracy(task(), PREP, shards, PLAN)
    for batch in (1, 2, 5):
        after = pair_accuracy(task(), PREP, shards, replace(PLAN, batch=batch))
        after["words/other_picture"] = before["words/other_picture"]  # which other picture depends on the batch
        assert json.dumps(after) == json.dumps(before)
    broken = write(tmp_path / "broken", [*good, (picture(7)[:60], ("half a picture",))])
    with pytest.raises(ValueError, match="set-00000/005"):
        pair_accuracy(task(), PREP, broken, PLAN)
    left = pair_accuracy(task(), PREP, broken, replace(PLAN, exclude_broken=True))
    assert left["match/right"] == before["match/right"]


@pytest.mark.parametrize("second", [(picture(0), ("two",)), (picture(1), ("one",))])
def test_one_picture_or_one_text_cannot_be_matched(tmp_path: Path, second: tuple[bytes, tuple[str, ...]]) -> None:
    shards = write(tmp_path, [(picture(0), ("one",)), second])
    with pytest.raises(ValueError, match="2 pairs show one picture or carry one text"):
        pair_accuracy(task(), PREP, shards, PLAN)
