"""Visual Genome's ``question_answers.json``, chosen as BridgeTower does to add them to VQAv2."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from dualfuse.errors import DualfuseError
from dualfuse.metrics.vqa import normalise
from dualfuse.prepare.sources.image_finder import ImageFinder, around
from dualfuse.prepare.sources.item import Item
from dualfuse.prepare.sources.json_files import head, read_json
from dualfuse.prepare.sources.source import Source

FOLDERS = ("VG_100K", "VG_100K_2")


def is_visual_genome(path: Path) -> bool:
    """True for the json of questions and answers, by its first bytes."""
    first = head(path).lstrip() if path.is_file() else b""
    return first.startswith(b"[") and b'"qas"' in first


def load(path: Path, images: Path | None, known: tuple[str, ...]) -> Source:
    """Return each question as an item with its one answer, if that is ``known``; ``DualfuseError`` if no answer is.

    Left out are answers that are not known, questions to which several known answers were given, and of equal
    questions of an image all but the first. ``images`` is the folder around ``VG_100K`` and ``VG_100K_2``; without it
    they are looked for around the json. With ``image_data.json`` beside, images that are COCO's, too, are in the
    split train_coco (VQAv2's validation shows some of them), all others in train.
    """
    if not known:
        raise DualfuseError(f"{path} has a million answers; choose with --vocabulary answers.txt, as written for VQAv2")
    content: list[list[_Asked]] = read_json(path, _short)
    pil_images, remark = _images(path.with_name("image_data.json"))
    places = (images,) if images else around(path.parent, "images")
    find = ImageFinder(*places, *(place / name for place in places for name in FOLDERS))
    names = frozenset(known)
    items = (item for asked in content for item in _of_image(asked, pil_images, names, find))
    return Source(items, sum(map(len, content)), remarks=remark)


@dataclass(frozen=True)
class _Asked:
    """A question about an image."""

    id: int
    image: int
    text: str
    answer: str


@dataclass(frozen=True)
class _Picture:
    """What ``image_data.json`` says of an image."""

    name: str
    """Such as VG_100K_2/1.jpg."""
    coco: int | None


def _short(entry: dict[str, Any]) -> object:
    if "qas" in entry:
        return entry["qas"]
    if "qa_id" in entry:
        return _Asked(entry["qa_id"], entry["image_id"], entry["question"], intern(entry["answer"]))
    return None  # objects that are spoken of


def _images(path: Path) -> tuple[dict[int, _Picture], tuple[str, ...]]:
    """Return the images by their number, and what to remark if they are not told."""
    if not path.is_file():
        return {}, (f"not there: {path.name}; so all questions are in train, and none in train_coco",)

    def short(entry: dict[str, Any]) -> object:
        name = "/".join(str(entry["url"]).split("/")[-2:])
        return entry["image_id"], _Picture(name, entry.get("coco_id"))

    return dict(read_json(path, short)), ()


def _of_image(
    asked: Sequence[_Asked], images: Mapping[int, _Picture], known: Set[str], find: ImageFinder
) -> Iterator[Item]:
    """Return the questions about one image."""
    given: dict[str, set[str]] = defaultdict(set)
    for one in asked:
        given[one.text] |= {normalise(one.answer)} & known
    before: set[str] = set()
    for one in asked:
        problem = ""
        if normalise(one.answer) not in known:
            problem = "its answer is not in the vocabulary"
        elif len(given[one.text]) > 1:
            problem = "it has several answers"
        elif one.text in before:
            problem = "the same text about the same image came before"
        else:
            before.add(one.text)
        image = images.get(one.image, _Picture(f"{one.image}.jpg", None))
        meta = {"id": one.id, "image_id": one.image} | ({"coco_id": image.coco} if image.coco else {})
        split = "train_coco" if image.coco else "train"
        yield Item(image.name, find(image.name), (one.text,), split, meta, problem, label={"answer": one.answer})
