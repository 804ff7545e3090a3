"""What the demo reached, as one value: the page is made from it alone, and can be made again without training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dualfuse.config import from_json, to_json
from dualfuse.errors import DualfuseError
from dualfuse.io import write_json
from dualfuse.report.curves import History

RESULTS = "results.json"


@dataclass(frozen=True)
class Recall:
    """Shares of queries whose right answer is among the first 1, 5, 10: (R@1, R@5, R@10)."""

    text_to_image: tuple[float, ...]
    image_to_text: tuple[float, ...]


@dataclass(frozen=True)
class Retrieval:
    """One set of images and captions, searched both ways by everything that can search it."""

    images: int
    texts: int
    candidates: int
    """How many of the dual encoder's best were re-ranked."""
    chance: Recall
    contrast_only: Recall
    joint: Recall
    reranked: Recall

    def rows(self) -> tuple[tuple[str, Recall], ...]:
        """List what is compared, with its name."""
        return (
            ("chance", self.chance),
            ("contrast only", self.contrast_only),
            ("all objectives, dual encoder", self.joint),
            (f"all objectives, best {self.candidates} re-ranked", self.reranked),
        )


@dataclass(frozen=True)
class ImageResult:
    """An image as it lies in the shard, in base64, its number there, and its first caption."""

    number: int
    kind: str
    """Media type, such as image/jpeg."""
    data: str
    caption: str


@dataclass(frozen=True)
class Found:
    """One answer: the number of an image, and its score."""

    image: int
    score: float


@dataclass(frozen=True)
class Query:
    """A caption, the place of its image before and after re-ranking (0 is the first), and the best five of both."""

    caption: str
    right: int
    place: int
    reranked_place: int
    nearest: tuple[Found, ...]
    reranked: tuple[Found, ...]


@dataclass(frozen=True)
class Guess:
    """A token that may stand at the mask, and its probability."""

    word: str
    probability: float


@dataclass(frozen=True)
class MaskedWord:
    """A caption with one word masked, what stood there, and the likeliest words."""

    image: int
    caption: str
    word: str
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class Number:
    """A number and its name."""

    name: str
    value: float


@dataclass(frozen=True)
class Machine:
    """What it ran with."""

    dualfuse: str
    torch: str
    python: str
    device: str
    cpus: int
    threads: int


@dataclass(frozen=True)
class Queries:
    """The captions that were drawn as examples, and of how many the image came first."""

    drawn: tuple[Query, ...]
    first: int
    texts: int


@dataclass(frozen=True)
class DemoResults:
    """Everything the demo's page says."""

    seed: int
    parameters: int
    train_images: int
    retrieval: Retrieval
    fusion: tuple[Number, ...]
    """What ``pair_accuracy`` gives."""
    joint: tuple[History, ...]
    """The stages of the joint run, in order."""
    control: tuple[History, ...]
    """The stages of contrast alone; the first is shared."""
    queries: Queries
    masked: tuple[MaskedWord, ...]
    images: tuple[ImageResult, ...]
    parts: tuple[Number, ...]
    """Seconds of each part."""
    commands: tuple[str, ...]
    machine: Machine

    def save(self, folder: Path) -> None:
        """Write ``folder``/results.json, as a whole or not at all."""
        write_json(folder / RESULTS, to_json(self), indent=None)

    @staticmethod
    def load(folder: Path) -> DemoResults:
        """Read ``folder``/results.json; ``DualfuseError`` if it is of another version, or damaged."""
        path = folder / RESULTS
        try:
            results = from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DualfuseError(f"{path} cannot be read ({error}); delete it and repeat dualfuse demo") from error
        if not isinstance(results, DemoResults):
            raise DualfuseError(f"{path} holds no results of the demo; delete it and repeat dualfuse demo")
        return results
