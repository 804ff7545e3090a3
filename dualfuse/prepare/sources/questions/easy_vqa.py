"""easy-VQA, in the layout of its package: ``data/train``, ``data/test`` (images, questions.json), answers.txt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dualfuse.data.split import split_by_content
from dualfuse.errors import DualfuseError
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.prepare.sources.questions.common import DuplicateFinder, read_json
from dualfuse.prepare.sources.source import Item, Slice, Source

PARTS = ("train", "test")
ANSWERS = "answers.txt"
VALIDATION = (("val", 0.1),)  # share of the training images, by a hash of the image's number
YES_NO = ("yes", "no")

Question = tuple[str, str, int]  # the text, its answer, the number of its image


def easy_vqa_folder(source: Path) -> Path | None:
    """Return the folder of the data if ``source`` is that folder or the package; None otherwise."""
    for folder in (source / "data", source):
        train = folder / PARTS[0]
        if (folder / ANSWERS).is_file() and (train / "questions.json").is_file() and (train / "images").is_dir():
            return folder
    return None


def load(folder: Path) -> Source:
    """Return each question as an item; a tenth of the images of ``train``, with all their questions, is val.

    Ids number the questions, those of ``train`` first; ``answer_type`` is yes/no, shape or colour. Raises
    ``DualfuseError`` unless questions.json is a list of [question, answer, image number].
    """
    questions = {part: _questions(folder / part / "questions.json") for part in PARTS if (folder / part).is_dir()}
    names = read_vocabulary(folder / ANSWERS)
    remarks = [f"{ANSWERS}: {len(names)} answers, as in the source; val: a tenth of the training images"]
    remarks += [f"missing: {part}" for part in PARTS if part not in questions]
    files = {ANSWERS: "".join(f"{name}\n" for name in names)}
    return Source(_items(folder, questions, frozenset(names)), sum(map(len, questions.values())), files, tuple(remarks))


def _questions(path: Path) -> Sequence[Question]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(map(_is_question, rows)):
        raise DualfuseError(f"{path} is not a list of [question, answer, image number]; is it the file of easy-VQA?")
    return rows


def _is_question(row: object) -> bool:
    match row:
        case [str(), str(), int()]:
            return True
        case _:
            return False


def _items(folder: Path, questions_by_part: dict[str, Sequence[Question]], names: frozenset[str]) -> Iterator[Item]:
    number = 0
    for part, questions in questions_by_part.items():
        duplicates = DuplicateFinder()
        for text, answer, image in questions:
            name = f"{part}/images/{image}.png"
            problem, note = duplicates.check(number, name, text)
            if answer not in names:
                problem = problem or f"its answer is not in {ANSWERS}"
            meta = {"id": number, "image_id": image, "answer_type": _kind(text, answer)}
            split = split_by_content(str(image).encode(), VALIDATION) if part == PARTS[0] else part
            image_slice = Slice(folder / name)
            yield Item(name, image_slice, (text,), split, meta, problem, label={"answers": [answer]}, note=note)
            number += 1


def _kind(text: str, answer: str) -> str:
    """Return the type of a question: yes/no, colour or shape."""
    if answer in YES_NO:
        return "yes/no"
    return "colour" if "color" in text else "shape"
