"""Towers with the weights of CLIP and RoBERTa compute the same as those models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from dualfuse import hub
from dualfuse.convert.convert import convert
from dualfuse.convert.formats import clip
from dualfuse.convert.initial_weights import from_clip_and_roberta
from dualfuse.convert.rename import inverse, rename
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

VISION = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=2, image_size=32)
VISION |= dict(patch_size=8, hidden_act="quick_gelu", layer_norm_eps=1e-5)
TEXT = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2, vocab_size=300)
TEXT |= dict(max_position_embeddings=40, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1)


def randomly(model: Any) -> Any:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def clip_model(tmp_path: Path) -> CLIPVisionModel:
    model = randomly(CLIPVisionModel(CLIPVisionConfig(**VISION)))
    model.save_pretrained(tmp_path / "clip")
    return model


@pytest.fixture
def words(tmp_path: Path, tokenizer_files: dict[str, str]) -> RobertaForMaskedLM:
    model = randomly(RobertaForMaskedLM(RobertaConfig(**TEXT)))
    model.save_pretrained(tmp_path / "roberta")
    for name, text in tokenizer_files.items():
        (tmp_path / "roberta" / name).write_text(text)
    return model


@torch.inference_mode()
def test_towers_compute_the_same(clip_model: CLIPVisionModel, words: RobertaForMaskedLM, tmp_path: Path) -> None:
    report = convert(tmp_path / "clip", tmp_path / "ours", text=str(tmp_path / "roberta"))
    assert not report.unexpected and not [name for name in report.new if "tower" in name or "mlm_head" in name]
    assert {"model.types.weight", "itm_head.weight"} <= report.new.keys()
    task = hub.load(tmp_path / "ours").task
    torch.manual_seed(4)
    images, ids = torch.randn(2, 3, 32, 32), torch.randint(3, 300, (2, 9))
    ids[0, 6:] = 1
    theirs = clip_model(images, output_hidden_states=True).hidden_states
    encoder = clip_model if hasattr(clip_model, "post_layernorm") else clip_model.vision_model
    (ours,) = task.model.image_tower(images, (2,)).states
    torch.testing.assert_close(ours, encoder.post_layernorm(theirs[-1]), rtol=1e-4, atol=1e-4)
    expected = words(ids, attention_mask=(ids != 1).long(), output_hidden_states=True)
    (states,) = task.model.text_tower(ids, ids != 1, (2,)).states
    torch.testing.assert_close(states[ids != 1], expected.hidden_states[-1][ids != 1], rtol=1e-4, atol=1e-4)
    logits = task.mlm_head(states[1])
    torch.testing.assert_close(logits, expected.logits[1], rtol=1e-3, atol=1e-3)


def as_openai(model: CLIPVisionModel) -> dict[str, Tensor]:
    """Return the tensors under OpenAI's names, with the other tensors of its files."""
    bare = {name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}
    bare = {name: tensor for name, tensor in bare.items() if not name.endswith("position_ids")}
    ours = rename(clip.fuse_qkv(bare), clip.BARE_HUGGING_FACE.names)
    assert not ours.unknown
    named = rename(ours.tensors, inverse(clip.OPENAI.names))
    assert not named.unknown
    others = {
        "visual.proj": torch.ones(128, 8),
        "logit_scale": torch.tensor(1.0),
        "token_embedding.weight": torch.ones(2),
    }
    return named.tensors | others | {"transformer.resblocks.0.ln_1.weight": torch.ones(2)}


def test_all_layouts_agree(clip_model: CLIPVisionModel, words: RobertaForMaskedLM, tmp_path: Path) -> None:
    roberta = tmp_path / "roberta"
    expected = from_clip_and_roberta(tmp_path / "clip", roberta).task.state_dict()
    torch.save(as_openai(clip_model), tmp_path / "openai.pt")
    both = CLIPModel(CLIPConfig(vision_config=VISION, text_config=dict(TEXT, bos_token_id=0, eos_token_id=2)))
    state = {name.removeprefix("vision_model."): tensor for name, tensor in clip_model.state_dict().items()}
    both.vision_model.load_state_dict(state)
    both.save_pretrained(tmp_path / "both")
    older = {"vision_model." + name: tensor for name, tensor in state.items()}
    save_file(older | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}, tmp_path / "older.safetensors")
    for path in ("openai.pt", "both", "older.safetensors"):
        converted = from_clip_and_roberta(tmp_path / path, roberta)
        assert not converted.report.unexpected, path
        ours = converted.task.state_dict()
        assert all(torch.equal(expected[name], ours[name]) for name in expected), path
    bare = RobertaModel(RobertaConfig(**TEXT))
    bare.load_state_dict(words.roberta.state_dict(), strict=False)
    bare.save_pretrained(tmp_path / "bare")
    converted = from_clip_and_roberta(tmp_path / "clip", tmp_path / "bare", tokenizer=str(roberta))
    ours = converted.task.state_dict()
    assert all(torch.equal(expected[name], ours[name]) for name in expected if "tower" in name)
    assert converted.kept.keys() == {"text_pooler.weight", "text_pooler.bias"}
    assert not converted.report.unexpected and "mlm_head.dense.weight" in converted.report.new


def test_fuse_qkv() -> None:
    torch.manual_seed(0)
    layer = "encoder.layers.0.self_attn."
    separate = {f"{layer}{letter}_proj.weight": torch.randn(4, 4) for letter in "kqv"} | {"other": torch.ones(1)}
    fused = clip.fuse_qkv(separate)
    assert fused.keys() == {f"{layer}qkv_proj.weight", "other"}
    for letter, part in zip("qkv", fused[f"{layer}qkv_proj.weight"].chunk(3), strict=True):
        assert torch.equal(part, separate[f"{layer}{letter}_proj.weight"])
    with pytest.raises(ValueError, match=r"no \S*v_proj.weight beside \S*q_proj.weight: it is not complete"):
        clip.fuse_qkv({name: tensor for name, tensor in separate.items() if "v_proj" not in name})


def test_meter_recipe(clip_model: CLIPVisionModel, words: RobertaForMaskedLM, tmp_path: Path) -> None:
    """The last block is unused, and the images are larger."""
    plain = from_clip_and_roberta(tmp_path / "clip", tmp_path / "roberta")
    model = plain.recipe.model
    assert isinstance(model, BridgeTowerConfig) and model.image.image_size == (32, 32) and model.layers == 3
    smaller = replace(model, image=replace(model.image, depth=2, image_size=(48, 48)), bridge="none")
    recipe = replace(plain.recipe, name="meter", model=smaller)
    report = convert(tmp_path / "clip", tmp_path / "ours", text=str(tmp_path / "roberta"), recipe=recipe)
    assert report.unused["model.image_tower.blocks.2.norm_1.weight"] == (128,)
    task = hub.load(tmp_path / "ours").task
    before, after = (converted.state_dict()["model.image_tower.positions"] for converted in (plain.task, task))
    assert after.shape == (37, 128) and torch.equal(after[0], before[0])
    for name in ("blocks.1.up.weight", "norm_after.weight"):
        name = f"model.image_tower.{name}"
        assert torch.equal(task.state_dict()[name], plain.task.state_dict()[name])
    with pytest.raises(ValueError, match=r"is \(300,.*\) in the files and \(400,.*\) in recipe meter"):
        other = replace(model, text=replace(model.text, vocab_size=400))
        from_clip_and_roberta(tmp_path / "clip", tmp_path / "roberta", replace(recipe, model=other))
    with pytest.raises(ValueError, match=r"needs .* tensors that the towers lack, .*too deep"):
        other = replace(model, image=replace(model.image, depth=5))
        from_clip_and_roberta(tmp_path / "clip", tmp_path / "roberta", replace(recipe, model=other))
    with pytest.raises(ValueError, match="builds a VLMoConfig"):
        from_clip_and_roberta(
            tmp_path / "clip", tmp_path / "roberta", replace(recipe, model=VLMoConfig(), task=PairsConfig())
        )


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("clip", "hidden_act", "gelu"), ("roberta", "layer_norm_eps", 1e-12), ("roberta", "pad_token_id", 0)],
)
def test_unsupported_towers(
    part: str, name: str, value: object, clip_model: CLIPVisionModel, words: RobertaForMaskedLM, tmp_path: Path
) -> None:
    config = json.loads((tmp_path / part / "config.json").read_text())
    (tmp_path / part / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(ValueError, match=f"has {name} {value!r}; the tower here has"):
        from_clip_and_roberta(tmp_path / "clip", tmp_path / "roberta")


def test_other_models_are_refused(clip_model: CLIPVisionModel, words: RobertaForMaskedLM, tmp_path: Path) -> None:
    weights = tmp_path / "roberta" / "model.safetensors"
    with pytest.raises(ValueError, match=r"is not a CLIP of OpenAI or Hugging Face: its tensors include lm_head"):
        from_clip_and_roberta(weights, tmp_path / "clip" / "model.safetensors")
    with pytest.raises(ValueError, match="is not a RoBERTa"):
        from_clip_and_roberta(tmp_path / "clip", tmp_path / "clip" / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"holds a checkpoint with tensors such as .*official BridgeTower and METER.*--text"
    ):
        convert(tmp_path / "clip" / "model.safetensors", tmp_path / "ours")
    with pytest.raises(ValueError, match=r"holds a clip_vision_model; supported are .*--text"):
        convert(tmp_path / "clip", tmp_path / "ours")
    assert load_file(weights)


def test_recipe_needs_text(clip_model: CLIPVisionModel, words: RobertaForMaskedLM, tmp_path: Path) -> None:
    recipe = from_clip_and_roberta(tmp_path / "clip", tmp_path / "roberta").recipe
    with pytest.raises(ValueError, match="give RoBERTa too, with --text"):
        convert(tmp_path / "clip", tmp_path / "ours", recipe=recipe)
