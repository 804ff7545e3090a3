"""Distillation of a teacher's embeddings into the unimodal paths of a model: of images, of texts, or of both.

The student's embedding of an image or a text alone is trained towards that of the teacher. Images and texts need no
partner: a corpus of text teaches words that no caption has. CLIP-KD (arXiv 2307.12732) compares feature distillation of
embeddings with other losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.map_dataset import MapDataset
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.corpus import Corpus, pack_share
from dualfuse.data.text.padding import pad_texts
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData, EvaluationResult, Plan
from dualfuse.layers.heads import ITCHead, ITCHeadConfig, normalize
from dualfuse.metrics.base import MetricInfo
from dualfuse.metrics.recall import recall_infos
from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput, detached
from dualfuse.tasks.frozen_model import load_encoder

MAX_STORED = 500_000
"""Embeddings of the teacher that a process keeps: 2 kB each, if they have 512 numbers."""
Embed = Callable[[Sequence[Any]], np.ndarray]  # Any: texts, or the bytes of image files


class DistillationExample(TypedDict):
    """One sample: image (1, 3, H, W) for the student, or none (0, 3, H, W); the image file; a text with its tokens."""

    image: Tensor
    file: bytes
    text: str
    ids: np.ndarray


class DistillationBatch(TypedDict):
    """N images (N, 3, H, W) with their files, and M texts with ids and mask (M, T).

    Without an image in the batch there is a blank one, and without a text an empty one, of weight 0, so that every
    batch reaches all parameters.
    """

    image: Tensor
    files: tuple[bytes, ...]
    texts: tuple[str, ...]
    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class DistillationConfig(TaskConfig):
    """The teacher, and the loss between its embeddings and those of the student."""

    training_data: ClassVar[str] = "DATA (SHARDS of images or pairs, .txt, .jsonl or .parquet)"
    pipeline_tag: ClassVar[str] = "zero-shot-image-classification"

    teacher: str = ""
    """Model folder with embeddings of images and texts, such as runs/starter/best."""
    itc_head: ITCHeadConfig = field(default_factory=lambda: ITCHeadConfig(width=512))
    """Projections of the student; the width is that of the teacher's embeddings."""
    loss: Literal["cosine", "contrastive"] = "cosine"
    """cosine: one minus the cosine of both embeddings; contrastive: cross-entropy of the teacher's embedding of the
    same image or text among those of the batch, with a learned scale."""
    init_std: float = 0.02
    """Standard deviation of the initial weights of the projections."""

    def open_data(self, sources: Sequence[str], text: TextTransform) -> tuple[MapDataset, ...]:
        """Open shards of images with or without texts, and files of text, which are packed."""
        corpora = [source for source in sources if _is_text(source)]
        for source in corpora:
            pack_share(source, text, part=dist.rank(), of=dist.world_size())
        if corpora:
            dist.barrier()
        return tuple(Corpus.open(source, text) if _is_text(source) else Shards.open(source) for source in sources)

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> DistillationExample:
        """Draw one of the texts, and transform the image; either may be missing."""
        if not sample.image and not sample.texts:
            raise BrokenSample(sample.key, "it has neither an image nor a text")
        text = sample.texts[int(rng.integers(len(sample.texts)))] if sample.texts else ""
        height, width = processor.image.size
        image = processor.image(sample.image, rng)[None] if sample.image else torch.zeros(0, 3, height, width)
        return {"image": image, "file": sample.image, "text": text, "ids": processor.text.encode(text).ids}

    def collate(self, examples: Sequence[DistillationExample]) -> DistillationBatch:
        """Return the images and the texts of the examples that have them."""
        images = torch.cat([example["image"] for example in examples])
        worded = [example for example in examples if example["text"]]
        ids, mask = pad_texts([example["ids"] for example in worded or examples[:1]])
        return {
            "image": images if len(images) else images.new_zeros(1, *images.shape[1:]),
            "files": tuple(example["file"] for example in examples if example["file"]),
            "texts": tuple(example["text"] for example in worded),
            "ids": ids,
            "mask": mask,
        }

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare recall in both directions."""
        return recall_infos(TEXT_TO_IMAGE, IMAGE_TO_TEXT)

    def build(self, model: VisionLanguageModel) -> Distillation:
        """Return the task with freshly initialized projections."""
        return Distillation(self, model)


class Distillation(Task):
    """A student whose embeddings follow those of a teacher, which is not a submodule; it searches as a dual encoder."""

    cfg: DistillationConfig

    def __init__(self, cfg: DistillationConfig, model: VisionLanguageModel) -> None:
        """Build the projections under the names that pre-training on pairs continues to train."""
        super().__init__()
        self.cfg, self.model = cfg, model
        widths = model.encode_widths
        self.itc_heads = nn.ModuleList([ITCHead(cfg.itc_head, widths, fused_width=model.fused_width, std=cfg.init_std)])

    def forward(self, batch: DistillationBatch) -> TaskOutput:
        """Return the sum of the mean losses of images and of texts.

        Raises ``DualfuseError`` if the teacher has no embeddings, or embeddings of another width.
        """
        image = self.image_features(self.model.embed_image(batch["image"]))
        text = self.text_features(self.model.embed_text(batch["ids"], batch["mask"]))
        encoder = self._teacher()
        image_loss, image_cosine = self._loss(image, batch["files"], "image", encoder.encode_image)
        text_loss, text_cosine = self._loss(text, batch["texts"], "text", encoder.encode_text)
        loss = image_loss + text_loss
        losses = {"loss": loss, "loss/image": image_loss, "loss/text": text_loss}
        return TaskOutput(loss, detached(losses | {"cosine/image": image_cosine, "cosine/text": text_cosine}))

    @torch.inference_mode()
    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Return the recall of the student on pairs, in both directions."""
        return evaluate_retrieval(self, data, replace(plan, rerank=0))

    @property
    def can_search(self) -> bool:
        """Whether embeddings of images and texts can be compared: always."""
        return True

    def image_features(self, image: Tokens) -> Tensor:
        """Return unit embeddings (B, D), comparable with :meth:`text_features`."""
        return normalize(self._head.image(self.model.encode(image)))

    def text_features(self, text: Tokens) -> Tensor:
        """Return unit embeddings (B, D), comparable with :meth:`image_features`."""
        return normalize(self._head.text(self.model.encode(text)))

    def cosine_logit(self, cosine: Tensor) -> Tensor:
        """Return the logit of cosines, by the scale of the head."""
        return cosine * self._head.scale

    @property
    def _head(self) -> ITCHead:
        [head] = self.itc_heads
        assert isinstance(head, ITCHead)  # as built
        return head

    def _teacher(self) -> _Teacher:
        if not self.cfg.teacher:
            raise DualfuseError("no teacher: set --task.teacher to a model folder, such as runs/starter/best")
        return _teacher(self.cfg.teacher, self.device)

    def _loss(self, student: Tensor, inputs: Sequence[str | bytes], kind: str, encode: Embed) -> tuple[Tensor, Tensor]:
        """Return the loss and the mean cosine of one modality; 0 without inputs."""
        if not inputs:
            return 0 * student.sum(), student.new_zeros(())
        target = torch.from_numpy(encode(inputs)).to(student)
        if target.shape[1] != student.shape[1]:
            raise DualfuseError(
                f"the teacher {self.cfg.teacher} has embeddings of {target.shape[1]} numbers, but the student's {kind} "
                f"embeddings have {student.shape[1]}; set --task.itc-head.width {target.shape[1]}"
            )
        cosine = (student * target).sum(1).mean()
        if self.cfg.loss == "cosine":
            return 1 - cosine, cosine
        logits = self._head.scale * student @ target.T
        return F.cross_entropy(logits, _first_equal(inputs).to(logits.device)), cosine


def _first_equal(inputs: Sequence[str | bytes]) -> Tensor:
    """Return for each input the place of the first one that equals it: duplicates are not negatives of each other."""
    first: dict[str | bytes, int] = {}
    return torch.tensor([first.setdefault(each, number) for number, each in enumerate(inputs)])


class _Teacher:
    """A frozen model that embeds every image and text once."""

    def __init__(self, path: str, device: torch.device) -> None:
        self._encoder = load_encoder(path, device)
        self._stored: dict[bytes, np.ndarray] = {}

    def encode_image(self, files: Sequence[bytes]) -> np.ndarray:
        """Return unit embeddings (N, D) of image files."""
        return self._encode(b"image", files, self._encoder.encode_image)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit embeddings (N, D) of texts."""
        return self._encode(b"text", texts, self._encoder.encode_text)

    def _encode(self, kind: bytes, inputs: Sequence[str | bytes], encode: Embed) -> np.ndarray:
        keys = [_key(kind, each) for each in inputs]
        missing = {key: each for key, each in zip(keys, inputs, strict=True) if key not in self._stored}
        if len(self._stored) + len(missing) > MAX_STORED:
            self._stored.clear()
            missing = dict(zip(keys, inputs, strict=True))
        if missing:
            self._stored.update(zip(missing, encode(list(missing.values())), strict=True))
        return np.stack([self._stored[key] for key in keys])


_teachers: dict[tuple[str, torch.device], _Teacher] = {}


def _teacher(path: str, device: torch.device) -> _Teacher:
    if (path, device) not in _teachers:
        _teachers.clear()  # one teacher and its embeddings are held at a time
        _teachers[path, device] = _Teacher(path, device)
    return _teachers[path, device]


def _key(kind: bytes, content: str | bytes) -> bytes:
    return blake2b(content.encode() if isinstance(content, str) else content, digest_size=16, key=kind).digest()


def _is_text(source: str) -> bool:
    return source.lower().endswith((".txt", ".jsonl", ".parquet"))
