"""Captioning: masked tokens predicted from the image and earlier tokens (UniLM; BEiT-3, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.loader import Batch, Example
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.masking import apply_mask
from dualfuse.data.text.tokenizer import EncodedText, TextTransform, load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.predictions import PredictedCaption
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan
from dualfuse.layers.heads import MLMHead
from dualfuse.metrics.base import MetricInfo
from dualfuse.metrics.captions import CAPTION_METRICS, caption_metrics
from dualfuse.models.base import Tokens, VisionLanguageModel, generation_error, seq2seq_attention_mask
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput
from dualfuse.tasks.finetune.beam_search import Beam, beam_search
from dualfuse.tasks.prediction import Prediction, ScoredAnswer, check_images
from dualfuse.tasks.pretrain.pair_batch import TextBatch, TextExample, collate_texts

COCO_IDS = ("image_id", "cocoid")
"""Keys of COCO's image number in the json of a sample."""


class CaptionExample(TextExample):
    """An image (3, H, W) and its caption with masked tokens."""

    image: Tensor


class CaptionBatch(TextBatch):
    """Images (B, 3, H, W) and their captions with masked tokens."""

    image: Tensor


@dataclass(frozen=True)
class CaptioningConfig(TaskConfig):
    """Training loss and beam search of captions; the defaults are BEiT-3's published command."""

    pipeline_tag: ClassVar[str] = "image-to-text"
    example: ClassVar[str] = 'print(predict(model, image="a.jpg"))'

    mask_probability: float = 0.7
    """Share of the tokens of a caption that is masked; the end token counts, the start token is never masked."""
    label_smoothing: float = 0.1
    """Share of the target probability that is spread over all tokens."""
    beam: int = 3
    """Width of the beam search."""
    length_penalty: float = 0.6
    """Exponent of the length that log-probabilities are divided by; 0: no penalty."""
    init_std: float = 0.02
    """Standard deviation of the initial weights of the MLM head, unless ``start_from`` has one."""

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> CaptionExample:
        """Draw one of the captions, mask tokens, and transform the image."""
        if not sample.texts:
            raise BrokenSample(sample.key, "it has no caption")
        words = processor.text.encode(sample.texts[rng.integers(len(sample.texts))])
        masked = mask_caption(words, self.mask_probability, rng)
        ids, labels = apply_mask(words.ids, masked, processor.text.vocab_size, processor.text.mask_id, rng)
        return {"image": processor.image(sample.image, rng), "ids": ids, "labels": labels}

    def collate(self, examples: Sequence[CaptionExample]) -> CaptionBatch:
        """Pad the captions to the longest one."""
        return {**collate_texts(examples), "image": torch.stack([example["image"] for example in examples])}

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare the metrics of captions."""
        return CAPTION_METRICS

    def build(self, model: VisionLanguageModel) -> Captioning:
        """Return the task with a fresh head; DualfuseError for a model that cannot generate text."""
        return Captioning(self, model)


def mask_caption(words: EncodedText, share: float, rng: np.random.Generator) -> list[int]:
    """Return the positions to mask: round(share x tokens), at least one; never the start, or the end of a cut text."""
    number = len(words.ids)
    most = number - 1 - words.truncated
    return (1 + rng.permutation(most)[: max(1, int(number * share + 0.5))]).tolist()


def read_references(
    sample: Sample, processor: Processor, rng: np.random.Generator, cfg: CaptioningConfig | None = None
) -> Example:
    """Return the image (3, H, W), its key and number, and all its captions as "references"; there may be none.

    With ``cfg``, "masked" is what training reads of a sample that has captions; otherwise None.
    """
    ids = (sample.meta[name] for name in COCO_IDS if isinstance(sample.meta.get(name), int))
    image_id = next((number for number in ids if isinstance(number, int)), sample.key)
    image = processor.image(sample.image, rng)
    masked = cfg.read(sample, processor, rng) if cfg and sample.texts else None
    return {"image": image, "key": sample.key, "image_id": image_id, "references": sample.texts, "masked": masked}


def collate_references(examples: Sequence[Example]) -> Batch:
    """Stack the images; the examples stay a tuple."""
    return {"image": torch.stack([example["image"] for example in examples]), "examples": tuple(examples)}


class Captioning(Task):
    """Predicts masked tokens of a caption from the image and earlier tokens; generates by appending one mask at a time.

    The MLM head is that of pre-training on pairs.
    """

    cfg: CaptioningConfig
    writes_predictions = True

    def __init__(self, cfg: CaptioningConfig, model: VisionLanguageModel) -> None:
        """Raise DualfuseError for a model that cannot generate text."""
        super().__init__()
        if not model.capabilities.generation:
            raise generation_error(model)
        self.cfg, self.model = cfg, model
        self.mlm_head = MLMHead(model.text_width, model.vocab_size, epsilon=model.mlm_head_eps, std=cfg.init_std)

    def forward(self, batch: CaptionBatch) -> TaskOutput:
        """Return the mean loss over the masked tokens of all processes."""
        image = self.model.embed_image(batch["image"])
        text = self.model.embed_text(batch["ids"], batch["mask"])
        attention_mask = seq2seq_attention_mask(text.mask.shape[1], image.mask.shape[1], text.device)
        states = self.model.fuse(image, text, positions=batch["positions"], attention_mask=attention_mask).text
        is_masked = batch["targets"] != -100
        logits, targets = self.mlm_head(states[is_masked]).float(), batch["targets"][is_masked]
        number = dist.all_reduce_mean(is_masked.sum().float()).clamp(min=1)
        loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.cfg.label_smoothing) / number
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy/mlm": (logits.argmax(1) == targets).sum() / number})

    @torch.inference_mode()
    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Caption every image, and compare the captions of images that have references.

        A set without any, such as a test set, gives predictions and no metrics. With ``plan.answers`` each prediction
        has the training loss of one reference, drawn and masked by the number of the sample.
        """
        run = Evaluation(self, data, plan)
        captions, references = list[PredictedCaption](), list[tuple[str, ...]]()
        read = partial(read_references, cfg=self.cfg) if plan.answers else read_references
        for batch in run.batches(read, collate_references, what="captions"):
            generated = self.generate(batch["image"], data.processor.text)
            for example, (best, *_) in zip(batch["examples"], generated, strict=True):
                loss = self._loss(example["masked"]) if example["masked"] else None
                caption = PredictedCaption(example["key"], example["image_id"], best.answer, best.probability, loss)
                captions.append(caption)
                references.append(example["references"])
        pairs = [(caption.caption, texts) for caption, texts in zip(captions, references, strict=True) if texts]
        metrics = caption_metrics([caption for caption, _ in pairs], [texts for _, texts in pairs])
        return run.result(metrics, f"{len(captions)} images, {len(pairs)} of them with reference captions", captions)

    def _loss(self, example: CaptionExample) -> float:
        batch = self.cfg.collate([example])
        tensors = {name: value.to(self.device) for name, value in batch.items() if isinstance(value, Tensor)}
        return float(self(cast(CaptionBatch, tensors)).loss)

    def read_input(self, sample: Sample, processor: Processor) -> Tensor:
        """Read one image (3, H, W)."""
        check_images(sample)
        if sample.texts:
            raise DualfuseError("this model writes captions and takes an image alone; omit the text")
        return processor.image(sample.image, np.random.default_rng(0))

    def predict(self, inputs: Sequence[Tensor], processor: Processor, top: int) -> list[Prediction]:
        """Return the best captions, at most as many as the beam is wide."""
        images = torch.stack(list(inputs)).to(self.device)
        return [Prediction(captions[:top]) for captions in self.generate(images, processor.text)]

    @torch.inference_mode()
    def generate(self, images: Tensor, text: TextTransform) -> list[tuple[ScoredAnswer, ...]]:
        """Return the best captions of each image (B, 3, H, W), best first, at most ``beam``, no longer than ``text``.

        Raises DualfuseError in training mode, where dropout makes captions random.
        """
        if self.training:
            raise DualfuseError("the task is in training mode; call eval() on it before it generates")
        loaded = load_tokenizer(text.tokenizer)
        beam = Beam(self.cfg.beam, self.cfg.length_penalty, text.length, start=loaded.start, end=loaded.end)
        decoder = CaptionDecoder(self, self.model.embed_image(images), text)
        return [
            tuple(ScoredAnswer(text.decode(each.ids), float(np.exp(each.log_probability))) for each in hypotheses)
            for hypotheses in beam_search(decoder, len(images), beam, images.device)
        ]


class CaptionDecoder:
    """Computes the probabilities of the next token, with a cache of images and earlier tokens."""

    def __init__(self, task: Captioning, image: Tokens, text: TextTransform) -> None:
        """Fill the cache with the images."""
        loaded = load_tokenizer(text.tokenizer)
        self.task, self.mask = task, loaded.mask_id
        self.cache = task.model.prefill(image, text.length)
        allowed = torch.arange(task.model.vocab_size) < loaded.vocab_size  # published tables have unused rows
        allowed[[loaded.start, loaded.pad_id, loaded.mask_id]] = False
        self.allowed = allowed.to(image.device)

    def __call__(self, ids: Tensor, origin: Tensor) -> Tensor:
        """Return log-probabilities (R, V) of the token after ids (R, t), which extend the rows ``origin`` (R,)."""
        masked = torch.cat([ids, ids.new_full((len(ids), 1), self.mask)], dim=1)
        text = self.task.model.embed_text(masked, torch.ones_like(masked))
        state, self.cache = self.task.model.decode_step(self.cache.take(origin), text)
        return self.task.mlm_head(state).float().where(self.allowed, float("-inf")).log_softmax(-1)
