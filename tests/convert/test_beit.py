"""BEiT in all its layouts encodes images as its own code does; the parts for text are new."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    BertConfig,
    BertForMaskedLM,
)

from dualfuse import hub
from dualfuse.convert.convert import convert
from dualfuse.convert.formats.beit_config import table_side
from dualfuse.convert.formats.vlmo_official import PAIRS
from dualfuse.convert.load import load, read_checkpoint
from dualfuse.convert.rename import rename
from dualfuse.convert.report import Report
from dualfuse.data.image.transform import Preprocess
from dualfuse.layers.relative_bias import resize_table
from dualfuse.models.vlmo import VLMo, VLMoConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.finetune.image_classification import ImageClassification, ImageClassificationConfig
from dualfuse.tasks.pretrain.masked_image import MaskedImage, MaskedImageConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training.init_from import init_from

VLMO = Path(__file__).parent.parent / "golden" / "vlmo"
STATE = load_file(VLMO / "beit_stage2_state.safetensors")
OUTPUTS = load_file(VLMO / "beit_stage2_outputs.safetensors")
FACTS = json.loads((VLMO / "from_beit.json").read_text())
SIZES: dict[str, Any] = dict(
    hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8
)


def state(name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in STATE.items() if key.startswith(f"{name}.")}


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return official VLMo's tensors our names."""
    return rename(tensors, PAIRS).tensors


def checkpoint(path: Path, tensors: dict[str, Tensor], **beside: object) -> Path:
    """As the official code writes it."""
    torch.save({"model": tensors, "epoch": 3, **beside}, path)
    return path


def model_of(task: nn.Module) -> VLMo:
    assert isinstance(task.model, VLMo)
    return task.model


@torch.no_grad()
def layers(model: VLMo, images: Tensor) -> Tensor:
    """Return the states (L, B, N, D) after each layer."""
    states: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *args: states.append(args[-1])) for block in model.blocks]
    tokens = model.embed_image(images)
    model.token_states(tokens, torch.arange(tokens.mask.shape[1]).expand(len(images), -1))
    for hook in hooks:
        hook.remove()
    return torch.stack(states)


def test_tensors_equal_those_of_the_official_loader(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "beit.pth", state("beit_ft"))
    report = convert(path, tmp_path / "ours")
    ours, copied, released = (
        hub.read_tensors(tmp_path / "ours"),
        read_checkpoint(path).tensors,
        renamed(state("stage2")),
    )
    zero, table = copied.pop("model.types.weight"), copied.pop("model.relative_bias.table")
    classes = {name: copied.pop(name) for name in ("norm.weight", "norm.bias", "head.weight", "head.bias")}
    for name, tensor in classes.items():
        assert torch.equal(ours[name], tensor) and torch.equal(
            tensor, state("beit_ft")[f"fc_{name}".replace("fc_h", "h")]
        )
    assert len(copied) == 4 * 15 + 3
    for name, tensor in copied.items():
        assert torch.equal(ours[name], tensor) and torch.equal(released[name], tensor), name
    rows = FACTS["table_rows_copied"]
    assert torch.equal(table[:rows], released["model.relative_bias.table"][:rows]) and not table[rows:].any()
    assert len(table) == rows + 2 * 196 + 2 and torch.equal(ours["model.relative_bias.table"], table)
    missing = set(renamed(dict.fromkeys(FACTS["beit_to_vlmo_missing"], zero)))
    # types start at zero; positions of words have no effect beside relative ones, so that there are none
    excluded = {"model.types.weight", "model.words.position.weight"}
    assert set(report.new) == {name for name in missing - excluded if name.startswith("model.")}
    assert not zero.any() and "type embeddings of text and image are zero" in str(report)
    unused = {name for name in FACTS["beit_to_vlmo_unexpected"] if "fc_norm" not in name and "head" not in name}
    assert {f"transformer.{name}" for name in report.unused} == unused
    assert not report.unexpected


def test_states_equal_the_official_code(tmp_path: Path) -> None:
    loaded = load(checkpoint(tmp_path / "beit.pth", state("beit_ft")))
    hidden = layers(model_of(loaded.task), OUTPUTS["in.image"])
    assert_close(hidden, OUTPUTS["beit_ft.hidden"], atol=2.5e-6, rtol=2.5e-6)
    model = loaded.recipe.model
    assert isinstance(model, VLMoConfig)
    assert (model.width, model.depth, model.heads, model.vl_expert_start) == (48, 4, 4, 4)
    assert (model.patch_size, model.image_size, model.text_length, model.share_relative_bias) == (
        8,
        (32, 32),
        196,
        False,
    )
    assert loaded.recipe.task == ImageClassificationConfig(num_classes=7) and loaded.recipe.data.text_length == 196
    assert loaded.recipe.data.preprocess == Preprocess("crop", "pillow", crop_fraction=0.875)


@torch.no_grad()
def test_class_logits_equal_the_official_code(tmp_path: Path) -> None:
    task = load(checkpoint(tmp_path / "beit.pth", state("beit_ft"))).task
    assert isinstance(task, ImageClassification)
    image = task.model.embed_image(OUTPUTS["in.image"])
    assert_close(task.norm(task.model.average_patches(image)), OUTPUTS["beit_ft.pooled"], atol=2.5e-6, rtol=2.5e-6)
    assert_close(task.logits({"image": OUTPUTS["in.image"]}), OUTPUTS["beit_ft.logits"], atol=2.5e-6, rtol=2.5e-6)


def test_self_supervised_with_its_head(tmp_path: Path) -> None:
    """The official loader cannot read it; here it resumes stage one."""
    path = checkpoint(tmp_path / "mim.pth", state("beit_mim"))
    report = convert(path, tmp_path / "ours")
    task = hub.load(tmp_path / "ours").task
    assert isinstance(task, MaskedImage) and task.cfg == replace(MaskedImageConfig(), codes=31, patch=8)
    hidden = OUTPUTS["in.mim_mask"]
    positions = [1 + mask.nonzero()[:, 0] for mask in hidden]
    padded = nn.utils.rnn.pad_sequence(positions, batch_first=True)
    batch: Any = {"image": OUTPUTS["in.image"], "hidden": hidden, "positions": padded}
    with torch.no_grad():
        assert_close(task.logits(batch), OUTPUTS["beit_mim.logits_masked"], atol=2.5e-6, rtol=2.5e-6)
    assert set(report.unused) == {"rel_pos_bias.relative_position_index"} and "was copied to each layer" in str(report)
    assert not any(name.startswith(("model.norm.", "head.")) or name == "mask_token" for name in report.new)
    assert task.model.state_dict()["relative_bias.table"][:52].equal(STATE[MIM_TABLE].repeat(1, 4))


MIM_TABLE = "beit_mim.rel_pos_bias.relative_position_bias_table"

KINDS = {
    "bare": (BeitModel, dict(use_relative_position_bias=True, use_mean_pooling=False)),
    "masked": (BeitForMaskedImageModeling, dict(use_shared_relative_position_bias=True, use_mask_token=True)),
    "classes": (BeitForImageClassification, dict(use_relative_position_bias=True, num_labels=5)),
    "classes-of-first": (
        BeitForImageClassification,
        dict(use_relative_position_bias=True, num_labels=5, use_mean_pooling=False),
    ),
    "absolute": (BeitModel, dict(use_absolute_position_embeddings=True, use_mean_pooling=False)),
    "no-scale": (BeitModel, dict(use_shared_relative_position_bias=True, layer_scale_init_value=0.0)),
}


@pytest.fixture
def hugging_face(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """Write a BEiT of transformers, every tensor random."""

    def write(kind: str, **changes: Any) -> tuple[Any, Path]:
        make, options = KINDS[kind]
        torch.manual_seed(3)
        model = make(BeitConfig(**SIZES, vocab_size=11, **options, **changes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(tmp_path / kind)
        return model, tmp_path / kind

    return write


@torch.no_grad()
@pytest.mark.parametrize("epsilon", [1e-6, 1e-12])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_live(kind: str, epsilon: float, hugging_face: Callable[..., tuple[Any, Path]]) -> None:
    theirs, folder = hugging_face(kind, layer_norm_eps=epsilon)
    loaded = load(folder)
    images = torch.randn(2, 3, 32, 32)
    outputs = theirs(images, output_hidden_states=True)
    hidden = layers(model_of(loaded.task), images)
    assert_close(hidden, torch.stack(outputs.hidden_states[1:]), atol=1e-5, rtol=1e-5)
    if kind.startswith("classes"):
        assert isinstance(loaded.task, ImageClassification)
        assert loaded.task.features == ("first" if kind.endswith("first") else "patches")
        assert_close(loaded.task.logits({"image": images}), outputs.logits, atol=1e-5, rtol=1e-5)
    if kind in ("bare", "absolute"):
        tokens = loaded.task.model.embed_image(images)
        states = loaded.task.model.token_states(tokens, torch.arange(17).expand(2, -1))
        assert_close(states, outputs.last_hidden_state, atol=1e-5, rtol=1e-5)
    converted = read_checkpoint(folder)
    assert ("epsilon of the norms was 1e-12" in str(converted.report)) == (epsilon == 1e-12)
    assert not converted.report.unexpected
    model = converted.recipe.model
    assert isinstance(model, VLMoConfig) and model.heads == 4
    assert model.positions == ("absolute" if kind == "absolute" else "relative")
    assert bool(model.init.layer_scale) == (kind != "no-scale")


@torch.no_grad()
def test_masked_patches_of_transformers(hugging_face: Callable[..., tuple[Any, Path]]) -> None:
    theirs, folder = hugging_face("masked", layer_norm_eps=1e-6)
    task = load(folder).task
    assert isinstance(task, MaskedImage) and model_of(task).share_relative_bias
    images, hidden = torch.randn(2, 3, 32, 32), torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 3:9] = True
    positions = (1 + torch.arange(3, 9)).expand(2, -1)
    batch: Any = {"image": images, "hidden": hidden, "positions": positions}
    expected = theirs(images, bool_masked_pos=hidden).logits[hidden]
    assert_close(task.logits(batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_timm(kind: str, tmp_path: Path) -> None:
    """timm uses the names of the official code without the indices, and its config names the architecture."""
    theirs = {name: tensor for name, tensor in state("beit_ft").items() if "index" not in name}
    (tmp_path / "hub").mkdir()
    save_file(theirs, tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text('{"architecture": "beit_base_patch16_224", "num_classes": 7}')
    source = tmp_path / "hub" / "model.safetensors" if kind == "file" else tmp_path / "hub"
    ours, official = read_checkpoint(source), read_checkpoint(checkpoint(tmp_path / "x.pth", state("beit_ft")))
    assert all(torch.equal(tensor, official.tensors[name]) for name, tensor in ours.tensors.items())
    assert ours.tensors.keys() == official.tensors.keys() and ours.recipe.model == official.recipe.model
    assert not ours.report.unused and {"norm.weight", "head.bias"} <= ours.tensors.keys()


def test_language_experts_as_copies(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "beit.pth", state("beit_ft"))
    report = convert(path, tmp_path / "ours", language="vision")
    ours = hub.read_tensors(tmp_path / "ours")
    for name in ours:
        if ".experts.image." in name:
            assert torch.equal(ours[name], ours[name.replace("image", "text")])
    assert "copies of the vision experts: 24 tensors" in str(report) and "as in the official code" not in str(report)
    assert not any(".experts." in name for name in report.new)
    with pytest.raises(ValueError, match=r"only in a BEiT, not in .*ours"):
        convert(tmp_path / "ours", tmp_path / "more", to="official", language="vision")


@pytest.fixture
def bert(tmp_path: Path) -> Callable[..., tuple[BertForMaskedLM, Path]]:
    def write(**changes: Any) -> tuple[BertForMaskedLM, Path]:
        sizes = dict(
            hidden_size=48,
            num_hidden_layers=5,
            num_attention_heads=4,
            intermediate_size=192,
            max_position_embeddings=64,
        )
        torch.manual_seed(4)
        model = BertForMaskedLM(BertConfig(**(sizes | changes))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(tmp_path / "bert")
        return model, tmp_path / "bert"

    return write


@torch.no_grad()
@pytest.mark.parametrize("name", ["beit_ft", "beit_mim"])
@pytest.mark.parametrize("old_names", [False, True])
def test_language_experts_of_bert(
    name: str, old_names: bool, bert: Callable[..., tuple[BertForMaskedLM, Path]], tmp_path: Path
) -> None:
    theirs, folder = bert()
    if old_names:
        tensors = load_file(folder / "model.safetensors")
        for old, new in (("gamma", "weight"), ("beta", "bias")):
            tensors = {key.replace(f"LayerNorm.{new}", f"LayerNorm.{old}"): value for key, value in tensors.items()}
        save_file(tensors, folder / "model.safetensors")
    report = convert(checkpoint(tmp_path / "beit.pth", state(name)), tmp_path / "ours", text=str(folder))
    loaded = hub.load(tmp_path / "ours")
    task, model = loaded.task, model_of(loaded.task)
    assert loaded.recipe.task == MaskedTextConfig()
    x = torch.randn(2, 7, 48)
    for block, layer in zip(model.blocks, theirs.bert.encoder.layer, strict=False):
        norm = layer.attention.output.LayerNorm
        normed = F.layer_norm(x, (48,), norm.weight, norm.bias, 1e-6)
        assert_close(block.experts["text"](x), layer.output.dense(layer.intermediate(normed)), atol=1e-5, rtol=1e-5)
    ids = torch.randint(0, 30522, (2, 7))
    words = theirs.bert.embeddings
    expected = words.LayerNorm(words.word_embeddings(ids) + words.token_type_embeddings.weight[0])
    assert_close(model.words(ids), expected)
    assert_close(task.get_submodule("mlm_head")(x), theirs.cls(x), atol=1e-5, rtol=1e-5)
    unused = ("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.4.output.dense.weight")
    assert {*unused, "bert.embeddings.position_embeddings.weight"} <= report.unused.keys() and not report.unexpected
    assert not any(".experts." in name or name.startswith(("model.words.", "mlm_head.")) for name in report.new)
    assert "BERT's feed-forward parts" in str(report)
    assert "BEiT's head, and what belongs to it, is unused" in str(report)


def test_bert_beside_absolute_positions(
    bert: Callable[..., tuple[BertForMaskedLM, Path]], hugging_face: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    theirs, folder = bert(max_position_embeddings=200)
    _, images = hugging_face("absolute")
    report = convert(images, tmp_path / "ours", text=str(folder))
    positions = theirs.bert.embeddings.position_embeddings.weight
    assert torch.equal(hub.read_tensors(tmp_path / "ours")["model.words.position.weight"], positions[:196])
    assert "bert.embeddings.position_embeddings.weight" in report.used


def test_bert_of_another_width(bert: Callable[..., tuple[BertForMaskedLM, Path]], tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "beit.pth", state("beit_ft"))
    _, folder = bert(hidden_size=32)
    with pytest.raises(ValueError, match=r"BERT is 32 wide and BEiT 48: .*base with base"):
        convert(path, tmp_path / "ours", text=str(folder))
    with pytest.raises(ValueError, match=r"this is not a BERT .* include blocks.0"):
        convert(path, tmp_path / "ours", text=str(path))
    recipe = Recipe("x", VLMoConfig(), PairsConfig())
    with pytest.raises(ValueError, match="train the recipe with --start-from"):
        convert(path, tmp_path / "ours", text=str(folder), recipe=recipe)


@pytest.mark.parametrize("source", ["file", "folder"])
@pytest.mark.parametrize("kind", ["beit_ft", "beit_mim"])
def test_init_of_stages_two_and_three(source: str, kind: str, tmp_path: Path) -> None:
    """The resolution differs; the official loader puts the rows of the table in the wrong order then."""
    path = checkpoint(tmp_path / "beit.pth", state(kind))
    report = read_checkpoint(path)
    if source == "folder":
        convert(path, tmp_path / "ours")
    model = VLMoConfig(
        width=48, depth=4, heads=4, vl_expert_start=2, patch_size=8, image_size=(48, 48), text_length=40, drop_path=0.0
    )
    data = Data(image_size=(48, 48), text_length=40)
    for cfg in (MaskedTextConfig(), PairsConfig()):
        recipe = Recipe("next", model, cfg, data)
        task = cfg.build(model.build())
        before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
        init_from(task, recipe, str(tmp_path / "ours" if source == "folder" else path), tmp_path / "out")
        after = task.state_dict()
        table = report.tensors["model.relative_bias.table"]
        assert_close(after["model.relative_bias.table"][:124], resize_table(table, (4, 4), (6, 6))[:124])
        assert torch.equal(after["model.blocks.3.experts.image.up.weight"], STATE[f"{kind}.blocks.3.mlp.fc1.weight"])
        both = "model.blocks.3.experts.vl.up.weight"
        assert torch.equal(after[both], before[both])


def change(tensors: dict[str, Tensor], name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key != name} | ({} if tensor is None else {name: tensor})


TABLE = "blocks.2.attn.relative_position_bias_table"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blocks.2.mlp.fc1.weight", None, r"lacks 1 tensors of the model, such as model.blocks.2.experts.image.up"),
        (TABLE, None, "layer 2 of this BEiT has no relative_position_bias_table"),
        ("pos_embed", torch.zeros(1, 17, 48), "both relative and absolute positions"),
        ("blocks.0.attn.relative_position_bias_table", torch.zeros(50, 4), "50 rows, which fits no square"),
        ("blocks.1.mlp.fc1.weight", torch.zeros(96, 48), "do not have the shapes of its model"),
    ],
)
def test_invalid_tensors_are_refused(name: str, tensor: Tensor | None, message: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "beit.pth", change(state("beit_ft"), name, tensor))
    with pytest.raises(ValueError, match=message):
        load(path)


def test_missing_positions(tmp_path: Path) -> None:
    tensors = {name: value for name, value in state("beit_ft").items() if "relative" not in name}
    with pytest.raises(ValueError, match="this BEiT has no positions of patches"):
        load(checkpoint(tmp_path / "beit.pth", tensors))


def test_unexpected_tensors_are_reported(tmp_path: Path) -> None:
    """BEiT v2's self-supervised files hold a second head."""
    tensors = state("beit_mim") | {"cls_pt_layers.0.norm1.weight": torch.ones(48)}
    report: Report = convert(checkpoint(tmp_path / "beit.pth", tensors), tmp_path / "ours")
    assert dict(report.unexpected) == {"cls_pt_layers.0.norm1.weight": (48,)} and "UNEXPECTED: 1 tensor" in str(report)


def test_arguments_of_the_training_script(tmp_path: Path) -> None:
    """The official code stores an argparse.Namespace, of which only the fields are read."""
    path = checkpoint(tmp_path / "beit.pth", state("beit_mim"), args=argparse.Namespace(lr=1e-3, model="beit_base"))
    assert isinstance(load(path).task, MaskedImage)


@pytest.mark.parametrize(("rows", "side"), [(732, 14), (2212, 24), (52, 4)])
def test_table_side(rows: int, side: int) -> None:
    assert table_side(rows) == side
