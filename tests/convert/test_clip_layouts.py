"""CLIP in the layouts of OpenAI and open_clip: the same model in all of them, round trips, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dual_folders import write_clip
from torch import nn

import dualfuse
from dualfuse.convert.clip_tokenizer import BPE_FILE, MERGES, bpe_file_tokenizer
from dualfuse.convert.convert import convert
from dualfuse.errors import DualfuseError
from dualfuse.tensor_files import read_weights

OPENAI = dict(
    text=dict(hidden_size=64, num_attention_heads=1, intermediate_size=256),
    vision=dict(hidden_size=64, num_attention_heads=1, intermediate_size=256),
)
"""Heads of 64 channels and feed-forward networks of four times the width, as OpenAI's."""


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    write_clip(tmp_path / "hf", **OPENAI)
    convert(tmp_path / "hf", tmp_path / "ours")
    return tmp_path / "ours"


def state(path: Path, tokenizer: str = "") -> dict[str, torch.Tensor]:
    return dualfuse.load(path).task.state_dict() if not tokenizer else _converted(path, tokenizer)


def _converted(path: Path, tokenizer: str) -> dict[str, torch.Tensor]:
    from dualfuse.convert.load import load

    return load(path, tokenizer=tokenizer).task.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_openai_round_trip(ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "openai", to="openai")
    tokenizer = str(ours / "tokenizer.json")
    assert same(state(tmp_path / "openai" / "clip.pt", tokenizer), state(ours))
    written = read_weights(tmp_path / "openai" / "clip.pt").tensors
    assert written["visual.proj"].shape == (64, 24) and written["context_length"] == 20
    convert(tmp_path / "openai" / "clip.pt", tmp_path / "again", tokenizer=tokenizer)
    convert(tmp_path / "again", tmp_path / "back", to="openai")
    assert same(read_weights(tmp_path / "back" / "clip.pt").tensors, written)


class Archive(nn.Module):
    """A module of the names in OpenAI's archives."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            if tensor.is_floating_point():
                module.register_parameter(last, nn.Parameter(tensor.clone()))
            else:
                module.register_buffer(last, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_archive_of_torchscript_is_read(ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "openai", to="openai")
    tensors = read_weights(tmp_path / "openai" / "clip.pt").tensors
    torch.jit.script(Archive(tensors)).save(str(tmp_path / "ViT.pt"))
    assert same(state(tmp_path / "ViT.pt", str(ours / "tokenizer.json")), state(ours))


def test_open_clip_round_trip(ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "open_clip", to="open_clip")
    config = json.loads((tmp_path / "open_clip" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"] and config["model_cfg"]["embed_dim"] == 24
    assert same(state(tmp_path / "open_clip"), state(ours))
    assert dualfuse.load(tmp_path / "open_clip").recipe.model == dualfuse.load(ours).recipe.model
    del config["model_cfg"]["quick_gelu"]
    (tmp_path / "open_clip" / "open_clip_config.json").write_text(json.dumps(config))
    model = dualfuse.load(tmp_path / "open_clip").recipe.model
    assert (model.image.activation, model.text.activation) == ("gelu", "gelu")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base"}, "image tower of timm, 'vit_base'.*google/siglip"),
        ("text_cfg", {"hf_model_name": "xlm-roberta"}, "text tower of transformers, 'xlm-roberta'"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "ResNet"),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask True"),
        ("", {"multimodal_cfg": {}}, "multimodal_cfg"),
    ],
)
def test_other_models_of_open_clip_are_refused(
    part: str, changes: dict[str, Any], message: str, ours: Path, tmp_path: Path
) -> None:
    convert(ours, tmp_path / "open_clip", to="open_clip")
    path = tmp_path / "open_clip" / "open_clip_config.json"
    config = json.loads(path.read_text())
    (config["model_cfg"][part] if part else config["model_cfg"]).update(changes)
    path.write_text(json.dumps(config))
    with pytest.raises(DualfuseError, match=message):
        dualfuse.load(tmp_path / "open_clip")


def test_a_model_that_openai_cannot_store_is_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "hf", vision=dict(hidden_act="gelu"))
    convert(tmp_path / "hf", tmp_path / "ours")
    with pytest.raises(DualfuseError, match=r"OpenAI's CLIP has no exact GELU, no heads of other than 64"):
        convert(tmp_path / "ours", tmp_path / "out", to="openai")


def test_the_merges_of_openai_make_its_tokenizer(tmp_path: Path) -> None:
    """The file has a line of version, and more merges than CLIP uses."""
    merges = ["a t</w>", "c at</w>", *(f"x{n} y{n}" for n in range(MERGES + 5))]
    (tmp_path / BPE_FILE).write_bytes(gzip.compress("\n".join(["#version", *merges]).encode()))
    with pytest.raises(DualfuseError, match="not a vocabulary of CLIP"):
        bpe_file_tokenizer(tmp_path / BPE_FILE)  # merges of tokens that do not exist
    (tmp_path / "small.txt").write_text("#version\na t</w>\nc at</w>\n")
    tokenizer = bpe_file_tokenizer(tmp_path / "small.txt")
    ids = tokenizer.encode("A cat").ids
    assert tokenizer.get_vocab_size() == 512 + 2 + 2 and ids == [514, 256 + ord("a") - 33, 513, 515]
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(DualfuseError, match="is not OpenAI's"):
        bpe_file_tokenizer(tmp_path / "broken.gz")


def test_without_a_tokenizer_the_error_says_what_to_give(ours: Path, tmp_path: Path, monkeypatch: Any) -> None:
    convert(ours, tmp_path / "openai", to="openai")

    def unreachable(name: str, files: object = None) -> Path:
        raise DualfuseError(f"{name} could not be fetched")

    monkeypatch.setattr("dualfuse.hub.download", unreachable)
    with pytest.raises(DualfuseError, match=rf"--tokenizer PATH_OR_NAME, or OpenAI's {BPE_FILE}"):
        dualfuse.load(tmp_path / "openai" / "clip.pt")
