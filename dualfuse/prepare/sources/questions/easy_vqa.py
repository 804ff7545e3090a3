"""easy-VQA as its package holds it: ``data/train`` and ``data/test`` with images and questions.json; answers.txt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dualfuse.data.split import split_by_content
from dualfuse.errors import DualfuseError
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.prepare.sources.item import Item, Slice
from dualfuse.prepare.sources.json_files import read_json
from dualfuse.prepare.sources.repeats import Repeats
from dualfuse.prepare.sources.source import Source

PARTS = ("train", "test")
ANSWERS = "answers.txt"
APART = (("val", 0.1),)  # share of the training images, by a hash of the image's number
SAYS_WHETHER = ("yes", "no")

Question = tuple[str, str, int]  # the text, its answer, the number of its image


def easy_vqa_folder(source: Path) -> Path | None:
    """Return the folder of the data if ``source`` is that folder, or the package around it; None if it is neither."""
    for folder in (source / "data", source):
        train = folder / PARTS[0]
        if (folder / ANSWERS).is_file() and (train / "questions.json").is_file() and (train / "images").is_dir():
            return folder
    return None


def load(folder: Path) -> Source:
    """Return each question as an item; of ``train`` a tenth of the images, with all their questions, is val.

    Ids count the questions, of ``train`` first; ``answer_type`` is yes/no, shape or colour. ``DualfuseError`` for a
    questions.json that holds anything but (question, answer, number of the image).
    """
    asked = {part: _questions(folder / part / "questions.json") for part in PARTS if (folder / part).is_dir()}
    names = read_vocabulary(folder / ANSWERS)
    remarks = [f"{ANSWERS}: {len(names)} answers, as given; val: a tenth of the training images, by their numbers"]
    remarks += [f"not there: {part}" for part in PARTS if part not in asked]
    files = {ANSWERS: "".join(f"{name}\n" for name in names)}
    return Source(_items(folder, asked, frozenset(names)), sum(map(len, asked.values())), files, tuple(remarks))


def _questions(path: Path) -> Sequence[Question]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(map(_is_question, rows)):
        raise DualfuseError(f"{path} is no list of [question, answer, number of the image]; is it easy-VQA's own file?")
    return rows


def _is_question(row: object) -> bool:
    match row:
        case [str(), str(), int()]:
            return True
        case _:
            return False


def _items(folder: Path, asked: dict[str, Sequence[Question]], names: frozenset[str]) -> Iterator[Item]:
    number = 0
    for part, questions in asked.items():
        repeats = Repeats()
        for text, answer, image in questions:
            name = f"{part}/images/{image}.png"
            problem, note = repeats.look(number, name, text)
            if answer not in names:
                problem = problem or f"its answer is not in {ANSWERS}"
            meta = {"id": number, "image_id": image, "answer_type": _kind(text, answer)}
            split = split_by_content(str(image).encode(), APART) if part == PARTS[0] else part
            pil_image = Slice(folder / name)
            yield Item(name, pil_image, (text,), split, meta, problem, label={"answers": [answer]}, note=note)
            number += 1


def _kind(text: str, answer: str) -> str:
    """Return the kind of a question: which of three, as the package's generator words them."""
    if answer in SAYS_WHETHER:
        return "yes/no"
    return "colour" if "color" in text else "shape"
