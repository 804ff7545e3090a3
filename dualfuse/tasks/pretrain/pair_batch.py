"""Masked texts and image-text pairs as tensors: reading a sample, and collating examples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.masking import MASKING_RULES
from dualfuse.data.text.padding import pad_arrays, pad_texts
from dualfuse.tasks.pretrain.edited_captions import EditsConfig, collate_edits, pad_edits

Masking = Literal["whole_word", "token", "official"]


class TextExample(TypedDict):
    """One text: tokens (T,), some of which may be masked, and labels (T,), -100 at unmasked tokens."""

    ids: np.ndarray
    labels: np.ndarray


class PairExample(TextExample):
    """One pair: image (3, H, W); ids without masks, masked_ids and MLM labels (T,); ids of image, text and set."""

    image: Tensor
    masked_ids: np.ndarray
    image_id: int
    text_id: int
    source: int
    edits: NotRequired[list[np.ndarray]]
    """Tokens (T,) of each false edit of the caption; absent if the task edits none."""


class TextBatch(TypedDict):
    """B texts: ids, mask (B, T).

    ``positions`` (B, R) are those of masked tokens, ``targets`` (B, R) the original tokens, -100 where a text has
    fewer than R.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor


class PairBatch(TextBatch):
    """B pairs: a :class:`TextBatch` without masks, image (B, 3, H, W), masked_ids (B, T); three ids (B,)."""

    image: Tensor
    masked_ids: Tensor
    image_id: Tensor
    text_id: Tensor
    source: Tensor
    edit_ids: NotRequired[Tensor]
    edit_mask: NotRequired[Tensor]
    """Of up to E false edits of each caption (B, E, T)."""
    edit_exists: NotRequired[Tensor]
    """Which of these are there (B, E)."""


def read_pair(
    sample: Sample,
    processor: Processor,
    rng: np.random.Generator,
    masking: Masking | None = None,
    probability: float = 0.0,
    tags: str = "",
    edits: EditsConfig | None = None,
) -> PairExample:
    """Draw a caption, add tags, mask tokens with ``probability`` (None: no tokens), and transform the image.

    With ``edits`` the caption may be one with the same meaning, and has false edits. Raises ``BrokenSample`` for a
    sample without text.
    """
    if not sample.texts:
        raise BrokenSample(sample.key, "it has no text")
    caption = sample.texts[rng.integers(len(sample.texts))]
    text_id = content_id(caption.casefold().encode())  # the caption's, with whichever tags and edits
    if edits is not None:
        caption = edits.rephrase(caption, rng)
    words = processor.text.encode(_add_tags(caption, sample.meta.get(tags), rng))
    masked_ids, labels = words.ids, np.full_like(words.ids, -100)
    if masking is not None:
        mask, text = MASKING_RULES[masking], processor.text
        masked_ids, labels = mask(words, text.vocab_size, text.mask_id, rng, probability)
    example: PairExample = {
        "image": processor.image(sample.image, rng),
        "ids": words.ids,
        "masked_ids": masked_ids,
        "labels": labels,
        "image_id": content_id(sample.image),
        "text_id": text_id,
        "source": sample.source,
    }
    if edits is not None and edits.number:
        example["edits"] = edits.negatives(caption, sample.texts, processor, rng)
    return example


def _add_tags(caption: str, tags: object, rng: np.random.Generator) -> str:
    """Return the caption for 1/2 of the draws, with one to four tags for 1/3, and tags alone for 1/6."""
    if not (isinstance(tags, list) and tags) or rng.random() < 0.5:
        return caption
    drawn = " ".join(map(str, rng.permutation(tags)[: rng.integers(1, 5)]))
    return drawn if rng.random() < 1 / 3 else f"{caption} {drawn}"


def collate_texts(examples: Sequence[TextExample]) -> TextBatch:
    """Return a batch of texts padded to the longest."""
    ids, mask = pad_texts([example["ids"] for example in examples])
    positions, targets = mlm_positions([example["labels"] for example in examples])
    return {"ids": ids, "mask": mask, "positions": positions, "targets": targets}


def collate_pairs(examples: Sequence[PairExample]) -> PairBatch:
    """Return a batch whose texts are padded to the longest."""
    batch: PairBatch = {
        **collate_texts(examples),
        "image": torch.stack([example["image"] for example in examples]),
        "masked_ids": torch.from_numpy(pad_arrays([example["masked_ids"] for example in examples], 0)),
        "image_id": torch.tensor([example["image_id"] for example in examples]),
        "text_id": torch.tensor([example["text_id"] for example in examples]),
        "source": torch.tensor([example["source"] for example in examples]),
    }
    if "edits" in examples[0]:
        edits = [example.get("edits", []) for example in examples]
        batch["edit_ids"], batch["edit_mask"], batch["edit_exists"] = collate_edits(edits, batch["ids"].shape[1])
    return batch


def mlm_positions(labels: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return ``positions`` and ``targets`` of :class:`TextBatch` for labels (T,), -100 at unmasked tokens."""
    positions = [np.flatnonzero(label != -100) for label in labels]
    targets = [label[position] for label, position in zip(labels, positions, strict=True)]
    return torch.from_numpy(pad_arrays(positions, 0)), torch.from_numpy(pad_arrays(targets, -100))


def content_id(content: bytes) -> int:
    """Return a 63-bit hash; equal contents have equal ids."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big") >> 1


def pad_to_global_length(batch: PairBatch) -> PairBatch:
    """Pad texts to the longest of all processes, so that examples can be exchanged."""
    batch = pad_edits(batch)
    missing = dist.all_reduce_max(batch["ids"].shape[1]) - batch["ids"].shape[1]
    if not missing:
        return batch
    padded = batch.copy()
    padded["ids"], padded["masked_ids"] = (F.pad(batch[name], (0, missing)) for name in ("ids", "masked_ids"))
    padded["mask"] = F.pad(batch["mask"], (0, missing))
    return pad_edits(padded)
