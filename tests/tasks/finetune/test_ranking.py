"""Ranking the text of an image among negatives: loss, sampling, and the golden of the official code."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many import start as start_processes
from official_bridgetower import OFFICIAL
from safetensors.torch import load_file
from tiny import BRIDGETOWER, MODEL, caption, changed, png_image, recipe, tokenizer
from torch.nn import functional as F
from torch.testing import assert_close

from dualfuse import distributed as dist
from dualfuse.convert.formats.bridgetower_official import KINDS, rank_to_itm
from dualfuse.convert.rename import import_tensors
from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.losses.itc import find_positives
from dualfuse.losses.ranking import rank_loss, sample_texts
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.finetune import ranking
from dualfuse.tasks.finetune.ranking import Ranking, RankingConfig
from dualfuse.tasks.pretrain.pair_batch import PairBatch
from dualfuse.training.loop import train

GOLDEN = Path(__file__).parents[2] / "golden" / "bridgetower_official"


@pytest.fixture
def processor(tmp_path: Path) -> Processor:
    return Processor(ImageTransform((32, 32)), TextTransform(12, tokenizer(tmp_path)))


def batch(processor: Processor, images: tuple[int, ...], texts: tuple[str, ...] = ()) -> PairBatch:
    """Return a pair per image; without texts all texts differ."""
    cfg, rng = RankingConfig(), np.random.default_rng(0)
    texts = texts or tuple(f"{caption(n, 2 + n % 4)} {'cat ' * (n + 1)}" for n in range(len(images)))
    samples = [Sample(f"{n}", png_image(of), (text,)) for n, (of, text) in enumerate(zip(images, texts, strict=True))]
    return cfg.collate([cfg.read(sample, processor, rng) for sample in samples])


def task(cfg: RankingConfig, model: VLMoConfig | BridgeTowerConfig = BRIDGETOWER) -> Ranking:
    torch.manual_seed(0)
    return cfg.build(model.build()).eval()


@torch.no_grad()
def test_scores_and_loss_equal_the_golden() -> None:
    """Three images with one target and three negatives each; the head is that of the converted checkpoint."""
    [kind] = [kind for kind in KINDS if kind.name == "ranking"]
    given = rank_to_itm(import_tensors(load_file(GOLDEN / "state_dict.safetensors"), kind.layout).tensors)
    inputs, outputs = (load_file(GOLDEN / f"{name}.safetensors") for name in ("inputs", "outputs"))
    made = RankingConfig(num_negatives=3).build(OFFICIAL.build()).eval()
    made.load_state_dict({name: given[name] for name in made.state_dict()})
    ids = torch.cat([inputs["input_ids"], inputs["false_text_ids"].flatten(0, 1)])
    mask = torch.cat([inputs["attention_mask"], inputs["false_text_masks"].flatten(0, 1)]).bool()
    columns = torch.cat([torch.arange(3)[:, None], 3 + torch.arange(9).view(3, 3)], dim=1)
    scores = made.scores(made.model.embed_image(inputs["pixel_values"]), ids, mask, columns)
    assert_close(scores, outputs["irtr.scores"], atol=1e-5, rtol=1e-5)
    loss, _ = rank_loss(scores, torch.ones(3, 3, dtype=torch.bool))
    assert_close(loss, outputs["irtr.loss"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", [MODEL, BRIDGETOWER, replace(BRIDGETOWER, bridge="none")], ids=["v", "b", "m"])
def test_loss_equals_that_of_pairs_fused_one_by_one(
    processor: Processor, model: VLMoConfig | BridgeTowerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_order = -torch.arange(6.0).expand(6, 6)
    monkeypatch.setattr(ranking, "sample_texts", lambda allowed, number, _: sample_texts(allowed, number, in_order))
    made, pairs = task(RankingConfig(num_negatives=2), model), batch(processor, (0, 1, 2, 3, 4, 5))
    output = made(pairs)
    losses = []
    for own, false in enumerate([(1, 2), (0, 2), (0, 1), (0, 1), (0, 1), (0, 1)]):
        image = made.model.embed_image(pairs["image"][[own]])
        ranks = []
        for text in (own, *false):
            length = int(pairs["mask"][text].sum())
            words = made.model.embed_text(pairs["ids"][[text], :length], pairs["mask"][[text], :length])
            pooled = made.model.fuse(image, words).pooled
            ranks.append(pooled[0] @ made.itm_head.weight[1] + made.itm_head.bias[1])
        losses.append(-torch.stack(ranks).log_softmax(0)[0])
    assert_close(output.loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)
    assert output.log["negatives"] == 2


def test_texts_of_the_same_image_are_not_negatives(processor: Processor) -> None:
    """Pairs 0 and 1 have the same image, 0 and 2 the same text; so the text of 0 is also one of the image of 2."""
    texts = ("a red cat", "a big dog", "A red cat", "the tree", "fish")
    seen, avoided = dict[int, set[int]](), 0
    made = task(RankingConfig(num_negatives=1))
    scores = made.scores

    def spy(image: object, ids: object, mask: object, columns: torch.Tensor) -> torch.Tensor:
        for own, false in columns.tolist():
            seen.setdefault(own, set()).add(false)
        return scores(image, ids, mask, columns)  # type: ignore[arg-type]

    made.scores = spy  # type: ignore[method-assign, assignment]
    pairs = batch(processor, (7, 7, 8, 9, 9), texts)
    for _ in range(60):
        avoided = int(made(pairs).log["count/false_negatives_avoided"])
    assert seen == {0: {3, 4}, 1: {3, 4}, 2: {1, 3, 4}, 3: {0, 1, 2}, 4: {0, 1, 2}}
    assert avoided == 2 + 2 + 1 + 1 + 1


def test_fewer_negatives_than_num_negatives(processor: Processor) -> None:
    made = task(RankingConfig())
    pairs = batch(processor, (0, 1, 2, 2))
    output = made(pairs)
    assert output.log["negatives"] == (3 + 3 + 2 + 2) / 4
    image, text = made.model.embed_image(pairs["image"]), made.model.embed_text(pairs["ids"], pairs["mask"])
    every = torch.stack([made.match_logit(image.take(torch.full((4,), n)), text) for n in range(4)])
    every[2, 3] = every[3, 2] = float("-inf")
    assert_close(output.loss, F.cross_entropy(every, torch.arange(4)), atol=1e-5, rtol=1e-5)
    alone = made(batch(processor, (0, 0), ("cat", "cat")))
    assert alone.loss.item() == 0 and alone.loss.requires_grad


def test_negatives_are_drawn_uniformly_without_replacement() -> None:
    torch.manual_seed(0)
    allowed = torch.tensor([[True, False, True, True, True, False]]).expand(6000, 6)
    columns, drawn = sample_texts(allowed, 2, torch.rand(6000, 6))
    assert drawn.all() and (columns[:, 0] != columns[:, 1]).all()
    counts = Counter(columns.flatten().tolist())
    assert counts.keys() == {0, 2, 3, 4} and all(2800 < count < 3200 for count in counts.values())


def test_grad_cache_gives_the_same_gradient(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "sample_texts", lambda allowed, number, _: sample_texts(allowed, number, torch.eye(6)))
    gradients = []
    for rows in (0, 5):
        made = task(RankingConfig(num_negatives=3, grad_cache_chunk=rows))
        made(batch(processor, (0, 1, 2, 3, 4, 5))).loss.backward()
        gradients.append({name: p.grad for name, p in made.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and "model.image_tower.positions" in gradients[0]
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)
    assert not gradients[0]["itm_head.weight"][0].any()  # type: ignore[index]


def test_training_improves_accuracy(processor: Processor) -> None:
    pairs = batch(processor, (0, 1, 2, 3), ("cat", "dog", "tree", "fish"))
    made = task(RankingConfig(num_negatives=3)).train()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3)
    for _ in range(40):
        made(pairs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = made(pairs)
    assert after.loss < 0.7 and after.log["accuracy/rank"] == 1  # chance is log 4


def test_invalid_config_and_search_are_refused(processor: Processor) -> None:
    with pytest.raises(ValueError, match="num_negatives is 0"):
        RankingConfig(num_negatives=0)
    with pytest.raises(BrokenSample, match="no text"):
        RankingConfig().read(Sample("a", png_image(0)), processor, np.random.default_rng(0))
    made = task(RankingConfig())
    with pytest.raises(ValueError, match=r"ranks pairs, and has no embeddings .* dualfuse evaluate"):
        made.image_features(made.model.embed_image(torch.zeros(1, 3, 32, 32)))


@pytest.mark.parametrize("chunk", [0, 3])
def test_itm_beside_ranking_equals_pairs_classified_one_by_one(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Of six pairs the odd ones are classified as they are, the texts of the even ones with another image."""
    false = torch.tensor([4, 0, 1])
    drawn = false, false[:0], torch.tensor([True, True, True])
    monkeypatch.setattr(ranking, "sample_hard_negatives", lambda *arguments, **options: drawn)
    plain = task(RankingConfig(num_negatives=2))
    made = task(RankingConfig(num_negatives=2, itm_weight=0.5, grad_cache_chunk=chunk))
    pairs, head, model = batch(processor, (0, 1, 2, 3, 4, 5)), made.frozen_itm_head, made.model
    with torch.no_grad():
        head.weight.mul_(100)  # so that the pairs have different probabilities
    outputs = []
    for each in (plain, made):
        dist.seed_shared_rng(5)
        outputs.append(each(pairs))
    losses = []
    for image, text, label in ((1, 1, 1), (3, 3, 1), (5, 5, 1), (4, 0, 0), (0, 2, 0), (1, 4, 0)):
        length = int(pairs["mask"][text].sum())
        words = model.embed_text(pairs["ids"][[text], :length], pairs["mask"][[text], :length])
        pooled = model.fuse(model.embed_image(pairs["image"][[image]]), words).pooled[0]
        losses.append(-(head.weight @ pooled + head.bias).log_softmax(0)[label])
    assert max(losses) - min(losses) > 0.1
    itm = torch.stack(losses).mean()
    assert_close(outputs[1].log["loss/itm"], itm.detach(), atol=1e-5, rtol=1e-5)
    assert_close(outputs[1].log["loss/rank"], outputs[0].loss.detach())
    assert_close(outputs[1].loss, outputs[0].loss + 0.5 * itm, atol=1e-5, rtol=1e-5)
    outputs[1].loss.backward()
    assert head.weight.grad is None and model.layers.text[0].up.weight.grad is not None  # type: ignore[union-attr]


def test_negative_images_of_itm_are_drawn_uniformly_from_the_same_set(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, pairs = task(RankingConfig(itm_weight=1.0)), batch(processor, (0, 1, 2, 3, 3, 5))
    pairs["source"] = torch.tensor([0, 0, 0, 1, 1, 0])
    seen = list[tuple[list[int], list[bool]]]()
    drawn = ranking.sample_hard_negatives

    def spy(*arguments: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        images, texts, has = drawn(*arguments, **options)
        seen.append((images.tolist(), has.tolist()))
        return images, texts, has

    monkeypatch.setattr(ranking, "sample_hard_negatives", spy)
    with torch.no_grad():
        image = made.model.embed_image(pairs["image"])
        for _ in range(200):
            made.itm_logits(pairs, image, find_positives(pairs["image_id"], pairs["text_id"]))
    assert all(has == [True, True, False] for _, has in seen)  # the image of pair 4 is the only one of its set
    assert {images[0] for images, _ in seen} == {1, 2, 5} and {images[1] for images, _ in seen} == {0, 1, 5}


def test_itm_head_is_frozen_and_is_the_one_that_the_run_starts_with(processor: Processor, tmp_path: Path) -> None:
    """The pre-trained model has one ITM head, which becomes the frozen one and the ranking head."""
    made = recipe(tmp_path, images=10)
    pairs = changed(made, steps=1, batch_size=4)
    train((pairs,), tmp_path / "pairs")
    start = load_file(tmp_path / "pairs" / "final" / "model.safetensors")["itm_head.weight"]
    cfg = RankingConfig(num_negatives=2, itm_weight=1.0)
    ranks = replace(changed(pairs, steps=2, save_every=1), task=cfg, start_from=str(tmp_path / "pairs" / "final"))
    train((ranks,), tmp_path / "ranks")
    final = load_file(tmp_path / "ranks" / "final" / "model.safetensors")
    assert torch.equal(final["frozen_itm_head.weight"], start)
    assert not torch.equal(final["itm_head.weight"], start)
    assert json.loads((tmp_path / "ranks" / "start.json").read_text())["copies"] == {
        "frozen_itm_head.weight": "itm_head.weight", "frozen_itm_head.bias": "itm_head.bias"
    }  # fmt: skip
    assert "frozen_itm_head.weight\n" in (tmp_path / "ranks" / "frozen.txt").read_text()
    later = replace(ranks, start_from=str(tmp_path / "ranks" / "final"), run=replace(ranks.run, steps=1))
    train((later,), tmp_path / "later")  # a ranking model as the start keeps its frozen head
    assert torch.equal(load_file(tmp_path / "later" / "final" / "model.safetensors")["frozen_itm_head.weight"], start)


def test_itm_beside_ranking_is_the_same_on_two_processes(processor: Processor, tmp_path: Path) -> None:
    made = changed(recipe(tmp_path, images=12), steps=2, drop_path=0.0, eps=1e-3, batch_size=8)
    made = replace(made, task=RankingConfig(num_negatives=3, itm_weight=1.0))
    train((made,), tmp_path / "alone")
    assert start_processes(2, lambda: print(train((made,), tmp_path / "together"))) == [0, 0]
    expected = load_file(tmp_path / "alone" / "final" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "together" / "final" / "model.safetensors").items():
        assert_close(tensor, expected[name], atol=1e-5, rtol=0)
