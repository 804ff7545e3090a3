"""Official VLMo checkpoints of every kind are recognized, and the round trip is bit-identical."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.testing import assert_close

from dualfuse import hub
from dualfuse.convert.checkpoint import Converted
from dualfuse.convert.convert import convert, write_checkpoint
from dualfuse.convert.formats.vlmo_official import INDICES, Kind, kind_of, layout
from dualfuse.convert.formats.vlmo_official_config import recipe_of, relative_sizes
from dualfuse.convert.load import load, read_checkpoint
from dualfuse.convert.rename import export_tensors, import_tensors
from dualfuse.convert.report import Report
from dualfuse.data.text.tokenizer import BERT_SPECIAL
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.layers.relative_bias import joint_index, resize_table
from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.recipe import Recipe
from dualfuse.recipes.vlmo import BASE, BASE_PLUS, LARGE
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig
from dualfuse.tasks.pretrain.masked_text import MaskedText, MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

VLMO = Path(__file__).parent.parent / "golden" / "vlmo"
FACTS = json.loads((VLMO / "facts.json").read_text())
HEADS = {
    "pairs": ("mlm_score", "itm_score", "itc_", "logit_"),
    "retrieval": ("itc_image_proj", "itc_text_proj", "logit_scale"),
    "vqa": ("vqa_classifier",),
    "nlvr2": ("nlvr2_classifier",),
    "text": (),
}
ALL_HEADS = ("mlm_score", "itm_score", "itc_", "logit_", "vqa_", "nlvr2")
HYPER_PARAMETERS = {"max_text_len": 12, "max_text_len_of_initckpt": 20, "num_heads": 4, "drop_path_rate": 0.2}


def state(kind: str, variant: str = "rel") -> dict[str, Tensor]:
    """What the official code stores for a kind of training, as recorded."""
    if kind == "text":
        whole = load_file(VLMO / "beit_stage2_state.safetensors")
        return {name.removeprefix("stage2."): tensor for name, tensor in whole.items() if name.startswith("stage2.")}
    whole = load_file(VLMO / f"{variant}_state.safetensors")
    tensors = {
        name: tensor for name, tensor in whole.items() if not name.startswith(ALL_HEADS) or name.startswith(HEADS[kind])
    }
    if kind == "nlvr2":
        tensors["token_type_embeddings.weight"] = whole["nlvr2.token_type_embeddings.weight"]
    return tensors


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recorded models know 101 tokens."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    tokenizer = Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture
def official(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint of Lightning, with its hyper-parameters."""

    def write(tensors: dict[str, Tensor], **hyper_parameters: Any) -> Path:
        content: dict[str, Any] = {"state_dict": tensors, "epoch": 3}
        torch.save(
            content | ({"hyper_parameters": {"config": hyper_parameters}} if hyper_parameters else {}),
            tmp_path / "official.ckpt",
        )
        return tmp_path / "official.ckpt"

    return write


VARIANTS = [(kind, "rel") for kind in HEADS] + [(kind, "abs") for kind in HEADS if kind != "text"]
TASKS: dict[str, TaskConfig] = {
    "pairs": PairsConfig(),
    "retrieval": PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal"),
    "vqa": VQAConfig(num_answers=17),
    "nlvr2": NLVR2Config(hidden_scale=2.0),
    "text": MaskedTextConfig(),
}


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_round_trip(kind: str, variant: str, official: Callable[..., Path], tokenizer: str, tmp_path: Path) -> None:
    theirs = state(kind, variant) | {"text_embeddings.position_ids": torch.arange(12)[None]}
    if variant == "rel":
        sizes = zip(INDICES, (17, 12, 29), strict=True)
        theirs |= {name: torch.randint(0, 90, (size, size)) for name, size in sizes}
    report = convert(official(theirs, **HYPER_PARAMETERS), tmp_path / "ours", tokenizer=tokenizer)
    assert not report.unexpected
    unused = {"text_embeddings.position_ids", *INDICES, "text_embeddings.position_embeddings.weight"}
    assert set(report.unused) == (unused if variant == "rel" else {"text_embeddings.position_ids"})
    assert {name.split(".")[0] for name in report.new} == ({"itm_head", "mlm_head"} if kind == "retrieval" else set())
    recipe = hub.read_recipe(tmp_path / "ours")
    length = 20 if variant == "rel" else 12
    vl_expert_start = 4 if kind == "text" else 2
    slots = 2 if kind == "nlvr2" else 1
    expected = VLMoConfig(48, 4, 4, vl_expert_start, 8, (32, 32), 101, length, drop_path=0.2, image_slots=slots)
    if variant == "abs":
        expected = replace(expected, positions="absolute", init=InitConfig(layer_scale=0.0))
    assert recipe.model == expected and recipe.task == TASKS[kind]
    assert recipe.data.text_length == 12 and recipe.data.image_size == (32, 32)

    assert not convert(tmp_path / "ours", tmp_path / "back", to="official").new
    back = torch.load(tmp_path / "back" / "vlmo.ckpt", weights_only=True)["state_dict"]
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    again = read_checkpoint(tmp_path / "back" / "vlmo.ckpt", tokenizer)
    assert again.recipe.model == expected and again.recipe.data.text_length == 12


def golden(variant: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return load_file(VLMO / f"{variant}_inputs.safetensors"), load_file(VLMO / f"{variant}_outputs.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pairs", "retrieval"])
@pytest.mark.parametrize("variant", ["rel", "abs"])
def test_embeddings_equal_the_official_code(
    kind: str, variant: str, official: Callable[..., Path], tokenizer: str
) -> None:
    task = load(official(state(kind, variant), **HYPER_PARAMETERS), tokenizer=tokenizer).task
    inputs, outputs = golden(variant)
    assert isinstance(task, Pairs) and task.can_search and task.can_match == (kind == "pairs")
    image = task.model.embed_image(inputs["in.image"])
    text = task.model.embed_text(inputs["in.text_ids"], inputs["in.text_masks"])
    tolerances = FACTS["tolerances"][f"{variant}_outputs"]
    for name, embeddings in (("image", task.image_features(image)), ("text", task.text_features(text))):
        atol, rtol = tolerances[f"{name}.itc_feat"]
        assert_close(embeddings, outputs[f"{name}.itc_feat"], atol=atol / 4, rtol=rtol / 4)


@torch.no_grad()
def test_text_stage(official: Callable[..., Path], tokenizer: str) -> None:
    loaded = load(official(state("text"), **HYPER_PARAMETERS), tokenizer=tokenizer)
    task, outputs = loaded.task, load_file(VLMO / "beit_stage2_outputs.safetensors")
    assert isinstance(task, MaskedText) and loaded.recipe.optim.warmup == 2500
    hidden: list[Tensor] = []
    for block in task.model.fsdp_blocks():
        block.register_forward_hook(lambda *args: hidden.append(args[-1]))
    close = partial(assert_close, atol=2.5e-6, rtol=2.5e-6)
    text = task.model.embed_text(outputs["in.text_ids_mlm"], outputs["in.text_masks"])
    close(text.states[0], outputs["stage2.text.embed"])
    states = task.model.token_states(text, torch.arange(20).expand(4, -1))
    close(torch.stack(hidden), outputs["stage2.text.hidden"])
    close(task.mlm_head(states), outputs["stage2.mlm_logits"])
    assert torch.equal(joint_index(20, (), (4, 4), 20), outputs["stage2.text_index"].long())
    hidden.clear()
    image = task.model.embed_image(outputs["in.image"])
    task.model.token_states(image, torch.arange(17).expand(4, -1))
    close(torch.stack(hidden), outputs["stage2.image.hidden"])


SIZES = {"base": BASE, "base_plus": replace(BASE_PLUS, text_length=196), "large": LARGE}
PUBLISHED: list[tuple[str, int, TaskConfig]] = [
    ("stage2", 224, MaskedTextConfig()),
    ("pairs", 224, PairsConfig()),
    ("vqa", 480, VQAConfig(num_answers=3129)),
    ("nlvr2", 384, NLVR2Config()),
    ("coco", 384, TASKS["retrieval"]),
    ("f30k", 224, TASKS["retrieval"]),
    ("f30k", 384, TASKS["retrieval"]),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "side", "task"), PUBLISHED, ids=lambda value: value if isinstance(value, str) else "")
def test_published_files_are_recognized_by_shapes(size: str, name: str, side: int, task: TaskConfig) -> None:
    """They are plain dictionaries of tensors, without hyper-parameters."""
    model = replace(SIZES[size], image_size=(side, side), image_slots=2 if name == "nlvr2" else 1)
    if name == "stage2":
        model = replace(model, vl_expert_start=model.depth)
    with torch.device("meta"):
        converted = Converted(task.build(model.build()), Recipe(name, model, task), {}, Report("converted", {}))
        theirs = write_checkpoint(converted, "official").tensors
    rows = {224: 1126, 384: 2606, 480: 3878}[side]
    assert (size == "base_plus") != (theirs.get("relative_position_bias_table", torch.empty(0)).shape[0] == rows)
    theirs = {name: tensor for name, tensor in theirs.items() if name not in INDICES}
    kind = kind_of(theirs)
    imported = import_tensors(theirs, layout(kind, relative=model.positions == "relative"))
    assert not imported.unexpected
    recipe = recipe_of(imported.tensors, {}, kind, {}, "read")
    assert (recipe.model, recipe.task) == (model, task)
    assert recipe.data.text_length == (196 if name == "stage2" else 40)


def test_written_file_has_the_buffers_of_the_official_loader(tmp_path: Path) -> None:
    """The loader reads word positions, and the indices at another resolution; neither is trained."""
    model = VLMoConfig(32, 2, 2, 1, 8, (32, 32), text_length=20)
    recipe = Recipe("mine", model, PairsConfig())
    recipe = replace(recipe, data=replace(recipe.data, image_size=(32, 32), text_length=9))
    hub.save(tmp_path / "ours", recipe.task.build(model.build()), recipe)
    report = convert(tmp_path / "ours", tmp_path / "theirs", to="official")
    written = torch.load(tmp_path / "theirs" / "vlmo.ckpt", weights_only=True)["state_dict"]
    shapes = {name: tuple(written[name].shape) for name in INDICES}
    assert shapes == dict(zip(INDICES, ((17, 17), (9, 9), (26, 26)), strict=True))
    assert written["text_embeddings.position_ids"].tolist() == [list(range(9))]
    assert written["text_embeddings.position_embeddings.weight"].shape == (9, 32)
    assert written["logit_scale"].shape == () and set(report.new) == {"position_numbers", "word_positions", *INDICES}
    index = golden("rel")[1]["index.relative_position_index"]
    assert torch.equal(written["relative_position_index"], index.long())
    assert load(tmp_path / "theirs" / "vlmo.ckpt").recipe.model == model


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (VLMoConfig(32, 2, 2, 1, stem="convolution"), PairsConfig(), "no convolutional stem"),
        (VLMoConfig(32, 2, 2, 1, experts="shared"), PairsConfig(), "no experts that all modalities share"),
        (
            VLMoConfig(32, 2, 2, 1, separate_attention_until=1),
            PairsConfig(),
            "no layers with an attention of each modality",
        ),
        (VLMoConfig(32, 2, 2, 1, share_relative_bias=True), PairsConfig(), "no mean bias"),
        (VLMoConfig(32, 2, 2, 1, image_size=(224, 160)), PairsConfig(), "images that are not square"),
        (
            VLMoConfig(32, 2, 2, 1),
            PairsConfig(itc_head=ITCHeadConfig(16, bias=True)),
            "biases, no ITC projections to a width",
        ),
        (VLMoConfig(32, 2, 2, 1), MaskedImageConfig(), "none of which stores a VLMoConfig for MaskedImageConfig"),
    ],
)
def test_unsupported_models_are_refused(model: VLMoConfig, task: TaskConfig, message: str) -> None:
    with torch.device("meta"):
        converted = Converted(task.build(model.build()), Recipe("x", model, task), {}, Report("converted", {}))
    with pytest.raises(ValueError, match=message):
        write_checkpoint(converted, "official")


def test_resized_tables_equal_the_official_loader() -> None:
    """The grid is inferred from the tables that the official loader made for other resolutions."""
    resized = load_file(VLMO / "resize.safetensors")
    for name, side in (("rel224.src_table", 14), ("rel224.dst_table_384", 24), ("rel224.dst_table_480", 30)):
        assert relative_sizes(len(resized[name]), {}, {}) == (side, 196)
        table = resize_table(resized["rel224.src_table"], (14, 14), (side, side))
        assert_close(table, resized[name], atol=2.5e-6, rtol=2.5e-6)
    indexed = {INDICES[0]: torch.zeros(17, 17)}
    assert relative_sizes(94, indexed, {}) == (4, 20)
    with pytest.raises(ValueError, match=r"94 rows, .*must have max_text_len_of_initckpt"):
        relative_sizes(94, {}, {})


@pytest.mark.parametrize("wrapper", ["", "state_dict", "module"])
def test_wrappers_of_frameworks(wrapper: str, tokenizer: str, tmp_path: Path) -> None:
    tensors = state("pairs") | {INDICES[0]: torch.zeros(17, 17)}
    prefix = "module." if wrapper == "module" else ""
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    path = tmp_path / "vlmo_base_patch16_224.pt"
    torch.save({wrapper: named, "optimizer": {}} if wrapper else named, path)
    checkpoint = read_checkpoint(path, tokenizer)
    assert checkpoint.report.used.keys() | checkpoint.report.unused.keys() == tensors.keys()
    assert checkpoint.recipe.name == "vlmo_base_patch16_224"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("pairs", {"transformer.blocks.1.attn.q_bias": None}, "lacks 1 tensors .*blocks.1.attention.shared.q_bias"),
        ("pairs", {"transformer.blocks.3.mlp_vl.fc1.weight": None}, "layer 2 has a vision-language expert"),
        ("vqa", {"nlvr2_classifier.0.weight": torch.zeros(2, 2)}, "has vqa_classifier and nlvr2_classifier; a publ"),
        ("nlvr2", {"nlvr2_classifier.3.bias": None}, "lacks 1 tensors .*classifier.3.bias"),
        ("pairs", {"text_embeddings.word_embeddings.weight": None}, "no model.words.word.weight"),
    ],
)
def test_incomplete_files_are_refused(
    kind: str, change: dict[str, Tensor | None], message: str, official: Callable[..., Path], tokenizer: str
) -> None:
    tensors = {name: tensor for name, tensor in (state(kind) | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        load(official(tensors, **HYPER_PARAMETERS), tokenizer=tokenizer)


def test_unknown_number_of_heads(official: Callable[..., Path], tokenizer: str) -> None:
    with pytest.raises(
        ValueError, match=r"attention heads for the width 48 is unknown: published widths are 544, 768, 1024"
    ):
        load(official(state("pairs", "abs")), tokenizer=tokenizer)


def test_unexpected_tensors_are_reported(official: Callable[..., Path], tokenizer: str, tmp_path: Path) -> None:
    tensors = state("vqa") | {"snli_classifier.0.weight": torch.zeros(2, 2), "itm_score.fc.weight": torch.zeros(2, 48)}
    report = convert(official(tensors, **HYPER_PARAMETERS), tmp_path / "ours", tokenizer=tokenizer)
    assert set(report.unexpected) == {"snli_classifier.0.weight"} and "itm_score.fc.weight" in report.unused
    assert "UNEXPECTED: 1 tensor" in str(report)


class Trap:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("true",)


def test_code_in_a_file_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": state("pairs"), "callbacks": [Trap()]}, tmp_path / "vlmo.ckpt")
    with pytest.raises(ValueError, match=r"vlmo.ckpt asks for posix.system"):
        load(tmp_path / "vlmo.ckpt")


def test_tensors_without_official_name_are_refused() -> None:
    kinds: tuple[Kind, ...] = ("pairs", "vqa")
    for kind in kinds:
        with pytest.raises(ValueError, match=r"no name for 1 tensors of the model: head\.weight"):
            export_tensors({"head.weight": torch.zeros(2)}, layout(kind, relative=True))
