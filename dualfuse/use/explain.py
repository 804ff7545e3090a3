"""Which patches of a picture each word looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse.data.images import to_pixels
from dualfuse.data.text import Text, Words, whole_words
from dualfuse.hub import Loaded
from dualfuse.models.base import Fused
from dualfuse.tasks.base import Task
from dualfuse.tasks.classification import PairClassification
from dualfuse.tasks.pairs import Pairs
from dualfuse.use.blanks import MASK
from dualfuse.use.heads import head_of, text_of
from dualfuse.use.predict import Picture, asked
from dualfuse.use.recorded import Recorded, recorded
from dualfuse.use.relevance import Flow, follow, halves, sums

Method = Literal["gradient", "rollout"]
WHOLE = "(whole text)"


@dataclass(frozen=True, eq=False)
class Explanation:
    """One picture as the model saw it, uint8 (H, W, 3), and a heat map for each word, (W, rows, columns) of patches.

    The first map is that of the start token, which stands for the whole text. By rollout a map adds up to the share of
    a word that comes from the patches; by gradient its scale has no meaning.
    """

    answer: str
    words: tuple[str, ...]
    heat: Tensor
    pixels: np.ndarray


def explain(
    model: Loaded, image: Picture | Sequence[Picture], text: str, *, method: Method = "gradient"
) -> tuple[Explanation, ...]:
    """Gives for each picture which patches the words took part of their meaning from.

    "rollout" (Abnar and Zuidema 2020) follows attention through all layers, whatever the model answers; "gradient"
    (Chefer, Gur and Wolf 2021) weighs it with how much it speaks for the answer, or for a match. Neither proves what
    an answer depends on. ``ValueError`` for a model that fuses no picture with a text, or whose layers are not known.
    """
    if MASK.search(text):
        raise ValueError(f"{text!r} has a mask; explain takes a whole text, with the words that you want to see")
    head_of(model).read(sample := asked(image, text))  # refuses what predict refuses
    task, prep = model.task, model.prep
    device = next(task.parameters()).device
    words, rng = prep.text.encode(text_of(sample)), np.random.default_rng(0)
    pictures = [prep.image(picture, rng) for picture in (sample.image, *sample.others)]
    ids = torch.from_numpy(words.ids)[None].to(device)
    with torch.enable_grad(), recorded(task.model) as found:
        read = task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))
        shown = [task.model.embed_image(each[None].to(device), slot) for slot, each in enumerate(pictures)]
        answer, score = _answer(task, [task.model.fuse(each, read) for each in shown])
    weigh = _weighted(found, score) if method == "gradient" else _average(found)
    labels, groups = _labelled(words, prep.text)
    explanations = []
    for number, (picture, tokens) in enumerate(zip(pictures, shown, strict=True)):
        flow = follow(
            task.model,
            lambda module, number=number: weigh(module, number),
            Flow.start(len(words.ids), tokens.mask.shape[1]),
            sums if method == "gradient" else halves,
        )
        patches = flow.words[:, len(words.ids) + 1 :]  # behind the words and the class token
        heat = torch.stack([patches[group].mean(0) for group in groups]).unflatten(1, tokens.grid)
        pixels = to_pixels(picture, prep.image.looks.mean, prep.image.looks.std)
        explanations.append(Explanation(answer, labels, heat, pixels))
    return tuple(explanations)


def _answer(task: Task, fused: Sequence[Fused]) -> tuple[str, Tensor]:
    """Gives what the head says of one text, and the logit that says it."""
    match task:
        case PairClassification():
            logits = task.classifier(torch.cat([each.pooled for each in fused], dim=1))[0]
            best = int(logits.argmax())
            return task.names[best], logits[best]
        case Pairs() if task.can_match:
            no, yes = task.match_head(fused[0].pooled)[0]
            return f"match {100 * torch.sigmoid(yes - no).item():.1f} %", yes - no
    raise ValueError(
        f"this {type(task).__name__} model answers nothing about a picture and a text that saw each other; give one "
        "trained for questions, labels or matching"
    )


Weigh = Callable[[nn.Module, int], Tensor]
"""Gives the map (R, N) of a module, for the picture of that number."""


def _average(found: Recorded) -> Weigh:
    return lambda module, number: _run(found[module], number)[0].mean(0).detach().float().cpu()


def _weighted(found: Recorded, score: Tensor) -> Weigh:
    """Weighs attention with its gradient; what speaks against the answer counts as none."""
    maps = [probabilities for runs in found.values() for probabilities in runs]
    gradients = torch.autograd.grad(score, maps, allow_unused=True)
    weighted = {
        id(each): torch.zeros_like(each) if gradient is None else (each * gradient).clamp(min=0)
        for each, gradient in zip(maps, gradients, strict=True)
    }
    return lambda module, number: weighted[id(_run(found[module], number))][0].mean(0).detach().float().cpu()


def _run(runs: Sequence[Tensor], number: int) -> Tensor:
    """Gives what was recorded for a picture; the layers of texts alone ran once for all pictures."""
    return runs[number] if len(runs) > 1 else runs[0]


def _labelled(words: Words, by: Text) -> tuple[tuple[str, ...], list[list[int]]]:
    """Gives the names of the maps, and the positions of the word pieces that each is about."""
    groups = whole_words(words)
    return (WHOLE, *(by.decode(words.ids[group]).strip() for group in groups)), [[0], *groups]
