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
from dualfuse.data.picture_file import picture_suffix
from dualfuse.data.shards import Shards
from dualfuse.engine.evaluate import IMAGE_TO_TEXT, TEXT_TO_IMAGE, Plan, evaluate
from dualfuse.engine.pair_accuracy import pair_accuracy
from dualfuse.hub import Loaded
from dualfuse.report.masked import masked_words
from dualfuse.report.queries import queries
from dualfuse.report.results import Machine, MaskedWord, Number, Picture, Queries, Recall, Retrieval
from dualfuse.tasks.pairs import Pairs

AT = (1, 5, 10)


def judge_retrieval(joint: Loaded, control: Loaded, test: Shards, plan: Plan) -> Retrieval:
    """Searches ``test`` with both models, and re-ranks ``plan.rerank`` candidates with the joint one."""
    counts = [len(sample.texts) for sample in test]
    both = evaluate(_pairs(joint), joint.prep, test, plan).metrics
    alone = evaluate(_pairs(control), control.prep, test, replace(plan, rerank=0)).metrics
    return Retrieval(
        pictures=len(counts),
        texts=sum(counts),
        candidates=plan.rerank,
        chance=chance(counts),
        contrast_only=_recall(alone),
        joint=_recall(both),
        reranked=_recall(both, "reranked/"),
    )


def judge_fusion(joint: Loaded, test: Shards, plan: Plan) -> tuple[Number, ...]:
    """Gives what :func:`pair_accuracy` says about the joint model."""
    accuracies = pair_accuracy(_pairs(joint), joint.prep, test, plan)
    return tuple(Number(name, value) for name, value in accuracies.items())


def show_queries(joint: Loaded, test: Shards, plan: Plan) -> Queries:
    """Draws example queries."""
    return queries(_pairs(joint), joint.prep, test, plan)


def show_masked(joint: Loaded, test: Shards) -> tuple[MaskedWord, ...]:
    """Draws examples of masked words."""
    return masked_words(_pairs(joint), joint.prep, test)


def chance(counts: Sequence[int]) -> Recall:
    """Gives the recall of a random order of pictures that have ``counts`` captions each."""
    texts = sum(counts)
    misses = [[math.comb(texts - count, k) / math.comb(texts, k) for count in counts] for k in _within(texts)]
    return Recall(
        text_to_image=tuple(k / len(counts) for k in _within(len(counts))),
        image_to_text=tuple(1 - sum(miss) / len(counts) for miss in misses),
    )


def pictures(test: Shards, found: Queries, masked: Iterable[MaskedWord]) -> tuple[Picture, ...]:
    """Gives every picture that the examples show, once."""
    numbers = {query.right for query in found.drawn} | {example.picture for example in masked}
    numbers |= {answer.picture for query in found.drawn for answer in (*query.nearest, *query.reranked)}
    return tuple(_picture(test, number) for number in sorted(numbers))


def machine(device: torch.device) -> Machine:
    """Says what this process runs with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return Machine(
        dualfuse=dualfuse.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        device=name,
        cpus=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
    )


def _pairs(loaded: Loaded) -> Pairs:
    if not isinstance(loaded.task, Pairs):
        raise ValueError(f"the demo judges models of the pairs task, not of {type(loaded.task).__name__}")
    return loaded.task


def _recall(metrics: Mapping[str, float], how: str = "") -> Recall:
    ways = ([metrics[f"{way}/{how}R@{k}"] for k in AT] for way in (TEXT_TO_IMAGE, IMAGE_TO_TEXT))
    return Recall(*map(tuple, ways))


def _within(candidates: int) -> list[int]:
    return [min(k, candidates) for k in AT]


def _picture(test: Shards, number: int) -> Picture:
    sample = test[number]
    kind = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}[picture_suffix(sample.image)]
    return Picture(number, kind, base64.b64encode(sample.image).decode(), sample.texts[0])
