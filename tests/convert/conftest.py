"""Tiny third-party checkpoints: made by transformers, or stored ones of the official code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import BridgeTowerConfig, BridgeTowerForContrastiveLearning
from transformers.utils import logging

GOLDEN = Path(__file__).parent.parent / "golden"

logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tokenizer_files() -> dict[str, str]:
    """Return RoBERTa's two files, with bytes as tokens."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return {"vocab.json": json.dumps(vocabulary), "merges.txt": "#version: 0.2\n"}


@pytest.fixture
def tokenizer(tokenizer_files: dict[str, str], tmp_path: Path) -> str:
    """Write the two files to a folder."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name, text in tokenizer_files.items():
        (folder / name).write_text(text)
    return str(folder)


@pytest.fixture(scope="session")
def config() -> Callable[..., BridgeTowerConfig]:
    """Make configs; the fields of a tower are given as text_... and vision_..."""

    def make(**changes: Any) -> BridgeTowerConfig:
        text = dict(vocab_size=300, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, hidden_size=64)
        vision = dict(hidden_size=64, num_hidden_layers=3, patch_size=8, image_size=32)
        top = dict(hidden_size=64, num_hidden_layers=2, contrastive_hidden_size=24, logit_scale_init_value=2.6592)
        for name, value in changes.items():
            part, _, rest = name.partition("_")
            {"text": text, "vision": vision}.get(part, top)[rest if part in ("text", "vision") else name] = value
        return BridgeTowerConfig(**top, text_config=text | {"max_position_embeddings": 40}, vision_config=vision)

    return make


def write_folder(model: Any, folder: Path, tokenizer_files: dict[str, str], **arguments: Any) -> Path:
    """Write a model of transformers, every tensor random, with a tokenizer."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, **arguments)
    for name, text in tokenizer_files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def folder_of(tokenizer_files: dict[str, str], tmp_path: Path) -> Callable[..., Path]:
    return lambda model, **arguments: write_folder(model, tmp_path / "theirs", tokenizer_files, **arguments)


@pytest.fixture(scope="session")
def stored_contrastive(
    config: Callable[..., BridgeTowerConfig], tokenizer_files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    model = BridgeTowerForContrastiveLearning(config())
    return write_folder(model, tmp_path_factory.mktemp("contrastive") / "theirs", tokenizer_files)


@pytest.fixture
def contrastive(stored_contrastive: Path, tmp_path: Path) -> Path:
    """Return a folder of its own for each test, which may change it."""
    return Path(shutil.copytree(stored_contrastive, tmp_path / "theirs"))


@pytest.fixture
def change(contrastive: Path) -> Callable[[str, Any], Path]:
    """Set a field of config.json, its path with dots; None removes it."""

    def set_field(name: str, value: Any) -> Path:
        config = inner = json.loads((contrastive / "config.json").read_text())
        *above, last = name.split(".")
        for part in above:
            inner = inner[part]
        inner[last] = value
        if value is None:
            del inner[last]
        (contrastive / "config.json").write_text(json.dumps(config))
        return contrastive

    return set_field


@pytest.fixture(scope="session")
def official_state() -> dict[str, Tensor]:
    """Return the tensors of official checkpoints of all kinds, together."""
    return load_file(GOLDEN / "bridgetower_official" / "state_dict.safetensors")


@pytest.fixture
def official(official_state: dict[str, Tensor], tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint of Lightning with the heads of one task."""
    marks = ("mlm_score", "itm_score", "itc_", "vqa_", "nlvr2_", "snli_", "rank_output", "_gate.", "link_tower")

    def write(*heads: str, **hyper_parameters: Any) -> Path:
        state = {
            name: tensor
            for name, tensor in official_state.items()
            if not any(mark in name for mark in marks) or any(head in name for head in heads)
        }
        if (types := state.pop("nlvr2_token_type_embeddings", None)) is not None:
            state["token_type_embeddings.weight"] = types
        if "link_tower" not in heads:  # METER
            bridges = ("cross_modal_text_layernorm", "cross_modal_image_layernorm", "temperature")
            state = {name: tensor for name, tensor in state.items() if not name.startswith(bridges)}
        stored = {"hyper_parameters": {"config": hyper_parameters}} if hyper_parameters else {}
        path = tmp_path / "official.ckpt"
        torch.save({"state_dict": state, "epoch": 3} | stored, path)
        return path

    return write
