"""What a model folder records of the model's evaluation: the calibration of scores, and whether re-ranking helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dualfuse import checksums
from dualfuse.config import JSON, check_types, from_json, to_json
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import TEXT_TO_IMAGE
from dualfuse.files import read_json
from dualfuse.io import write_json
from dualfuse.metrics.calibration import Calibration

if TYPE_CHECKING:
    from dualfuse.tasks.base import Task

CALIBRATION, RERANKING = "calibration.json", "rerank.json"
AT = ("R@1", "R@5", "R@10")
Note = TypeVar("Note")


@dataclass(frozen=True)
class Reranking:
    """Text-to-image recall at 1, 5 and 10 of a validation set, by the dual encoder and after re-ranking."""

    candidates: int
    """Candidates per query that were re-ranked."""
    dual: tuple[float, ...]
    reranked: tuple[float, ...]

    @property
    def helps(self) -> bool:
        """Whether re-ranking raises the mean of the three recalls, and lowers R@1 in no case."""
        return sum(self.reranked) > sum(self.dual) and self.reranked[0] >= self.dual[0]

    @property
    def text(self) -> str:
        """R@1 before and after, as text."""
        return f"R@1 of text to image on the validation set: {100 * self.dual[0]:.1f} to {100 * self.reranked[0]:.1f} %"

    @staticmethod
    def of(metrics: Mapping[str, float], candidates: int) -> Reranking | None:
        """Return what metrics of a retrieval evaluation say; None if nothing was re-ranked."""
        dual, reranked = (
            [metrics.get(f"{name}/{at}") for at in AT] for name in (TEXT_TO_IMAGE, f"{TEXT_TO_IMAGE}/reranked")
        )
        if candidates < 1 or None in dual or None in reranked:
            return None
        return Reranking(candidates, *(tuple(each for each in side if each is not None) for side in (dual, reranked)))


def reranking_notes(metrics: Mapping[str, float], candidates: int) -> dict[str, JSON]:
    """Return the note of a model folder about re-ranking, by file name; empty if nothing was re-ranked."""
    note = Reranking.of(metrics, candidates)
    return {RERANKING: to_json(note)} if note else {}


def write_note(folder: Path, name: str, note: Calibration | Reranking) -> Path:
    """Write a note into a model folder, with its checksum, and return its path."""
    write_json(folder / name, to_json(note))
    checksums.update_checksum(folder, name)
    return folder / name


def read_notes(task: Task, folder: Path) -> None:
    """Give a task the notes of its model folder; a folder without notes leaves the task as it is.

    Raises ``DualfuseError`` for a note that is damaged.
    """
    task.calibration = read_note(folder / CALIBRATION, Calibration)
    task.reranking = read_note(folder / RERANKING, Reranking)


def read_note(path: Path, kind: type[Note]) -> Note | None:
    """Return the note in a file; None if there is none. Raises ``DualfuseError`` if it is damaged."""
    if not path.is_file():
        return None
    try:
        note = from_json(read_json(path))
        if isinstance(note, kind):
            check_types(note)
            return note
        raise ValueError(f"it holds a {type(note).__name__}")
    except (ValueError, TypeError, KeyError) as error:
        raise DualfuseError(
            f"{path} is not a {kind.__name__} that dualfuse wrote ({error}); delete it, and write it again with "
            "dualfuse evaluate MODEL DATA --calibrate"
        ) from error
