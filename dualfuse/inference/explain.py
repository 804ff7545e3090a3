"""Heat maps of which image patches each word of a text draws on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dualfuse.data.image.image_grid import Tile, image_grid
from dualfuse.data.image.transform import to_pixels
from dualfuse.data.text.masking import word_positions
from dualfuse.data.text.tokenizer import EncodedText, TextTransform
from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.inference.attention_maps import Recorded, record_attention
from dualfuse.inference.occlusion import occlusion_maps
from dualfuse.inference.predict import ImageFile, read_inputs
from dualfuse.inference.word_changes import explain_words
from dualfuse.layers.attention_flow import AttentionFlow, relevance_sum, rollout
from dualfuse.printable import percent
from dualfuse.tasks.prediction import text_of
from dualfuse.tasks.pretrain.fill_mask import MASK

Method = Literal["gradient", "rollout", "occlusion"]
WHOLE = "(whole text)"
COLUMNS, CELL = 6, 192
HOT = (255, 90, 0)
STRONGEST = 0.8  # opacity of the colour of the hottest patch


@dataclass(frozen=True, eq=False)
class Explanation:
    """The preprocessed image ``pixels``, uint8 (H, W, 3), and ``heat``, a map (h, w) of patches for each of ``words``.

    The first map is that of the start token, which stands for the whole text. A map by "rollout" sums to the share of
    a word that comes from the patches; the scale of a map by "gradient" has no meaning.
    """

    answer: str
    words: tuple[str, ...]
    heat: Tensor
    pixels: np.ndarray


def explain(
    model: LoadedModel, image: ImageFile | Sequence[ImageFile], text: str, *, method: Method = "gradient"
) -> tuple[Explanation, ...]:
    """Return for each image how much each word draws on each patch.

    "rollout" (Abnar and Zuidema 2020) follows attention through all layers, whatever the model answers; "gradient"
    (Chefer, Gur and Wolf 2021) weights attention by the gradient of the answer's logit, or of the ITM logit. Neither
    proves what an answer depends on. "occlusion", for models that score pairs, dual encoders too, covers parts of the
    image: see :func:`~dualfuse.inference.occlusion.occlusion_maps`. Raises DualfuseError for a task that does not
    answer about an image and a text, and for a model, tower or bridge that does not define ``attention_flow``.
    """
    if MASK.search(text):
        raise DualfuseError(f"{text!r} has a [MASK]; explain needs a text without masks")
    task, processor, sample = model.task, model.processor, read_inputs(image, text)
    task.read_input(sample, processor)  # raises the errors of predict
    if method == "occlusion":
        return (_occlusion(model, sample.image, text_of(sample)),)
    encoded, rng = processor.text.encode(text_of(sample)), np.random.default_rng(0)
    images = [processor.image(pil_image, rng) for pil_image in (sample.image, *sample.other_images)]
    ids = torch.from_numpy(encoded.ids)[None].to(task.device)
    with torch.enable_grad(), record_attention(task.model) as recorded:
        text_tokens = task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))
        image_tokens = [task.model.embed_image(each[None].to(task.device), slot) for slot, each in enumerate(images)]
        answer, score = task.explained_logit([task.model.fuse(each, text_tokens) for each in image_tokens])
    map_of = _gradient_maps(recorded, score) if method == "gradient" else _attention_maps(recorded)
    labels, groups = _labelled(encoded, processor.text)
    explanations = []
    for number, (pil_image, tokens) in enumerate(zip(images, image_tokens, strict=True)):
        flow = AttentionFlow(partial(map_of, number), relevance_sum if method == "gradient" else rollout)
        length = len(encoded.ids)
        identity = torch.eye(length + tokens.mask.shape[1], dtype=torch.float32)
        relevance, _ = task.model.attention_flow(flow, identity[:length], identity[length:])
        patches = relevance[:, length + 1 :]  # after the text and the class token
        heat = torch.stack([patches[group].mean(0) for group in groups]).unflatten(1, tokens.grid)
        pixels = to_pixels(pil_image, processor.image.preprocess.mean, processor.image.preprocess.std)
        explanations.append(Explanation(answer, labels, heat, pixels))
    return tuple(explanations)


def _occlusion(model: LoadedModel, image: bytes, text: str) -> Explanation:
    pixels = model.processor.image(image, np.random.default_rng(0))
    words, heat = occlusion_maps(model, pixels, text)
    preprocess = model.processor.image.preprocess
    shown = to_pixels(pixels, preprocess.mean, preprocess.std)
    has_probability = model.task.can_match or model.task.calibration is not None
    answer = f"match {percent(explain_words(model, pixels, text).probability)}" if has_probability else "no probability"
    return Explanation(answer, (WHOLE, *words), heat, shown)


MapOf = Callable[[int, nn.Module], Tensor]
"""The attention map (R, N) of a module for the image of that number, averaged over heads."""


def _attention_maps(recorded: Recorded) -> MapOf:
    return lambda number, module: _run(recorded, module, number)[0].mean(0).detach().float().cpu()


def _gradient_maps(recorded: Recorded, score: Tensor) -> MapOf:
    """Weight attention by its gradient; negative products, which speak against the answer, count as zero."""
    maps = [probabilities for runs in recorded.values() for probabilities in runs]
    gradients = torch.autograd.grad(score, maps, allow_unused=True)
    weighted = {
        id(each): torch.zeros_like(each) if gradient is None else (each * gradient).clamp(min=0)
        for each, gradient in zip(maps, gradients, strict=True)
    }
    return lambda number, module: weighted[id(_run(recorded, module, number))][0].mean(0).detach().float().cpu()


def _run(recorded: Recorded, module: nn.Module, number: int) -> Tensor:
    """Return the probabilities for an image; the layers of the text alone ran once for all images."""
    if module not in recorded:
        raise DualfuseError(f"no attention was recorded in a {type(module).__name__}, so it cannot be explained")
    runs = recorded[module]
    return runs[number] if len(runs) > 1 else runs[0]


def _labelled(text: EncodedText, transform: TextTransform) -> tuple[tuple[str, ...], list[list[int]]]:
    """Return the names of the maps, and the positions of the tokens that belong to each."""
    groups = word_positions(text)
    return (WHOLE, *(transform.decode(text.ids[group]).strip() for group in groups)), [[0], *groups]


def heat_map_grid(explanations: Sequence[Explanation], heading: str = "", notes: Sequence[str] = ()) -> Image.Image:
    """Draw each image and one tile per word: grey, with a colour as strong as the word's heat.

    Every tile has its own scale, from its coldest to its hottest patch. Below a word stands the one of the ``notes``
    about its removal, such as "without red: 91 % to 34 %".
    """
    tiles = []
    for each in explanations:
        tiles.append(Tile(each.pixels, each.answer))
        tiles += [
            Tile(heated(each.pixels, heat), word, note=_note(word, notes))
            for word, heat in zip(each.words, each.heat, strict=True)
        ]
    return image_grid(tiles, columns=COLUMNS, cell=CELL, heading=heading)


def _note(word: str, notes: Sequence[str]) -> str:
    start = f"without {word}: "
    return next((note.removeprefix(start) for note in notes if note.startswith(start)), "")


def heated(pixels: np.ndarray, heat: Tensor) -> np.ndarray:
    """Return uint8 (H, W, 3): ``pixels`` in grey, coloured by a map ``heat`` (h, w) of patches."""
    cold, hot = heat.min(), heat.max()
    share = (heat - cold) / (hot - cold) if hot > cold else torch.zeros_like(heat)
    size = pixels.shape[1], pixels.shape[0]
    smooth = np.asarray(Image.fromarray(share.float().numpy()).resize(size, Image.Resampling.BILINEAR))
    weight = STRONGEST * smooth.clip(0, 1)[..., None]
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)[..., None]
    return ((1 - weight) * grey + weight * np.array(HOT, dtype=np.float32)).round().astype(np.uint8)
