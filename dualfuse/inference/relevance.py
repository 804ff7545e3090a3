"""How much each word looks at each patch: attention, followed through all layers of a VLMo, BridgeTower or METER."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.models.base import VisionLanguageModel
from dualfuse.models.bridgetower import IMAGE, TEXT, BridgeTower
from dualfuse.models.vlmo import VLMo

Seen = Callable[[nn.Module], Tensor]
"""Gives the map (R, N) of an attention module: how much each of its queries takes from each of its keys."""


@dataclass(frozen=True)
class Relevance:
    """What each word and each patch has taken from all tokens of the input: (T, T + P) and (P, T + P), words first."""

    words: Tensor
    patches: Tensor

    @staticmethod
    def start(words: int, patches: int) -> Relevance:
        """Every token is itself."""
        itself = torch.eye(words + patches)
        return Relevance(itself[:words], itself[words:])


Mix = Callable[[Tensor, Tensor], Tensor]
"""Joins what a token held with what it takes."""


def halves(held: Tensor, taken: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020): the residual counts as much as attention; rows keep the sum one."""
    return (held + taken) / 2


def sums(held: Tensor, taken: Tensor) -> Tensor:
    """R + A R (Chefer, Gur and Wolf 2021, equation 6), for maps A that are weighted with their gradient."""
    return held + taken


def attention_flow(model: VisionLanguageModel, seen: Seen, start: Relevance, mix: Mix) -> Relevance:
    """Follow the maps that ``seen`` gives through all layers; ``DualfuseError`` for a model whose layers are not known.

    Images and words are one sequence of tokens: where a word's query meets patches it takes what they hold. (Chefer
    et al. normalise what cross-attention takes; here both kinds of model follow one rule.)
    """
    match model:
        case VLMo():
            return _vlmo(model, seen, start, mix)
        case BridgeTower():
            return _bridgetower(model, seen, start, mix)
    raise DualfuseError(f"the layers of a {type(model).__name__} are not known here; give a VLMo, BridgeTower or METER")


def _vlmo(model: VLMo, seen: Seen, flow: Relevance, mix: Mix) -> Relevance:
    words, patches = flow.words, flow.patches
    for layer, block in enumerate(model.blocks):
        attention = _children(block, "attention")
        if layer < model.separate_attention_until:
            words = mix(words, seen(attention[TEXT]) @ words)
            patches = mix(patches, seen(attention[IMAGE]) @ patches)
        else:
            both = torch.cat([words, patches])
            [shared] = attention.values()
            words, patches = mix(both, seen(shared) @ both).split([len(words), len(patches)])
    return Relevance(words, patches)


def _bridgetower(model: BridgeTower, seen: Seen, flow: Relevance, mix: Mix) -> Relevance:
    towers = {
        TEXT: _tower(model.text_tower.layers, seen, flow.words, mix),
        IMAGE: _tower(model.image_tower.blocks, seen, flow.patches, mix),
    }
    fed = {modality: [states[-1 - below] for below in model.fed] for modality, states in towers.items()}
    x, y = fed[TEXT][0], fed[IMAGE][0]
    bridges = [*zip(*(model.bridges[modality].children() for modality in (TEXT, IMAGE)), strict=True)]
    layers = zip(*(model.layers[modality].children() for modality in (TEXT, IMAGE)), strict=True)
    for number, (text_layer, image_layer) in enumerate(layers):
        x, y = _cross(text_layer, seen, x, y, mix), _cross(image_layer, seen, y, x, mix)
        if number < len(bridges):
            words, patches = (fed[modality][1 + number] for modality in (TEXT, IMAGE))
            x, y = _bridge(bridges[number][0], seen, words, x, mix), _bridge(bridges[number][1], seen, patches, y, mix)
    return Relevance(x, y)


def _tower(layers: Iterable[nn.Module], seen: Seen, held: Tensor, mix: Mix) -> list[Tensor]:
    states = []
    for layer in layers:
        held = mix(held, seen(_part(layer, "attention")) @ held)
        states.append(held)
    return states


def _cross(layer: nn.Module, seen: Seen, held: Tensor, context: Tensor, mix: Mix) -> Tensor:
    held = mix(held, seen(_part(layer, "attention")) @ held)
    return mix(held, seen(_part(layer, "cross_attention")) @ context)


def _bridge(bridge: nn.Module, seen: Seen, tower: Tensor, held: Tensor, mix: Mix) -> Tensor:
    """A bridge counts as a sum of both, or of the tower's and what that attends to."""
    attention = dict(bridge.named_children()).get("attention")
    return mix(tower, held if attention is None else seen(attention) @ held)


def _part(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name)


def _children(module: nn.Module, name: str) -> dict[str, nn.Module]:
    return dict(_part(module, name).named_children())
