"""Zero-shot image classification: the class whose text embedding is most similar to the image (CLIP)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from dualfuse.data.loader import Batch
from dualfuse.data.processor import Processor
from dualfuse.data.text.padding import pad_texts
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import normalize
from dualfuse.metrics.accuracy import TopAccuracy
from dualfuse.progress import track
from dualfuse.tasks.base import Task
from dualfuse.tasks.finetune.classification import Classification
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig

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
NAMES_PER_STEP, SENTENCES_PER_BATCH = 16, 64


@torch.no_grad()
def class_embeddings(
    task: Task, processor: Processor, names: Sequence[str], templates: Sequence[str] = PLAIN
) -> Tensor:
    """Return the unit embeddings (C, D) of classes: the mean over one sentence per template.

    Each template has {} in place of the name. Raises DualfuseError for a template without it, and for a task that was
    not trained with ITC or is in training mode.
    """
    task.check_search()
    if invalid := [template for template in templates if "{}" not in template]:
        raise DualfuseError(f'the template {invalid[0]!r} has no {{}} for the name; give one like "a photo of a {{}}."')
    if not names or not templates:
        raise DualfuseError(f"{len(names)} names and {len(templates)} templates; at least one of each is needed")
    if task.training:
        raise DualfuseError("the task is in training mode; call eval() on it first")
    groups = [names[start : start + NAMES_PER_STEP] for start in range(0, len(names), NAMES_PER_STEP)]
    embeddings = list[Tensor]()
    for group in track(groups, total=len(groups), what=f"{len(names):,} names"):
        sentences = (template.replace("{}", name) for name in group for template in templates)
        of_sentences = torch.cat(list(_embedded(task, processor, sentences)))
        embeddings.append(normalize(of_sentences.unflatten(0, (len(group), len(templates))).mean(1)))
    return torch.cat(embeddings)


def _embedded(task: Task, processor: Processor, sentences: Iterator[str]) -> Iterator[Tensor]:
    while some := [processor.text.encode(sentence).ids for sentence in islice(sentences, SENTENCES_PER_BATCH)]:
        ids, mask = pad_texts(some)
        yield task.text_features(task.model.embed_text(ids.to(task.device), mask.to(task.device)))


class ZeroShot(Classification):
    """Answers with the class whose embedding is most similar to that of the image."""

    top_k = 5
    metric = TopAccuracy
    embeddings: Tensor

    def __init__(self, task: Task, embeddings: Tensor, labels: tuple[str, ...]) -> None:
        """``embeddings`` (C, D) are those of :func:`class_embeddings`, ``labels`` the names in the data set."""
        super().__init__(ImageClassificationConfig(labels=labels), task.model, labels)
        if len(embeddings) != len(labels):
            raise DualfuseError(f"{len(embeddings)} embeddings of classes for {len(labels)} labels; give one for each")
        task.check_search()
        self.dual_encoder = task
        self.register_buffer("embeddings", embeddings)

    def logits(self, batch: Batch) -> Tensor:
        """Return the ITC logits (B, C) in float32."""
        cosine = self.dual_encoder.image_features(self.model.embed_image(batch["image"])) @ self.embeddings.T
        return self.dual_encoder.cosine_logit(cosine).float()
