"""VQAv2, as published: a file of questions and one of answers for each part, and COCO's images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from sys import intern
from typing import Any

from dualfuse.errors import DualfuseError
from dualfuse.metrics.vqa import COMMON, normalise
from dualfuse.metrics.vqa import vocabulary as most_common_answers
from dualfuse.prepare.sources.image_finder import ImageFinder, around
from dualfuse.prepare.sources.questions.common import DuplicateFinder, entries
from dualfuse.prepare.sources.source import Item, Source

ANSWERED, UNANSWERED = ("train2014", "val2014"), ("test-dev2015", "test2015")
HELD_OUT = 1000  # images at the end of val2014 for validation; the others are trained on (ViLT, METER, VLMo)
UNKNOWN = "none of its answers is in the vocabulary"

Question = tuple[int, int, str]  # its id, the id of its image, the text


@dataclass(frozen=True)
class _Answers:
    """The answers of people to one question."""

    all: tuple[str, ...]
    most_common: str
    kind: str


Answers = Mapping[int, _Answers]  # by the id of the question


def question_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of questions in a folder."""
    return tuple(sorted(folder.glob("v2_OpenEnded_mscoco_*_questions.json")))


def load(folder: Path, images: Path | None, vocabulary: tuple[str, ...]) -> Source:
    """Return each question as an item: splits train, trainable_val and rest_val, test_dev and test (those not in dev).

    ``images`` is the parent of ``train2014``, ``val2014``, ``test2015``; by default, they are searched in and around
    ``folder``. ``vocabulary`` holds the answers; empty: they are determined by the published rule. Training questions
    without an answer in the vocabulary are skipped, as published; those of val are kept and count as wrong.
    """
    annotations = {part: _annotations(folder, part) for part in ANSWERED if _has(folder, part)}
    answers = {part: by_question for part, (by_question, _) in annotations.items()}
    replaced = {part: numbers for part, (_, numbers) in annotations.items()}
    questions = {part: _questions(folder, part) for part in (*ANSWERED, *UNANSWERED) if _has(folder, part)}
    common = (answer.most_common for part in answers.values() for answer in part.values())
    names = vocabulary or most_common_answers(common)
    files = {"answers.txt": "".join(f"{name}\n" for name in names)} if names else {}
    find = ImageFinder(*((images,) if images else around(folder, "images")))
    in_dev = {number for number, _, _ in questions.get(UNANSWERED[0], ())}
    test = questions.get(UNANSWERED[1], ())
    questions[UNANSWERED[1]] = [question for question in test if question[0] not in in_dev]
    total = sum(map(len, questions.values()))
    shared = len(test) - len(questions[UNANSWERED[1]])
    remarks = _remarks(folder, tuple(answers), f"{len(names):,}", own=not vocabulary, shared=shared)
    return Source(_items(questions, answers, replaced, _Vocabulary(names), find), total, files, remarks)


class _Vocabulary:
    """Test whether answers are in the vocabulary, with a cache."""

    def __init__(self, names: Sequence[str]) -> None:
        vocabulary = frozenset(names)
        self._contains: Callable[[str], bool] = cache(lambda answer: normalise(answer) in vocabulary)

    def contains_any(self, answers: Sequence[str]) -> bool:
        return any(map(self._contains, answers))


def _file(folder: Path, part: str) -> Path:
    return folder / f"v2_OpenEnded_mscoco_{part}_questions.json"


def _has(folder: Path, part: str) -> bool:
    """Return whether a part exists; raises ``DualfuseError`` if only one of its two files does."""
    questions, annotations = _file(folder, part), folder / f"v2_mscoco_{part}_annotations.json"
    if part in ANSWERED and questions.is_file() != annotations.is_file():
        existing, missing = (questions, annotations) if questions.is_file() else (annotations, questions)
        raise DualfuseError(f"{existing} exists without {missing.name}; download the latter, or move the former")
    return questions.is_file()


def _questions(folder: Path, part: str) -> list[Question]:
    def reduce(entry: dict[str, Any]) -> object:
        return (entry["question_id"], entry["image_id"], entry["question"]) if "question" in entry else entry

    return entries(_file(folder, part), "questions", reduce)


def _annotations(folder: Path, part: str) -> tuple[Answers, Sequence[int]]:
    """Return the answers, and the ids of those that later ones to the same question replace."""

    def reduce(entry: dict[str, Any]) -> object:
        if "answer_id" in entry:
            return intern(entry["answer"])
        if "question_id" in entry:
            answers = _Answers(tuple(entry["answers"]), intern(entry["multiple_choice_answer"]), entry["answer_type"])
            return entry["question_id"], answers
        return entry

    pairs = entries(folder / f"v2_mscoco_{part}_annotations.json", "annotations", reduce)
    answers = dict(pairs)
    return answers, list((Counter(number for number, _ in pairs) - Counter(answers.keys())).elements())


def _remarks(folder: Path, answered: tuple[str, ...], size: str, *, own: bool, shared: int) -> tuple[str, ...]:
    missing = [_file(folder, part).name for part in (*ANSWERED, *UNANSWERED) if not _file(folder, part).is_file()]
    rule = f"the most common answer of {COMMON} or more questions of {' and '.join(answered)}" if own else "as given"
    hint = "; the published 3,129 need train2014 and val2014" if own and answered != ANSWERED else ""
    return tuple(
        filter(
            None,
            (
                f"answers.txt: {size} answers, {rule}{hint}" if answered else "",
                f"{shared:,} questions of test2015 are also in test-dev2015; they are in test_dev" if shared else "",
                f"missing: {', '.join(missing)}" if missing else "",
            ),
        )
    )


def _items(
    questions: Mapping[str, Sequence[Question]],
    answers: Mapping[str, Answers],
    replaced: Mapping[str, Sequence[int]],
    vocabulary: _Vocabulary,
    find: ImageFinder,
) -> Iterator[Item]:
    duplicates = DuplicateFinder()
    for part, part_questions in questions.items():
        split_of = _splits(part, part_questions)
        for question in part_questions:
            number, image, text = question
            folder = part.replace("test-dev", "test")
            name = f"{folder}/COCO_{folder}_{image:012d}.jpg"
            problem, note = duplicates.check(number, name, text)
            split = split_of(image)
            meta: dict[str, object] = {"id": number, "image_id": image}
            target: dict[str, object] = {}
            given = answers[part].get(number) if part in answers else None
            if given:
                target, meta = {"answers": given.all}, meta | {"answer_type": given.kind}
            elif part in answers:
                problem = problem or "nobody answered it"
            if given and not vocabulary.contains_any(given.all):
                problem, note = (problem or UNKNOWN, note) if split == "train" else (problem, note or UNKNOWN)
            yield Item(name, find(name), (text,), split, meta, problem, label=target, note=note)
        numbers = {number for number, _, _ in part_questions}
        unused = [(number, "answers without a question") for number in answers.get(part, ()) if number not in numbers]
        unused += [(number, "other answers to the same question follow") for number in replaced.get(part, ())]
        for number, problem in unused:
            yield Item(f"v2_mscoco_{part}_annotations.json", b"", meta={"id": number}, problem=problem)


def _splits(part: str, questions: Sequence[Question]) -> Callable[[int], str]:
    """Return the function from an image number to its split, for the images of ``part``."""
    if part != "val2014":
        name = {"train2014": "train", "test-dev2015": "test_dev", "test2015": "test"}[part]
        return lambda image: name
    held_out = frozenset(list(dict.fromkeys(image for _, image, _ in questions))[-HELD_OUT:])
    return lambda image: "rest_val" if image in held_out else "trainable_val"
