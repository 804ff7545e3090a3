"""Captions: words that see the image and the words before them, trained by masking (UniLM; BEiT-3, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.masking import apply_mask
from dualfuse.data.text.padding import pad_texts
from dualfuse.data.text.tokenizer import EncodedText, TextTransform, load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import MLMHead
from dualfuse.models.base import Tokens, VisionLanguageModel, generation_error, seq2seq_attention_mask
from dualfuse.tasks.base import Processor, Task, TaskOutput
from dualfuse.tasks.finetune.beam_search import Beam, beam_search
from dualfuse.tasks.pretrain.pair_batch import mlm_positions


class CaptionExample(TypedDict):
    """An image (3, H, W), its caption with words masked (T,), and their labels (T,), -100 at all others."""

    image: Tensor
    ids: np.ndarray
    labels: np.ndarray


class CaptionBatch(TypedDict):
    """B of them: image (B, 3, H, W); ids, mask (B, T); ``positions`` (B, R), ``targets`` as for masked words of pairs."""

    image: Tensor
    ids: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor


@dataclass(frozen=True)
class CaptioningConfig:
    """How captions are trained and searched for; the defaults are BEiT-3's published command."""

    mask_probability: float = 0.7
    """Share of a caption's tokens that is masked; the end counts, the start is never masked."""
    label_smoothing: float = 0.1
    """Share of the probability that is wanted elsewhere than at the right word."""
    beam: int = 3
    """Beginnings that are kept while a caption is searched for."""
    length_penalty: float = 0.6
    """Captions are compared by log-probability / length ** this."""
    init_std: float = 0.02
    """Standard deviation of the head's first weights, where the start has none; see ``Initial.std`` of the model."""

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> CaptionExample:
        """Draw one of the captions, masks words, and transforms the image."""
        if not sample.texts:
            raise BrokenSample(sample.key, "it has no caption")
        words = processor.text.encode(sample.texts[rng.integers(len(sample.texts))])
        chosen = mask_caption(words, self.mask_probability, rng)
        ids, labels = apply_mask(words.ids, chosen, processor.text.vocab_size, processor.text.mask_id, rng)
        return {"image": processor.image(sample.image, rng), "ids": ids, "labels": labels}

    def collate(self, rows: Sequence[CaptionExample]) -> CaptionBatch:
        """Pad the captions to the longest of them."""
        ids, mask = pad_texts([row["ids"] for row in rows])
        places, targets = mlm_positions([row["labels"] for row in rows])
        return {
            "image": torch.stack([row["image"] for row in rows]),
            "ids": ids,
            "mask": mask,
            "positions": places,
            "targets": targets,
        }

    def build(self, model: VisionLanguageModel) -> Captioning:
        """Return the task with a fresh head; ``DualfuseError`` for a model whose words cannot see earlier ones alone."""
        return Captioning(self, model)


def mask_caption(words: EncodedText, share: float, rng: np.random.Generator) -> list[int]:
    """Return the positions to mask: round(share x tokens), one at least; never the start, nor the end of a cut text."""
    number = len(words.ids)
    most = number - 1 - words.truncated
    return (1 + rng.permutation(most)[: max(1, int(number * share + 0.5))]).tolist()


@dataclass(frozen=True)
class Caption:
    """A caption, and the probability that the model writes just this."""

    text: str
    probability: float


class Captioning(Task):
    """Predicts masked words of a caption from the image and earlier words; writes by asking for one mask at a time.

    The word head is the one that pre-training on pairs has trained.
    """

    def __init__(self, cfg: CaptioningConfig, model: VisionLanguageModel) -> None:
        """Refuse a model whose images see whole texts."""
        super().__init__()
        if not model.capabilities.generation:
            raise generation_error(model)
        self.cfg, self.model = cfg, model
        self.mlm_head = MLMHead(model.text_width, model.vocab_size, epsilon=model.mlm_head_eps, std=cfg.init_std)

    def forward(self, batch: CaptionBatch) -> TaskOutput:
        """Return the mean loss over the masked words of all processes."""
        image = self.model.embed_image(batch["image"])
        text = self.model.embed_text(batch["ids"], batch["mask"])
        attention_mask = seq2seq_attention_mask(text.mask.shape[1], image.mask.shape[1], text.device)
        states = self.model.fuse(image, text, positions=batch["positions"], attention_mask=attention_mask).text
        is_masked = batch["targets"] != -100
        logits, wanted = self.mlm_head(states[is_masked]).float(), batch["targets"][is_masked]
        number = dist.all_reduce_mean(is_masked.sum().float()).clamp(min=1)
        loss = F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=self.cfg.label_smoothing) / number
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy/mlm": (logits.argmax(1) == wanted).sum() / number})

    @torch.inference_mode()
    def generate(self, images: Tensor, text: TextTransform) -> list[tuple[Caption, ...]]:
        """Return the best captions of each image (B, 3, H, W), best first, at most ``beam``, no longer than ``text``.

        ``DualfuseError`` in training mode, where words are dropped by chance.
        """
        if self.training:
            raise DualfuseError("the task is in training mode; call eval() on it before it writes")
        names = load_tokenizer(text.tokenizer)
        beam = Beam(self.cfg.beam, self.cfg.length_penalty, text.length, start=names.start, end=names.end)
        writer = CaptionDecoder(self, self.model.embed_image(images), text)
        return [
            tuple(Caption(text.decode(each.ids), float(np.exp(each.log_probability))) for each in found)
            for found in beam_search(writer, len(images), beam, images.device)
        ]


class CaptionDecoder:
    """What comes next, by what is remembered of images and earlier words."""

    def __init__(self, task: Captioning, image: Tokens, text: TextTransform) -> None:
        """Read the images."""
        names = load_tokenizer(text.tokenizer)
        self.task, self.mask = task, names.mask_id
        self.cache = task.model.prefill(image, text.length)
        allowed = torch.arange(task.model.vocab_size) < names.vocab_size  # published tables have rows of no word
        allowed[[names.start, names.pad_id, names.mask_id]] = False
        self.allowed = allowed.to(image.device)

    def __call__(self, ids: Tensor, origin: Tensor) -> Tensor:
        """Return log-probabilities (R, V) of the word behind ids (R, t), which begin with the rows ``origin`` (R,)."""
        asked = torch.cat([ids, ids.new_full((len(ids), 1), self.mask)], dim=1)
        text = self.task.model.embed_text(asked, torch.ones_like(asked))
        state, self.cache = self.task.model.decode_step(self.cache.take(origin), text)
        return self.task.mlm_head(state).float().where(self.allowed, float("-inf")).log_softmax(-1)
