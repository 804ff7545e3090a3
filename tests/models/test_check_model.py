"""check_model finds a model that breaks the contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny import BRIDGETOWER
from tiny import MODEL as VLMO
from torch import Tensor, nn

from dualfuse.models.base import Capabilities, ModelConfig, Tokens, VisionLanguageModel
from dualfuse.models.bridgetower import BridgeTower
from dualfuse.models.vlmo import VLMo
from dualfuse.testing import check_model


def without_padding(text: Tokens) -> Tokens:
    return replace(text, mask=torch.ones_like(text.mask))


def fuse_with(change: Callable[..., Any]) -> dict[str, Any]:
    """Return a ``fuse`` that changes the arguments image, text and positions first."""

    def fuse(model: VLMo, image: Tokens, text: Tokens, positions: Any = None, attention_mask: Any = None) -> Any:
        return VLMo.fuse(model, *change(image, text, positions), attention_mask=attention_mask)

    return {"fuse": fuse}


def blind_flow(model: VLMo, flow: Any, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    return text / 2, image


BROKEN: dict[str, tuple[ModelConfig, dict[str, Any], str]] = {
    "width": (VLMO, {"encode": lambda model, tokens: VLMo.encode(model, tokens)[:, :-1]}, "encode_widths"),
    "mask": (
        VLMO,
        {"embed_text": lambda m, ids, mask: without_padding(VLMo.embed_text(m, ids, mask))},
        "mask of texts",
    ),
    "encode": (VLMO, {"encode": lambda m, tokens: -VLMo.encode(m, tokens)}, "first of itc_features is encode"),
    "padding": (VLMO, fuse_with(lambda image, text, at: (image, without_padding(text), at)), "alone, without padding"),
    "positions": (VLMO, fuse_with(lambda i, t, at: (i, t, None if at is None else at * 0)), "fuse with positions"),
    "image": (VLMO, fuse_with(lambda i, t, at: (i.take(torch.zeros(len(i)).long()), t, at)), "alone|alike"),
    "text": (VLMO, fuse_with(lambda i, t, at: (i, replace(t, states=(t.states[0] * 0,)), at)), "depends on the text"),
    "generation": (VLMO, {"capabilities": Capabilities(unimodal_states=True)}, "generation works"),
    "no-generation": (BRIDGETOWER, {"capabilities": Capabilities(generation=True)}, "generation is a capability"),
    "blocks": (VLMO, {"fsdp_blocks": lambda m: [*m.blocks, m.blocks[0]]}, "share no weights"),
    "levels": (
        VLMO,
        {"lr_layers": lambda m: [(m.words,), *((block,) for block in m.blocks[1:])]},
        "covers every block",
    ),
    "flow": (VLMO, {"attention_flow": blind_flow}, "sums to one"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_found(name: str) -> None:
    cfg, changes, message = BROKEN[name]
    model = cfg.build()
    assert isinstance(model, VLMo | BridgeTower)
    if "capabilities" in changes:
        vars(model).pop("capabilities", None)
    model.__class__ = type("Broken", (type(model),), changes)  # type: ignore[assignment]
    with pytest.raises(AssertionError, match=message):
        check_model(model)


class UnusedWeight(VLMo):
    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.unused = nn.Linear(2, 2)


class HiddenWeight(VLMo):
    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.shift = torch.rand(())  # neither a parameter nor a buffer

    def encode(self, tokens: Tokens) -> Tensor:
        return super().encode(tokens) + self.shift

    def itc_features(self, tokens: Tokens) -> tuple[Tensor, ...]:
        return tuple(feature + self.shift for feature in super().itc_features(tokens))


@dataclass(frozen=True)
class BrokenConfig:
    """Builds another model than its fields say."""

    kind: str

    def build(self) -> nn.Module:
        match self.kind:
            case "linear":
                return nn.Linear(2, 2)
            case "unused":
                return UnusedWeight(VLMO)
            case "hidden":
                return HiddenWeight(VLMO)
            case _:
                torch.seed()
                return VLMo(VLMO)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("linear", "returns a VisionLanguageModel"),
        ("unused", "unused.weight has none"),
        ("hidden", "weights of another"),
        ("random", "one seed gives the same weights"),
    ],
)
def test_a_broken_config_is_found(kind: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_model(BrokenConfig(kind))


def test_a_model_is_left_as_it_was() -> None:
    model, rng = VLMO.build(), torch.get_rng_state()
    assert isinstance(model, VisionLanguageModel)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_model(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
