"""Which patches of an image each word looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse.data.image.transform import to_pixels
from dualfuse.data.text.tokenizer import EncodedText, TextTransform, whole_words
from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.inference.attention_maps import Recorded, record_attention
from dualfuse.inference.fill_mask import MASK
from dualfuse.inference.heads import head_of, text_of
from dualfuse.inference.predict import Picture, read_inputs
from dualfuse.inference.relevance import Relevance, attention_flow, halves, sums
from dualfuse.models.base import Fused
from dualfuse.tasks.base import Task
from dualfuse.tasks.finetune.classification import PairClassification
from dualfuse.tasks.pretrain.pairs import Pairs

Method = Literal["gradient", "rollout"]
WHOLE = "(whole text)"


@dataclass(frozen=True, eq=False)
class Explanation:
    """One image as the model saw it, uint8 (H, W, 3), and a heat map for each word, (W, rows, columns) of patches.

    The first map is that of the start token, which stands for the whole text. By rollout a map adds up to the share of
    a word that comes from the patches; by gradient its scale has no meaning.
    """

    answer: str
    words: tuple[str, ...]
    heat: Tensor
    pixels: np.ndarray


def explain(
    model: LoadedModel, image: Picture | Sequence[Picture], text: str, *, method: Method = "gradient"
) -> tuple[Explanation, ...]:
    """Return for each image which patches the words took part of their meaning from.

    "rollout" (Abnar and Zuidema 2020) follows attention through all layers, whatever the model answers; "gradient"
    (Chefer, Gur and Wolf 2021) weighs it with how much it speaks for the answer, or for a match. Neither proves what
    an answer depends on. ``DualfuseError`` for a model that fuses no image with a text, or whose layers are not known.
    """
    if MASK.search(text):
        raise DualfuseError(f"{text!r} has a mask; explain takes a whole text, with the words that you want to see")
    head_of(model).read(sample := read_inputs(image, text))  # refuses what predict refuses
    task, processor = model.task, model.processor
    device = next(task.parameters()).device
    words, rng = processor.text.encode(text_of(sample)), np.random.default_rng(0)
    images = [processor.image(pil_image, rng) for pil_image in (sample.image, *sample.other_images)]
    ids = torch.from_numpy(words.ids)[None].to(device)
    with torch.enable_grad(), record_attention(task.model) as found:
        read = task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))
        shown = [task.model.embed_image(each[None].to(device), slot) for slot, each in enumerate(images)]
        answer, score = _answer(task, [task.model.fuse(each, read) for each in shown])
    weigh = _weighted(found, score) if method == "gradient" else _average(found)
    labels, groups = _labelled(words, processor.text)
    explanations = []
    for number, (pil_image, tokens) in enumerate(zip(images, shown, strict=True)):
        flow = attention_flow(
            task.model,
            lambda module, number=number: weigh(module, number),
            Relevance.start(len(words.ids), tokens.mask.shape[1]),
            sums if method == "gradient" else halves,
        )
        patches = flow.words[:, len(words.ids) + 1 :]  # behind the words and the class token
        heat = torch.stack([patches[group].mean(0) for group in groups]).unflatten(1, tokens.grid)
        pixels = to_pixels(pil_image, processor.image.preprocess.mean, processor.image.preprocess.std)
        explanations.append(Explanation(answer, labels, heat, pixels))
    return tuple(explanations)


def _answer(task: Task, fused: Sequence[Fused]) -> tuple[str, Tensor]:
    """Return what the head says of one text, and the logit that says it."""
    match task:
        case PairClassification():
            logits = task.classifier(torch.cat([each.pooled for each in fused], dim=1))[0]
            best = int(logits.argmax())
            return task.names[best], logits[best]
        case Pairs() if task.can_match:
            no, yes = task.itm_head(fused[0].pooled)[0]
            return f"match {100 * torch.sigmoid(yes - no).item():.1f} %", yes - no
    raise DualfuseError(
        f"this {type(task).__name__} model answers nothing about an image and a text that saw each other; give one "
        "trained for questions, labels or matching"
    )


Weigh = Callable[[nn.Module, int], Tensor]
"""Gives the map (R, N) of a module, for the image of that number."""


def _average(found: Recorded) -> Weigh:
    return lambda module, number: _run(found[module], number)[0].mean(0).detach().float().cpu()


def _weighted(found: Recorded, score: Tensor) -> Weigh:
    """Weight attention with its gradient; what speaks against the answer counts as none."""
    maps = [probabilities for runs in found.values() for probabilities in runs]
    gradients = torch.autograd.grad(score, maps, allow_unused=True)
    weighted = {
        id(each): torch.zeros_like(each) if gradient is None else (each * gradient).clamp(min=0)
        for each, gradient in zip(maps, gradients, strict=True)
    }
    return lambda module, number: weighted[id(_run(found[module], number))][0].mean(0).detach().float().cpu()


def _run(runs: Sequence[Tensor], number: int) -> Tensor:
    """Return what was recorded for an image; the layers of texts alone ran once for all images."""
    return runs[number] if len(runs) > 1 else runs[0]


def _labelled(words: EncodedText, by: TextTransform) -> tuple[tuple[str, ...], list[list[int]]]:
    """Return the names of the maps, and the positions of the tokens that each is about."""
    groups = whole_words(words)
    return (WHOLE, *(by.decode(words.ids[group]).strip() for group in groups)), [[0], *groups]
