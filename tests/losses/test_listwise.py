"""List-wise matching against its formula written naively, pair by pair."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dualfuse.data.processor import Processor
from dualfuse.errors import DualfuseError
from dualfuse.losses.hard_negatives import negative_groups
from dualfuse.losses.itc import find_positives, gather_similarities
from dualfuse.losses.listwise import listwise_loss, sample_candidates, threshold_loss
from dualfuse.tasks.pretrain import itm_candidates
from dualfuse.tasks.pretrain.pairs import PairsConfig
from tests import tiny

ITC = PairsConfig(itc_features="unimodal", itm_loss="listwise", mlm_weight=0.0)


def test_the_loss_is_the_cross_entropy_of_the_first_valid_candidate() -> None:
    scores, valid = torch.tensor([[1.0, 3.0, 2.0], [0.5, 9.0, 9.0]]), torch.tensor([[True, False], [False, False]])
    first = -math.log(math.exp(1) / (math.exp(1) + math.exp(3)))
    torch.testing.assert_close(listwise_loss(scores, valid), torch.tensor((first + 0) / 2))


def test_candidates_are_distinct_pairs_that_share_neither_image_nor_text() -> None:
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    image_id, text_id = torch.tensor([0, 0, 1, 2, 3, 4]), torch.tensor([5, 6, 7, 7, 8, 9])
    similarities = gather_similarities(image, text, torch.tensor([10.0]))
    groups = negative_groups("global", image_id)
    drawn = sample_candidates(similarities, find_positives(image_id, text_id), groups, 5, hardness=1.0)
    wrong = ({0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}, 4: {4}, 5: {5}},) * 2
    for direction, candidates, logits in zip(wrong, drawn, (text @ image.T, image @ text.T), strict=True):
        for query in range(6):
            chosen = candidates.numbers[query][candidates.valid[query]].tolist()
            assert sorted(chosen) == sorted(
                set(range(6)) - direction[query]
            )  # five are wanted, and all that exist come
        expected = 10 * logits.gather(1, candidates.numbers)
        torch.testing.assert_close(candidates.logits[:, 1:], expected)
        torch.testing.assert_close(candidates.logits[:, 0], 10 * logits.diagonal())


def test_the_threshold_alone_learns_from_single_pairs() -> None:
    scores, threshold = torch.tensor([[8.0, 2.0], [6.0, 4.0]], requires_grad=True), torch.tensor([0.5])
    threshold.requires_grad_()
    loss = threshold_loss(scores, torch.ones(2, 1, dtype=torch.bool), threshold, torch.tensor([10.0]))
    right = sum(-math.log(1 / (1 + math.exp(-(score - 5)))) for score in (8, 6)) / 2
    wrong = sum(-math.log(1 - 1 / (1 + math.exp(-(score - 5)))) for score in (2, 4)) / 2
    torch.testing.assert_close(loss, torch.tensor((right + wrong) / 20))
    loss.backward()
    assert scores.grad is None
    assert threshold.grad is not None


def test_a_batch_has_the_loss_of_every_list_computed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    task = ITC.build(tiny.BRIDGETOWER.build()).eval()
    torch.nn.init.normal_(task.itm_head.weight)
    batch = _batch()
    drawn = []
    monkeypatch.setattr(
        itm_candidates,
        "sample_candidates",
        lambda *args, **options: drawn.append(sample_candidates(*args, **options)) or drawn[0],
    )
    log = task(batch).log
    image, text = task.model.embed_image(batch["image"]), task.model.embed_text(batch["ids"], batch["mask"])
    scale, threshold = task.feature_heads[0].scale, task.match_threshold
    assert threshold is not None

    def score(i: int, t: int) -> torch.Tensor:
        one, other = image.take(torch.tensor([i])), text.take(torch.tensor([t]))
        logits = task.itm_head(task.model.fuse(one, other).pooled)[0]
        cosine = (task.image_features(one) * task.text_features(other)).sum()
        return (scale * cosine).squeeze() + logits[1] - logits[0]

    losses, singles = [], []
    for images_of_texts, candidates in zip((True, False), drawn[0], strict=True):
        for query, numbers in enumerate(candidates.numbers.tolist()):
            pairs = [(other, query) if images_of_texts else (query, other) for other in (query, *numbers)]
            scores = torch.stack([score(*pair) for pair in pairs])
            losses.append(-scores.log_softmax(0)[0])
            matches = (scores - scale * threshold).sigmoid()
            singles.append((-matches[0].log(), -(1 - matches[1:]).log().mean()))
    expected = torch.stack(losses).mean() + sum(a + b for a, b in singles) / len(singles) / 2 / scale.squeeze()
    torch.testing.assert_close(log["loss/itm"], expected.detach(), rtol=1e-4, atol=1e-5)
    match = task.match_logit(image, text)
    torch.testing.assert_close(
        match, torch.stack([score(n, n) for n in range(6)]) - scale * threshold, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(task.rerank_score(torch.rand(6), match), match)


def test_ranking_starts_as_the_dual_encoder_ranks() -> None:
    task = ITC.build(tiny.BRIDGETOWER.build()).eval()
    log = task(_batch()).log
    assert log["accuracy/itm_right_image"] == log["accuracy/itc_right_image"]
    assert not task.itm_head.weight.any()


def test_it_needs_contrast() -> None:
    with pytest.raises(DualfuseError, match="itc_weight"):
        replace(ITC, itc_weight=0.0)


def _batch() -> dict:
    data = tiny.Data(image_size=(32, 32), augment=None, text_length=12)
    processor = Processor(data.image_transform, data.text_transform)
    examples = [ITC.read(sample, processor, np.random.default_rng(0)) for sample in tiny.samples(6)]
    batch = dict(ITC.collate(examples))
    batch["ids"] = batch["ids"] % tiny.MODEL.vocab_size  # of the tokenizer of the package
    return batch
