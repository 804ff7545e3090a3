"""Example captions with one masked word, and what the model takes it for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dualfuse.data.processor import Processor
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.masking import word_positions
from dualfuse.evaluation.retrieval import TextBatch
from dualfuse.report.demo.results import Guess, MaskedWord
from dualfuse.tasks.pretrain.pairs import Pairs

SHOWN = 9
GUESSES = 3
SEED = 0


@torch.inference_mode()
def masked_words(task: Pairs, processor: Processor, shards: Shards) -> tuple[MaskedWord, ...]:
    """Mask one word in captions of two words or more, drawn with a fixed seed, and gives the likeliest words.

    Only words of one token are masked, so that one guess is one word.
    """
    device = next(task.parameters()).device
    rng = np.random.default_rng(SEED)
    found: list[MaskedWord] = []
    for number in rng.permutation(len(shards)).tolist():
        for caption in shards[number].texts[:1]:
            found += [
                _guess(task, processor, shards, number, masked, device) for masked in _mask(processor, caption, rng)
            ]
        if len(found) == SHOWN:
            break
    return tuple(found)


def _mask(processor: Processor, caption: str, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    """Return the tokens and the position to mask; nothing for a caption that has no such word."""
    words = processor.text.encode(caption)
    groups = word_positions(words)
    single = [group[0] for group in groups if len(group) == 1 and processor.text.decode(words.ids[group]).isalpha()]
    if len(groups) > 1 and single:
        yield words.ids, int(rng.choice(single))


def _guess(
    task: Pairs, processor: Processor, shards: Shards, number: int, masked: tuple[np.ndarray, int], device: torch.device
) -> MaskedWord:
    ids, place = masked
    hidden = ids.copy()
    hidden[place] = processor.text.mask_id
    texts = TextBatch.of([hidden]).take(torch.tensor([0]), device)
    pixels = processor.image(shards[number].image, np.random.default_rng(SEED))
    image = task.model.embed_image(pixels[None].to(device))
    text = task.model.embed_text(texts.ids, texts.mask)
    states = task.model.fuse(image, text, positions=torch.tensor([[place]], device=device)).text[0]
    top = task.mlm_head(states).float().softmax(1)[0].topk(GUESSES)
    return MaskedWord(
        image=number,
        caption=" ".join(
            filter(None, (processor.text.decode(ids[:place]), "[MASK]", processor.text.decode(ids[place + 1 :])))
        ),
        word=processor.text.decode(ids[place : place + 1]),
        guesses=tuple(
            Guess(processor.text.decode([piece]) or "(special)", round(probability, 4))
            for piece, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ),
    )
