"""What answers without a transformer: frequent answers, a linear model of words and colours, a limit on a cosine."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse import hub
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.padding import pad_arrays
from dualfuse.metrics.accuracy import Question
from dualfuse.tasks.finetune.questions import QuestionExample
from dualfuse.tasks.pretrain.pairs import Pairs

GRID = 4
EPOCHS, BATCH, RATES = 15, 256, (3e-3, 1e-2)


class Asks(Protocol):
    """The config of a task that answers."""

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> QuestionExample:
        """Read images, text, and the right answer."""
        ...


@dataclass(frozen=True)
class Known:
    """N questions: tokens (N, T), colours of P images on a coarse grid (N, P, C), answers (N,) by number."""

    ids: Tensor
    colours: Tensor
    answers: Tensor
    kinds: tuple[str, ...]
    """By which answers are also judged apart; empty texts where there are none."""


def known(task: Asks, processor: Processor, pattern: str, names: Sequence[str]) -> Known:
    """Read shards; each patch of the grid is the mean colour of its pixels."""
    rng, colours, ids, asked = np.random.default_rng(0), list[Tensor](), list[np.ndarray](), list[Question]()
    for sample in Shards.open(pattern):
        row = task.read_question(sample, processor, rng)
        colours.append(F.adaptive_avg_pool2d(row["images"], GRID).flatten(1))
        ids.append(row["ids"])
        asked.append(row["question"])
    answers = torch.tensor([names.index(one.target[0]) for one in asked])
    return Known(torch.from_numpy(pad_arrays(ids, 0)), torch.stack(colours), answers, tuple(one.kind for one in asked))


def scores(said: Tensor, part: Known) -> dict[str, float]:
    """Return the accuracy of answers (N,) in percent, over all and per kind of question, named as `evaluate` does."""
    right = (said == part.answers).double() * 100
    kinds = {kind: torch.tensor([kind == one for one in part.kinds]) for kind in sorted(set(part.kinds)) if kind}
    by_kind = {f"accuracy/{kind}": right[of_it].mean().item() for kind, of_it in kinds.items()}
    return {"accuracy": right.mean().item()} | by_kind


def most_frequent(train: Known, test: Known) -> Tensor:
    """Answer (N,) what the same text was answered most often in training, whatever the image."""
    said: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for text, answer in zip(train.ids.tolist(), train.answers.tolist(), strict=True):
        said[_plain(text)][answer] += 1
    best = {text: answers.most_common(1)[0][0] for text, answers in said.items()}
    anyway = Counter(train.answers.tolist()).most_common(1)[0][0]
    return torch.tensor([best.get(_plain(text), anyway) for text in test.ids.tolist()])


class Linear(nn.Module):
    """Logistic regression on the words of a text and their outer product with colours."""

    def __init__(self, words: int, colours: int, classes: int) -> None:
        """Starts from zero."""
        super().__init__()
        self.classes = classes
        self.weights = nn.EmbeddingBag(words, classes * (1 + colours), mode="sum", padding_idx=0)
        nn.init.zeros_(self.weights.weight)

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        """Return logits (B, classes) of tokens (B, T) and colours (B, C)."""
        matrix = self.weights(ids).unflatten(1, (self.classes, -1))  # (B, classes, 1 + C)
        ones = torch.ones_like(features[:, :1])
        return torch.einsum("bkc,bc->bk", matrix, torch.cat([ones, features], dim=1))


def linear(train: Known, validation: Known, tests: Sequence[Known], *, classes: int, seed: int) -> list[Tensor]:
    """Learn ``train`` and answers (N,) each of ``tests``; ``validation`` chooses learning rate and epoch."""
    torch.manual_seed(seed)
    parts = (train, validation, *tests)
    words = torch.unique(torch.cat([torch.zeros(1, dtype=torch.long), *(part.ids.flatten() for part in parts)]))
    best, said = -1.0, list[Tensor]()
    for rate in RATES:
        model = Linear(len(words), train.colours.shape[2], classes)
        optimiser = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in range(EPOCHS):
            for some in torch.randperm(len(train.answers)).split(BATCH):
                optimiser.zero_grad()
                F.cross_entropy(_logits(model, train, words, some), train.answers[some]).backward()
                optimiser.step()
            score = scores(_said(model, validation, words), validation)["accuracy"]
            if score > best:
                best, said = score, [_said(model, test, words) for test in tests]
    return said


def threshold(validation: Known, cosines: Sequence[Tensor]) -> list[Tensor]:
    """Answer 1 where a cosine is at least what separates best in ``validation``, whose cosines (N,) come first."""
    order = cosines[0].argsort(descending=True)
    right = (validation.answers[order] * 2 - 1).cumsum(0)  # of the first n called 1: right minus wrong
    limit = cosines[0][order][right.argmax()]
    return [(cosine >= limit).long() for cosine in cosines[1:]]


def colour_cosines(part: Known) -> Tensor:
    """Return how alike the colours of two images are, (N,)."""
    return F.cosine_similarity(part.colours[:, 0] + 1, part.colours[:, 1] + 1)  # from black, not from grey


@torch.inference_mode()
def learnt_cosines(folder: str, task: Asks, pattern: str) -> Tensor:
    """Return cosines (N,) by the dual encoder of a model folder: of both images, or of image and text."""
    model = hub.load(folder)
    assert isinstance(model.task, Pairs)
    rng, cosines = np.random.default_rng(0), list[Tensor]()
    for sample in Shards.open(pattern):
        row = task.read_question(sample, model.processor, rng)
        embeddings = model.task.image_features(model.task.model.embed_image(row["images"]))
        if len(embeddings) == 1:
            ids = torch.from_numpy(row["ids"])[None]
            text = model.task.text_features(model.task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool)))
            embeddings = torch.cat([embeddings, text])
        cosines.append(embeddings[0] @ embeddings[1])
    return torch.stack(cosines)


def _plain(ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(filter(None, ids))


def _logits(model: Linear, part: Known, words: Tensor, some: Tensor) -> Tensor:
    colours = part.colours[some]  # of two images their difference, whatever its sign
    features = colours[:, 0] if colours.shape[1] == 1 else (colours[:, 0] - colours[:, 1]).abs()
    return model(torch.searchsorted(words, part.ids[some]), features)


@torch.inference_mode()
def _said(model: Linear, part: Known, words: Tensor) -> Tensor:
    return _logits(model, part, words, torch.arange(len(part.answers))).argmax(1)
