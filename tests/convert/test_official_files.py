"""Official BridgeTower and METER checkpoints are recognized by names and shapes, and every tensor is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor
from transformers import BridgeTowerForMaskedLM

from dualfuse import hub
from dualfuse.convert.convert import convert
from dualfuse.convert.formats.bridgetower_official import KINDS, PAIRS, Kind, itm_to_rank, kind_of, rank_to_itm
from dualfuse.convert.load import load, read_checkpoint
from dualfuse.convert.rename import export_tensors, import_tensors
from dualfuse.data.image.transform import OFFICIAL_BLIP, OFFICIAL_CLIP
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

HYPER_PARAMETERS = {"num_heads": 4, "max_text_len": 12}
UNUSED = {"vit_model.ln_final.bias", "vit_model.ln_final.weight", "vit_model.positional_embedding"}
UNUSED |= {
    f"text_transformer.{name}" for name in ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
}


def tokens(folder: Path) -> str:
    """Write a tokenizer with the special tokens only, since the stored model has fewer tokens than bytes."""
    (small := folder / "small").mkdir()
    (small / "vocab.json").write_text('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}')
    (small / "merges.txt").write_text("")
    return str(small)


def read(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_pre_training(official: Callable[..., Path], tmp_path: Path) -> None:
    path = official("mlm_score", "itm_score", "link_tower", **HYPER_PARAMETERS)
    report = convert(path, tmp_path / "ours", tokenizer=tokens(tmp_path))
    assert report.unused.keys() == UNUSED and not report.unexpected
    assert report.used.keys() == read(path).keys() - UNUSED
    assert {name.rpartition(".")[0] for name in report.new} == {"itc_heads.0.image", "itc_heads.0.text"}
    recipe = hub.load(tmp_path / "ours").recipe
    assert isinstance(recipe.model, BridgeTowerConfig) and isinstance(recipe.task, PairsConfig)
    model, task = recipe.model, recipe.task
    assert (model.image.width, model.image.depth, model.image.patch_size, model.image.image_size) == (
        64,
        4,
        8,
        (32, 32),
    )
    assert (model.text.depth, model.text.heads, model.text.feed_forward, model.text.text_length) == (4, 4, 128, 38)
    assert (model.width, model.heads, model.layers, model.bridge, model.resolved_tower_layers) == (
        64,
        4,
        3,
        "add",
        (2, 1, 0),
    )
    assert (model.layer_norm_eps, model.itc_image_feature, model.all_layers, model.image_slots) == (
        1e-12,
        "tower",
        False,
        1,
    )
    assert (task.itc_weight, task.itm_weight, task.mlm_weight) == (0, 1, 1)
    assert task.itc_head == ITCHeadConfig(256, bias=True, temperature="plain")
    assert recipe.data.preprocess == OFFICIAL_CLIP and recipe.data.text_length == 12
    assert load_file(tmp_path / "ours" / "unused.safetensors").keys() == {"text_pooler.weight", "text_pooler.bias"}


def test_retrieval_with_itc(official: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load(official("itm_score", "itc_", "link_tower"), tokenizer=tokens(tmp_path))
    assert isinstance(loaded.task, Pairs) and loaded.task.can_match
    cfg = loaded.task.cfg
    assert (cfg.itc_weight, cfg.itm_weight, cfg.mlm_weight) == (1, 1, 0) and cfg.itc_head.width == 24
    assert loaded.recipe.data.preprocess == OFFICIAL_BLIP and loaded.recipe.data.text_length == 38  # of 40
    assert loaded.task.state_dict()["itc_heads.0.temperature"].tolist() == pytest.approx([0.07])


def test_retrieval_with_rank_output(official: Callable[..., Path], tmp_path: Path) -> None:
    path = official("itm_score", "rank_output", **HYPER_PARAMETERS)
    checkpoint = read_checkpoint(path, tokens(tmp_path))
    theirs = read(path)
    assert {"itm_score.fc.weight", "itm_score.fc.bias"} <= checkpoint.report.unused.keys()
    x = torch.randn(3, 128)
    logits = x @ checkpoint.tensors["itm_head.weight"].T + checkpoint.tensors["itm_head.bias"]
    rank = x @ theirs["rank_output.weight"].T + theirs["rank_output.bias"]
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], rank[:, 0])
    assert checkpoint.recipe.data.preprocess == OFFICIAL_CLIP and "its log-odds are the rank score" in str(
        checkpoint.report
    )


@pytest.mark.parametrize("itm_weight", [0.0, 1.0])
def test_ranking_is_written_with_its_score_and_its_frozen_itm_head(
    itm_weight: float, official: Callable[..., Path], tmp_path: Path
) -> None:
    """The score is the second row of our head; ``itm_score`` is the frozen head of a run with ITM beside ranking."""
    loaded = load(official("itm_score", "rank_output", **HYPER_PARAMETERS), tokenizer=tokens(tmp_path))
    recipe = replace(loaded.recipe, task=RankingConfig(itm_weight=itm_weight))
    task = recipe.build()
    task.load_state_dict(loaded.task.state_dict(), strict=False)
    with torch.no_grad():
        task.get_parameter("itm_head.weight").normal_()  # also the first row, which is zero in converted files
    hub.save(tmp_path / "ours", task, recipe)
    convert(tmp_path / "ours", tmp_path / "theirs", to="official")
    state, written = task.state_dict(), read(tmp_path / "theirs" / "bridgetower.ckpt")
    assert torch.equal(written["rank_output.weight"], state["itm_head.weight"][1:])
    if itm_weight:
        assert torch.equal(written["itm_score.fc.weight"], state["frozen_itm_head.weight"])
    assert ("itm_score.fc.weight" in written) == bool(itm_weight)
    again = load(tmp_path / "theirs" / "bridgetower.ckpt", tokenizer=str(tmp_path / "small"))
    assert torch.equal(again.task.state_dict()["itm_head.weight"][1], state["itm_head.weight"][1])


def test_pairs_are_written_as_they_were(official: Callable[..., Path], tmp_path: Path) -> None:
    path = official("mlm_score", "itm_score", "itc_", "link_tower", **HYPER_PARAMETERS)
    convert(path, tmp_path / "ours", tokenizer=tokens(tmp_path))
    convert(tmp_path / "ours", tmp_path / "theirs", to="official")
    original, written = read(path), read(tmp_path / "theirs" / "bridgetower.ckpt")
    assert original.keys() - written.keys() <= UNUSED and not written.keys() - original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in written.items())


@pytest.mark.parametrize("gates", [(), ("_gate.",)])
def test_meter(gates: tuple[str, ...], official: Callable[..., Path], tmp_path: Path) -> None:
    path = official("mlm_score", "itm_score", *gates, **HYPER_PARAMETERS)
    content = torch.load(path, weights_only=True)
    last = "vit_model.visual.transformer.resblocks.3."
    content["state_dict"] = {name: value for name, value in content["state_dict"].items() if not name.startswith(last)}
    torch.save(content, path)
    loaded = load(path, tokenizer=tokens(tmp_path))
    model = loaded.recipe.model
    assert isinstance(model, BridgeTowerConfig)
    assert (model.bridge, model.image.depth, model.text.depth, model.all_layers) == ("none", 3, 4, bool(gates))
    assert loaded.recipe.data.preprocess == OFFICIAL_CLIP
    with pytest.raises(ValueError, match="has no METER"):
        convert(path, tmp_path / "back", to="huggingface", tokenizer=str(tmp_path / "small"))


HEADS = {
    "pairs": ("mlm_score", "itm_score", "itc_", "link_tower"),
    "ranking": ("itm_score", "rank_output", "link_tower"),
    "vqa": ("vqa_", "link_tower"),
    "nlvr2": ("nlvr2_", "link_tower"),
    "entailment": ("snli_", "link_tower"),
}


@pytest.mark.parametrize("kind", (PAIRS, *KINDS), ids=lambda kind: kind.name)
def test_names_round_trip(kind: Kind, official: Callable[..., Path]) -> None:
    theirs = read(official(*HEADS[kind.name]))
    assert kind_of(theirs) == kind
    imported = import_tensors(theirs, kind.layout)
    assert not imported.unexpected and all(tensor.ndim for tensor in imported.tensors.values())
    ours = itm_to_rank(rank_to_itm(imported.tensors)) if kind.name == "ranking" else imported.tensors
    back = export_tensors(ours, kind.layout, imported.kept).tensors
    unused = imported.unused.keys() - back.keys()
    assert back.keys() == theirs.keys() - unused
    assert all(back[name].shape == theirs[name].shape and torch.equal(back[name], theirs[name]) for name in back)
    assert unused - UNUSED <= {"temperature", "itm_score.fc.weight", "itm_score.fc.bias"}


@pytest.mark.parametrize(
    ("name", "module", "numbers"),
    [
        ("vqa", "dualfuse.tasks.finetune.vqa", {"num_answers": 13, "hidden_scale": 2.0}),
        ("nlvr2", "dualfuse.tasks.finetune.nlvr2", {"hidden_scale": 1.5}),
        ("entailment", "dualfuse.tasks.finetune.entailment", {"hidden_scale": 2.0}),
    ],
)
def test_fine_tuned(
    name: str, module: str, numbers: dict[str, float], official: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip(module, exc_type=ModuleNotFoundError)
    loaded = load(official(*HEADS[name], **HYPER_PARAMETERS), tokenizer=tokens(tmp_path))
    assert numbers.items() <= vars(loaded.recipe.task).items()
    assert loaded.recipe.data.preprocess == OFFICIAL_BLIP
    model = loaded.recipe.model
    assert isinstance(model, BridgeTowerConfig) and model.image_slots == (2 if name == "nlvr2" else 1)


def test_heads_of_several_tasks_are_refused(official: Callable[..., Path], tokenizer: str) -> None:
    with pytest.raises(ValueError, match="has vqa_classifier and snli_classifier; a published one has a single task"):
        load(official("vqa_", "snli_", "link_tower"), tokenizer=tokenizer)


def test_other_image_towers_are_refused(official: Callable[..., Path], tokenizer: str) -> None:
    path = official("itm_score")
    content = read(path)
    content["vit_model.patch_embed.proj.weight"] = content.pop("vit_model.visual.conv1.weight")
    torch.save({"state_dict": content}, path)
    with pytest.raises(ValueError, match=r"image tower of .*official.ckpt is not CLIP's \(METER also has Swin\)"):
        load(path, tokenizer=tokenizer)


def test_missing_tokenizer(official: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        ValueError, match=r"no tokenizer .*roberta-base could not be fetched .*--tokenizer PATH_OR_NAME"
    ):
        load(official("itm_score"))


def test_official_to_hugging_face(official: Callable[..., Path], tmp_path: Path) -> None:
    path = official("mlm_score", "itm_score", "itc_", "link_tower", **HYPER_PARAMETERS)
    report = convert(path, tmp_path / "theirs", to="huggingface", tokenizer=tokens(tmp_path))
    written, original = load_file(tmp_path / "theirs" / "model.safetensors"), read(path)
    for name in ("mlm_score.bias", "itm_score.fc.weight"):
        assert torch.equal(written[name], original[name])
    pooler = "pooler.dense.weight"
    assert torch.equal(written[f"bridgetower.text_model.{pooler}"], original[f"text_transformer.{pooler}"])
    for note in ("the ITC head is dropped", "epsilon of the cross-modal layers was 1e-12", "resized by 'squash'"):
        assert note in str(report)
    _, info = BridgeTowerForMaskedLM.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not info["missing_keys"]


def test_new_tensors_are_reproducible(official: Callable[..., Path], tmp_path: Path) -> None:
    """New tensors are drawn with the recipe's seed, and the program's random state is not changed."""
    path, small = official("itm_score", "link_tower", **HYPER_PARAMETERS), tokens(tmp_path)
    torch.manual_seed(1)
    one = load(path, tokenizer=small).task.state_dict()
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    other = load(path, tokenizer=small).task.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["mlm_head.dense.weight"].std() > 0


def test_default_heads_have_64_channels(official: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = read_checkpoint(official("itm_score", "link_tower"), tokens(tmp_path))
    assert checkpoint.recipe.model == replace(checkpoint.recipe.model, heads=1)
    assert "no hyper-parameters in the file" in str(checkpoint.report)
