"""Folders of transformers become model folders, and the round trip is bit-identical."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import png_image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BridgeTowerConfig,
    BridgeTowerForContrastiveLearning,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerForMaskedLM,
    BridgeTowerImageProcessorPil,
    BridgeTowerModel,
)

from dualfuse import hub
from dualfuse.convert.convert import convert
from dualfuse.convert.load import load
from dualfuse.convert.report import FILE
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

CLASSES = (
    BridgeTowerModel,
    BridgeTowerForContrastiveLearning,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerForMaskedLM,
)
GOLDEN = Path(__file__).parent.parent / "golden" / "bridgetower"


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize(
    ("kind", "bridge"), [*((kind, "add") for kind in CLASSES), (CLASSES[1], "scaled_add"), (CLASSES[3], "interpolate")]
)
def test_round_trip(
    kind: type, bridge: str, config: Callable[..., BridgeTowerConfig], folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    theirs = folder_of(kind(config(link_tower_type=bridge)))
    report = convert(theirs, tmp_path / "ours")
    assert report.used.keys() | report.unused.keys() == tensors(theirs).keys() and not report.unexpected
    assert all("text_model.pooler" in name for name in report.unused)

    loaded = hub.load(tmp_path / "ours")
    assert isinstance(loaded.task, Pairs)
    trained = (loaded.task.cfg.itc_weight, loaded.task.cfg.itm_weight, loaded.task.cfg.mlm_weight)
    assert trained == tuple(float(kind is each) for each in CLASSES[1:])

    back = convert(tmp_path / "ours", tmp_path / "back", to="huggingface")
    assert same(tensors(theirs), tensors(tmp_path / "back")) and not back.new
    model, info = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()), info
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (theirs, tmp_path / "back"))
    assert after["architectures"] == before["architectures"] == [kind.__name__]
    for part in ("text_config", "vision_config"):
        both = before[part].keys() & after[part].keys()
        assert len(both) > 8 and {name: before[part][name] for name in both} == {
            name: after[part][name] for name in both
        }
    assert model.config.link_tower_type == bridge


def test_transform_for_each_layer(
    config: Callable[..., BridgeTowerConfig], folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    theirs = folder_of(BridgeTowerForMaskedLM(config(share_cross_modal_transformer_layers=False)))
    convert(theirs, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="huggingface")
    assert same(tensors(theirs), tensors(tmp_path / "back"))
    assert "bridgetower.cross_modal_text_transform.1.weight" in tensors(theirs)


@pytest.mark.parametrize("case", ["add_shared", "interpolate_unshared", "scaled_add"])
def test_stored_models(case: str, tokenizer: str, tmp_path: Path) -> None:
    """Each has two heads; a class of transformers loads one of them and ignores the other."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    shutil.copy(GOLDEN / case / "config.json", theirs)
    shutil.copy(GOLDEN / case / "state_dict.safetensors", theirs / "model.safetensors")
    (small := tmp_path / "small").mkdir()
    tokens = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    (small / "vocab.json").write_text(json.dumps(tokens))
    (small / "merges.txt").write_text("")
    convert(theirs, tmp_path / "ours", tokenizer=str(small))
    report = convert(tmp_path / "ours", tmp_path / "back", to="huggingface")
    written, original = tensors(tmp_path / "back"), tensors(theirs)
    assert same(original, written), (original.keys() ^ written.keys(), report)
    with pytest.raises(ValueError, match=r"tokenizer has 261 tokens, the model only (120|90);"):
        convert(theirs, tmp_path / "other", tokenizer=tokenizer)


def test_tokenizer_and_preprocessing_are_converted(contrastive: Path, tmp_path: Path) -> None:
    convert(contrastive, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="huggingface")
    processor = hub.load(tmp_path / "ours").processor
    theirs = AutoTokenizer.from_pretrained(tmp_path / "back")
    for text in ("a cat", "two  cats, one dog!", "Zürich"):
        assert processor.text.encode(text).ids.tolist() == theirs(text)["input_ids"]
    their_processor = BridgeTowerImageProcessorPil.from_pretrained(tmp_path / "back")
    image = Image.open(io.BytesIO(png_image(3, 48))).convert("RGB")
    expected = their_processor(image, return_tensors="pt")["pixel_values"][0]
    assert (expected - processor.image(png_image(3, 48), np.random.default_rng(0))).abs().max() < 1e-5
    assert processor.text.length == 38


def test_load_equals_convert(contrastive: Path, tmp_path: Path) -> None:
    convert(contrastive, tmp_path / "ours")
    at_once, ours, again = load(contrastive), hub.load(tmp_path / "ours"), load(tmp_path / "ours")
    for one in (at_once, again):
        assert same(one.task.state_dict(), ours.task.state_dict()) and not one.task.training
        assert one.processor.image == ours.processor.image and one.recipe.model == ours.recipe.model
        assert one.processor.text.encode("a dog").ids.tolist() == ours.processor.text.encode("a dog").ids.tolist()


def test_shards_and_pickles(
    config: Callable[..., BridgeTowerConfig], folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    theirs = folder_of(BridgeTowerForMaskedLM(config()), max_shard_size="300KB")
    assert len(list(theirs.glob("model-*.safetensors"))) > 1
    in_parts = load(theirs).task.state_dict()
    merged: dict[str, Tensor] = {}
    for part in sorted(theirs.glob("model*")):
        merged |= load_file(part) if part.suffix == ".safetensors" else {}
        part.unlink()
    torch.save(merged, theirs / "pytorch_model.bin")
    assert same(in_parts, load(theirs).task.state_dict())
    torch.save(merged, theirs / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same(in_parts, load(theirs).task.state_dict())


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    content = tensors(folder)
    change(content)
    save_file(content, folder / "model.safetensors")
    return folder


def test_unexpected_tensors_are_reported(contrastive: Path, tmp_path: Path) -> None:
    edit(contrastive, lambda content: content.update({"a_new.part": torch.ones(2, 3)}))
    report = convert(contrastive, tmp_path / "ours")
    assert report.unexpected == {"a_new.part": (2, 3)}
    assert "UNEXPECTED: 1 tensor, which this kind of model does not have" in str(report)
    assert "a_new.part 2 x 3" in str(report)
    assert {"itm_head.weight": (2, 128), "itm_head.bias": (2,)}.items() <= report.new.items()
    saved = json.loads((tmp_path / "ours" / FILE).read_text())
    assert saved["unexpected"] == {"a_new.part": [2, 3]} and len(saved["used"]) == len(tensors(contrastive)) - 3


@pytest.mark.parametrize("name", ["bridgetower.token_type_embeddings.weight", "itc_text_head.fc.bias", "logit_scale"])
def test_missing_tensor(name: str, contrastive: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"theirs lacks 1 tensors of the model, such as \S+ .*not complete"):
        convert(edit(contrastive, lambda content: content.pop(name)), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_wrong_shape(contrastive: Path, tmp_path: Path) -> None:
    name = "bridgetower.cross_modal_text_pooler.dense.bias"
    with pytest.raises(ValueError, match=r"do not have the shapes of its model: (?s:.*)poolers.text.bias"):
        convert(edit(contrastive, lambda content: content.update({name: torch.ones(7)})), tmp_path / "ours")


def test_half_precision_is_reported(contrastive: Path, tmp_path: Path) -> None:
    edit(contrastive, lambda content: content.update({name: tensor.half() for name, tensor in content.items()}))
    assert "note: float16 became float32" in str(convert(contrastive, tmp_path / "ours"))


def test_pooler_is_zero_without_the_kept_tensors(contrastive: Path, tmp_path: Path) -> None:
    convert(contrastive, tmp_path / "ours")
    (tmp_path / "ours" / "unused.safetensors").unlink()
    report = convert(tmp_path / "ours", tmp_path / "back", to="huggingface")
    pooler = "bridgetower.text_model.pooler.dense.weight"
    assert report.new == {pooler: (64, 64), pooler.replace("weight", "bias"): (64,)}
    assert "never reads, is zero" in str(report) and not tensors(tmp_path / "back")[pooler].any()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("share_link_tower_layers", True, "only False works"),
        ("vision_config.share_layernorm", False, "share_layernorm False; only True works"),
        ("text_config.hidden_act", "relu", "only 'gelu' works"),
        ("hidden_act", "gelu_new", "only 'gelu' works"),
        ("layer_norm_eps", 1e-12, "layer_norm_eps 1e-12"),
        ("vision_config.layer_norm_eps", 1e-6, "layer_norm_eps 1e-06"),
        ("text_config.type_vocab_size", 2, "type_vocab_size 2"),
        ("text_config.add_cross_attention", True, "add_cross_attention True"),
        ("link_tower_type", "multiply", "it can be add, scaled_add, interpolate"),
        ("hidden_size", 128, "hidden_size 128 and text_config.hidden_size 64"),
        ("vision_config.num_hidden_layers", 4, "4 image blocks and 3 text layers"),
        ("vision_config.remove_last_layer", True, "2 image blocks and 3 text layers"),
        ("num_hidden_layers", 4, "4 cross-modal layers cannot be fed"),
        ("num_hidden_layers", "2", "a value like 6 is needed"),
        ("vision_config", [3], "the fields of a tower"),
        ("vision_config.patch_size", [8, 16], r"patch_size \[8, 16\]"),
        ("num_layers", 6, "num_layers 6, a field of the first revisions.*it reads num_hidden_layers"),
        ("image_token_type_idx", 2, "image_token_type_idx 2"),
        ("model_type", "blip", "holds a blip; supported are"),
    ],
)
def test_unsupported_configs_are_refused(
    field: str, value: Any, message: str, change: Callable[[str, Any], Path], tmp_path: Path
) -> None:
    folder = change(field, value)
    if field == "num_layers":
        folder = change("num_hidden_layers", None)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 7),  # transformers reads that of the text tower
        ("link_tower_shared", False),
        ("num_layers", 6),  # beside its new name
        ("drop_rate", 0.4),
        ("vision_config.patch_size", [8, 8]),
        ("text_config.layer_norm_eps", None),
    ],
)
def test_fields_without_effect(field: str, value: Any, change: Callable[[str, Any], Path], contrastive: Path) -> None:
    model = load(contrastive).recipe.model
    assert load(change(field, value)).recipe.model == model


def test_tied_word_embeddings(config: Callable[..., BridgeTowerConfig], folder_of: Callable[..., Path]) -> None:
    theirs = folder_of(BridgeTowerForMaskedLM(config(tie_word_embeddings=True)))
    state = load(theirs).task.state_dict()
    assert torch.equal(state["mlm_head.decoder.weight"], state["model.text_tower.words.word.weight"])


@pytest.mark.parametrize(
    ("processor_config", "size", "length"),
    [({"size": 32, "max_text_len": 20}, 32, 20), ({"size": {"shortest_edge": 64}}, 32, 38)],
)
def test_processor_config(processor_config: dict[str, Any], size: int, length: int, contrastive: Path) -> None:
    (contrastive / "preprocessor_config.json").write_text(json.dumps(processor_config))
    processor = load(contrastive).processor
    assert processor.image.size == (size, size) and processor.text.length == length


def test_destination_is_not_overwritten(contrastive: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="precious holds other files"):
        convert(contrastive, tmp_path / "precious")
    for destination in (contrastive, tmp_path):
        with pytest.raises(ValueError, match="holds other files"):
            convert(contrastive, destination)
    convert(contrastive, tmp_path / "ours")
    with pytest.raises(ValueError, match=r"would replace .*ours itself"):
        convert(tmp_path / "ours", tmp_path / "ours", to="huggingface")
    with pytest.raises(ValueError, match="is a model folder of dualfuse already"):
        convert(tmp_path / "ours", tmp_path / "other")
    convert(contrastive, tmp_path / "ours")  # a conversion may be done again
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


@pytest.mark.parametrize("to", ["dualfuse", "huggingface"])
def test_files_of_the_user_survive_a_second_conversion(contrastive: Path, tmp_path: Path, to: str) -> None:
    source, out = contrastive, tmp_path / "ours"
    convert(contrastive, out)
    if to == "huggingface":
        source, out = out, tmp_path / "exported"
        convert(source, out, to=to)
    (out / "NOTES.md").write_text("mine")
    with pytest.raises(ValueError, match=r"NOTES\.md would be lost"):
        convert(source, out, to=to)
    assert (out / "NOTES.md").read_text() == "mine"
    (out / "NOTES.md").unlink()
    (out / "config.json").write_text((out / "config.json").read_text() + "\n")
    with pytest.raises(ValueError, match=r"config\.json would be lost"):
        convert(source, out, to=to)


def test_unsupported_models(contrastive: Path, tmp_path: Path) -> None:
    convert(contrastive, tmp_path / "ours")
    loaded = hub.load(tmp_path / "ours")
    meter = replace(loaded.recipe, model=replace(loaded.recipe.model, bridge="none"))
    meter = hub.with_tokenizer(meter, tmp_path / "ours")
    hub.save(tmp_path / "meter", meter.build(), meter)
    with pytest.raises(ValueError, match="has no METER"):
        convert(tmp_path / "meter", tmp_path / "back", to="huggingface")
    assert not list(tmp_path.glob("back*"))

    plain = PairsConfig(itc_features="unimodal")
    changed = hub.with_tokenizer(replace(loaded.recipe, task=plain), tmp_path / "ours")
    hub.save(tmp_path / "plain", plain.build(changed.model.build()), changed)
    report = convert(tmp_path / "plain", tmp_path / "back", to="huggingface")
    assert "the ITC head is dropped: transformers has none without a head for fused embeddings, without biases" in str(
        report
    )
    assert "itc_heads.0.logit_scale" in report.dropped
    kind = BridgeTowerForImageAndTextRetrieval
    _, info = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"] and all(name.startswith("mlm_score.") for name in info["unexpected_keys"])
