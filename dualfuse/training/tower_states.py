"""Stored states of frozen towers: what the towers return for the images and texts of a run, on disk and by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.errors import DualfuseError
from dualfuse.models.towers.base import Tower, TowerOutput, pooled_output
from dualfuse.training.state_file import StateFile

VIEW = 4  # separates the random stream of stored views from those of the sampler
NOT_AUGMENTED = -1


def image_key(image: bytes, view: int) -> bytes:
    """Return the key of an image file in one of its views; :data:`NOT_AUGMENTED`: as in evaluation."""
    return blake2b(image, digest_size=16, key=view.to_bytes(4, "big", signed=True)).digest()


def text_key(ids: np.ndarray) -> bytes:
    """Return the key of a text's token ids (T,)."""
    return blake2b(np.ascontiguousarray(ids, dtype=np.int64).tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class StoredImages(ImageTransform):
    """Transform of image files to the addresses (2,) int64 of their stored states, without decoding.

    With augmentation one of ``views`` is drawn. A file without stored states is transformed as usual, which raises the
    error that kept it from being stored.
    """

    folder: str = ""
    views: int = 0

    def __call__(self, data: bytes, rng: np.random.Generator) -> Tensor:
        """Return the address of an image; raises DualfuseError if the image cannot be decoded."""
        view = NOT_AUGMENTED if self.augment is None else int(rng.integers(self.views))
        key = image_key(data, view)
        if key not in _opened(self.folder):
            view_of(self, data, view)
            raise DualfuseError("its states are not stored, because the set was changed while they were computed")
        return torch.from_numpy(np.frombuffer(key, np.int64).copy())


def view_of(transform: ImageTransform, data: bytes, view: int) -> Tensor:
    """Return the pixels (3, H, W) of a view of an image file, the same in every run."""
    if view == NOT_AUGMENTED:
        plain = ImageTransform(transform.size, None, transform.preprocess)
        return plain(data, np.random.default_rng(0))
    seed = (VIEW, view, int.from_bytes(image_key(data, view)[:8], "big"))
    return ImageTransform(transform.size, transform.augment, transform.preprocess)(data, np.random.default_rng(seed))


@lru_cache(maxsize=4)
def _opened(folder: str) -> StateFile:
    return StateFile(Path(folder))


@dataclass(frozen=True, eq=False)
class StoredStates:
    """The stored outputs of the towers of a run, which are read from memory-mapped files."""

    images: StateFile
    texts: StateFile
    only_pooled: bool = False
    """Whether the records are pooled states alone, for a model that reads nothing else."""

    def processor(self, processor: Processor, views: int) -> Processor:
        """Return the processor that replaces images by the addresses of their states."""
        image = processor.image
        stored = StoredImages(image.size, image.augment, image.preprocess, str(self.images.folder), views)
        return replace(processor, image=stored)

    def image(self, tower: Tower, images: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the output for addresses (B, 2), or run the tower on images (B, 3, H, W)."""
        if images.dtype != torch.int64:
            return tower(images, layers=layers)
        keys = [row.tobytes() for row in images.cpu().numpy()]
        return unpack(self.images.stack(keys), self.images.shape, images.device)

    def text(self, tower: Tower, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the output for texts (B, T); the tower runs on those that are not stored. Padding has zeros."""
        keys = [text_key(row[kept]) for row, kept in zip(ids.cpu().numpy(), mask.cpu().numpy(), strict=True)]
        stored = [number for number, key in enumerate(keys) if key in self.texts]
        others = [number for number, key in enumerate(keys) if key not in self.texts]
        if not stored:
            return self._reduced(tower(ids, mask, layers=layers))
        outputs = [
            (number, unpack(torch.from_numpy(self.texts.read(keys[number]).copy())[None], self.texts.shape, ids.device))
            for number in stored
        ]
        if others:
            index = torch.tensor(others, device=ids.device)
            computed = self._reduced(tower(ids[index], mask[index], layers=layers))
            outputs += [(number, _row(computed, row)) for row, number in enumerate(others)]
        return _padded([output for _, output in sorted(outputs, key=lambda item: item[0])], ids.shape[1])

    def _reduced(self, output: TowerOutput) -> TowerOutput:
        return pooled_output(output) if self.only_pooled else output


def pack(output: TowerOutput, row: int, length: int | None = None) -> Tensor:
    """Return the states of one example, of its first ``length`` tokens, and its pooled state as (values,) float16.

    Raises DualfuseError if a value is beyond the range of half precision.
    """
    parts = [state[row, :length].flatten() for state in output.states]
    values = torch.cat(parts if output.pooled is None else [*parts, output.pooled[row]]).half().cpu()
    if not values.isfinite().all():
        raise DualfuseError(
            "the states of a tower are not finite in half precision, in which they are stored; set --towers.cache-gb 0"
        )
    return values


def shape_of(output: TowerOutput) -> dict[str, object]:
    """Return what :func:`unpack` needs, as JSON values."""
    pooled = 0 if output.pooled is None else output.pooled.shape[1]
    return {
        "layers": len(output.states),
        "width": output.states[0].shape[2],
        "pooled": pooled,
        "grid": list(output.grid),
    }


def unpack(records: Tensor, shape: object, device: torch.device) -> TowerOutput:
    """Return the output (B, N, width) of records (B, values) of one length, in single precision."""
    match shape:
        case {"layers": int(layers), "width": int(width), "pooled": int(pooled), "grid": [*grid]}:
            values = records.to(device).float()
            end = values.shape[1] - pooled
            states = values[:, :end].view(len(values), layers, -1, width)
            sides = tuple(int(str(side)) for side in grid)
            return TowerOutput(states.unbind(1), sides, values[:, end:] if pooled else None)
        case _:
            raise DualfuseError("the shape of the stored states is missing or damaged; delete their folder")


def _row(output: TowerOutput, row: int) -> TowerOutput:
    pooled = None if output.pooled is None else output.pooled[row : row + 1]
    return TowerOutput(tuple(state[row : row + 1] for state in output.states), output.grid, pooled)


def _padded(outputs: Sequence[TowerOutput], length: int) -> TowerOutput:
    """Return outputs of one example each as a batch of ``length`` tokens, with zeros at padding."""
    first = outputs[0].states[0]
    layers = len(outputs[0].states)
    states = [first.new_zeros(len(outputs), length, first.shape[2]) for _ in range(layers)]
    for row, output in enumerate(outputs):
        for batch, state in zip(states, output.states, strict=True):
            batch[row, : state.shape[1]] = state[0]
    pooled = [output.pooled for output in outputs if output.pooled is not None]
    return TowerOutput(tuple(states), pooled=torch.cat(pooled) if pooled else None)
