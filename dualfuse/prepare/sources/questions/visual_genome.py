"""Visual Genome's ``question_answers.json``, filtered as in BridgeTower, to extend VQAv2."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from dualfuse.errors import DualfuseError
from dualfuse.metrics.vqa import normalise
from dualfuse.prepare.sources.questions.common import head, read_json
from dualfuse.prepare.sources.source import Item, Source
from dualfuse.prepare.sources.visual_genome_images import IMAGE_DATA, GenomeImages


def is_visual_genome(path: Path) -> bool:
    """Return whether a file has questions and answers of Visual Genome, by its first bytes."""
    first = head(path).lstrip() if path.is_file() else b""
    return first.startswith(b"[") and b'"qas"' in first


def load(path: Path, images: Path | None, answers: tuple[str, ...]) -> Source:
    """Return each question as an item with its only answer; raises ``DualfuseError`` without ``answers``.

    Questions are skipped if their answer is not among ``answers``, if they have several of these, or if an equal
    question about the image came before. ``images`` is the parent of ``VG_100K`` and ``VG_100K_2``; by default, they
    are searched around the file. With ``image_data.json`` beside it, images that are also in COCO are in the split
    train_coco (some of them are in VQAv2's validation set), all others in train.
    """
    if not answers:
        raise DualfuseError(f"{path} has a million answers; give --answers answers.txt, as written for VQAv2")
    content: list[list[_Question]] = read_json(path, _reduce)
    found, names = GenomeImages.of(path, images), frozenset(answers)
    missing = f"missing: {IMAGE_DATA}; so all questions are in train, and none in train_coco"
    items = (item for questions in content for item in _of_image(questions, found, names))
    return Source(items, sum(map(len, content)), remarks=() if found.has_data else (missing,))


@dataclass(frozen=True)
class _Question:
    """A question about an image."""

    id: int
    image: int
    text: str
    answer: str


def _reduce(entry: dict[str, Any]) -> object:
    if "qas" in entry:
        return entry["qas"]
    if "qa_id" in entry:
        return _Question(entry["qa_id"], entry["image_id"], entry["question"], intern(entry["answer"]))
    return None  # objects that a question mentions


def _of_image(questions: Sequence[_Question], images: GenomeImages, vocabulary: Set[str]) -> Iterator[Item]:
    """Yield the questions about one image."""
    answers: dict[str, set[str]] = defaultdict(set)
    for one in questions:
        answers[one.text] |= {normalise(one.answer)} & vocabulary
    texts: set[str] = set()
    for one in questions:
        problem = ""
        if normalise(one.answer) not in vocabulary:
            problem = "its answer is not in the vocabulary"
        elif len(answers[one.text]) > 1:
            problem = "it has several answers"
        elif one.text in texts:
            problem = "the same text about the same image came before"
        else:
            texts.add(one.text)
        image = images[one.image]
        meta = {"id": one.id, "image_id": one.image} | ({"coco_id": image.coco} if image.coco else {})
        split = "train_coco" if image.coco else "train"
        yield Item(image.name, images.find(image.name), (one.text,), split, meta, problem, label={"answer": one.answer})
