"""Evaluate the models of the demo on the test split, and collect what the page shows."""

from __future__ import annotations

import base64
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import dualfuse
from dualfuse.data.image.image_file import image_suffix
from dualfuse.data.loader import Samples
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.masking import word_positions
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, Gallery
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.hub import LoadedModel
from dualfuse.metrics.recall import nearest, ranks, reranked_ranks
from dualfuse.report.demo.results import ImageResult, MaskedWord, Named, Query, Recall, Retrieval, Scored
from dualfuse.report.demo.wording import AT

SHOWN = 5
"""Images that each example query shows."""
EACH = 6
"""Example queries whose image came first, and as many whose image did not."""
MASKED, GUESSES = 9, 3
SEED = 0


def metrics(
    joint: LoadedModel, control: LoadedModel | None, test: Shards, plan: Plan
) -> tuple[Retrieval, tuple[Named, ...]]:
    """Return the recall of the models on ``test``, that of the joint one after re-ranking, and its ITM and MLM."""
    counts = [len(sample.texts) for sample in test]
    both = joint.task.evaluate(EvaluationData(test, joint.processor), replace(plan, all_metrics=True)).metrics
    retrieval = Retrieval(
        images=len(counts),
        texts=sum(counts),
        candidates=plan.rerank,
        chance=chance(counts),
        itc_only=None if control is None else dual_recall(control, test, plan),
        joint=_recall(both),
        reranked=_recall(both, "reranked/"),
    )
    return retrieval, tuple((name, value) for name, value in both.items() if name.startswith(("itm/", "mlm/")))


def dual_recall(loaded: LoadedModel, test: Shards, plan: Plan) -> Recall:
    """Return the recall of a dual encoder on ``test``."""
    return _recall(loaded.task.evaluate(EvaluationData(test, loaded.processor), replace(plan, rerank=0)).metrics)


def chance(counts: Sequence[int]) -> Recall:
    """Return the expected recall of a random ranking of images that have ``counts`` captions each."""
    images, texts = len(counts), sum(counts)
    misses = [
        [math.comb(texts - count, k) / math.comb(texts, k) for count in counts] for k in (min(k, texts) for k in AT)
    ]
    return Recall(
        text_to_image=tuple(min(k, images) / images for k in AT),
        image_to_text=tuple(1 - sum(miss) / images for miss in misses),
    )


def images(test: Shards, drawn: Iterable[Query], masked: Iterable[MaskedWord] = ()) -> tuple[ImageResult, ...]:
    """Return the images that the examples show, each once."""
    numbers = {example.image for example in masked}
    for query in drawn:
        numbers |= {query.target, *(image for image, _ in (*query.nearest, *query.reranked))}
    return tuple(_image(test, number) for number in sorted(numbers))


def machine(device: torch.device) -> tuple[tuple[str, str], ...]:
    """Return the versions and the hardware of this process, by name."""
    return (
        ("dualfuse", dualfuse.__version__),
        ("torch", torch.__version__),
        ("Python", platform.python_version()),
        ("device", torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"),
        ("processors", str(os.cpu_count() or 1)),
        ("threads", str(torch.get_num_threads())),
    )


def _recall(metrics: Mapping[str, float], how: str = "") -> Recall:
    return Recall(*(tuple(metrics[f"{way}/{how}R@{k}"] for k in AT) for way in (TEXT_TO_IMAGE, IMAGE_TO_TEXT)))


def _image(test: Shards, number: int) -> ImageResult:
    sample = test[number]
    kind = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}[image_suffix(sample.image)]
    return ImageResult(number, kind, base64.b64encode(sample.image).decode(), sample.texts[0])


@torch.inference_mode()
def queries(joint: LoadedModel, shards: Samples, plan: Plan) -> tuple[Query, ...]:
    """Search ``shards`` for every caption, re-rank ``plan.rerank`` images, and draw examples with a fixed seed.

    Half of the examples are queries whose image came first after re-ranking, which 0 omits. Raises ``BrokenSample`` for
    unreadable samples.
    """
    gallery = Gallery(joint.task, EvaluationData(shards, joint.processor), plan)
    image, text, texts, owner = gallery.features()
    numbers = torch.arange(len(image), device=image.device)
    before = ranks(text, image, owner, numbers)
    cosine, index = nearest(text, image, max(plan.rerank, SHOWN))
    scores, after = cosine, before
    if plan.rerank:
        fused, _ = gallery.pair_scores(index, torch.zeros(len(image), 0, dtype=torch.long), texts)
        scores = joint.task.rerank_score(cosine, fused)
        after = reranked_ranks(before, index == owner[:, None], scores)

    captions = [caption for number in range(len(shards)) for caption in shards[number].texts]
    order = scores.argsort(dim=1, descending=True)
    return tuple(
        Query(
            caption=captions[number],
            target=int(owner[number]),
            rank=int(before[number]),
            reranked_rank=int(after[number]),
            nearest=_best(index[number], cosine[number]),
            reranked=_best(index[number][order[number]], scores[number][order[number]]) if plan.rerank else (),
        )
        for number in draw(after.cpu().numpy() == 0, np.random.default_rng(SEED))
    )


def draw(is_first: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Return ``EACH`` random positions where ``is_first`` (M,) is true, then as many where it is false.

    If there are too few of one kind, more of the other are drawn.
    """
    kinds = [rng.permutation(np.flatnonzero(is_first)), rng.permutation(np.flatnonzero(~is_first))]
    available = [min(EACH, len(kind)) for kind in kinds]
    takes = [2 * EACH - available[1], 2 * EACH - available[0]]
    return [int(number) for kind, take in zip(kinds, takes, strict=True) for number in kind[:take]]


def _best(index: Tensor, scores: Tensor) -> tuple[Scored, ...]:
    pairs = zip(index[:SHOWN].tolist(), scores[:SHOWN].tolist(), strict=True)
    return tuple((number, round(score, 3)) for number, score in pairs)


@torch.inference_mode()
def masked_words(joint: LoadedModel, shards: Shards) -> tuple[MaskedWord, ...]:
    """Mask one word in captions of two words or more, drawn with a fixed seed, and return the most likely words.

    Only words of a single token are masked, so that each guess is a word.
    """
    rng, examples = np.random.default_rng(SEED), list[MaskedWord]()
    for number in rng.permutation(len(shards)).tolist():
        sample = shards[number]
        if masked := mask(joint.processor.text, sample.texts[0], rng):
            caption, word = masked
            read = joint.task.read_input(replace(sample, texts=(caption,)), joint.processor)
            [answer] = joint.task.predict([read], joint.processor, GUESSES)[0].words
            guesses = tuple((each.answer, round(each.probability, 4)) for each in answer)
            examples.append(MaskedWord(number, caption, word, guesses))
        if len(examples) == MASKED:
            break
    return tuple(examples)


def mask(text: TextTransform, caption: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """Return the caption with [MASK] in place of a word of a single token, and that word; None if there is none."""
    words = text.encode(caption)
    groups = word_positions(words)
    single = [group[0] for group in groups if len(group) == 1 and text.decode(words.ids[group]).isalpha()]
    if len(groups) < 2 or not single:
        return None
    place = int(rng.choice(single))
    before, word, after = (text.decode(ids) for ids in np.split(words.ids, (place, place + 1)))
    return " ".join(filter(None, (before, "[MASK]", after))), word
