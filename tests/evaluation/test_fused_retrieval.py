"""Retrieval by fusing all pairs: evaluation, training on two processes, and search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from many import start
from tiny import BRIDGETOWER, changed, lines, png_image, shards, weights

from dualfuse import hub
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.retrieval import evaluate_fused_retrieval
from dualfuse.evaluation.runner import EvaluationData, Plan, evaluate
from dualfuse.recipe import Recipe
from dualfuse.search.index import Index
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training import loop


@pytest.fixture
def ranker(tiny: Recipe) -> Recipe:
    made = replace(tiny, model=BRIDGETOWER, task=RankingConfig(num_negatives=3))
    return changed(made, steps=3, save_every=2, eps=1e-3)


@pytest.fixture
def loaded(ranker: Recipe) -> hub.LoadedModel:
    """Perturb the weights: with initial ones every pair has nearly the same score."""
    torch.manual_seed(0)
    task = ranker.build().eval()
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return hub.LoadedModel(
        task, replace(ranker.data.processor(), image=replace(ranker.data.image_transform, augment=None)), ranker
    )


def naive(loaded: hub.LoadedModel, samples: Shards) -> dict[str, float]:
    """Fuse pair by pair, and count the negatives that score at least as high."""
    task, rng = loaded.task, None
    images = [loaded.processor.image(sample.image, rng) for sample in samples]  # type: ignore[arg-type]
    texts = [(n, text) for n, sample in enumerate(samples) for text in sample.texts]
    score = torch.zeros(len(images), len(texts))
    with torch.no_grad():
        for n, image in enumerate(images):
            for m, (_, text) in enumerate(texts):
                ids = torch.from_numpy(loaded.processor.text.encode(text).ids)[None]
                words = task.model.embed_text(ids, torch.ones_like(ids).bool())
                pooled = task.model.fuse(task.model.embed_image(image[None]), words).pooled
                score[n, m] = task.itm_head(pooled)[0, 1]  # type: ignore[operator]
    found: dict[str, list[int]] = {"text_to_image": [], "image_to_text": []}
    for m, (owner, _) in enumerate(texts):
        found["text_to_image"].append(
            sum(bool(score[n, m] >= score[owner, m]) for n in range(len(images)) if n != owner)
        )
    for n in range(len(images)):
        best = max(float(score[n, m]) for m, (owner, _) in enumerate(texts) if owner == n)
        wrong = [m for m, (owner, _) in enumerate(texts) if owner != n]
        found["image_to_text"].append(sum(float(score[n, m]) >= best for m in wrong))
    return {
        f"{way}/R@{k}": sum(rank < k for rank in ranks) / len(ranks) for way, ranks in found.items() for k in (1, 5, 10)
    }


def test_metrics_equal_those_of_fusing_pair_by_pair(loaded: hub.LoadedModel, tmp_path: Path) -> None:
    data = shards(tmp_path, 8, "test")
    expected = naive(loaded, Shards.open(data))
    for batch in (3, 64):
        result = evaluate_fused_retrieval(
            loaded.task, EvaluationData(Shards.open(data), loaded.processor), Plan(batch_size=batch, num_workers=0)
        )
        assert result.metrics == {name: pytest.approx(value) for name, value in expected.items()}
        assert 0 < result.metrics["text_to_image/R@5"] < 1 and result.size == "8 images, 15 texts"
    assert evaluate(loaded, data, Plan(num_workers=0)).metrics == result.metrics


def test_constant_scores_have_zero_recall(loaded: hub.LoadedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        loaded.task.itm_head.weight.zero_()  # type: ignore[union-attr, operator]
    data = Shards.open(shards(tmp_path, 11, "test"))
    metrics = evaluate_fused_retrieval(loaded.task, EvaluationData(data, loaded.processor), Plan(num_workers=0)).metrics
    assert set(metrics.values()) == {0.0}


def test_broken_samples_are_reported(loaded: hub.LoadedModel, tmp_path: Path) -> None:
    content = [Sample("a", png_image(0), ("cat",)), Sample("b", png_image(1)), Sample("c", png_image(2), ("dog",))]
    data = shards(tmp_path, content, "test")
    found = evaluate(loaded, data, Plan(batch_size=2, num_workers=0, exclude_broken=True))
    assert [skipped.key for skipped in found.excluded] == ["test-00000/b"] and found.size == "2 images, 2 texts"
    with pytest.raises(ValueError, match="test-00000/b: it has no text"):
        evaluate(loaded, data, Plan(batch_size=2, num_workers=0))


def test_search_is_refused_without_embeddings(loaded: hub.LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png_image(0))
    with pytest.raises(ValueError, match="has no embeddings to search with"):
        Index.build(loaded, tmp_path)


def test_head_starts_from_the_itm_head_and_run_is_validated(tiny: Recipe, ranker: Recipe, tmp_path: Path) -> None:
    before = replace(tiny, model=BRIDGETOWER, task=PairsConfig(itc_weight=0.0), run=replace(tiny.run, steps=1))
    start = loop.train((before,), tmp_path / "before")
    data = replace(ranker.data, validation=shards(tmp_path, 6, "val"))
    after = changed(replace(ranker, data=data), start_from=str(start), lr=0.0, steps=1, best="*/R@*")
    loop.train((after,), tmp_path / "after")
    head = "itm_head.weight"
    assert torch.equal(weights(tmp_path / "after")[head][1], weights(tmp_path / "before")[head][1])
    assert 0 <= lines(tmp_path / "after")[-1]["validation/image_to_text/R@1"] <= 1
    model = hub.load(tmp_path / "after" / "best")
    assert evaluate(model, data.validation, Plan(num_workers=0)).metrics["text_to_image/R@10"] == 1


@pytest.mark.parametrize("rows", [0, 5])
def test_two_processes_train_like_one(ranker: Recipe, tmp_path: Path, rows: int) -> None:
    ranker = changed(ranker, grad_cache_chunk=rows)
    loop.train((ranker,), tmp_path / "alone")
    together = tmp_path / "together"
    assert start(2, lambda: print(loop.train((ranker,), together))) == [0, 0]
    for here, there in zip(lines(together), lines(tmp_path / "alone"), strict=True):
        assert here == pytest.approx(there, abs=1e-5, rel=1e-4)
    assert lines(together)[-1]["negatives"] == 3 and lines(together)[-1]["count/false_negatives_avoided"] > 0
    expected = weights(tmp_path / "alone")
    for name, tensor in weights(together).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
