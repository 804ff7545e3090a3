"""Judges the demo's two models on the test split, and puts together what its page says."""

from __future__ import annotations

import base64
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

import dualfuse
from dualfuse.data.image.image_file import image_suffix
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.hub import LoadedModel
from dualfuse.report.demo.masked import masked_words
from dualfuse.report.demo.queries import queries
from dualfuse.report.demo.results import ImageResult, Machine, MaskedWord, Number, Queries, Recall, Retrieval
from dualfuse.tasks.pretrain.pairs import Pairs
from dualfuse.tasks.pretrain.pairs_evaluation import evaluate_pairs

AT = (1, 5, 10)


def judge_retrieval(joint: LoadedModel, control: LoadedModel, test: Shards, plan: Plan) -> Retrieval:
    """Search ``test`` with both models, and re-ranks ``plan.rerank`` candidates with the joint one."""
    counts = [len(sample.texts) for sample in test]
    both = evaluate_retrieval(joint.task, EvaluationData(test, joint.processor), plan).metrics
    alone = evaluate_retrieval(control.task, EvaluationData(test, control.processor), replace(plan, rerank=0)).metrics
    return Retrieval(
        images=len(counts),
        texts=sum(counts),
        candidates=plan.rerank,
        chance=chance(counts),
        contrast_only=_recall(alone),
        joint=_recall(both),
        reranked=_recall(both, "reranked/"),
    )


def judge_fusion(joint: LoadedModel, test: Shards, plan: Plan) -> tuple[Number, ...]:
    """Return what :func:`pair_accuracy` says about the joint model."""
    accuracies = evaluate_pairs(_pairs(joint), EvaluationData(test, joint.processor), plan).metrics
    return tuple(Number(name, value) for name, value in accuracies.items())


def show_queries(joint: LoadedModel, test: Shards, plan: Plan) -> Queries:
    """Draw example queries."""
    return queries(joint.task, joint.processor, test, plan)


def show_masked(joint: LoadedModel, test: Shards) -> tuple[MaskedWord, ...]:
    """Draw examples of masked words."""
    return masked_words(_pairs(joint), joint.processor, test)


def chance(counts: Sequence[int]) -> Recall:
    """Return the recall of a random order of images that have ``counts`` captions each."""
    texts = sum(counts)
    misses = [[math.comb(texts - count, k) / math.comb(texts, k) for count in counts] for k in _within(texts)]
    return Recall(
        text_to_image=tuple(k / len(counts) for k in _within(len(counts))),
        image_to_text=tuple(1 - sum(miss) / len(counts) for miss in misses),
    )


def images(test: Shards, found: Queries, masked: Iterable[MaskedWord]) -> tuple[ImageResult, ...]:
    """Return every image that the examples show, once."""
    numbers = {query.right for query in found.drawn} | {example.image for example in masked}
    numbers |= {answer.image for query in found.drawn for answer in (*query.nearest, *query.reranked)}
    return tuple(_image(test, number) for number in sorted(numbers))


def machine(device: torch.device) -> Machine:
    """Return what this process runs with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return Machine(
        dualfuse=dualfuse.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        device=name,
        cpus=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
    )


def _pairs(loaded: LoadedModel) -> Pairs:
    if not isinstance(loaded.task, Pairs):
        raise DualfuseError(f"the demo judges models of the pairs task, not of {type(loaded.task).__name__}")
    return loaded.task


def _recall(metrics: Mapping[str, float], how: str = "") -> Recall:
    ways = ([metrics[f"{way}/{how}R@{k}"] for k in AT] for way in (TEXT_TO_IMAGE, IMAGE_TO_TEXT))
    return Recall(*map(tuple, ways))


def _within(candidates: int) -> list[int]:
    return [min(k, candidates) for k in AT]


def _image(test: Shards, number: int) -> ImageResult:
    sample = test[number]
    kind = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}[image_suffix(sample.image)]
    return ImageResult(number, kind, base64.b64encode(sample.image).decode(), sample.texts[0])
