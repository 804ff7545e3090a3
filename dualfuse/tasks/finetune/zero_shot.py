"""Classes of images that were never trained: told apart by how alike an image and sentences about a class are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from dualfuse.data.text.padding import pad_texts
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.gallery import Retriever, retriever
from dualfuse.layers.heads import normalize
from dualfuse.metrics.accuracy import Metric, TopAccuracy
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.tasks.base import Processor, Task
from dualfuse.tasks.finetune.classification import Classification
from dualfuse.tasks.finetune.image_classification import ImageBatch, ImageClassificationConfig

PLAIN = ("a photo of a {}.",)
CLIP = (
    *PLAIN,
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""CLIP's first template, and the seven that its authors chose for ImageNet."""
NAMES_FILE = "labels.txt"
"""Names of the classes of a data set, in the folder of its shards, where prepare writes them."""
AT_ONCE = 64  # sentences that are encoded together


@torch.no_grad()
def zero_shot(task: Task, processor: Processor, names: Sequence[str], templates: Sequence[str] = PLAIN) -> Tensor:
    """Return the vectors (C, D) of classes, in evaluation: the mean over all sentences about each, of length one.

    Each template names the class where it has ``{}``. Raises ``DualfuseError`` for a task that trained no contrast, and
    for templates without a place for the name.
    """
    _searching(task)
    if strange := [template for template in templates if "{}" not in template]:
        raise DualfuseError(f'the template {strange[0]!r} has no {{}} for the name; give one like "a photo of a {{}}."')
    if not names or not templates:
        raise DualfuseError(f"{len(names)} names and {len(templates)} templates; at least one of each is needed")
    if task.training:
        raise DualfuseError("the task is in training mode; call eval() on it before it is judged")
    sentences = (template.replace("{}", name) for name in names for template in templates)
    embeddings = torch.cat(list(_encoded(task, processor, sentences)))
    return normalize(embeddings.unflatten(0, (len(names), len(templates))).mean(1))


def class_names(said: str) -> tuple[str, ...]:
    """Return the names in a file, one a line, or in the labels.txt of a folder; or those of a list: "cat, red fox".

    Raises ``DualfuseError`` for fewer than two, and for one that comes twice.
    """
    path = Path(said).expanduser()
    path = path / NAMES_FILE if path.is_dir() else path
    if not path.is_file() and ("," not in said or path.name == NAMES_FILE):
        raise DualfuseError(
            f"{said!r} names no classes: give a file with one name a line, the folder that prepare wrote its "
            f'{NAMES_FILE} into, or a list such as "cat, dog, red fox"'
        )
    names = read_vocabulary(path) if path.is_file() else tuple(filter(None, map(str.strip, said.split(","))))
    if len(set(names)) < max(2, len(names)):
        raise DualfuseError(f"{said} has {len(names)} names, {len(set(names))} of them different; give two or more")
    return names


def read_templates(said: str) -> tuple[str, ...]:
    """Return the sentences in a file, one a line; or of "clip" those of CLIP, of nothing the plain one."""
    if said in ("", "clip"):
        return CLIP if said else PLAIN
    if not Path(said).expanduser().is_file():
        raise DualfuseError(f'there is no file {said}; give one with sentences such as "a photo of a {{}}.", or clip')
    return read_vocabulary(Path(said).expanduser())


class ZeroShot(Classification):
    """Answers with the class whose vector is the most alike; judged as any task that answers."""

    ranked = 5
    embeddings: Tensor

    def __init__(self, task: Task, embeddings: Tensor, labels: tuple[str, ...]) -> None:
        """``vectors`` (C, D) are :func:`zero_shot`'s, ``labels`` what the samples call those classes."""
        super().__init__(ImageClassificationConfig(labels=labels), task.model, labels)
        if len(embeddings) != len(labels):
            raise DualfuseError(f"{len(embeddings)} vectors of classes and {len(labels)} labels; give one for each")
        self.able = _searching(task)
        self.register_buffer("embeddings", embeddings)

    def logits(self, batch: ImageBatch) -> Tensor:
        """Return (B, C) float32: the logits of contrast."""
        cosine = self.able.image_features(self.model.embed_image(batch["image"])) @ self.embeddings.T
        return self.able.rerank_score(cosine, torch.zeros_like(cosine)).float()  # matching has nothing to say

    def metric(self) -> Metric:
        """Return a fresh counter of what is right, at once and within five."""
        return TopAccuracy()


def _searching(task: Task) -> Retriever:
    able = retriever(task)
    if not able.can_search:
        raise DualfuseError("this model was trained without contrast: it cannot tell how alike an image and a name are")
    return able


def _encoded(task: Task, processor: Processor, sentences: Iterator[str]) -> Iterator[Tensor]:
    able, device = _searching(task), next(task.parameters()).device
    while some := [processor.text.encode(sentence).ids for sentence in islice(sentences, AT_ONCE)]:
        ids, mask = pad_texts(some)
        yield able.text_features(task.model.embed_text(ids.to(device), mask.to(device)))
