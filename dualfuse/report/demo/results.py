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
    """Recall on one set of images and captions, in both directions, of every method; of the control, if it trained."""

    images: int
    texts: int
    candidates: int
    """Number of candidates of the dual encoder that were re-ranked."""
    chance: Recall
    itc_only: Recall | None
    joint: Recall
    reranked: Recall

    def rows(self) -> tuple[tuple[str, Recall], ...]:
        """Return the compared methods by name."""
        control = () if self.itc_only is None else (("ITC only", self.itc_only),)
        return (
            ("chance", self.chance),
            *control,
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
    """Images, by their number, and their scores; nothing is re-ranked by a dual encoder alone."""


@dataclass(frozen=True)
class MaskedWord:
    """A caption with one masked word, that word, and the most likely words with their probabilities."""

    image: int
    caption: str
    word: str
    guesses: tuple[Named, ...]


@dataclass(frozen=True)
class StarterResults:
    """Everything that the page of the demo over pre-trained encoders shows."""

    seed: int
    parameters: int
    """Of the whole model."""
    trained: int
    """Parameters that were trained."""
    train_images: int
    images_and_texts: tuple[int, int]
    """Numbers of test images and of their captions."""
    rows: tuple[tuple[str, Recall], ...]
    """Recall on the test split by method; the last one is that of the newest model."""
    is_final: bool
    """False after the first model, while a better one is training."""
    stages: tuple[History, ...]
    queries: tuple[Query, ...]
    images: tuple[ImageResult, ...]
    parts: tuple[Named, ...]
    """Seconds per part."""
    commands: tuple[str, ...]
    machine: tuple[tuple[str, str], ...]
    """Versions and hardware."""

    def save(self, folder: Path) -> None:
        """Write ``folder``/results.json, as a whole or not at all."""
        write_json(folder / RESULTS, to_json(self), indent=None)


@dataclass(frozen=True)
class DemoResults:
    """Everything that the page of the demo from scratch shows."""

    seed: int
    parameters: int
    train_images: int
    retrieval: Retrieval
    fusion: tuple[Named, ...]
    """The metrics of ITM and MLM of the joint model."""
    joint: tuple[History, ...]
    """The stages of the joint model (ITC, then ITC, ITM and MLM)."""
    control: tuple[History, ...]
    """The stages of the control (ITC only), of which the first is the same run; empty: it did not train."""
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
        results = load_results(folder)
        if not isinstance(results, DemoResults):
            raise DualfuseError(f"{folder} has the results of the demo over pre-trained encoders, not of --scratch")
        return results


def load_results(folder: Path) -> DemoResults | StarterResults:
    """Read ``folder``/results.json; raises ``DualfuseError`` if it is damaged or of another version."""
    path = folder / RESULTS
    try:
        results = from_json(read_json(path))
    except (ValueError, TypeError) as error:
        raise DualfuseError(f"{path} cannot be read ({error}); delete it and rerun dualfuse demo") from error
    if not isinstance(results, DemoResults | StarterResults):
        raise DualfuseError(f"{path} is not a results file of the demo; delete it and rerun dualfuse demo")
    return results
