"""CLIP and SigLIP of Hugging Face: the same embeddings, logits, tokens and pixels as transformers; round trips."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dual_folders import TEXTS, clip_vocabulary, gemma_tokenizer, images, write_clip, write_siglip
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    CLIPTokenizer,
    SiglipImageProcessorPil,
)

import dualfuse
from dualfuse import hub
from dualfuse.convert.clip_tokenizer import clip_tokenizer
from dualfuse.convert.convert import convert
from dualfuse.data.text.padding import pad_texts
from dualfuse.errors import DualfuseError

SHORT = [text for text in TEXTS if "<" not in text]  # names of special tokens are plain text here


@torch.inference_mode()
def embeddings(model: hub.LoadedModel, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    task, processor = model.task, model.processor
    ids, mask = pad_texts([processor.text.encode(text).ids for text in texts])
    pixels = torch.stack([processor.image(each, np.random.default_rng(0)) for each in images()])
    image, text = task.model.embed_image(pixels), task.model.embed_text(ids, mask)
    return task.image_features(image), task.text_features(text)


def logits(model: hub.LoadedModel, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    head = model.task.itc_heads[0]
    bias = 0 if head.logit_bias is None else head.logit_bias
    return head.scale * image @ text.T + bias


def opened() -> list[Image.Image]:
    return [Image.open(io.BytesIO(each)).convert("RGB") for each in images()]


@torch.inference_mode()
def test_clip_gives_what_transformers_gives(tmp_path: Path) -> None:
    theirs = write_clip(tmp_path)
    model = dualfuse.load(tmp_path)
    tokens = CLIPTokenizer.from_pretrained(tmp_path)(
        SHORT, padding="max_length", max_length=20, truncation=True, return_tensors="pt"
    )
    pixels = CLIPImageProcessorPil.from_pretrained(tmp_path)(opened(), return_tensors="pt")["pixel_values"]
    expected = theirs(**tokens, pixel_values=pixels)
    image, text = embeddings(model, SHORT)
    assert_close(image, expected.image_embeds, atol=2e-5, rtol=1e-4)
    assert_close(text, expected.text_embeds, atol=2e-5, rtol=1e-4)
    assert_close(logits(model, image, text), expected.logits_per_image, atol=1e-3, rtol=1e-4)


@torch.inference_mode()
def test_siglip_gives_what_transformers_gives(tmp_path: Path) -> None:
    theirs = write_siglip(tmp_path)
    model = dualfuse.load(tmp_path)
    fast = gemma_tokenizer()
    rows = [[*fast(text, add_special_tokens=False)["input_ids"][:11], 1] for text in SHORT]
    ids = torch.tensor([row + [0] * (12 - len(row)) for row in rows])
    pixels = SiglipImageProcessorPil.from_pretrained(tmp_path)(opened(), return_tensors="pt")["pixel_values"]
    expected = theirs(input_ids=ids, pixel_values=pixels)
    image, text = embeddings(model, SHORT)
    assert_close(image, expected.image_embeds, atol=2e-5, rtol=1e-4)
    assert_close(text, expected.text_embeds, atol=2e-5, rtol=1e-4)
    assert_close(logits(model, image, text), expected.logits_per_image, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("write", [write_clip, write_siglip])
@torch.inference_mode()
def test_round_trips_are_bit_identical(write: Any, tmp_path: Path) -> None:
    theirs = write(tmp_path / "theirs")
    report = convert(tmp_path / "theirs", tmp_path / "ours")
    assert not (report.unexpected or report.new or report.unused)
    convert(tmp_path / "ours", tmp_path / "back", to="huggingface")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    again = AutoModel.from_pretrained(tmp_path / "back").eval()
    assert {**again.config.text_config.to_dict()}["vocab_size"] == theirs.config.text_config.vocab_size
    pixels = torch.randn(2, 3, *[theirs.config.vision_config.image_size] * 2)
    ids = torch.randint(5, 60, (2, 12))
    ids[:, -1] = theirs.config.text_config.eos_token_id if write is write_clip else 1
    assert_close(
        again(input_ids=ids, pixel_values=pixels).logits_per_image,
        theirs(input_ids=ids, pixel_values=pixels).logits_per_image,
    )
    assert_close(
        embeddings(dualfuse.load(tmp_path / "ours"), SHORT), embeddings(dualfuse.load(tmp_path / "back"), SHORT)
    )


def test_clip_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    vocabulary, merges = clip_vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    ours, theirs = (
        clip_tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt"),
        CLIPTokenizer.from_pretrained(tmp_path),
    )
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


@pytest.mark.parametrize(
    "options",
    [
        dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        dict(size={"shortest_edge": 41}, crop_size={"height": 32, "width": 32}),
        dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, resample=2),
    ],
)
def test_pixels_are_those_of_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    write_clip(tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    processor = CLIPImageProcessorPil(**options)
    processor.save_pretrained(tmp_path)
    expected = processor(opened(), return_tensors="pt")["pixel_values"]
    transform = dualfuse.load(tmp_path).processor.image
    for ours, theirs in zip(images(), expected, strict=True):
        assert_close(transform(ours, np.random.default_rng(0)), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "do_resize false"),
        ({"resample": 1}, "resample 1; supported are 3"),
        ({"rescale_factor": 0.5}, "rescale_factor 0.5"),
        ({"crop_size": {"height": 64, "width": 64}}, "supported are a height and width, or a shortest_edge"),
    ],
)
def test_unsupported_preprocessing_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_clip(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DualfuseError, match=message):
        dualfuse.load(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [("siglip2", "NaFlex .*fixed resolution"), ("chinese_clip", "a BERT"), ("align", "EfficientNet")],
)
def test_other_dual_encoders_are_named(model_type: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(DualfuseError, match=f"supported are .*Hugging Face CLIP.*{message}"):
        dualfuse.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.inference_mode()
def test_base_size_gives_what_transformers_gives(name: str, tmp_path: Path) -> None:
    """The default sizes of transformers, ViT-B/32 and base, with the small vocabularies."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    if name == "clip":
        text = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8)
        theirs = write_clip(tmp_path, text=text, vision=sizes | dict(image_size=224, patch_size=32))
    else:
        theirs = write_siglip(tmp_path, vision=sizes | dict(image_size=224, patch_size=16), text=sizes)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    theirs.save_pretrained(tmp_path)
    task = dualfuse.load(tmp_path).task
    pixels, ids = torch.randn(2, 3, 224, 224), torch.randint(5, 60, (2, 12))
    ids[:, -1] = theirs.config.text_config.eos_token_id if name == "clip" else 1
    expected = theirs(input_ids=ids, pixel_values=pixels)
    mask = torch.ones_like(ids).bool()
    assert_close(task.image_features(task.model.embed_image(pixels)), expected.image_embeds, atol=1e-5, rtol=1e-4)
    assert_close(task.text_features(task.model.embed_text(ids, mask)), expected.text_embeds, atol=1e-5, rtol=1e-4)
