"""VQAv2 as its owners publish it: a json of questions and one of answers for each part, and COCO's images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from sys import intern
from typing import Any

from dualfuse.errors import DualfuseError
from dualfuse.metrics.vqa import COMMON, normalise, vocabulary
from dualfuse.prepare.sources.image_finder import ImageFinder, around
from dualfuse.prepare.sources.item import Item
from dualfuse.prepare.sources.json_files import entries
from dualfuse.prepare.sources.repeats import Repeats
from dualfuse.prepare.sources.source import Source

ANSWERED, ASKED = ("train2014", "val2014"), ("test-dev2015", "test2015")
APART = 1000  # images at the end of val2014 that judge while the others are trained on (ViLT, METER, VLMo)
UNKNOWN = "none of its answers is in the vocabulary"

Question = tuple[int, int, str]  # its id, the id of its image, the text


@dataclass(frozen=True)
class _Answers:
    """What people said to one question."""

    all: tuple[str, ...]
    most_common: str
    kind: str


Answers = Mapping[int, _Answers]  # by the id of the question


def question_files(folder: Path) -> tuple[Path, ...]:
    """Return the json files of questions in a folder."""
    return tuple(sorted(folder.glob("v2_OpenEnded_mscoco_*_questions.json")))


def load(folder: Path, images: Path | None, known: tuple[str, ...]) -> Source:
    """Return each question as an item: splits train, trainable_val and rest_val, test_dev and test (those not in dev).

    ``images`` is the folder around ``train2014``, ``val2014``, ``test2015``; without it they are looked for in and
    around ``folder``. ``known`` are the answers of the vocabulary; none: they are found by the published rule. Training
    questions without a known answer are left out, as published; of val they are kept, because they count as wrong.
    """
    answers = {part: _answers(folder, part) for part in ANSWERED if _has(folder, part)}
    questions = {part: _questions(folder, part) for part in (*ANSWERED, *ASKED) if _has(folder, part)}
    common = (answer.most_common for part in answers.values() for answer in part.values())
    names = known or vocabulary(common)
    files = {"answers.txt": "".join(f"{name}\n" for name in names)} if names else {}
    find = ImageFinder(*((images,) if images else around(folder, "images")))
    in_dev = {number for number, _, _ in questions.get(ASKED[0], ())}
    test = questions.get(ASKED[1], ())
    questions[ASKED[1]] = [question for question in test if question[0] not in in_dev]
    total = sum(map(len, questions.values()))
    twice = len(test) - len(questions[ASKED[1]])
    remarks = _remarks(folder, tuple(answers), f"{len(names):,}", own=not known, twice=twice)
    return Source(_items(questions, answers, _Known(names), find), total, files, remarks)


class _Known:
    """Tells whether answers are in the vocabulary; the same few thousand come again and again."""

    def __init__(self, names: Sequence[str]) -> None:
        known = frozenset(names)
        self._knows: Callable[[str], bool] = cache(lambda answer: normalise(answer) in known)

    def any(self, answers: Sequence[str]) -> bool:
        return any(map(self._knows, answers))


def _file(folder: Path, part: str) -> Path:
    return folder / f"v2_OpenEnded_mscoco_{part}_questions.json"


def _has(folder: Path, part: str) -> bool:
    """True if the part is there; ``DualfuseError`` if only one of its two files is."""
    questions, annotations = _file(folder, part), folder / f"v2_mscoco_{part}_annotations.json"
    if part in ANSWERED and questions.is_file() != annotations.is_file():
        there, gone = (questions, annotations) if questions.is_file() else (annotations, questions)
        raise DualfuseError(f"{there} is there without {gone.name}; download that, or move the former elsewhere")
    return questions.is_file()


def _questions(folder: Path, part: str) -> list[Question]:
    def short(entry: dict[str, Any]) -> object:
        return (entry["question_id"], entry["image_id"], entry["question"]) if "question" in entry else entry

    return entries(_file(folder, part), "questions", short)


def _answers(folder: Path, part: str) -> Answers:
    def short(entry: dict[str, Any]) -> object:
        if "answer_id" in entry:
            return intern(entry["answer"])
        if "question_id" in entry:
            said = _Answers(tuple(entry["answers"]), intern(entry["multiple_choice_answer"]), entry["answer_type"])
            return entry["question_id"], said
        return entry

    return dict(entries(folder / f"v2_mscoco_{part}_annotations.json", "annotations", short))


def _remarks(folder: Path, answered: tuple[str, ...], size: str, *, own: bool, twice: int) -> tuple[str, ...]:
    gone = [_file(folder, part).name for part in (*ANSWERED, *ASKED) if not _file(folder, part).is_file()]
    rule = f"those most common for {COMMON} or more questions of {' and '.join(answered)}" if own else "as given"
    missing = "; the published 3,129 need train2014 and val2014" if own and answered != ANSWERED else ""
    return tuple(
        filter(
            None,
            (
                f"answers.txt: {size} answers, {rule}{missing}" if answered else "",
                f"{twice:,} questions of test2015 are those of test-dev2015; they are in test_dev" if twice else "",
                f"not there: {', '.join(gone)}" if gone else "",
            ),
        )
    )


def _items(
    questions: Mapping[str, Sequence[Question]], answers: Mapping[str, Answers], known: _Known, find: ImageFinder
) -> Iterator[Item]:
    repeats = Repeats()
    for part, asked in questions.items():
        split_of = _splits(part, asked)
        for question in asked:
            number, image, text = question
            folder = part.replace("test-dev", "test")
            name = f"{folder}/COCO_{folder}_{image:012d}.jpg"
            problem, note = repeats.look(number, name, text)
            split = split_of(image)
            meta: dict[str, object] = {"id": number, "image_id": image}
            truth: dict[str, object] = {}
            said = answers[part].get(number) if part in answers else None
            if said:
                truth, meta = {"answers": said.all}, meta | {"answer_type": said.kind}
            elif part in answers:
                problem = problem or "nobody answered it"
            if said and not known.any(said.all):
                problem, note = (problem or UNKNOWN, note) if split == "train" else (problem, note or UNKNOWN)
            yield Item(name, find(name), (text,), split, meta, problem, label=truth, note=note)
        yield from _unasked(part, answers.get(part, {}), asked)


def _splits(part: str, asked: Sequence[Question]) -> Callable[[int], str]:
    """Return which split an image of ``part`` belongs to."""
    if part != "val2014":
        name = {"train2014": "train", "test-dev2015": "test_dev", "test2015": "test"}[part]
        return lambda image: name
    apart = frozenset(list(dict.fromkeys(image for _, image, _ in asked))[-APART:])
    return lambda image: "rest_val" if image in apart else "trainable_val"


def _unasked(part: str, answers: Answers, asked: Sequence[Question]) -> Iterator[Item]:
    numbers = {number for number, _, _ in asked}
    for number in answers:
        if number not in numbers:
            yield Item(f"v2_mscoco_{part}_annotations.json", b"", meta={"id": number}, problem="answers to no question")
