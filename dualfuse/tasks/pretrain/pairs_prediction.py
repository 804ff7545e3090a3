"""Predictions for an image and a text by a model trained on pairs: match and cosine, or the tokens of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.tasks.prediction import Prediction, check_images, text_of
from dualfuse.tasks.pretrain.fill_mask import MaskedQuery, MaskedQueryBatch, fill_masks, read_masked

if TYPE_CHECKING:
    from dualfuse.tasks.pretrain.pairs import Pairs


@dataclass(frozen=True, eq=False)
class PairInput:
    """One image (3, H, W), and a text that may have masks."""

    image: Tensor
    text: MaskedQuery


def read_pair_input(task: Pairs, sample: Sample, processor: Processor) -> PairInput:
    """Read one image and one text; DualfuseError if no trained head can predict anything for them."""
    check_images(sample)
    text = read_masked(text_of(sample), processor.text)
    if len(text.positions) and not task.cfg.mlm_weight:
        raise DualfuseError("this model was trained without MLM; give a text without a mask")
    if not (len(text.positions) or task.can_match or task.can_search):
        raise DualfuseError("this model only fills masks; put [MASK] in place of a word")
    return PairInput(processor.image(sample.image, np.random.default_rng(0)), text)


def predict_pairs(task: Pairs, inputs: Sequence[PairInput], processor: Processor, top: int) -> list[Prediction]:
    """Return predictions, with texts with masks and those without in one batch each."""
    has_mask = [len(each.text.positions) > 0 for each in inputs]
    masked = iter(_fill(task, [each for each, has in zip(inputs, has_mask, strict=True) if has], processor, top))
    compared = iter(_compare(task, [each for each, has in zip(inputs, has_mask, strict=True) if not has]))
    return [next(masked if has else compared) for has in has_mask]


def _fill(task: Pairs, inputs: Sequence[PairInput], processor: Processor, top: int) -> list[Prediction]:
    if not inputs:
        return []
    images, texts = _batch(task, inputs)
    image, text = task.model.embed_image(images), task.model.embed_text(texts.ids, texts.mask)
    fused = task.model.fuse(image, text, positions=texts.positions)
    return fill_masks([each.text for each in inputs], task.mlm_head(fused.text), processor.text, top)


def _compare(task: Pairs, inputs: Sequence[PairInput]) -> list[Prediction]:
    if not inputs:
        return []
    images, texts = _batch(task, inputs)
    image, text = task.model.embed_image(images), task.model.embed_text(texts.ids, texts.mask)
    matches, cosines = [None] * len(inputs), [None] * len(inputs)
    if task.can_match:
        matches = task.match_logit(image, text).sigmoid().tolist()
    if task.can_search:
        cosines = (task.image_features(image) * task.text_features(text)).sum(1).tolist()
    return [
        Prediction(match=match, cosine=cosine, is_cut=each.text.is_cut)
        for each, match, cosine in zip(inputs, matches, cosines, strict=True)
    ]


def _batch(task: Pairs, inputs: Sequence[PairInput]) -> tuple[Tensor, MaskedQueryBatch]:
    images = torch.stack([each.image for each in inputs]).to(task.device)
    return images, MaskedQueryBatch.of([each.text for each in inputs], task.device)
