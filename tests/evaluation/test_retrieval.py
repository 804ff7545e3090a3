"""Recall: against the official code, by hand, and against a loop over all pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import MODEL, caption, png_image, recipe, shards
from torch import Tensor

from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.layers.relative_bias import joint_index
from dualfuse.metrics.recall import ranks, recall, reranked_ranks
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "vlmo"
PLAN = Plan(batch_size=5, rerank=7, num_workers=0)


def test_recall_equals_that_of_the_official_code(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = load_file(GOLDEN / "recall.safetensors")
    facts = json.loads((GOLDEN / "facts.json").read_text())["facts"]["recall"]
    image, text, owner = stored["image_feats"], stored["text_feats"], stored["text_image_index"]
    numbers = torch.arange(len(image))
    for block in (1024, 7):
        monkeypatch.setattr("dualfuse.metrics.recall.BLOCK", block)
        found = recall(ranks(text, image, owner, numbers)), recall(ranks(image, text, numbers, owner))
        for way, result in zip(("ir", "tr"), found, strict=True):
            assert result == {f"R@{k}": pytest.approx(facts[f"{way}_r{k}"], abs=1e-6) for k in (1, 5, 10)}


def test_ranks_of_four_images_by_hand() -> None:
    """Images look along the axes; the captions 0 and 1 are of image 0, 2 of 1, 3 and 4 of 2, 5 of 3."""
    image = torch.eye(4)
    text = torch.tensor(
        [
            [0.9, 0.1, 0.0, 0.0],  # right
            [0.2, 0.8, 0.1, 0.0],  # image 1 is better: rank 1
            [0.0, 0.7, 0.0, 0.0],  # right
            [0.3, 0.4, 0.2, 0.9],  # all others are better: rank 3
            [0.0, 0.0, 0.6, 0.6],  # a tie with a wrong one: rank 1
            [0.1, 0.0, 0.0, 0.5],  # right
        ]
    )
    owner, numbers = torch.tensor([0, 0, 1, 2, 2, 3]), torch.arange(4)
    assert ranks(text, image, owner, numbers).tolist() == [0, 1, 0, 3, 1, 0]
    # image 0 finds its 0.9; 1 finds 0.8 of another before its 0.7; 2 finds 0.6; 3 finds 0.9 and 0.6 before its 0.5
    found = ranks(image, text, numbers, owner)
    assert found.tolist() == [0, 1, 0, 2]
    assert recall(found, at=(1, 2, 3)) == {"R@1": 0.5, "R@2": 0.75, "R@3": 1.0}


def test_constant_and_nan_features_rank_last() -> None:
    same, numbers = torch.ones(6, 3), torch.arange(6)
    for features in (same, torch.full_like(same, float("nan"))):
        assert ranks(features, features, numbers, numbers).tolist() == [5] * 6
        right = torch.eye(6, dtype=torch.bool)
        assert reranked_ranks(torch.zeros(6), right, features @ features.T).tolist() == [5] * 6


def test_reranking_by_hand() -> None:
    right = torch.tensor([[False, True, False], [True, False, True], [False, False, False], [True, False, False]])
    scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 2.0, 1.5], [3.0, 2.0, 1.0], [2.0, 2.0, 1.0]])
    assert reranked_ranks(torch.tensor([1, 0, 7, 0]), right, scores).tolist() == [0, 1, 7, 1]


def task(cfg: PairsConfig | None = None, seed: int = 0) -> Pairs:
    """Perturb the weights: with initial ones every pair has nearly the same score."""
    torch.manual_seed(seed)
    built = (cfg or PairsConfig()).build(MODEL.build()).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        built.itm_head.weight.mul_(20)  # so that it has a say in the order
    return built


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    made = recipe(tmp_path_factory.mktemp("prep")).data.processor()
    return replace(made, image=replace(made.image, augment=None))


@pytest.fixture
def content(tmp_path: Path) -> Shards:
    return Shards.open(shards(tmp_path / "content", [Sample(f"{n}", png_image(n), texts(n)) for n in range(13)]))


def texts(number: int) -> tuple[str, ...]:
    return tuple(caption(9 * number + k, words=3 + k) for k in range(1 + number % 3))


@torch.inference_mode()
def naive(evaluated: Pairs, processor: Processor, content: Shards, rerank: int) -> dict[str, float]:
    """Compute one pair at a time, without batches or padding, and sort in Python."""
    rng, images, words = np.random.default_rng(0), [], []
    for number, sample in enumerate(content):
        images.append(evaluated.model.embed_image(processor.image(sample.image, rng)[None]))
        for text in sample.texts:
            ids = torch.from_numpy(processor.text.encode(text).ids)[None]
            words.append((number, evaluated.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))))
    owner = [number for number, _ in words]
    cosine, match = np.zeros((len(words), len(images))), np.zeros((len(words), len(images)))
    for row, (_, text) in enumerate(words):
        for column, image in enumerate(images):
            cosine[row, column] = float(evaluated.text_features(text)[0] @ evaluated.image_features(image)[0])
            match[row, column] = float(evaluated.match_logit(image, text))
    fused = float(evaluated.itc_heads[0].scale) * cosine + match
    result: dict[str, float] = {}
    numbers = list(range(len(images)))
    for way, first, second, query_of, candidate_of in (
        (TEXT_TO_IMAGE, cosine, fused, owner, numbers),
        (IMAGE_TO_TEXT, cosine.T, fused.T, numbers, owner),
    ):
        places: dict[str, list[int]] = {way: [], f"{way}/reranked": []}
        for query, own in enumerate(query_of):
            order = sorted(range(len(candidate_of)), key=lambda c: -first[query, c])
            again = sorted(order[:rerank], key=lambda c: -second[query, c]) + order[rerank:]
            for name, places_of in zip(places, (order, again), strict=True):
                places[name].append(min(place for place, c in enumerate(places_of) if candidate_of[c] == own))
        for name, found in places.items():
            result |= {f"{name}/R@{k}": sum(place < k for place in found) / len(found) for k in (1, 5, 10)}
    return result


@pytest.mark.parametrize("seed", range(2))
def test_metrics_equal_those_of_a_loop_over_all_pairs(processor: Processor, content: Shards, seed: int) -> None:
    evaluated = task(seed=seed)
    result = evaluate_retrieval(evaluated, EvaluationData(content, processor), PLAN)
    expected = naive(evaluated, processor, content, PLAN.rerank)
    assert result.metrics == pytest.approx(expected, abs=1e-6)
    for way in (TEXT_TO_IMAGE, IMAGE_TO_TEXT):
        assert any(expected[f"{way}/R@{k}"] != expected[f"{way}/reranked/R@{k}"] for k in (1, 5))
    assert (result.size, result.excluded) == ("13 images, 25 texts", ())


@pytest.mark.parametrize("plan", [Plan(1, 7, 0), Plan(4, 7, 1), Plan(64, 7, 2)], ids=str)
def test_metrics_do_not_depend_on_batch_size_and_workers(processor: Processor, content: Shards, plan: Plan) -> None:
    evaluated = task()
    assert evaluate_retrieval(evaluated, EvaluationData(content, processor), plan).metrics == pytest.approx(
        evaluate_retrieval(evaluated, EvaluationData(content, processor), PLAN).metrics
    )


def test_reranking_more_candidates_than_there_are(processor: Processor, content: Shards) -> None:
    evaluated = task()
    everything = evaluate_retrieval(evaluated, EvaluationData(content, processor), replace(PLAN, rerank=99)).metrics
    assert everything == pytest.approx(naive(evaluated, processor, content, 99), abs=1e-6)
    without = evaluate_retrieval(evaluated, EvaluationData(content, processor), replace(PLAN, rerank=0)).metrics
    assert without == {name: value for name, value in everything.items() if "reranked" not in name}


def test_each_image_is_embedded_once_per_pass(
    processor: Processor, content: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No forward pass has more images, texts or pairs than the batch size."""
    evaluated, batches = task(), {"image": [], "text": [], "pair": []}

    def counted(name: str, verb: Callable[..., object]) -> Callable[..., object]:
        def count(*inputs: Tensor, **options: object) -> object:
            batches[name].append(len(inputs[0]))
            return verb(*inputs, **options)

        return count

    verbs = (("image", "embed_image"), ("text", "embed_text"), ("pair", "fuse"))
    for name, verb in verbs:
        monkeypatch.setattr(evaluated.model, verb, counted(name, getattr(evaluated.model, verb)))
    evaluate_retrieval(evaluated, EvaluationData(content, processor), PLAN)
    assert sum(batches["image"]) == 2 * 13
    assert sum(batches["pair"]) == 25 * 7 + 13 * 7
    assert max(map(max, batches.values())) <= PLAN.batch_size


def test_nothing_is_reranked_without_itm(processor: Processor, content: Shards) -> None:
    found = evaluate_retrieval(task(PairsConfig(itm_weight=0.0)), EvaluationData(content, processor), PLAN).metrics
    assert found and not any("reranked" in name for name in found)


def test_training_mode_is_refused(processor: Processor, content: Shards) -> None:
    with pytest.raises(ValueError, match=r"training mode; call eval\(\)"):
        evaluate_retrieval(task().train(), EvaluationData(content, processor), PLAN)


def test_task_can_be_trained_after_evaluation(processor: Processor, content: Shards) -> None:
    """Caches of layers that were filled in inference mode still serve a backward pass."""
    joint_index.cache_clear()
    evaluated = task()
    evaluate_retrieval(evaluated, EvaluationData(content, processor), PLAN)
    rows = [evaluated.cfg.read(sample, processor, np.random.default_rng(0)) for sample in content[:4]]
    evaluated.train()(evaluated.cfg.collate(rows)).loss.backward()


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_samples_stop_or_are_excluded(processor: Processor, tmp_path: Path, workers: int) -> None:
    good = [Sample(f"{n}", png_image(n), texts(n)) for n in range(8)]
    torn, silent = replace(good[2], image=good[2].image[:50]), replace(good[6], texts=())
    broken = Shards.open(shards(tmp_path / "broken", [*good[:2], torn, *good[3:6], silent, good[7]]))
    plan = replace(PLAN, batch_size=3, num_workers=workers)
    with pytest.raises(ValueError, match=r"train-00000/2: .*cannot be decoded"):
        evaluate_retrieval(task(), EvaluationData(broken, processor), plan)
    result = evaluate_retrieval(task(), EvaluationData(broken, processor), replace(plan, exclude_broken=True))
    assert [each.key for each in result.excluded] == ["train-00000/2", "train-00000/6"]
    assert result.excluded[1].reason == "it has no text"
    whole = Shards.open(shards(tmp_path / "whole", [*good[:2], *good[3:6], good[7]]))
    assert result.metrics == pytest.approx(evaluate_retrieval(task(), EvaluationData(whole, processor), plan).metrics)
    assert result.size.startswith("6 images")
