"""Experiment trackers beside log.jsonl: TensorBoard, Weights & Biases and trackio behind one protocol.

A tracker is an addition: log.jsonl holds every number, and a tracker that fails never ends a run.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.errors import MissingExtraError
from dualfuse.files import read_bounded
from dualfuse.io import write_text
from dualfuse.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

EXTRAS = {"tensorboard": "track", "wandb": "wandb", "trackio": "trackio"}
"""Trackers by name, and the extra that installs each."""
PROJECT = "dualfuse"
"""Project of W&B and trackio, unless WANDB_PROJECT or TRACKIO_PROJECT names another."""
RUN_ID = "tracker-id.txt"
MAX_ID = 100
"""Bytes of that file."""


class Tracker(Protocol):
    """A place for the numbers of a run."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record the numbers of one line of the log."""
        ...

    def log_image(self, step: int, name: str, image: Image) -> None:
        """Record an image."""
        ...

    def close(self) -> None:
        """Finish the record."""
        ...


class TensorBoard:
    """Events in ``folder``/tensorboard."""

    def __init__(self, folder: Path, start: int) -> None:
        """Continue after step ``start``."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard", purge_step=start + 1 if start else 0)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write one scalar per number."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_image(self, step: int, name: str, image: Image) -> None:
        """Write an image (H, W, 3)."""
        import numpy as np

        self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Close the file of events."""
        self._writer.close()


class WandbStyle:
    """A run of W&B, or of trackio, which has the same functions ``init``, ``log`` and ``finish``.

    A resumed run continues the earlier record, by the identifier in ``folder``/tracker-id.txt. W&B keeps the first
    record of a step: after a kill those steps are repeated with the same numbers.
    """

    def __init__(self, module: ModuleType, folder: Path, start: int, recipe: Recipe) -> None:
        """Open the record; ``module`` is wandb or trackio."""
        identifier = _run_id(folder, start)
        options: dict[str, Any] = {  # Any: the options of two libraries
            "project": os.environ.get(f"{module.__name__.upper()}_PROJECT") or PROJECT,
            "name": f"{folder.resolve().name}-{identifier}",
            "config": hub.recipe_to_json(recipe),
            "resume": "allow",
        }
        if module.__name__ == "wandb":
            settings = module.Settings(console="off", silent=True, x_disable_stats=True)
            options |= {"dir": str(folder), "id": identifier, "settings": settings}
        else:
            options |= {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._module = module
        module.init(**options)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record the numbers under ``step``."""
        self._module.log({name: value for name, value in numbers.items() if name != "step"}, step=step)

    def log_image(self, step: int, name: str, image: Image) -> None:
        """Record an image under ``step``."""
        self._module.log({name: self._module.Image(image)}, step=step)

    def close(self) -> None:
        """Finish the record."""
        self._module.finish()


class Trackers:
    """All trackers of a run. One that fails is reported once, and then omitted."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        """``trackers`` are open, by name."""
        self._open = dict(trackers)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record the numbers of one line of the log."""
        self._call("log", step, numbers)

    def log_image(self, step: int, name: str, image: Image) -> None:
        """Record an image."""
        self._call("log_image", step, name, image)

    def close(self) -> None:
        """Finish all records."""
        self._call("close")
        self._open.clear()

    def __bool__(self) -> bool:
        """Return whether any tracker is in use."""
        return bool(self._open)

    def _call(self, method: str, *values: object) -> None:
        for name, tracker in list(self._open.items()):
            try:
                with redirect_stdout(sys.stderr):  # trackio prints; stdout is for results
                    getattr(tracker, method)(*values)
            except Exception as error:  # of a third-party library: a network, a server, a full disk
                _report(name, error)
                del self._open[name]


def open_trackers(recipe: Recipe, folder: Path, start: int) -> Trackers:
    """Open the trackers of ``recipe.run`` for the run in ``folder``, at step ``start``; on the first process only.

    Raises ``MissingExtraError`` if one is not installed. One that cannot be opened, such as W&B without a login, is
    reported and omitted.
    """
    names = dict.fromkeys((*(("tensorboard",) if recipe.run.tensorboard else ()), *recipe.run.trackers))
    opened: dict[str, Tracker] = {}
    for name in names if dist.rank() == 0 else ():
        module = _import(name)
        try:
            with redirect_stdout(sys.stderr):
                is_local = name == "tensorboard"
                opened[name] = TensorBoard(folder, start) if is_local else WandbStyle(module, folder, start, recipe)
        except Exception as error:  # of a third-party library
            _report(name, error)
    return Trackers(opened)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError as error:
        raise MissingExtraError(f"run.trackers {name}", EXTRAS[name]) from error


def _report(name: str, error: Exception) -> None:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    logger.warning("tracker %s has failed and is omitted from now on (%s); log.jsonl is complete", name, reason)


def _run_id(folder: Path, start: int) -> str:
    """Return the identifier of the record of a run, a new one for a run that starts at step 0."""
    path = folder / RUN_ID
    if start and path.is_file():
        return read_bounded(path, MAX_ID).decode().strip()
    identifier = secrets.token_hex(4)
    write_text(path, identifier + "\n")
    return identifier
