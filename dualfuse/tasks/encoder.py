"""A loaded model in Python: embeddings, similarities, matches and answers for images and texts in any usual form."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualfuse.data.parallel_map import parallel_map
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.text.padding import pad_texts
from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_IMAGE, read_bounded
from dualfuse.models.base import check_fusion
from dualfuse.progress import track
from dualfuse.tasks.base import Task
from dualfuse.tasks.finetune.zero_shot import PLAIN, ZeroShot, class_embeddings
from dualfuse.tasks.prediction import Prediction

ImageInput = str | Path | bytes | Image.Image | np.ndarray
"""A path, the bytes of an image file, a PIL image, or an array (H, W, 3) or (H, W) of uint8."""


@dataclass(frozen=True)
class Encoder:
    """A task in evaluation mode and the processor of its inputs.

    Arrays are float32 on the CPU; the model computes on the device that it was loaded to. A single image or text is a
    list of one. Long calls show a progress bar on a terminal.
    """

    task: Task
    processor: Processor

    def encode_image(
        self, images: ImageInput | Sequence[ImageInput], *, batch_size: int = 64, num_workers: int = 0
    ) -> np.ndarray:
        """Return unit embeddings (N, D) of images, comparable with those of :meth:`encode_text`.

        ``num_workers`` threads read files; 0: one per processor. Raises DualfuseError for an image that cannot be
        decoded, which it names, and for a model without embeddings; ``OSError`` for a file that cannot be read.
        """
        images = _listed(images)
        return self._encode(self._pixels(images, num_workers), len(images), _at_least_one(batch_size), "images")

    def encode_text(self, texts: str | Sequence[str], *, batch_size: int = 256) -> np.ndarray:
        """Return unit embeddings (N, D) of texts; what a text has beyond the model's length is cut.

        Raises DualfuseError for a model without embeddings.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = (self.processor.text.encode(text).ids for text in texts)
        return self._encode(ids, len(texts), _at_least_one(batch_size), "texts")

    def similarity(
        self, images: ImageInput | Sequence[ImageInput], texts: str | Sequence[str], *, batch_size: int = 64
    ) -> np.ndarray:
        """Return the cosines (N, M) of the embeddings of N images and M texts."""
        image, text = self.encode_image(images, batch_size=batch_size), self.encode_text(texts, batch_size=batch_size)
        return image @ text.T

    def match(
        self, images: ImageInput | Sequence[ImageInput], texts: str | Sequence[str], *, batch_size: int = 32
    ) -> np.ndarray:
        """Return the probabilities (N,) that each image and the text at its place match.

        Those of a calibrated model (``dualfuse evaluate --calibrate``) hold for pairs of which half are right. A model
        without a fusion encoder needs calibration: its probabilities come from the cosine. Raises DualfuseError for one
        that has neither, and unless there are as many texts as images.
        """
        if not (self.task.can_match or self.task.calibration):
            check_fusion(self.task.model)
            raise DualfuseError(f"this {type(self.task).__name__} model was trained without ITM and cannot match")
        images, texts = _listed(images), [texts] if isinstance(texts, str) else list(texts)
        if len(images) != len(texts):
            raise DualfuseError(f"{len(images)} images and {len(texts)} texts; give one text for each image")
        starts = range(0, len(images), _at_least_one(batch_size))
        parts = [slice(start, start + batch_size) for start in starts]
        batches = track(parts, total=len(parts), what="pairs")
        predictions = [each for part in batches for each in self._predict(images[part], texts[part])]
        return np.array([each.match for each in predictions], dtype=np.float32)

    def probability(self, cosine: float, match: float | None = None, *, hit: bool = False) -> float | None:
        """Return the probability that scores stand for: a cosine and, if the pair was fused, its match logit.

        ``hit``: the pair is the query and a hit of a search, of which fewer are right than of given pairs. None if that
        probability is not known, because the model is not calibrated (``dualfuse evaluate --calibrate``).
        """
        function = self.task.hit_probability if hit else self.task.pair_probability
        logit = None if match is None else torch.tensor([match], dtype=torch.float32, device=self.task.device)
        with torch.inference_mode():
            result = function(torch.tensor([cosine], dtype=torch.float32, device=self.task.device), logit)
        return None if result is None else float(result)

    def predict(
        self,
        image: ImageInput | Sequence[ImageInput] | None = None,
        text: str = "",
        *,
        labels: Sequence[str] = (),
        templates: Sequence[str] = PLAIN,
        top: int = 5,
    ) -> Prediction:
        """Run the model's head on an image, a text, or both (two images for NLVR2).

        With ``labels`` a model with embeddings answers with the most similar of these names, zero-shot: each name
        replaces the {} of every one of ``templates``. Raises DualfuseError if the model cannot take the inputs.
        """
        if top < 1:
            raise DualfuseError(f"top is {top}; give the number of answers to return, 1 or more")
        task, files = self.task, [] if image is None else [image_bytes(each) for each in _listed(image)]
        if labels:
            classes = class_embeddings(task, self.processor, labels, templates)
            task = ZeroShot(task, classes, tuple(labels)).eval()
        first, *others = files or [b""]
        sample = Sample("input", first, (text,) if text.strip() else (), other_images=tuple(others))
        with torch.inference_mode():
            return task.predict([task.read_input(sample, self.processor)], self.processor, top)[0]

    @torch.inference_mode()
    def _predict(self, images: Sequence[ImageInput], texts: Sequence[str]) -> list[Prediction]:
        pairs = zip(images, texts, strict=True)
        samples = [Sample(str(number), image_bytes(image), (text,)) for number, (image, text) in enumerate(pairs)]
        inputs = [self.task.read_input(sample, self.processor) for sample in samples]
        return self.task.predict(inputs, self.processor, 1)

    def _pixels(self, images: Sequence[ImageInput], num_workers: int) -> Iterator[Tensor]:
        read = partial(_read, self.processor, images)
        return (pixels for _, pixels in parallel_map(read, range(len(images)), num_workers))

    @torch.inference_mode()
    def _encode(self, inputs: Iterator[Tensor | np.ndarray], total: int, batch_size: int, what: str) -> np.ndarray:
        self.task.check_search()
        batches = iter(lambda: list(islice(inputs, batch_size)), [])
        parts = [self._embed(batch) for batch in track(batches, total=-(-total // batch_size), what=what)]
        embeddings = torch.cat(parts).numpy() if parts else np.zeros((0, 0), dtype=np.float32)
        if not np.isfinite(embeddings).all():
            raise DualfuseError("embeddings of the model are not finite (NaN or infinite); did its training diverge?")
        return embeddings

    def _embed(self, batch: Sequence[Tensor | np.ndarray]) -> Tensor:
        task, device = self.task, self.task.device
        pixels = [each for each in batch if isinstance(each, Tensor)]
        if pixels:
            return task.image_features(task.model.embed_image(torch.stack(pixels).to(device))).float().cpu()
        ids, mask = pad_texts([each for each in batch if isinstance(each, np.ndarray)])
        return task.text_features(task.model.embed_text(ids.to(device), mask.to(device))).float().cpu()


def _listed(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    return [images] if isinstance(images, ImageInput) else list(images)


def _read(processor: Processor, images: Sequence[ImageInput], number: int) -> Tensor:
    try:
        return processor.image(image_bytes(images[number]), np.random.default_rng(0))  # nothing is drawn in evaluation
    except DualfuseError as error:
        image = images[number]
        name = f" ({image})" if isinstance(image, str | Path) else ""
        raise DualfuseError(f"image {number}{name} cannot be used: {error}") from error


def image_bytes(image: ImageInput) -> bytes:
    """Return the bytes of an image file; PIL images and arrays become PNG files, without loss."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return read_bounded(Path(image).expanduser(), MAX_IMAGE)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            raise DualfuseError(
                f"an array of {image.dtype} with shape {image.shape} is not an image; give uint8 (H, W, 3) or (H, W)"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise DualfuseError(f"a {type(image).__name__} is not an image; give a path, bytes, a PIL image or an array")
    file = io.BytesIO()
    (image if image.mode in ("L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")).save(
        file, "PNG", compress_level=1
    )
    return file.getvalue()


def _at_least_one(batch_size: int) -> int:
    if batch_size < 1:
        raise DualfuseError(f"batch_size is {batch_size}; give 1 or more")
    return batch_size
