"""Evaluate the two models of the demo on the test split, and collect what the page shows."""

from __future__ import annotations

import base64
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import dualfuse
from dualfuse.data.image.image_file import image_suffix
from dualfuse.data.processor import Processor
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.masking import word_positions
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import (
    IMAGE_TO_TEXT,
    TEXT_TO_IMAGE,
    Gallery,
    Retriever,
    TextBatch,
    evaluate_retrieval,
)
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.hub import LoadedModel
from dualfuse.metrics.recall import nearest, ranks, reranked_ranks
from dualfuse.report.demo.results import (
    Guess,
    ImageResult,
    Machine,
    MaskedWord,
    Number,
    Queries,
    Query,
    Recall,
    Retrieval,
    RetrievedImage,
)
from dualfuse.tasks.pretrain.pairs import Pairs
from dualfuse.tasks.pretrain.pairs_evaluation import evaluate_pairs

SHOWN = 5
"""Images that each example query shows."""
EACH = 6
"""Example queries whose image came first, and as many whose image did not."""
MASKED, GUESSES = 9, 3
SEED = 0
AT = (1, 5, 10)


def retrieval_results(joint: LoadedModel, control: LoadedModel, test: Shards, plan: Plan) -> Retrieval:
    """Return the recall of both models on ``test``, and that of the joint one after re-ranking."""
    counts = [len(sample.texts) for sample in test]
    both = evaluate_retrieval(joint.task, EvaluationData(test, joint.processor), plan).metrics
    alone = evaluate_retrieval(control.task, EvaluationData(test, control.processor), replace(plan, rerank=0)).metrics
    return Retrieval(
        images=len(counts),
        texts=sum(counts),
        candidates=plan.rerank,
        chance=chance(counts),
        itc_only=_recall(alone),
        joint=_recall(both),
        reranked=_recall(both, "reranked/"),
    )


def fusion_results(joint: LoadedModel, test: Shards, plan: Plan) -> tuple[Number, ...]:
    """Return the metrics of ITM and MLM of the joint model, from :func:`evaluate_pairs`."""
    accuracies = evaluate_pairs(_pairs(joint), EvaluationData(test, joint.processor), plan).metrics
    return tuple(Number(name, value) for name, value in accuracies.items())


def chance(counts: Sequence[int]) -> Recall:
    """Return the expected recall of a random ranking of images that have ``counts`` captions each."""
    texts = sum(counts)
    misses = [[math.comb(texts - count, k) / math.comb(texts, k) for count in counts] for k in _within(texts)]
    return Recall(
        text_to_image=tuple(k / len(counts) for k in _within(len(counts))),
        image_to_text=tuple(1 - sum(miss) / len(counts) for miss in misses),
    )


def images(test: Shards, found: Queries, masked: Iterable[MaskedWord]) -> tuple[ImageResult, ...]:
    """Return the images that the examples show, each once."""
    numbers = {query.target for query in found.drawn} | {example.image for example in masked}
    numbers |= {answer.image for query in found.drawn for answer in (*query.nearest, *query.reranked)}
    return tuple(_image(test, number) for number in sorted(numbers))


def machine(device: torch.device) -> Machine:
    """Return the versions and the hardware of this process."""
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
        raise DualfuseError(f"the demo evaluates models of the pairs task, not of {type(loaded.task).__name__}")
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


@torch.inference_mode()
def queries(joint: LoadedModel, shards: Shards, plan: Plan) -> Queries:
    """Search ``shards`` for every caption, re-rank ``plan.rerank`` images, and draw examples with a fixed seed.

    Half of the examples are queries whose image came first after re-ranking. Raises ``BrokenSample`` for unreadable
    samples.
    """
    task: Retriever = _pairs(joint)
    gallery = Gallery(task, EvaluationData(shards, joint.processor), plan)
    image, text, texts, owner = gallery.features()
    numbers = torch.arange(len(image), device=image.device)
    before = ranks(text, image, owner, numbers)
    cosine, index = nearest(text, image, max(plan.rerank, SHOWN))
    scores, _ = gallery.pair_scores(index, torch.zeros(len(image), 0, dtype=torch.long), texts)
    scores = task.rerank_score(cosine, scores)
    after = reranked_ranks(before, index == owner[:, None], scores)

    captions = [caption for sample in shards for caption in sample.texts]
    order = scores.argsort(dim=1, descending=True)
    drawn = tuple(
        Query(
            caption=captions[number],
            target=int(owner[number]),
            rank=int(before[number]),
            reranked_rank=int(after[number]),
            nearest=_best(index[number], cosine[number]),
            reranked=_best(index[number][order[number]], scores[number][order[number]]),
        )
        for number in draw(after.cpu().numpy() == 0, np.random.default_rng(SEED))
    )
    return Queries(drawn, first=int((after == 0).sum()), texts=len(captions))


def draw(is_first: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Return ``EACH`` random positions where ``is_first`` (M,) is true, then as many where it is false.

    If there are too few of one kind, more of the other are drawn.
    """
    kinds = [rng.permutation(np.flatnonzero(is_first)), rng.permutation(np.flatnonzero(~is_first))]
    available = [min(EACH, len(kind)) for kind in kinds]
    takes = [2 * EACH - available[1], 2 * EACH - available[0]]
    return [int(number) for kind, take in zip(kinds, takes, strict=True) for number in kind[:take]]


def _best(index: Tensor, scores: Tensor) -> tuple[RetrievedImage, ...]:
    pairs = zip(index[:SHOWN].tolist(), scores[:SHOWN].tolist(), strict=True)
    return tuple(RetrievedImage(number, round(score, 3)) for number, score in pairs)


@torch.inference_mode()
def masked_words(joint: LoadedModel, shards: Shards) -> tuple[MaskedWord, ...]:
    """Mask one word in captions of two words or more, drawn with a fixed seed, and return the most likely words.

    Only words of a single token are masked, so that each guess is a word.
    """
    task, processor = _pairs(joint), joint.processor
    device = next(task.parameters()).device
    rng = np.random.default_rng(SEED)
    found: list[MaskedWord] = []
    for number in rng.permutation(len(shards)).tolist():
        for caption in shards[number].texts[:1]:
            found += [
                _guess(task, processor, shards, number, masked, device) for masked in _mask(processor, caption, rng)
            ]
        if len(found) == MASKED:
            break
    return tuple(found)


def _mask(processor: Processor, caption: str, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the tokens and the position to mask; nothing for a caption without a word of a single token."""
    words = processor.text.encode(caption)
    groups = word_positions(words)
    single = [group[0] for group in groups if len(group) == 1 and processor.text.decode(words.ids[group]).isalpha()]
    if len(groups) > 1 and single:
        yield words.ids, int(rng.choice(single))


def _guess(
    task: Pairs, processor: Processor, shards: Shards, number: int, masked: tuple[np.ndarray, int], device: torch.device
) -> MaskedWord:
    ids, position = masked
    hidden = ids.copy()
    hidden[position] = processor.text.mask_id
    texts = TextBatch.of([hidden]).take(torch.tensor([0]), device)
    pixels = processor.image(shards[number].image, np.random.default_rng(SEED))
    image = task.model.embed_image(pixels[None].to(device))
    text = task.model.embed_text(texts.ids, texts.mask)
    states = task.model.fuse(image, text, positions=torch.tensor([[position]], device=device)).text[0]
    top = task.mlm_head(states).float().softmax(1)[0].topk(GUESSES)
    return MaskedWord(
        image=number,
        caption=" ".join(
            filter(None, (processor.text.decode(ids[:position]), "[MASK]", processor.text.decode(ids[position + 1 :])))
        ),
        word=processor.text.decode(ids[position : position + 1]),
        guesses=tuple(
            Guess(processor.text.decode([token]) or "(special)", round(probability, 4))
            for token, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ),
    )
