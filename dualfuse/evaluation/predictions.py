"""Predictions for the samples of a set, and the files that evaluation servers take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualfuse.data.loader import Samples
from dualfuse.errors import DualfuseError
from dualfuse.io import to_json, write_json, write_text
from dualfuse.printable import csv_line


@dataclass(frozen=True)
class PredictedAnswer:
    """The most probable answer to the question of one sample."""

    key: str
    """Key of the sample."""
    id: str | int
    """Identifier of the question in its data set."""
    answer: str
    probability: float
    target: tuple[str, ...] = ()
    """The correct answer, or all that annotators gave; empty in an unlabelled set."""
    correct: float | None = None
    """Accuracy of this answer, from 0 to 1; None without a target."""
    loss: float | None = None
    """Loss of the predicted probabilities in nats, without label smoothing; None without a target among the answers."""


@dataclass(frozen=True)
class PredictedCaption:
    """The best caption of one image."""

    key: str
    """Key of the sample."""
    image_id: str | int
    """COCO's number of the image, or the key of the sample."""
    caption: str
    probability: float
    """Probability of the whole caption."""
    loss: float | None = None
    """Training loss, in nats per masked token, of one reference caption; None without a reference."""


@dataclass(frozen=True)
class RetrievedRank:
    """The rank of the target of one query; an image has its sample's key as identifier, its texts are KEY#0, KEY#1."""

    direction: str
    """text_to_image or image_to_text."""
    query: str
    rank: int
    """Rank of the best target among all candidates, from 1; ties count against the model."""
    best_wrong: str
    """The wrong candidate with the highest score; empty if every candidate is a target."""
    score: float
    """Score of the best target."""
    best_wrong_score: float | None
    reranked_rank: int | None = None
    """Rank after re-ranking; None without."""
    reranked_best_wrong: str = ""
    """The wrong one among the re-ranked candidates with the highest score after re-ranking."""


@dataclass(frozen=True)
class SampleLoss:
    """The loss of one sample."""

    key: str
    """Key of the sample."""
    loss: float


@dataclass(frozen=True)
class CaseMargin:
    """How far the true captions, or images, of a case score above the false ones; above 0 the case is correct."""

    key: str
    """Key of the case in its benchmark."""
    category: str
    dual: float | None
    """By the cosine of the embeddings; None for a model without."""
    fused: float | None
    """By the fusion encoder alone; None for a model without."""
    both: float | None
    """By the score that re-ranks; None unless the model has both."""


SetPrediction = PredictedAnswer | PredictedCaption | RetrievedRank | SampleLoss | CaseMargin


def write_predictions(predictions: Sequence[SetPrediction], path: Path, samples: Samples | None = None) -> None:
    """Write predictions in the format of the suffix of ``path``.

    - ".json": the list that servers take, of {"question_id", "answer"} (VQA) or {"image_id", "caption"} (COCO).
    - ".csv": lines IDENTIFIER,ANSWER (NLVR2); answers only.
    - ".jsonl": one object per line, with all fields and those that ``prepare --keep`` stored with the ``samples``.

    Ranks, losses of samples and margins of cases are written as ".jsonl", or as ".csv" with a heading.

    Raises DualfuseError for another suffix, and for what a server would refuse: two predictions with one identifier,
    or a VQA question whose identifier is not a number.
    """
    if not predictions:
        raise DualfuseError(f"{path}: there are no results to write; check the shards")
    results = [each for each in predictions if isinstance(each, RetrievedRank | SampleLoss | CaseMargin)]
    if path.suffix == ".jsonl":
        keys = {id(each): getattr(each, "key", "") for each in predictions}  # reason for getattr: ranks have none
        kept = _kept(set(keys.values()), samples) if samples and not results else {}
        lines = (to_json(vars(each) | kept.get(keys[id(each)], {})) for each in predictions)
        write_text(path, "".join(f"{line}\n" for line in lines))
    elif results:
        if path.suffix != ".csv":
            raise DualfuseError(f"{path} should end in .jsonl or .csv")
        table = [tuple(vars(results[0])), *(tuple(vars(each).values()) for each in results)]
        write_text(path, "".join(map(csv_line, table)))
    elif captions := [each for each in predictions if isinstance(each, PredictedCaption)]:
        _write_captions(captions, path)
    else:
        _write_answers([each for each in predictions if isinstance(each, PredictedAnswer)], path)


def _write_captions(captions: Sequence[PredictedCaption], path: Path) -> None:
    if path.suffix != ".json":
        raise DualfuseError(f"{path} should end in .json (COCO) or .jsonl (all fields)")
    _check_unique([caption.image_id for caption in captions], "images have more than one caption")
    entries = [{"image_id": caption.image_id, "caption": caption.caption} for caption in captions]
    write_text(path, to_json(entries) + "\n")


def _write_answers(answers: Sequence[PredictedAnswer], path: Path) -> None:
    if path.suffix not in (".json", ".csv"):
        raise DualfuseError(f"{path} should end in .json (VQA), .csv (NLVR2) or .jsonl (all fields)")
    ids = _check_unique([answer.id for answer in answers], "questions are answered more than once")
    if path.suffix == ".csv":
        write_text(path, "".join(csv_line((answer.id, answer.answer)) for answer in answers))
        return
    if strings := [name for name in ids if isinstance(name, str)]:
        raise DualfuseError(f'VQA\'s question ids are numbers, not {strings[0]!r}; samples need an "id" in their json')
    entries = [{"question_id": answer.id, "answer": answer.answer} for answer in answers]
    write_json(path, entries, indent=None)


def _kept(keys: Container[str], samples: Samples) -> dict[str, dict[str, object]]:
    """Return the original name and the kept fields of samples by key."""
    numbers = (number for number in range(len(samples)) if samples.key(number) in keys)
    return {samples.key(number): {"keep": kept} for number in numbers if (kept := samples[number].kept)}


def _check_unique(ids: Sequence[str | int], problem: str) -> Sequence[str | int]:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DualfuseError(f"{len(repeated)} {problem}, such as {repeated[0]!r}; check the shards")
    return ids
