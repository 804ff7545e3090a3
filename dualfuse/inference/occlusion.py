"""Maps by occlusion: which parts of an image the contribution of a word to a match depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualfuse.inference.word_changes import pair_scores, removals, scores_of

if TYPE_CHECKING:
    from dualfuse.hub import LoadedModel

CELLS = 8
"""Cells per side of a map."""
COVER = 2
"""Cells per side of the grey square that slides over the image, so that things as large as a cell are covered whole."""
IMAGES = 32  # in one forward pass


@torch.inference_mode()
def occlusion_maps(model: LoadedModel, pixels: Tensor, text: str) -> tuple[tuple[str, ...], Tensor]:
    """Return the content words of a text, and a map (words + 1, 8, 8) of each; the first map is that of the whole text.

    A grey square covers each part of the image (3, H, W) in turn (Zeiler and Fergus 2014). The map of the text is how
    far the score falls. That of a word is how far the score that the word adds falls: (score of the text - score of the
    text without the word), with the image as it is minus with the part covered. What the map of a word shows is
    therefore evidence for this word. Negative values, where covering helps the match, count as zero.
    """
    removed = removals(text)
    texts = [text, *(without for _, without in removed)]
    places = [(row, column) for row in range(CELLS - COVER + 1) for column in range(CELLS - COVER + 1)]
    images = torch.stack([pixels, *(_covered(pixels, *place) for place in places)])
    scores = torch.cat([scores_of(model, *pair_scores(model, some, texts)) for some in images.split(IMAGES)])
    scores = scores.view(len(images), len(texts)).cpu()
    added = torch.cat([scores[:, :1], scores[:, :1] - scores[:, 1:]], dim=1)
    falls = (added[:1] - added[1:]).clamp(min=0).T
    heat, count = torch.zeros(len(texts), CELLS, CELLS), torch.zeros(CELLS, CELLS)
    for (row, column), fall in zip(places, falls.T, strict=True):
        window = (slice(row, row + COVER), slice(column, column + COVER))
        heat[:, *window] += fall[:, None, None]
        count[window] += 1
    return tuple(word for word, _ in removed), heat / count


def _covered(pixels: Tensor, row: int, column: int) -> Tensor:
    """Return the image with a square at a cell filled with its mean color."""
    height, width = pixels.shape[1:]
    covered = pixels.clone()
    top, bottom = (round(height * each / CELLS) for each in (row, row + COVER))
    left, right = (round(width * each / CELLS) for each in (column, column + COVER))
    covered[:, top:bottom, left:right] = pixels.mean((1, 2), keepdim=True)
    return covered
