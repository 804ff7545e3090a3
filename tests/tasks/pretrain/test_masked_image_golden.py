"""Masked image modeling against tensors recorded from BEiT's official code: see facts.json for their origin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from dualfuse.convert.formats.beit import official_layout, to_vlmo
from dualfuse.convert.rename import import_tensors
from dualfuse.layers.embeddings import MaskedPatches
from dualfuse.layers.vq.visual_tokenizer import VisualTokenizer
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.pretrain import masked_image
from dualfuse.tasks.pretrain.masked_image import MaskedImage, MaskedImageBatch, MaskedImageConfig

GOLDEN = Path(__file__).parents[2] / "golden" / "vlmo"
OUTPUTS = load_file(GOLDEN / "beit_stage2_outputs.safetensors")
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}  # as the recording's manifest has it
TINY = VLMoConfig(
    width=48,
    depth=4,
    heads=4,
    vl_expert_start=4,
    patch_size=8,
    image_size=(32, 32),
    vocab_size=7,
    text_length=3,
    share_relative_bias=True,
)


class Recorded(VisualTokenizer):
    """Returns the recorded codes for any input."""

    codes, stride = 31, 4

    def forward(self, images: Tensor) -> Tensor:
        return OUTPUTS["in.mim_labels"]


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> MaskedImage:
    state = load_file(GOLDEN / "beit_stage2_state.safetensors")
    mine = {name.removeprefix("beit_mim."): value for name, value in state.items() if name.startswith("beit_mim.")}
    built = MaskedImageConfig(codes=31, patch=8, stride=4).build(TINY.build()).eval()
    found = import_tensors(mine, official_layout(mine))
    assert not found.unexpected
    lacking = built.load_state_dict(to_vlmo(found.tensors, TINY.text_length), strict=False)
    assert not lacking.unexpected_keys
    assert {"mask_token", "head.weight", "model.norm.weight"}.isdisjoint(lacking.missing_keys)
    assert not any("image" in name or "attention" in name for name in lacking.missing_keys)
    monkeypatch.setattr(masked_image, "open_tokenizer", lambda *_: Recorded())
    return built


def batch() -> MaskedImageBatch:
    view = torch.zeros(3, 16, 16, dtype=torch.uint8)
    recorded = zip(OUTPUTS["in.image"], OUTPUTS["in.mim_mask"], strict=True)
    return MaskedImageConfig().collate(
        [{"image": image, "view": view, "hidden": hidden.numpy()} for image, hidden in recorded]
    )


def test_patch_states_as_recorded(task: MaskedImage) -> None:
    hidden = MaskedPatches(OUTPUTS["in.mim_mask"], task.mask_token)
    tokens = task.model.embed_masked_image(OUTPUTS["in.image"], hidden)
    states = task.model.token_states(tokens, torch.arange(17).expand(4, -1))
    assert_close(states, OUTPUTS["beit_mim.feats"], **TOLERANCE)
    assert_close(task.model.encode(tokens), OUTPUTS["beit_mim.feats"][:, 0], **TOLERANCE)
    assert_close(task.head(states[:, 1:]), OUTPUTS["beit_mim.logits_all"], **TOLERANCE)


def test_logits_and_loss_as_recorded(task: MaskedImage) -> None:
    wanted = OUTPUTS["beit_mim.logits_masked"]
    assert_close(task.logits(batch()), wanted, **TOLERANCE)
    output = task(batch())
    assert_close(output.loss, OUTPUTS["beit_mim.loss"], **TOLERANCE)
    right = wanted.argmax(1) == OUTPUTS["in.mim_labels"][OUTPUTS["in.mim_mask"]]
    assert_close(output.log["accuracy/patches"], right.float().mean())
