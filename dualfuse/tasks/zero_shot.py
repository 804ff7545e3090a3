"""Classes of pictures that were never learnt: told apart by how alike a picture and sentences about a class are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from dualfuse.data.text import pad
from dualfuse.tasks.answered import Metric, TopAccuracy
from dualfuse.tasks.base import Prep, Task
from dualfuse.tasks.classification import Classification
from dualfuse.tasks.heads import unit
from dualfuse.tasks.image_classes import ImageBatch, ImageClassesConfig
from dualfuse.tasks.retrieval import Retriever, retriever

TEMPLATES = (
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""CLIP's first template, and the seven that its authors chose for ImageNet."""
AT_ONCE = 64  # sentences that are encoded together


@torch.no_grad()
def zero_shot(task: Task, prep: Prep, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Gives the vectors (C, D) of classes, in evaluation: the mean over all sentences about each, of length one.

    Each template names the class where it has ``{}``. Raises ``ValueError`` for a task that learnt no contrast, and
    for templates without a place for the name.
    """
    _searching(task)
    if strange := [template for template in templates if "{}" not in template]:
        raise ValueError(f'the template {strange[0]!r} has no {{}} for the name; give one like "a photo of a {{}}."')
    if not names or not templates:
        raise ValueError(f"{len(names)} names and {len(templates)} templates; at least one of each is needed")
    if task.training:
        raise ValueError("the task is in training mode; call eval() on it before it is judged")
    sentences = (template.replace("{}", name) for name in names for template in templates)
    vectors = torch.cat(list(_encoded(task, prep, sentences)))
    return unit(vectors.unflatten(0, (len(names), len(templates))).mean(1))


class ZeroShot(Classification):
    """Answers with the class whose vector is the most alike; judged as any task that answers."""

    ranked = 5
    vectors: Tensor

    def __init__(self, task: Task, vectors: Tensor, labels: tuple[str, ...]) -> None:
        """``vectors`` (C, D) are :func:`zero_shot`'s, ``labels`` what the samples call those classes."""
        super().__init__(ImageClassesConfig(labels=labels), task.model, labels)
        if len(vectors) != len(labels):
            raise ValueError(f"{len(vectors)} vectors of classes and {len(labels)} labels; give one for each")
        self.able = _searching(task)
        self.register_buffer("vectors", vectors)

    def logits(self, batch: ImageBatch) -> Tensor:
        """Gives (B, C) float32: the logits of contrast."""
        cosine = self.able.image_features(self.model.embed_image(batch["image"])) @ self.vectors.T
        return self.able.rerank_score(cosine, torch.zeros_like(cosine)).float()  # matching has nothing to say

    def metric(self) -> Metric:
        """Gives a fresh counter of what is right, at once and within five."""
        return TopAccuracy()


def _searching(task: Task) -> Retriever:
    able = retriever(task)
    if not able.can_search:
        raise ValueError("this model was trained without contrast: it cannot tell how alike a picture and a name are")
    return able


def _encoded(task: Task, prep: Prep, sentences: Iterator[str]) -> Iterator[Tensor]:
    able, device = _searching(task), next(task.parameters()).device
    while some := [prep.text.encode(sentence).ids for sentence in islice(sentences, AT_ONCE)]:
        lengths = torch.tensor([len(ids) for ids in some])
        ids = torch.from_numpy(pad(some, 0))
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        yield able.text_features(task.model.embed_text(ids.to(device), mask.to(device)))
