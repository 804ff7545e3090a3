"""Scores, losses and gradients equal those of BEiT with UPerNet in transformers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import BeitConfig, BeitForSemanticSegmentation

from dualfuse.convert.load import read_checkpoint
from dualfuse.data.image.joint_crop import IGNORE_LABEL
from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.tasks.finetune.segmentation import Segmentation, SegmentationConfig

CLASSES, SIDE, PATCH = 5, 48, 8
MODEL = VLMoConfig(
    width=32,
    depth=5,
    heads=2,
    vl_expert_start=5,
    patch_size=PATCH,
    image_size=(SIDE, SIDE),
    text_length=196,
    drop_path=0.0,
    init=InitConfig(layer_scale=0.1),
)
NAMES = {
    r"fpn\.fpn1\.conv_transpose1\.": "strides.finest.0.",
    r"fpn\.fpn1\.normalization\.": "strides.finest.1.",
    r"fpn\.fpn1\.conv_transpose2\.": "strides.finest.3.",
    r"fpn\.fpn2\.": "strides.fine.",
    r"decode_head\.psp_modules\.blocks\.(\d)\.conv\.": r"decoder.pooled.\1.",
    r"decode_head\.psp_bottleneck\.": "decoder.top.",
    r"decode_head\.lateral_convs\.": "decoder.lateral.",
    r"decode_head\.fpn_convs\.": "decoder.smooth.",
    r"decode_head\.fpn_bottleneck\.": "decoder.joined.",
    r"decode_head\.classifier\.": "decoder.classifier.1.",
    r"auxiliary_head\.convs\.0\.": "auxiliary.convolved.",
    r"auxiliary_head\.classifier\.": "auxiliary.classifier.1.",
    r"(?<=\.)convolution\.": "0.",
    r"(?<=\.)normalization\.": "1.",
}


def heads(theirs: BeitForSemanticSegmentation) -> dict[str, Tensor]:
    """Rename the weights above the encoder."""
    found = {}
    for name, tensor in theirs.state_dict().items():
        if not name.startswith("beit."):
            for pattern, ours in NAMES.items():
                name = re.sub(pattern, ours, name)
            found[name] = tensor
    return found


@pytest.fixture
def both(tmp_path: Path) -> tuple[BeitForSemanticSegmentation, Segmentation]:
    """Return both models with random weights, norm statistics and bias tables."""
    torch.manual_seed(0)
    config = BeitConfig(
        hidden_size=32,
        num_hidden_layers=5,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=SIDE,
        patch_size=PATCH,
        out_indices=[2, 3, 4, 5],  # in transformers 5.23 these are the states after 1, 2, 3 and 4 layers
        num_labels=CLASSES,
        use_relative_position_bias=True,
        drop_path_rate=0.0,
        attn_implementation="eager",
    )
    theirs = BeitForSemanticSegmentation(config).eval()
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            low, high = (0.5, 1.5) if "var" in name or "norm" in name else (-0.3, 0.3)
            tensor.uniform_(low, high)
    theirs.save_pretrained(tmp_path)
    ours = SegmentationConfig(num_classes=CLASSES, feature_layers=(1, 2, 3, 4), dropout=0.0).build(MODEL.build()).eval()
    encoder = {name: tensor for name, tensor in read_checkpoint(tmp_path).tensors.items() if name.startswith("model.")}
    left = ours.load_state_dict(encoder | heads(theirs), strict=False)
    assert not left.unexpected_keys
    assert all(re.search(r"words|pooler|experts\.text|^model\.norm", name) for name in left.missing_keys)
    return theirs, ours


def test_scores_equal_those_of_transformers(both: tuple[BeitForSemanticSegmentation, Segmentation]) -> None:
    theirs, ours = both
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected, found = theirs(images).logits, ours.decoder(ours.maps(images))
    assert expected.shape == (2, CLASSES, 4 * SIDE // PATCH, 4 * SIDE // PATCH) and expected.std() > 0.01
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_losses_and_gradients_equal_those_of_transformers(
    both: tuple[BeitForSemanticSegmentation, Segmentation], training: bool
) -> None:
    theirs, ours = (model.train(training) for model in both)
    images, labels = torch.randn(2, 3, SIDE, SIDE), torch.randint(CLASSES, (2, SIDE, SIDE))
    labels[:, :9] = 255
    expected = theirs(images, labels=labels).loss
    found = ours({"image": images, "target": labels.masked_fill(labels == 255, IGNORE_LABEL)}).loss
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    expected.backward(), found.backward()
    theirs_first, ours_first = theirs.beit.embeddings.patch_embeddings.projection, ours.model.patches.projection
    assert_close(ours_first.weight.grad, theirs_first.weight.grad, atol=2e-4, rtol=1e-3)
    means = theirs.decode_head.psp_modules.blocks[0].conv.normalization.running_mean
    assert_close(ours.decoder.pooled[0][1].running_mean, means, atol=1e-5, rtol=1e-4)
