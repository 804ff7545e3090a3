"""False edits, late interaction and distillation in training on pairs, against their formulas written naively."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dualfuse import distributed as dist
from dualfuse.data.processor import Processor
from dualfuse.errors import DualfuseError
from dualfuse.layers.late_interaction import LateInteractionConfig, LateInteractionHead
from dualfuse.losses.listwise import distillation_loss
from dualfuse.tasks.pretrain.edited_captions import EditsConfig
from dualfuse.tasks.pretrain.pair_batch import PairBatch
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig
from tests import tiny

LISTS = PairsConfig(itc_features="unimodal", itm_loss="listwise", mlm_weight=0.0)
EDITS = EditsConfig(number=2)
CAPTIONS = ("a red cat", "the small dog runs", "a blue house", "fish", "a green tree and a red fish")


def batch_of(cfg: PairsConfig, captions: tuple[str, ...] = CAPTIONS) -> PairBatch:
    data = tiny.Data(image_size=(32, 32), augment=None, text_length=12)
    processor = Processor(data.image_transform, data.text_transform)
    samples = [
        replace(sample, texts=(text,)) for sample, text in zip(tiny.samples(len(captions)), captions, strict=True)
    ]
    batch = cfg.collate([cfg.read(sample, processor, np.random.default_rng(3)) for sample in samples])
    for name in ("ids", "masked_ids", "edit_ids"):
        if name in batch:
            batch[name] = batch[name] % tiny.MODEL.vocab_size  # of the tokenizer of the package
    return batch


def task_of(cfg: PairsConfig) -> Pairs:
    torch.manual_seed(0)
    task = cfg.build(tiny.BRIDGETOWER.build()).eval()
    torch.nn.init.normal_(task.itm_head.weight)
    return task


def test_edits_are_read_and_padded_with_the_texts() -> None:
    batch = batch_of(replace(LISTS, edits=EDITS))
    assert batch["edit_exists"].tolist() == [[True, True], [True, True], [True, True], [True, False], [True, True]]
    assert batch["edit_ids"].shape == (5, 2, batch["ids"].shape[1])
    assert batch["edit_mask"].sum(2)[3].tolist() == [3, 1]  # [CLS], a noun and [SEP]; a missing edit
    plain = batch_of(LISTS)
    torch.testing.assert_close(plain["ids"], batch["ids"][:, : plain["ids"].shape[1]])
    torch.testing.assert_close(plain["image"], batch["image"])


@pytest.mark.parametrize("late", [0.0, 1.0])
def test_an_image_has_the_edits_of_its_caption_as_wrong_texts(late: float) -> None:
    cfg = replace(LISTS, edits=EDITS, late=LateInteractionConfig(weight=late, width=8, hidden=0))
    task, batch = task_of(cfg), batch_of(cfg)
    log = task(batch).log
    wins = []
    with torch.no_grad():
        image = task.model.embed_image(batch["image"])
        for number, exists in enumerate(batch["edit_exists"].tolist()):
            own, *edits = (
                float(
                    task.match_logit(image.take(torch.tensor([number])), task.model.embed_text(ids[None], mask[None]))
                )
                for ids, mask in zip(
                    torch.cat([batch["ids"][number : number + 1], batch["edit_ids"][number]]),
                    torch.cat([batch["mask"][number : number + 1], batch["edit_mask"][number]]),
                    strict=True,
                )
            )
            wins.append(all(own > edit for edit, has in zip(edits, exists, strict=True) if has))
    assert float(log["accuracy/itm_edits"]) == pytest.approx(sum(wins) / len(wins))
    assert 0 < sum(wins) < len(wins)


def test_edits_change_the_loss_as_further_candidates_and_nothing_else() -> None:
    cfg = replace(LISTS, edits=replace(EDITS, itc_weight=1.0))
    task, batch = task_of(cfg), batch_of(cfg)
    with_edits = task(batch).log
    without = task({name: value for name, value in batch.items() if not name.startswith("edit")}).log
    assert with_edits["loss/itm"] > without["loss/itm"]
    assert with_edits["loss/itc"] == without["loss/itc"]
    head = task.feature_heads[0]
    with torch.no_grad():
        images = task.image_features(task.model.embed_image(batch["image"]))
        texts = (
            torch.cat([batch["ids"][:, None], batch["edit_ids"]], 1),
            torch.cat([batch["mask"][:, None], batch["edit_mask"]], 1),
        )
        losses = []
        for image, ids, mask, exists in zip(images, *texts, batch["edit_exists"], strict=True):
            kept = [True, *exists.tolist()]
            scores = head.scale * (task.text_features(task.model.embed_text(ids[kept], mask[kept])) @ image)
            losses.append(-scores.log_softmax(0)[0])
    torch.testing.assert_close(with_edits["loss/itc_edits"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_pairwise_matching_rejects_edits() -> None:
    cfg = replace(LISTS, itm_loss="pairwise", edits=EDITS)
    task, batch = task_of(cfg), batch_of(cfg)
    log = task(batch).log
    owner = torch.arange(5).repeat_interleave(2)
    with torch.no_grad():
        image, text = task.model.embed_image(batch["image"]), batch["edit_ids"].flatten(0, 1)
        logit = task.match_logit(image.take(owner), task.model.embed_text(text, batch["edit_mask"].flatten(0, 1)))
    rejected = (logit <= 0)[batch["edit_exists"].flatten()]
    assert float(log["accuracy/itm_edits"]) == pytest.approx(float(rejected.float().mean()))


@torch.no_grad()
def test_late_similarity_is_each_word_over_its_patches_one_by_one() -> None:
    torch.manual_seed(0)
    head = LateInteractionHead(LateInteractionConfig(width=4, hidden=0), (6, 5), std=0.5).eval()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    words, patches = head.words(torch.randn(2, 3, 5), mask), head.patches(torch.randn(3, 4, 6), torch.ones(3, 4).bool())
    result = head.all_pairs(words, patches)
    for text in range(2):
        for image in range(3):
            total = 0.0
            for word, weight in zip(words.tokens[text], words.weights[text].tolist(), strict=True):
                cosines = [float(word @ patch) for patch in patches.tokens[image]]
                shares = [math.exp(float(head.attention_scale.exp()) * cosine) for cosine in cosines]
                total += weight * sum(s * c for s, c in zip(shares, cosines, strict=True)) / sum(shares)
            assert float(result[text, image]) == pytest.approx(total, abs=1e-5)
    assert words.weights[0, 2] == 0
    torch.testing.assert_close(head.pairs(words, patches.take(torch.tensor([2, 1]))), result[[0, 1], [2, 1]])


@pytest.mark.parametrize("model", [tiny.BRIDGETOWER, tiny.MODEL])
def test_late_interaction_is_trained_and_ranks_in_both_models(model) -> None:
    cfg = replace(LISTS, late=LateInteractionConfig(weight=1.0, width=8, hidden=0))
    torch.manual_seed(0)
    task, batch = cfg.build(model.build()).eval(), batch_of(cfg)
    output = task(batch)
    output.loss.backward()
    assert task.late_head is not None
    assert all(parameter.grad is not None for parameter in task.late_head.parameters())
    with torch.no_grad():
        image, text = task.model.embed_image(batch["image"]), task.model.embed_text(batch["ids"], batch["mask"])
        cosine = (task.image_features(image) * task.text_features(text)).sum(1)
        dual = task.feature_heads[0].scale * (cosine - task.match_threshold)
        torch.testing.assert_close(task.match_logit(image, text), dual + task.late_logit(image, text))  # log-odds are 0
    log = output.log
    assert log["accuracy/itm_right_image"] == log["accuracy/itc_right_image"]


def test_the_student_gets_the_order_of_the_teacher() -> None:
    student = torch.tensor([[1.0, 0.0, 5.0], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, 9.0], [1.0, 1.0, 1.0]], requires_grad=True)
    valid = torch.tensor([[True, False], [True, True]])
    loss = distillation_loss(student, teacher, valid)
    p, q = (1 / (1 + math.exp(-1)),) * 2
    assert loss.item() == pytest.approx((p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 2, abs=1e-6)
    loss = distillation_loss(student, teacher * torch.tensor([[2.0], [1.0]]), valid)
    p = 1 / (1 + math.exp(-2))
    assert loss.item() == pytest.approx((p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 2, abs=1e-6)
    loss.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad[0, 0] < 0 < student.grad[0, 1]


def test_distillation_moves_the_projections_of_the_dual_encoder() -> None:
    plain, batch = task_of(LISTS), batch_of(LISTS)
    distilled = task_of(replace(LISTS, distill_weight=2.0))
    dist.seed_shared_rng(0)
    plain_log = plain(batch).log
    dist.seed_shared_rng(0)
    log = distilled(batch).log
    extra = (log["loss/distill_image"] + log["loss/distill_text"]) / 2 * 2
    torch.testing.assert_close(log["loss/itm"], plain_log["loss/itm"] + extra)
    for task in (plain, distilled):
        dist.seed_shared_rng(0)
        task(batch).loss.backward()
    one, other = (task.feature_heads[0].image.weight.grad for task in (plain, distilled))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {"edits": EDITS, "itm_on_masked_text": True, "mlm_weight": 1.0},
        {"edits": EDITS, "itm_weight": 0.0},
        {"itm_loss": "pairwise", "late": LateInteractionConfig(weight=1.0)},
        {"itm_loss": "pairwise", "distill_weight": 1.0},
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict) -> None:
    with pytest.raises(DualfuseError):
        replace(LISTS, **options)
