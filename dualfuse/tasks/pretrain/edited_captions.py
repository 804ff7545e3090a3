"""Edited captions in training: false ones as negatives of ITM and ITC, and ones that keep the meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse.config import check_numbers
from dualfuse.data.processor import Processor
from dualfuse.data.text.edits import EDIT_KINDS, EditKind, false_edits, same_meaning
from dualfuse.data.text.padding import pad_arrays
from dualfuse.errors import DualfuseError
from dualfuse.losses.grad_cache import Embeddings, grad_cache, materialize
from dualfuse.losses.itc import Similarities
from dualfuse.losses.listwise import listwise_accuracy, listwise_loss

if TYPE_CHECKING:
    from dualfuse.tasks.pretrain.pair_batch import PairBatch
    from dualfuse.tasks.pretrain.pairs import Pairs


@dataclass(frozen=True)
class EditsConfig:
    """Edited captions beside the captions of the data; the rules are for English."""

    number: int = 0
    """False edits of each caption that ITM has as negatives, if its rules find as many; 0: none."""
    kinds: tuple[EditKind, ...] = EDIT_KINDS
    """Kinds of false edits: replaced or exchanged words of a class, opposite relations, exchanged ends of a relation,
    inserted or removed negation."""
    itc_weight: float = 0.0
    """Weight of ITC between each image, its caption and the false edits of it: above 0, search learns from them."""
    same_meaning: float = 0.0
    """Probability that a caption is replaced by an edit with the same meaning, so that false edits cannot be recognized
    as edits."""

    def __post_init__(self) -> None:
        """Validate the numbers and the kinds."""
        check_numbers(self, not_negative=("number", "itc_weight", "same_meaning"))
        if self.same_meaning > 1:
            raise DualfuseError(f"edits.same_meaning is {self.same_meaning}; it is a probability, 0 to 1")
        if self.number and not self.kinds:
            raise DualfuseError(f"edits.kinds is empty; give some of {', '.join(EDIT_KINDS)}, or set edits.number to 0")

    def rephrase(self, caption: str, rng: np.random.Generator) -> str:
        """Return the caption, or by chance an edit with the same meaning; nothing is drawn if that never happens."""
        return same_meaning(caption, rng) if self.same_meaning and rng.random() < self.same_meaning else caption

    def negatives(
        self, caption: str, captions: Sequence[str], processor: Processor, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Return the tokens (T,) of up to ``number`` false edits of a caption.

        An edit whose tokens are those of the caption, because they are cut, or that needs an unknown token, by which it
        could be recognized, is not used.
        """
        if not self.number:
            return []
        own, unknown = processor.text.encode(caption).ids, processor.text.unknown_id
        edits = false_edits(caption, captions, rng, self.number, self.kinds)
        encoded = [processor.text.encode(edit).ids for edit in edits]
        return [
            ids for ids in encoded if not np.array_equal(ids, own) and (ids == unknown).sum() <= (own == unknown).sum()
        ]


@dataclass(frozen=True)
class Edits:
    """The false edits of the captions of one batch: embedded texts (B * E), and which of them exist (B, E)."""

    text: Embeddings
    exist: Tensor

    @property
    def owner(self) -> Tensor:
        """The number (B * E,) of the image that each edit belongs to."""
        count, size = self.exist.shape
        return torch.arange(count, device=self.exist.device).repeat_interleave(size)


def collate_edits(edits: Sequence[Sequence[np.ndarray]], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids and mask (B, E, T) of lists of tokens (t,), and which of the edits exist (B, E).

    E is the largest number of edits, at least 1, and T the larger of ``length`` and the longest edit.
    """
    most = max(1, *map(len, edits))
    filler = np.zeros(length, dtype=np.int64)
    rows = [edit for each in edits for edit in (*each, *[filler] * (most - len(each)))]
    lengths = torch.tensor([len(edit) for each in edits for edit in (*each, *[filler[:1]] * (most - len(each)))])
    ids = torch.from_numpy(pad_arrays(rows, 0)).unflatten(0, (len(edits), most))
    mask = (torch.arange(ids.shape[2]) < lengths[:, None]).unflatten(0, (len(edits), most))
    return ids, mask, torch.arange(most) < torch.tensor([len(each) for each in edits])[:, None]


def pad_edits(batch: PairBatch) -> PairBatch:
    """Pad the texts and edits of a batch to one length, because they are fused together."""
    edit_ids, edit_mask = batch.get("edit_ids"), batch.get("edit_mask")
    if edit_ids is None or edit_mask is None:
        return batch
    padded = batch.copy()
    length = max(batch["ids"].shape[1], edit_ids.shape[2])
    for name in ("ids", "masked_ids", "mask"):
        padded[name] = F.pad(batch[name], (0, length - batch[name].shape[1]))
    padded["edit_ids"], padded["edit_mask"] = (F.pad(x, (0, length - x.shape[2])) for x in (edit_ids, edit_mask))
    return padded


def embed_edits(task: Pairs, batch: PairBatch) -> Edits | None:
    """Embed the edits of a batch; None without them."""
    ids, mask, exist = batch.get("edit_ids"), batch.get("edit_mask"), batch.get("edit_exists")
    if ids is None or mask is None or exist is None:
        return None
    return Edits(task.embed(task.model.embed_text, ids.flatten(0, 1), mask.flatten(0, 1)), exist)


def edit_logits(task: Pairs, edits: Edits, similarities: Similarities) -> Tensor:
    """Return the ITC logits (B, E) of this process's images with the edits of their captions; 0 without ITC."""

    def embed(text: Embeddings) -> tuple[Tensor]:
        return (task.text_features(materialize(text)),)

    trained = task.cfg.edits.itc_weight > 0 or task.cfg.distill_weight > 0
    if not task.can_search:
        return torch.zeros_like(edits.exist, dtype=torch.float32)
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        (features,) = grad_cache(embed, task.cfg.grad_cache_chunk, edits.text)
    return similarities.scale * (similarities.image[:, None] * features.unflatten(0, edits.exist.shape)).sum(2)


def edit_itc_loss(edits: Edits, logits: Tensor, similarities: Similarities) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each image's own caption among its edits with ``logits`` (B, E), and the accuracy."""
    own = similarities.scale * (similarities.image * similarities.text).sum(1, keepdim=True)
    scores = torch.cat([own, logits], dim=1)
    has_edit = edits.exist.any(1)
    accuracy = listwise_accuracy(scores[has_edit], edits.exist[has_edit]) if has_edit.any() else scores.new_ones(())
    return listwise_loss(scores, edits.exist), accuracy
