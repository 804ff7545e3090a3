"""Opens the tokenizer that names the patches of an image: DALL-E's published encoder, or one trained here."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from dualfuse.errors import DualfuseError
from dualfuse.layers.vq.dalle import DalleEncoder
from dualfuse.layers.vq.visual_tokenizer import VisualTokenizer
from dualfuse.tasks.frozen_model import load_frozen
from dualfuse.tensor_files import read_weights


@lru_cache(maxsize=2)
def open_tokenizer(path: str, device: torch.device) -> VisualTokenizer:
    """Return the frozen tokenizer of a model folder, or of a file of DALL-E's encoder, once per process.

    The file is the published encoder.pkl, whose code is not run, or its state dict as .pt or .safetensors. Raises
    ValueError for anything else.
    """
    if not path:
        raise DualfuseError(
            "no visual tokens: give --task.tokenizer, the folder of a trained one (dualfuse train vlmo-tokenizer, then "
            "OUT/final) or the file encoder.pkl of DALL-E"
        )
    place = Path(path).expanduser()
    tokenizer = _of_folder(place) if place.is_dir() else _of_file(place)
    return tokenizer.requires_grad_(False).eval().to(device)


def _of_file(path: Path) -> VisualTokenizer:
    if not path.is_file():
        raise DualfuseError(
            f"{path} is neither a file nor a folder; a tokenizer is a model folder, or DALL-E's encoder.pkl"
        )
    tensors = read_weights(path).tensors
    try:
        return DalleEncoder.of(tensors)
    except ValueError as error:
        raise DualfuseError(f"{path}: {error}") from error


def _of_folder(folder: Path) -> VisualTokenizer:
    tokenizer = load_frozen(folder).model
    if not isinstance(tokenizer, VisualTokenizer):
        raise DualfuseError(f"{folder} holds a {type(tokenizer).__name__}, which makes no visual tokens of images")
    return tokenizer
