"""Tiny CLIP and SigLIP folders that transformers writes, and images to compare on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

TEXTS = (
    "a boat",
    "A photo of THE cat's   tail,\n\tin colour!?",
    "",
    "I'd've thought it's 3,000.50 €",
    "naïve café — ﬁne ½ Ǆ",
    "日本語の写真 🐈‍⬛ emoji",
    "<|endoftext|> <|startoftext|> </s> <eos>x",
    "e\u0301 combining \u200bzero\u00a0width",
    "word " * 100,
)
"""Nasty strings; the last is longer than any model reads."""
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)


def randomly(model: Any) -> Any:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def clip_vocabulary() -> tuple[dict[str, int], list[str]]:
    """Return a vocabulary of bytes and a few merges."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["a t</w>", "c at</w>", "b o", "bo at</w>", "t h", "th e</w>", "w o", "wo r", "r d</w>"]
    tokens = [*characters, *(f"{each}</w>" for each in characters), *(merge.replace(" ", "") for merge in merges)]
    return {token: n for n, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def write_clip(folder: Path, **changes: Any) -> CLIPModel:
    """Write a random CLIPModel with CLIP's two tokenizer files."""
    vocabulary, merges = clip_vocabulary()
    special = dict(bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1, pad_token_id=1)
    text = SIZES | special | dict(vocab_size=len(vocabulary), max_position_embeddings=20) | changes.get("text", {})
    vision = SIZES | dict(hidden_size=40, image_size=32, patch_size=8) | changes.get("vision", {})
    model = randomly(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)))
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    size = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return model


def write_siglip(folder: Path, **changes: Any) -> SiglipModel:
    """Write a random SiglipModel with a tokenizer.json like Gemma's."""
    tokenizer = gemma_tokenizer()
    text = SIZES | dict(vocab_size=tokenizer.vocab_size, max_position_embeddings=12, projection_size=40)
    text |= changes.get("text", {})
    text |= dict(projection_size=changes.get("vision", {}).get("hidden_size", 40))
    vision = SIZES | dict(hidden_size=40, image_size=36, patch_size=8) | changes.get("vision", {})
    model = randomly(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = vision["image_size"]
    SiglipImageProcessorPil(size={"height": side, "width": side}, resample=2).save_pretrained(folder)
    return model


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    characters = [chr(number) for number in range(33, 127)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *characters]
    tokenizer = Tokenizer(
        models.BPE({token: number for number, token in enumerate(tokens)}, [], unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", model_max_length=12
    )


def images() -> list[bytes]:
    """Return images of several shapes: tall, wide with an odd difference, small, gray."""
    return [png(seed, *size) for seed, size in enumerate([(70, 45), (50, 83), (20, 31), (32, 32)])]


def png(seed: int, height: int, width: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(file, "PNG")
    return file.getvalue()
