"""Every writer accounts for every tensor: a tensor without a name in the target format is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dualfuse.convert.checkpoint import Converted, Format, Source, ThirdPartyCheckpoint, WrittenCheckpoint
from dualfuse.convert.convert import write_checkpoint
from dualfuse.convert.formats import FORMATS, register_format
from dualfuse.convert.load import read_checkpoint
from dualfuse.convert.rename import Layout, export_tensors, import_tensors
from dualfuse.convert.report import Report, shapes
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.testing import check_format

VLMO = VLMoConfig(32, 2, 2, 1, 8, (32, 32), vocab_size=50, text_length=12)
BRIDGETOWER = BridgeTowerConfig(
    CLIPViTConfig(64, 2, patch_size=8, image_size=(32, 32)),
    RobertaConfig(width=64, depth=2, heads=1, feed_forward=128, vocab_size=50, text_length=12),
    width=64,
    heads=1,
    feed_forward=128,
    layers=2,
)
HUGGING_FACE = replace(BRIDGETOWER, itc_image_feature="transformed")
TWO_IMAGES = replace(BRIDGETOWER, image_slots=2)
FUSED = PairsConfig(itc_features="unimodal", itc_head=ITCHeadConfig(16, bias=True, fused=True))
PLAIN = PairsConfig(itc_features="unimodal", itc_head=ITCHeadConfig(16, bias=True, temperature="plain"))

MODELS: dict[str, tuple[str, VLMoConfig | BridgeTowerConfig, TaskConfig]] = {
    "vlmo-text": ("official", replace(VLMO, vl_expert_start=2), MaskedTextConfig()),
    "vlmo-pairs": ("official", VLMO, PairsConfig()),
    "vlmo-vqa": ("official", VLMO, VQAConfig(num_answers=7)),
    "vlmo-nlvr2": ("official", replace(VLMO, image_slots=2), NLVR2Config()),
    "beit": ("official", VLMO, ImageClassificationConfig(num_classes=5)),
    "beit-first": ("official", VLMO, ImageClassificationConfig(num_classes=5, features="first")),
    "bridgetower-pairs": ("official", BRIDGETOWER, PLAIN),
    "meter-pairs": ("official", replace(BRIDGETOWER, bridge="none"), PLAIN),
    "bridgetower-ranking": ("official", BRIDGETOWER, RankingConfig()),
    "bridgetower-vqa": ("official", BRIDGETOWER, VQAConfig(num_answers=7)),
    "bridgetower-nlvr2": ("official", TWO_IMAGES, NLVR2Config()),
    "bridgetower-entailment": ("official", BRIDGETOWER, EntailmentConfig()),
    "hugging-face": ("huggingface", HUGGING_FACE, FUSED),
    "hugging-face-mlm": ("huggingface", HUGGING_FACE, replace(FUSED, itc_weight=0.0, itm_weight=0.0)),
    "hugging-face-scaled": ("huggingface", replace(HUGGING_FACE, bridge="scaled_add"), FUSED),
}


def converted(name: str) -> Converted:
    _, model, task = MODELS[name]
    torch.manual_seed(0)
    built = task.build(model.build()).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            nn.init.normal_(parameter, std=0.2)
    return Converted(built, Recipe(name, model, task), {}, Report(name, {}))


@pytest.fixture
def special_tokens(tmp_path: Path) -> str:
    """Write a RoBERTa tokenizer with the special tokens only."""
    (tmp_path / "vocab.json").write_text('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}')
    (tmp_path / "merges.txt").write_text("")
    return str(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_contract(name: str, special_tokens: str, tmp_path: Path) -> None:
    target, model, task = MODELS[name]
    recipe = Recipe(name, model, task)
    [checkpoint_format] = [entry for entry in FORMATS if entry.target == target and entry.stores(recipe)]
    check_format(checkpoint_format, recipe, tmp_path / "written", special_tokens)


@pytest.mark.parametrize("name", MODELS)
def test_extra_parameter_is_refused(name: str) -> None:
    modules = {path for path, _ in converted(name).task.named_modules()}
    paths = [path for path in ("", "model", "model.blocks.0", "model.image_tower") if path in modules]
    assert len(paths) == 3
    for path in paths:
        source = converted(name)
        source.task.get_submodule(path).register_parameter("extra", nn.Parameter(torch.zeros(3)))
        with pytest.raises(ValueError, match=rf"no name for 1 tensors of the model: {path}\.?extra"):
            write_checkpoint(source, MODELS[name][0])


def test_dropped_tensors_are_listed_by_the_layout() -> None:
    layout = Layout({"a": "b"}, dropped=("c.*",))
    exported = export_tensors({"b": torch.ones(1), "c.d": torch.ones(2)}, layout)
    assert exported.tensors.keys() == {"a"} and exported.dropped.keys() == {"c.d"}
    with pytest.raises(ValueError, match=r"no name for 10 tensors of the model: x0, .*, and 2 more"):
        export_tensors({f"x{number}": torch.ones(1) for number in range(10)}, layout)
    with pytest.raises(ValueError, match="no name for 1 tensors of the model: kept"):
        export_tensors({}, layout, {"kept": torch.ones(1)})


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("bridgetower", "meter"))])
@torch.no_grad()
def test_official_bridgetower_is_read_back(name: str, special_tokens: str, tmp_path: Path) -> None:
    source = converted(name)
    written = write_checkpoint(source, "official")
    torch.save({written.key: written.tensors, **written.beside}, tmp_path / written.file)
    again = read_checkpoint(tmp_path / written.file, special_tokens)
    assert type(again.recipe.task) is type(source.recipe.task) and not again.report.unexpected
    assert again.recipe.model == replace(
        MODELS[name][1], layer_norm_eps=1e-12, itc_image_feature="tower", text=source.recipe.model.text
    )
    expected = source.task.state_dict()
    assert again.tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        if not key.startswith("itm_head.") or name != "bridgetower-ranking":
            assert torch.equal(again.tensors[key], tensor), key


def test_unknown_targets_and_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no target 'onnx'; there are dualfuse, huggingface, official"):
        write_checkpoint(converted("beit"), "onnx")
    with pytest.raises(ValueError, match="Hugging Face SigLIP, none of which stores a VLMoConfig for PairsConfig"):
        write_checkpoint(converted("vlmo-pairs"), "huggingface")
    source = converted("bridgetower-pairs")
    log = replace(PLAIN, itc_head=ITCHeadConfig(16, bias=True))
    with pytest.raises(ValueError, match="the official BridgeTower has no ITC head with a logarithmic temperature"):
        write_checkpoint(replace(source, recipe=replace(source.recipe, task=log)), "official")


@pytest.fixture
def tiny_format() -> Iterator[Format]:
    """Register a format, as a plug-in does, that adds a prefix to all names."""
    recipe = converted("vlmo-text").recipe
    layout = Layout({f"tiny/{name}": name for name in recipe.build().state_dict()})

    def read(source: Source, tokenizer: str) -> ThirdPartyCheckpoint:
        tensors = import_tensors(source.tensors, layout).tensors
        return ThirdPartyCheckpoint(recipe, tensors, {}, Report(str(source.path), {}))

    def write(source: Converted) -> WrittenCheckpoint:
        exported = export_tensors(source.task.state_dict(), layout)
        return WrittenCheckpoint("tiny.pt", exported.tensors, Report("tiny", shapes(exported.used)), key="model")

    def recognize(source: Source) -> bool:
        return not source.path.is_dir() and any(name.startswith("tiny/") for name in source.tensors)

    made = Format("tiny", "tiny", recognize, read, lambda recipe: True, write)
    register_format(made)
    yield made
    FORMATS.remove(made)


def test_format_of_a_plug_in(tiny_format: Format, tmp_path: Path) -> None:
    source = converted("vlmo-text")
    written = write_checkpoint(source, "tiny")
    torch.save({"model": written.tensors}, tmp_path / "tiny.pt")
    again = read_checkpoint(tmp_path / "tiny.pt")
    expected = source.task.state_dict()
    assert again.tensors.keys() == expected.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ValueError, match="there is a checkpoint format 'tiny' already"):
        register_format(replace(tiny_format, read=FORMATS[0].read))  # of another module
