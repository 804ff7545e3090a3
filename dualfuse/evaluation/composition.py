"""Evaluation on composition benchmarks: true captions against false ones that differ in little, or by two images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualfuse.data.loader import Samples
from dualfuse.data.processor import Processor
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.composition_result import CaseResult, CompositionResult, rows_of
from dualfuse.evaluation.retrieval import Gallery, evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.metrics.composition import PAIR_CHANCE, caption_chance, caption_margin, pair_margins

if TYPE_CHECKING:
    from dualfuse.tasks.base import Task

TEXT_ONLY = "/text-only"
"""End of the name of a row about captions alone: two true ones are more similar to each other than to the false one."""


@dataclass(frozen=True)
class CompositionCase:
    """One image with true and false captions, or two images with one caption each.

    ``images`` are numbers of samples; ``captions`` are numbers of the texts of the samples: for each caption the sample
    that holds it and the place among its texts. Of one image, the first ``true`` captions are true; of two, caption i
    is true of image i. ``group`` is what a macro accuracy averages over, such as a relation; empty: none.
    """

    key: str
    category: str
    images: tuple[int, ...]
    captions: tuple[tuple[int, int], ...]
    true: int = 1
    group: str = ""


@dataclass(frozen=True)
class Benchmark:
    """The cases of a benchmark, the samples with their images and captions, and sets for retrieval by name."""

    name: str
    cases: tuple[CompositionCase, ...] = ()
    samples: Samples | None = None
    galleries: Mapping[str, Samples] = field(default_factory=dict[str, Samples])


@torch.inference_mode()
def evaluate_composition(task: Task, benchmark: Benchmark, processor: Processor, plan: Plan) -> CompositionResult:
    """Score every case by each of the ways that the task was trained for, and retrieve in the sets for retrieval.

    dual: the cosine of the embeddings; fused: the logit of the fusion encoder; both: the score that re-ranks, their
    sum. A case is correct if its true captions score above the false ones; ties count against the model. A case with an
    image that cannot be read raises ``BrokenSample``; with ``plan.exclude_broken`` it is excluded and reported. Raises
    DualfuseError for a task with neither embeddings nor matching, and for a task in training mode.
    """
    if not task.can_match:
        task.check_search()
    results = list[CompositionResult]()
    if benchmark.samples is not None and benchmark.cases:
        results.append(_evaluate_cases(task, benchmark, benchmark.samples, processor, plan))
    for name, samples in benchmark.galleries.items():
        task.check_search()
        retrieved = evaluate_retrieval(task, EvaluationData(samples, processor), plan)
        results.append(CompositionResult.of_retrieval(name, retrieved))
    if not results:
        raise DualfuseError(f"{benchmark.name} has no cases; check its files")
    return CompositionResult.joined(results)


def _evaluate_cases(
    task: Task, benchmark: Benchmark, samples: Samples, processor: Processor, plan: Plan
) -> CompositionResult:
    gallery = Gallery(task, EvaluationData(samples, processor), plan)
    scorer = _Scorer(task, gallery, samples)
    cases = [case for case in benchmark.cases if scorer.has(case)]
    if not cases:
        raise DualfuseError(f"every case of {benchmark.name} has an image that cannot be read")
    scores = scorer.scores(cases)
    results = [_case_result(case, {way: scores[way][number] for way in scores}) for number, case in enumerate(cases)]
    rows = rows_of(results)
    if scorer.embeddings is not None and all(case.true == 2 for case in cases):
        rows += rows_of([_text_only(case, scorer) for case in cases], TEXT_ONLY)
    size = f"{len(cases):,} of {len(benchmark.cases):,} cases, {len(gallery.keys):,} images"
    return CompositionResult(tuple(rows), size, gallery.result({}, size).excluded, tuple(results))


class _Scorer:
    """The scores of pairs of images and captions; every image is read once per way, every caption embedded once."""

    def __init__(self, task: Task, gallery: Gallery, samples: Samples) -> None:
        self.task, self.gallery = task, gallery
        self.embeddings: tuple[Tensor, Tensor] | None = None
        """Embeddings of images (N, D) and captions (M, D)."""
        if task.can_search:
            image, text, self.texts, owner = gallery.features()
            self.embeddings = image, text
        else:
            self.texts, owner = gallery.texts()
        numbers = {samples.key(number): number for number in range(len(samples))}
        read = [numbers[key] for key in gallery.keys]
        self.image_of = {number: position for position, number in enumerate(read)}
        first = torch.searchsorted(owner.cpu(), torch.arange(len(read))).tolist()
        self.first_text = dict(zip(read, first, strict=True))

    def has(self, case: CompositionCase) -> bool:
        """Return whether all images of a case could be read."""
        return all(image in self.image_of for image in case.images)

    def text(self, caption: tuple[int, int]) -> int:
        """Return the number of a caption among all texts."""
        sample, place = caption
        return self.first_text[sample] + place

    def scores(self, cases: Sequence[CompositionCase]) -> dict[str, list[Tensor]]:
        """Return by way the scores (I, C) of each case's images and captions."""
        pairs = [
            (self.image_of[image], self.text(caption))
            for case in cases
            for image in case.images
            for caption in case.captions
        ]
        image, text = torch.tensor(pairs).unbind(1)
        shapes = [(len(case.images), len(case.captions)) for case in cases]
        sizes = [images * captions for images, captions in shapes]
        return {
            way: [part.view(shape) for part, shape in zip(flat.cpu().split(sizes), shapes, strict=True)]
            for way, flat in self._ways(image, text).items()
        }

    def _ways(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Return the scores (P,) of pairs by way."""
        ways: dict[str, Tensor] = {}
        if self.embeddings is not None:
            images, texts = self.embeddings
            ways["dual"] = (images[image.to(images.device)] * texts[text.to(texts.device)]).sum(1)
        if self.task.can_match:
            ways["fused"] = self.gallery.score_pairs(image, text, self.texts)
        if len(ways) == 2:
            cosine, match = ways["dual"], ways["fused"]
            ways["fused"], ways["both"] = self.task.fused_score(cosine, match), self.task.rerank_score(cosine, match)
        return ways


def _case_result(case: CompositionCase, scores: Mapping[str, Tensor]) -> CaseResult:
    """Return the margins of one case by way; those of two images by the score they count for."""
    if len(case.images) == 1:
        margins = {"": {way: caption_margin(each[0], case.true) for way, each in scores.items()}}
        chance = {"": caption_chance(len(case.captions), case.true)}
    else:
        pairs = {way: pair_margins(each) for way, each in scores.items()}
        names = PAIR_CHANCE._fields
        margins = {f"/{name}": {way: getattr(pairs[way], name) for way in pairs} for name in names}
        chance = {f"/{name}": getattr(PAIR_CHANCE, name) for name in names}
    return CaseResult(case.key, case.category, case.group, margins, chance)


def _text_only(case: CompositionCase, scorer: _Scorer) -> CaseResult:
    """Return the margin of the cosine of two true captions above those of either with the false one (SugarCrepe++)."""
    assert scorer.embeddings is not None  # by the caller
    first, second, false = scorer.embeddings[1][[scorer.text(caption) for caption in case.captions]]
    margin = float(first @ second - torch.stack((first @ false, second @ false)).max())
    return CaseResult(case.key, case.category, "", {"": {"dual": margin}}, {"": 1 / 3})
