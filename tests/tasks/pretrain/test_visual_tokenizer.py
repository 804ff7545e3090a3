"""DALL-E's encoder from the published pickle or a state dict, and files and folders that are refused."""

from __future__ import annotations

import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.layers.vq.dalle import DalleEncoder
from dualfuse.tasks.pretrain.masked_image import open_tokenizer

WIDTH, CODES, BLOCKS = 8, 20, 2
CPU = torch.device("cpu")


class Conv2d(nn.Module):
    """Has the attributes that a pickle of the published class holds: w, b and a few plain values."""

    def __init__(self, before: int, after: int, kw: int) -> None:
        super().__init__()
        self.kw, self.use_float16, self.device = kw, True, torch.device("cpu")
        self.w, self.b = nn.Parameter(torch.randn(after, before, kw, kw) / 4), nn.Parameter(torch.randn(after))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=(self.kw - 1) // 2)


class EncoderBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.post_gain, inside = 1 / (4 * BLOCKS) ** 2, after // 4
        self.id_path = Conv2d(before, after, 1) if before != after else nn.Identity()
        widths, sides = (before, inside, inside, inside, after), (3, 3, 3, 1)
        layers: list[tuple[str, nn.Module]] = []
        for n in range(4):
            layers += [(f"relu_{n + 1}", nn.ReLU()), (f"conv_{n + 1}", Conv2d(widths[n], widths[n + 1], sides[n]))]
        self.res_path = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.post_gain * self.res_path(x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        groups: list[tuple[str, nn.Module]] = [("input", Conv2d(3, WIDTH, 7))]
        before = WIDTH
        for n in range(4):
            after = WIDTH * 2**n
            blocks = [(f"block_{k + 1}", EncoderBlock(after if k else before, after)) for k in range(BLOCKS)]
            pool = [("pool", nn.MaxPool2d(2))] if n < 3 else []
            groups.append((f"group_{n + 1}", nn.Sequential(OrderedDict([*blocks, *pool]))))
            before = after
        last = [("relu", nn.ReLU()), ("conv", Conv2d(before, CODES, 1))]
        self.blocks = nn.Sequential(OrderedDict([*groups, ("output", nn.Sequential(OrderedDict(last)))]))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """Return an encoder whose classes pickle under the published names, registered only for this fixture."""
    monkeypatch.setitem(sys.modules, "dall_e", ModuleType("dall_e"))
    for kind, module_name in ((Encoder, "dall_e.encoder"), (EncoderBlock, "dall_e.encoder"), (Conv2d, "dall_e.utils")):
        module = sys.modules.get(module_name) or ModuleType(module_name)
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, module_name, module)
        monkeypatch.setattr(kind, "__module__", module_name)
    torch.manual_seed(0)
    return Encoder()


def wanted(encoder: Encoder, images: Tensor) -> Tensor:
    return encoder(0.8 * images + 0.1).argmax(1).flatten(1)


@pytest.mark.parametrize("as_archive", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_the_published_pickle_is_read_without_its_classes(
    published: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_archive: bool
) -> None:
    torch.save(published, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=as_archive)
    for name in ("dall_e", "dall_e.encoder", "dall_e.utils"):
        monkeypatch.delitem(sys.modules, name)
    tokenizer = open_tokenizer(str(tmp_path / "encoder.pkl"), CPU)
    assert isinstance(tokenizer, DalleEncoder) and (tokenizer.codes, tokenizer.stride) == (CODES, 8)
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert tokenizer.state_dict().keys() == published.state_dict().keys()
    images = torch.rand(3, 3, 32, 48)
    assert torch.equal(tokenizer(images), wanted(published, images))
    assert tokenizer(images).shape == (3, 4 * 6) and tokenizer(images).unique().numel() > 3
    assert "dall_e.encoder" not in sys.modules


@pytest.mark.parametrize("name", ["state.pt", "state.safetensors"])
def test_a_state_dict_is_read(published: Encoder, tmp_path: Path, name: str) -> None:
    save = save_file if name.endswith("safetensors") else torch.save
    save(published.state_dict(), tmp_path / name)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(open_tokenizer(str(tmp_path / name), CPU)(images), wanted(published, images))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("as_archive", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_code_in_a_pickle_is_refused_and_never_executed(
    published: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_archive: bool
) -> None:
    published.extra = Evil()
    torch.save(published, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=as_archive)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"asks for posix\.mkdir"):
        open_tokenizer(str(tmp_path / "encoder.pkl"), CPU)
    assert not (tmp_path / "evil").exists()


def test_other_files_and_folders_are_refused(published: Encoder, tmp_path: Path) -> None:
    def refused(name: str, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            open_tokenizer(str(tmp_path / name) if name else "", CPU)

    refused("", "set --task.tokenizer")
    refused("nothing.pkl", "neither a file nor a folder")
    (tmp_path / "folder").mkdir()
    refused("folder", "is not a model folder")
    (tmp_path / "page.pkl").write_text("<!doctype html>")
    refused("page.pkl", "damaged or was not written by torch.save")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    refused("other.pt", r"blocks\.input\.w")
    torch.save([1, 2], tmp_path / "list.pt")
    refused("list.pt", "holds no tensors by name, only a list")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    refused("plain.pkl", "damaged or was not written by torch.save")
    torch.save(published, tmp_path / "whole.pkl")
    whole = (tmp_path / "whole.pkl").read_bytes()
    for part in (100, len(whole) // 2, len(whole) - 20):
        (tmp_path / f"cut-{part}.pkl").write_bytes(whole[:part])
        refused(f"cut-{part}.pkl", "damaged or was not written by torch.save")
    state = published.state_dict()
    state["blocks.group_3.block_2.res_path.conv_1.w"] = torch.zeros(1)
    torch.save(state, tmp_path / "shape.pt")
    refused("shape.pt", "not those of DALL-E's encoder")


def test_images_with_a_partial_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="20 x 16 pixels are not a multiple of the tokenizer's stride, 8"):
        DalleEncoder(width=8, blocks=1, codes=5)(torch.zeros(1, 3, 20, 16))
