"""Any checkpoint that dualfuse knows, ready to use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dualfuse import hub
from dualfuse.convert.build import build
from dualfuse.convert.convert import is_ours, locate
from dualfuse.convert.foreign import read_checkpoint
from dualfuse.tasks.base import Processor


def load(source: Path | str, *, device: torch.device | str = "cpu", tokenizer: str = "") -> hub.LoadedModel:
    """Return a model ready to use: of a model folder, a foreign checkpoint, or a name on the Hugging Face hub.

    ``tokenizer`` (a tokenizer.json, a folder or a name on the hub) is for checkpoints that come without one.
    """
    path = locate(source)
    if is_ours(path):
        return hub.load(path, device=device)
    converted = build(read_checkpoint(path, tokenizer))
    data = converted.recipe.data
    processor = Processor(image=replace(data.image_transform, augment=None), text=data.text_transform)
    return hub.LoadedModel(converted.task.to(device).eval(), processor, converted.recipe)
