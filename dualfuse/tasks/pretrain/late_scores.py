"""Late interaction in training on pairs: its ITC loss over the global batch, and its part of match scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.layers.late_interaction import LateFeatures, LateInteractionHead
from dualfuse.losses.grad_cache import Embeddings, materialize
from dualfuse.losses.itc import Positives, Similarities, soft_cross_entropy
from dualfuse.models.base import Tokens, VisionLanguageModel

if TYPE_CHECKING:
    from dualfuse.tasks.pretrain.edited_captions import Edits
    from dualfuse.tasks.pretrain.pairs import Pairs


@dataclass(frozen=True)
class LateScores:
    """Late logits (B, N) of this process's texts with all images, and of its images with all texts."""

    text_to_image: Tensor
    image_to_text: Tensor
    words: LateFeatures
    patches: LateFeatures


def features(head: LateInteractionHead, model: VisionLanguageModel, tokens: Tokens) -> LateFeatures:
    """Return the features of the words of texts, or of the patches of images."""
    states = model.local_states(tokens)
    return head.patches(states, tokens.mask) if tokens.modality == "image" else head.words(states, tokens.mask)


def late_scores(task: Pairs, image: Embeddings, text: Embeddings) -> LateScores | None:
    """Return the late logits of the batch; None if the task has no late interaction."""
    if (head := task.late_head) is None:
        return None
    patches, words = (features(head, task.model, materialize(each)) for each in (image, text))
    to_images = head.scale * head.all_pairs(words, _gather(patches))
    if dist.world_size() == 1:
        return LateScores(to_images, to_images.T, words, patches)
    return LateScores(to_images, head.scale * head.all_pairs(_gather(words), patches).T, words, patches)


def late_loss(late: LateScores, similarities: Similarities, positives: Positives) -> Tensor:
    """Return the mean ITC loss of the late logits alone, and added to the dual encoder's, which get no gradient."""
    losses = list[Tensor]()
    for logits, dual, target in (
        (late.text_to_image, similarities.text_to_image, positives.images_of_texts),
        (late.image_to_text, similarities.image_to_text, positives.texts_of_images),
    ):
        losses += [soft_cross_entropy(scores, target).mean() for scores in (logits, logits + dual.detach())]
    return torch.stack(losses).mean()


@torch.no_grad()
def late_edit_logits(task: Pairs, late: LateScores, edits: Edits) -> Tensor:
    """Return the late logits (B, E) of this process's images with the false edits of their captions."""
    assert task.late_head is not None  # which computed the late scores
    words = features(task.late_head, task.model, materialize(edits.text))
    similarity = task.late_head.pairs(words, late.patches.take(edits.owner))
    return (task.late_head.scale * similarity).view(edits.exist.shape)


def _gather(local: LateFeatures) -> LateFeatures:
    return LateFeatures(dist.all_gather(local.tokens), dist.all_gather(local.weights))
