"""The process of measure.py: ``python -m dualfuse.training.measure_steps FILE STEPS PLUGIN ...``."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse import hub, plugins
from dualfuse.data.loader import to_device
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.models.base import VisionLanguageModel
from dualfuse.models.towers.base import Tower, TowerOutput
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Batch, Task
from dualfuse.training.dataloader import training_dataloader
from dualfuse.training.freeze import freeze, freeze_unused, has_fixed_graph
from dualfuse.training.memory import wrap_blocks
from dualfuse.training.optim import build_optimizer, clip_grad_norm
from dualfuse.training.tower_modes import set_tower_modes, tower_rates


def main(arguments: Sequence[str]) -> int:
    """Print the numbers of a ``Measurement`` as JSON; return 2 for a ``DualfuseError``, whose message is on stderr."""
    file, steps, *modules = arguments
    try:
        plugins.load(modules)
        sys.stdout.write(json.dumps(measured(hub.recipe_from_file(Path(file)), int(steps))) + "\n")
    except DualfuseError as error:
        sys.stderr.write(f"{error}\n")  # for the parent, which makes it printable
        return 2
    return 0


def measured(recipe: Recipe, steps: int) -> dict[str, float | None]:
    """Return peak memory and samples per second of training steps on one batch."""
    device = dist.device()
    torch.manual_seed(recipe.run.seed)
    task = recipe.build().to(device)
    freeze(task, recipe.train_only)
    set_tower_modes(task, recipe.towers)
    batch = to_device(_batch(recipe), device)
    if has_fixed_graph(task):
        freeze_unused(task, _first_two(batch))
    wrap_blocks(task, recipe.run, device)
    optimizer = build_optimizer(task, recipe.optim, tower_rates(task, recipe.towers))

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.run.precision == "bf16"):
            loss = task(batch).loss
        loss.backward()
        clip_grad_norm(task, recipe.optim.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    def speed() -> float:
        step()  # warms up, and fills the states of the optimizer
        _wait(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        _wait(device)
        return recipe.data.batch_size * steps / (time.perf_counter() - start)

    task.train()
    result: dict[str, float | None] = {
        "samples_per_second": speed(),
        "peak_memory": _peak_memory(device),
        "trained": sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad),
    }
    if _are_frozen(task):
        task.model.stored_states = _Replay()
        result["stored_samples_per_second"] = speed()
    return result


@dataclass(frozen=True)
class _Replay:
    """Returns what a tower returned for inputs of the same shape: states that are stored, without a disk."""

    outputs: dict[tuple[str, torch.Size], TowerOutput] = field(default_factory=dict)

    def image(self, tower: Tower, images: Tensor, layers: Sequence[int]) -> TowerOutput:
        key = "image", images.shape
        if key not in self.outputs:
            self.outputs[key] = tower(images, layers=layers)
        return self.outputs[key]

    def text(self, tower: Tower, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        key = "text", ids.shape
        if key not in self.outputs:
            self.outputs[key] = tower(ids, mask, layers=layers)
        return self.outputs[key]


def _are_frozen(task: Task) -> bool:
    towers = task.model.towers() if isinstance(task.model, VisionLanguageModel) else {}
    return bool(towers) and all(tower.is_frozen for tower in towers.values())


def _batch(recipe: Recipe) -> Batch:
    """Return one batch of the training data, or of noise."""
    if recipe.data.train:
        return next(training_dataloader(recipe, start=0)).batch
    processor = recipe.data.processor()
    try:
        examples = [
            recipe.task.read(_noise(recipe, number), processor, np.random.default_rng(number))
            for number in range(recipe.data.batch_size)
        ]
    except BrokenSample as error:
        raise DualfuseError(
            f"random data does not suit a {type(recipe.task).__name__} ({error.reason}); give --data.train"
        ) from error
    return recipe.task.collate(examples)


def _first_two(batch: Batch) -> Batch:
    return {name: value[:2] if isinstance(value, Tensor) else value for name, value in batch.items()}


def _noise(recipe: Recipe, number: int) -> Sample:
    rng, size = np.random.default_rng(number), recipe.data.image_size
    images = []
    for _ in range(2):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "PNG", compress_level=1)
        images.append(file.getvalue())
    text = " ".join(f"a photo {number}" for _ in range(recipe.data.text_length))
    names = getattr(recipe.task, "names", ("",))  # of tasks with classes
    return Sample(f"noise-{number}", images[0], (text,), {"answers": [names[0]], "label": 0}, other_images=(images[1],))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> int:
    """Return the bytes that torch reserved on a GPU, or the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
