"""A run starts from another: what is copied, resized, borrowed, new and unused, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from official_vlmo import from_official
from safetensors.torch import load_file, save_file
from tiny import BRIDGETOWER, MODEL, changed, weights
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from dualfuse import hub
from dualfuse.convert.load import read_checkpoint
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Recipe
from dualfuse.recipes.vlmo_text import BASE_TEXT
from dualfuse.tasks.base import Task
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training import loop
from dualfuse.training.init_from import init_from


def random(recipe: Recipe, seed: int = 0) -> Task:
    """A task in which no number stands twice."""
    torch.manual_seed(seed)
    task = recipe.build().eval()
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return task


def begun(start: Recipe, recipe: Recipe, folder: Path) -> tuple[Task, Task, dict]:
    """Saves a random task of one recipe and begins another with it; gives both and the report."""
    given, task = random(start), random(recipe, seed=1)
    hub.save(folder / "start", given, start)
    init_from(task, recipe, str(folder / "start"), folder / "out")
    report = json.loads((folder / "out" / "start.json").read_text())
    names = [name for kind in ("copied", "resized", "experts", "new") for name in report[kind]]
    assert sorted(names) == sorted(set(task.state_dict()) | set(report["experts"]))
    assert set(report["copied"]) | set(report["resized"]) | set(report["unused"]) == set(given.state_dict())
    return given, task, report


def image(task: Task, size: tuple[int, int]) -> Tensor:
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    return task.model.encode(task.model.embed_image(images))


def text(task: Task, length: int) -> Tensor:
    ids = torch.arange(2 * length).view(2, length) % MODEL.vocab_size
    return task.model.encode(task.model.embed_text(ids, torch.ones_like(ids)))


@pytest.mark.parametrize("positions", ["relative", "absolute"])
@pytest.mark.parametrize("size", [(48, 48), (40, 64), (24, 16)])
def test_other_image_size_and_shorter_texts(
    tiny: Recipe, tmp_path: Path, positions: str, size: tuple[int, int]
) -> None:
    """A model reads images of any size by resizing on the fly; after the start it must read them alike."""
    start = changed(tiny, positions=positions)
    given, task, report = begun(
        start, replace(start, model=replace(start.model, image_size=size, text_length=7)), tmp_path
    )
    torch.testing.assert_close(image(task, size), image(given, size), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text(task, 7), text(given, 7))
    if positions == "relative":
        assert list(report["resized"]) == ["model.relative_bias.table"]
        said = report["resized"]["model.relative_bias.table"]
        assert said["rule"] == f"patches 4 x 4 to {size[0] // 8} x {size[1] // 8}, texts 12 to 7"
        assert said["before"] == [78, 4] and said["after"] == list(task.model.relative_bias.table.shape)
    else:
        assert sorted(report["resized"]) == ["model.patches.position", "model.words.position.weight"]
        assert torch.equal(task.model.patches.position[:, 0], given.model.patches.position[:, 0])
    assert report["new"] == report["unused"] == {}
    assert task.model.embed_text(torch.ones(1, 7, dtype=torch.long), torch.ones(1, 7)).states[0].shape == (1, 7, 32)


def test_shorter_data_texts_keep_the_table(tiny: Recipe, tmp_path: Path) -> None:
    _, _, report = begun(tiny, replace(tiny, data=replace(tiny.data, text_length=6)), tmp_path)
    assert report["resized"] == {}


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_longer_texts_are_refused(tiny: Recipe, tmp_path: Path, positions: str) -> None:
    start = changed(tiny, positions=positions)
    with pytest.raises(
        ValueError, match=r"texts of 12 tokens, the model of this recipe takes 13.*--model.text-length 12"
    ):
        begun(start, changed(start, text_length=13), tmp_path)


def test_start_trained_on_images_alone(tiny: Recipe, tmp_path: Path) -> None:
    """Its words were never trained: they may be others, and fewer; only images are handed over."""
    start = changed(tiny, text_length=5, tokenizer="")
    given, recipe = random(start), changed(tiny, image_size=(48, 40))
    hub.save(tmp_path / "start", given, replace(start, task=MaskedImageConfig()))
    task = random(recipe, seed=1)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    init_from(task, recipe, str(tmp_path / "start"), tmp_path)
    report = json.loads((tmp_path / "start.json").read_text())
    assert report["new"] and all(name.startswith("model.words.") for name in report["new"])
    rule = report["resized"]["model.relative_bias.table"]["rule"]
    assert rule == "patches 4 x 4 to 6 x 5, texts keep their initial values"
    torch.testing.assert_close(image(task, (48, 40)), image(given, (48, 40)), atol=1e-5, rtol=1e-4)
    images = 11 * 9 + 3
    table = task.model.relative_bias.table
    assert torch.equal(table[images:], before["model.relative_bias.table"][images:])
    assert torch.equal(task.model.words.word.weight, before["model.words.word.weight"])


def text_stage(tiny: Recipe) -> Recipe:
    return replace(tiny, name="text", model=replace(MODEL, vl_expert_start=2), task=MaskedTextConfig())


@pytest.mark.parametrize(("both", "expert"), [("random", ""), ("language", "text"), ("vision", "image")])
def test_vision_language_experts(tiny: Recipe, tmp_path: Path, both: str, expert: str) -> None:
    recipe = replace(tiny, start_from="text", vl_expert_init=both)
    before = random(recipe, seed=1).state_dict()
    given, task, report = begun(text_stage(tiny), recipe, tmp_path)
    state = task.state_dict()
    experts = [name for name in state if ".experts.vl." in name]
    assert len(experts) == 6 and all(name.startswith("model.blocks.1.") for name in experts)
    for name in experts:
        wanted = given.state_dict()[name.replace(".vl.", f".{expert}.")] if expert else before[name]
        assert torch.equal(state[name], wanted)
    heads = {name for name in state if name.startswith(("itc_heads.", "itm_head."))}
    assert set(report["new"]) == heads | (set() if expert else set(experts))
    assert set(report["experts"]) == (set(experts) if expert else set())
    assert torch.equal(task.mlm_head.decoder.weight, given.mlm_head.decoder.weight)


def test_existing_experts_are_copied(tiny: Recipe, tmp_path: Path) -> None:
    given, task, report = begun(tiny, replace(tiny, start_from="x", vl_expert_init="vision"), tmp_path)
    assert report["experts"] == {} and report["new"] == {}
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in task.state_dict().items())


def test_copied_experts_need_a_source(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vl_expert_init='vision' copies experts of start_from"):
        replace(tiny, vl_expert_init="vision")
    with pytest.raises(ValueError, match="this recipe's model has no vision-language experts; set it to random"):
        begun(tiny, replace(text_stage(tiny), start_from="x", vl_expert_init="vision"), tmp_path)


@pytest.mark.parametrize("model", [None, BRIDGETOWER], ids=["VLMo", "BridgeTower"])
def test_second_image_type_starts_as_the_first(tiny: Recipe, tmp_path: Path, model: BridgeTowerConfig | None) -> None:
    tiny = replace(tiny, model=model or tiny.model)
    given, task, report = begun(tiny, changed(tiny, image_slots=2), tmp_path)
    assert torch.equal(task.model.types.weight, given.model.types.weight[[0, 1, 1]])
    assert list(report["resized"]) == ["model.types.weight"]


def test_other_tokenizers_are_refused(tiny: Recipe, tmp_path: Path) -> None:
    """Also as many of them, under other numbers; the same ones in another file are welcome."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(MODEL.vocab_size - 5))]
    other = Tokenizer(models.WordPiece({name: n for n, name in enumerate(pieces)}, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    other.save(str(tmp_path / "other.json"))
    match = (
        rf"start was trained with the tokenizer .*start/tokenizer.json \(19 tokens\), but this recipe uses "
        rf".*other.json \(19\).* Give --data.tokenizer {tmp_path}/start/tokenizer.json"
    )
    with pytest.raises(ValueError, match=match):
        begun(tiny, changed(tiny, tokenizer=str(tmp_path / "other.json")), tmp_path)
    begun(tiny, changed(tiny, tokenizer=str(tmp_path / "start" / "tokenizer.json")), tmp_path)


@pytest.mark.parametrize("by_name", [True, False])
def test_errors_of_later_stages_are_raised_before_the_first(tiny: Recipe, tmp_path: Path, by_name: bool) -> None:
    first = changed(tiny, name="first", steps=1)
    if not by_name:
        loop.train((first,), tmp_path / "earlier")
    start = "first" if by_name else str(tmp_path / "earlier" / "final")
    for second, match in (
        (changed(tiny, name="second", start_from=start, text_length=13), "texts of 12 tokens"),
        (changed(tiny, name="second", start_from=start, tokenizer="", vocab_size=30522), "with the tokenizer"),
        (
            changed(tiny, name="second", start_from=start, width=16),
            r"of another size: .* \(32,\) there and \(16,\) in this recipe",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            loop.train((first, second), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_third_party_checkpoint_is_converted(tiny: Recipe, tmp_path: Path) -> None:
    """A folder of Hugging Face is converted on the way, and lacks what it lacks: heads."""
    golden, folder = Path(__file__).parents[1] / "golden" / "bridgetower" / "add_shared", tmp_path / "theirs"
    folder.mkdir()
    for name, ours in (("config.json", "config.json"), ("state_dict.safetensors", "model.safetensors")):
        shutil.copy(golden / name, folder / ours)
    shutil.copy(tiny.data.tokenizer, folder / "tokenizer.json")
    foreign = read_checkpoint(folder)
    recipe = replace(foreign.recipe, task=PairsConfig(itc_features="unimodal"), start_from=str(folder))
    task = random(recipe)
    init_from(task, recipe, str(folder), tmp_path)
    report = json.loads((tmp_path / "start.json").read_text())
    assert set(report["new"]) == {"itc_heads.0.image.weight", "itc_heads.0.text.weight"}  # narrower there
    assert {name for name in task.state_dict() if name.startswith("model.")} <= set(report["copied"])
    assert all(torch.equal(task.state_dict()[name], foreign.tensors[name]) for name in report["copied"])
    with pytest.raises(ValueError, match="this recipe uses the BERT tokens of this package"):
        init_from(task, replace(recipe, data=replace(recipe.data, tokenizer="")), str(folder), tmp_path)


def test_beit_equals_the_official_loader(tmp_path: Path) -> None:
    """The released text stage, begun with a BEiT that was fine-tuned on classes; its other weights were random."""
    golden = Path(__file__).parents[1] / "golden" / "vlmo" / "beit_stage2_state.safetensors"
    state = load_file(golden)
    theirs = {name.removeprefix("beit_ft."): tensor for name, tensor in state.items() if name.startswith("beit_ft.")}
    save_file(theirs, tmp_path / "beit.safetensors")
    released = from_official(
        {name.removeprefix("stage2."): t for name, t in state.items() if name.startswith("stage2.")}
    )
    size = dict(
        width=48, depth=4, heads=4, vl_expert_start=4, patch_size=8, image_size=(32, 32), vocab_size=101, text_length=20
    )
    recipe = replace(BASE_TEXT, model=VLMoConfig(**size))
    task = random(recipe)
    before = task.model.relative_bias.table.detach().clone()
    init_from(task, recipe, str(tmp_path / "beit.safetensors"), tmp_path)
    report = json.loads((tmp_path / "start.json").read_text())
    given, images = set(report["copied"]) | set(report["resized"]), 7 * 7 + 3
    assert sum(name.startswith("model.blocks.") for name in given) == 4 * 15
    assert not task.model.types.weight.any()  # there they were random
    for name in given - {"model.relative_bias.table", "model.types.weight"}:
        assert torch.equal(task.state_dict()[name], released.tensors[name]), name
    table = task.model.relative_bias.table
    assert torch.equal(table[:images], released.tensors["model.relative_bias.table"][:images])
    assert torch.equal(table[images:], before[images:])
    new = ("model.words.", "model.norm.", "model.pooler.", "mlm_head.")
    assert all(name.startswith(new) or ".experts.text." in name for name in report["new"])


def test_start_by_name_equals_start_by_path(tiny: Recipe, tmp_path: Path) -> None:
    """A start by name in a tuple, and by the path of the folder."""
    first, second = changed(tiny, name="first", steps=1), changed(tiny, name="second", steps=2, start_from="first")
    loop.train((first, second), tmp_path)
    alone = replace(second, start_from=str(tmp_path / "first" / "final"))
    loop.train((alone,), tmp_path / "alone")
    assert all(
        torch.equal(tensor, weights(tmp_path / "alone")[name]) for name, tensor in weights(tmp_path / "second").items()
    )
    assert isinstance(second.model, VLMoConfig) and isinstance(second.task, PairsConfig)
