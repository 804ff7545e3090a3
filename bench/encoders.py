"""What it costs to embed images: parameters, memory and processor seconds of encoders with random weights, on one core.

Each encoder runs in a process of its own with one thread: one batch to warm up, then batches for at least ``--seconds``
of processor time. Images are random pixels, so decoding is not part of it. Memory is the peak of the whole process.
``python bench/encoders.py`` prints a Markdown table; ``--names`` chooses encoders.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro

from dualfuse import recipes
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.base import ModelConfig, VisionLanguageModel
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.siglip import SiglipTextConfig, SiglipViTConfig
from dualfuse.recipes import small_pairs, starter
from dualfuse.tasks.pretrain.pairs import PairsConfig


def clip(patch: int, *, is_large: bool = False) -> ModelConfig:
    """Return CLIP ViT-B or ViT-L with patches of ``patch`` pixels."""
    if not is_large:
        return DualEncoderConfig(CLIPViTConfig(patch_size=patch, image_size=(224, 224)), CLIPTextConfig())
    image = CLIPViTConfig(width=1024, depth=24, patch_size=patch, image_size=(224, 224))
    return DualEncoderConfig(image, CLIPTextConfig(width=768, heads=12, feed_forward=3072))


def of_recipe(name: str) -> ModelConfig:
    """Return the model of a listed recipe."""
    return recipes.find_recipe(name)[-1].model


ENCODERS: dict[str, tuple[Callable[[], ModelConfig], int]] = {
    "CLIP ViT-B/32": (lambda: clip(32), 224),
    "CLIP ViT-B/16": (lambda: clip(16), 224),
    "CLIP ViT-L/14": (lambda: clip(14, is_large=True), 224),
    "SigLIP base, patch 16": (lambda: DualEncoderConfig(SiglipViTConfig(), SiglipTextConfig()), 224),
    "BridgeTower-base": (lambda: of_recipe("bridgetower-base-pairs"), 288),
    "BridgeTower-large": (lambda: of_recipe("bridgetower-large-pairs"), 294),
    "VLMo-base": (lambda: of_recipe("vlmo-base-pairs"), 224),
    "starter": (lambda: starter.MODEL, 160),
    "VLMo-nano": (lambda: small_pairs.NANO, 64),
}
"""What makes the config of a model, and the side of its images in pixels."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    names: tuple[str, ...] = tuple(ENCODERS)
    batch_size: int = 8
    seconds: float = 3.0
    """Processor seconds of each encoder, at least."""
    one: bool = False
    """Measure the first of ``names`` in this process and print JSON; without it each runs in its own process."""


@torch.inference_mode()
def measure(name: str, batch_size: int, seconds: float) -> dict[str, float | str]:
    """Return the numbers of one encoder."""
    torch.set_num_threads(1)
    make, side = ENCODERS[name]
    model = make()
    task = PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal", itc_head=ITCHeadConfig(width=512))
    network = model.build()
    assert isinstance(network, VisionLanguageModel)
    built = task.build(network).eval()
    images = torch.randn(batch_size, 3, side, side)
    built.image_features(built.model.embed_image(images))
    began, number = time.process_time(), 0
    while time.process_time() - began < seconds:
        built.image_features(built.model.embed_image(images))
        number += batch_size
    return {
        "name": name,
        "side": side,
        "parameters": sum(parameter.numel() for parameter in built.parameters()) / 1e6,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "seconds": 1000 * (time.process_time() - began) / number,
    }


def row(numbers: dict[str, float | str]) -> str:
    """Return a line of the table."""
    seconds = float(numbers["seconds"])
    shown = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
    hours = seconds * 1000 / 3600
    million = f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
    if hours < 2:
        million = f"{60 * hours:.0f} minutes"
    return (
        f"| {numbers['name']} | {numbers['side']} | {float(numbers['parameters']):.1f} | "
        f"{float(numbers['memory']):.1f} | {shown} | {million} |"
    )


def main(options: Options) -> None:
    """Print the table, a line as soon as its encoder was measured."""
    if options.one:
        print(json.dumps(measure(options.names[0], options.batch_size, options.seconds)))
        return
    print("| encoder | image side | parameters, millions | memory, GB | seconds per 1,000 images | a million images |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for name in options.names:
        flags = ["--batch-size", str(options.batch_size), "--seconds", str(options.seconds), "--one"]
        command = [sys.executable, __file__, "--names", name, *flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        print(row(json.loads(done.stdout)), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
