"""Calibration of the model of a finished run on its validation set."""

from __future__ import annotations

import logging
from pathlib import Path

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.card import CARD, write_card
from dualfuse.checksums import update_checksum
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.calibration import calibrate_model
from dualfuse.evaluation.notes import CALIBRATION, write_note
from dualfuse.evaluation.runner import Plan
from dualfuse.recipe import Recipe
from dualfuse.run_folder import model_of

logger = logging.getLogger(__name__)


def calibrate_run(out: Path, recipe: Recipe, *, can_search: bool, device: str) -> None:
    """Store in the model that stands for a run which probabilities its scores mean, by the validation set.

    Nothing is done without validation set, for a task without embeddings, or if the model has a calibration. Runs of
    several processes are not calibrated, because the others would wait, nor are sets without negative pairs; the log
    says so.
    """
    folder = model_of(out)
    if not (recipe.data.validation and can_search) or (folder / CALIBRATION).is_file():
        return
    if dist.world_size() > 1:
        logger.info("%s is not calibrated; dualfuse evaluate %s SHARDS --calibrate does that", folder, folder)
        return
    try:
        plan = Plan(num_workers=recipe.data.num_workers, exclude_broken=True)
        calibration = calibrate_model(hub.load(folder, device=device), recipe.data.validation, plan)
    except DualfuseError as error:
        logger.info("%s is not calibrated: %s", folder, error)
        return
    write_note(folder, CALIBRATION, calibration)
    write_card(folder)
    update_checksum(folder, CARD)
    logger.info("%s is calibrated on %s validation texts", folder, f"{calibration.texts:,}")
