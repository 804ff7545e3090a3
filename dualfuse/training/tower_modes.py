"""How the pre-trained towers of a model are trained: frozen, by LoRA, their last blocks, or fully."""

from __future__ import annotations

import logging

from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.errors import DualfuseError
from dualfuse.layers.lora import add_lora
from dualfuse.models.base import VisionLanguageModel
from dualfuse.models.towers.base import Tower
from dualfuse.recipe import Recipe, Towers, TowerTraining
from dualfuse.tasks.base import Task

logger = logging.getLogger(__name__)


def check_towers(recipe: Recipe) -> None:
    """Raise ``DualfuseError`` for modes that the run cannot have."""
    if "lora" in (recipe.towers.image.mode, recipe.towers.text.mode) and recipe.run.fsdp and dist.world_size() > 1:
        raise DualfuseError(
            "towers in mode lora cannot be sharded, because their weights are merged when the model is saved; set "
            "run.fsdp to False, or the mode of the tower to last or full"
        )


def set_tower_modes(task: Task, towers: Towers) -> None:
    """Freeze and adapt the towers of ``task``, which has its initial weights.

    Raises ``DualfuseError`` if the model has no such tower, or fewer blocks than are trained.
    """
    for name, training, tower in _trainings(task, towers):
        if training.mode == "frozen":
            tower.freeze()
        elif training.mode == "lora":
            tower.requires_grad_(False)
            number = add_lora(tower.fsdp_blocks(), training.rank, training.alpha, training.targets)
            logger.info("%s tower: LoRA of rank %s on %s linear layers", name, training.rank, number)
        elif training.mode == "last":
            _freeze_below(name, tower, training.blocks)


def tower_rates(task: Task, towers: Towers) -> dict[Tensor, float]:
    """Return the learning rate multipliers of the parameters of towers."""
    return {
        parameter: training.lr_mult
        for _, training, tower in _trainings(task, towers)
        for parameter in tower.parameters()
    }


def _trainings(task: Task, towers: Towers) -> list[tuple[str, TowerTraining, Tower]]:
    found = task.model.towers() if isinstance(task.model, VisionLanguageModel) else {}
    trainings = {"image": towers.image, "text": towers.text}
    changed = {name: training for name, training in trainings.items() if training != TowerTraining()}
    if missing := [name for name in changed if name not in found]:
        raise DualfuseError(
            f"towers.{missing[0]} is set, but a {type(task.model).__name__} has no {missing[0]} tower; use train_only "
            "to freeze parts of it"
        )
    return [(name, training, found[name]) for name, training in changed.items()]


def _freeze_below(name: str, tower: Tower, blocks: int) -> None:
    levels = tower.lr_layers()
    if not 1 <= blocks < len(levels):
        raise DualfuseError(f"the {name} tower has {len(levels) - 1} blocks, so its last {blocks} cannot be trained")
    trained = {id(p) for parts in levels[-blocks:] for part in parts for p in part.parameters() if p.requires_grad}
    for parameter in tower.parameters():
        parameter.requires_grad_(id(parameter) in trained)
