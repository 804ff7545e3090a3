"""The results of the demo as one value; the page is written from it alone, without training again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dualfuse.config import from_json, to_json
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json
from dualfuse.io import write_json
from dualfuse.report.curves import History

RESULTS = "results.json"

Scored = tuple[int, float]
Named = tuple[str, float]


@dataclass(frozen=True)
class Recall:
    """R@1, R@5 and R@10: shares of queries with a match among the first 1, 5 and 10 results."""

    text_to_image: tuple[float, ...]
    image_to_text: tuple[float, ...]


@dataclass(frozen=True)
class Retrieval:
    """Recall on one set of images and captions, in both directions, of every method."""

    images: int
    texts: int
    candidates: int
    """Number of candidates of the dual encoder that were re-ranked."""
    chance: Recall
    itc_only: Recall
    joint: Recall
    reranked: Recall

    def rows(self) -> tuple[tuple[str, Recall], ...]:
        """Return the compared methods by name."""
        return (
            ("chance", self.chance),
            ("ITC only", self.itc_only),
            ("ITC, ITM, MLM: dual encoder", self.joint),
            (f"ITC, ITM, MLM: {self.candidates} re-ranked", self.reranked),
        )


@dataclass(frozen=True)
class ImageResult:
    """An image of a shard: its number, its file in base64, and its first caption."""

    number: int
    kind: str
    """Media type, such as image/jpeg."""
    data: str
    caption: str


@dataclass(frozen=True)
class Query:
    """A caption, the ranks of its image (0 is the first) before and after re-ranking, and the first five results."""

    caption: str
    target: int
    """The number of the image of the caption."""
    rank: int
    reranked_rank: int
    nearest: tuple[Scored, ...]
    reranked: tuple[Scored, ...]
    """Images, by their number, and their scores."""


@dataclass(frozen=True)
class MaskedWord:
    """A caption with one masked word, that word, and the most likely words with their probabilities."""

    image: int
    caption: str
    word: str
    guesses: tuple[Named, ...]


@dataclass(frozen=True)
class DemoResults:
    """Everything that the page of the demo shows."""

    seed: int
    parameters: int
    train_images: int
    retrieval: Retrieval
    fusion: tuple[Named, ...]
    """The metrics of ITM and MLM of the joint model."""
    joint: tuple[History, ...]
    """The stages of the joint model (ITC, then ITC, ITM and MLM)."""
    control: tuple[History, ...]
    """The stages of the control (ITC only); the first stage is the same run."""
    queries: tuple[Query, ...]
    masked: tuple[MaskedWord, ...]
    images: tuple[ImageResult, ...]
    parts: tuple[Named, ...]
    """Seconds per part."""
    commands: tuple[str, ...]
    machine: tuple[tuple[str, str], ...]
    """Versions and hardware."""

    def save(self, folder: Path) -> None:
        """Write ``folder``/results.json, as a whole or not at all."""
        write_json(folder / RESULTS, to_json(self), indent=None)

    @staticmethod
    def load(folder: Path) -> DemoResults:
        """Read ``folder``/results.json; raises ``DualfuseError`` if it is damaged or of another version."""
        path = folder / RESULTS
        try:
            results = from_json(read_json(path))
        except (ValueError, TypeError) as error:
            raise DualfuseError(f"{path} cannot be read ({error}); delete it and rerun dualfuse demo") from error
        if not isinstance(results, DemoResults):
            raise DualfuseError(f"{path} is not a results file of the demo; delete it and rerun dualfuse demo")
        return results
