"""Files of dualfuse 0.1.0 (tests/stored_v1) load, resume and give what the code that wrote them gave."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dualfuse import hub, recipes, upgrade
from dualfuse.cli.train import override
from dualfuse.config import from_json
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan, evaluate
from dualfuse.inference.predict import predict
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.recipe import Recipe
from dualfuse.search.index import Index
from dualfuse.training.best_model import BestModel
from dualfuse.training.init_from import init_from
from dualfuse.training.loop import train
from dualfuse.training.run_log import read_log

STORED = Path(__file__).with_name("stored_v1")
MODELS = sorted(path.name for path in (STORED / "models").iterdir())
RECIPES = sorted([*STORED.glob("models/*/config.json"), *STORED.glob("recipes/*.json"), STORED / "run" / "recipe.json"])
EXPECTED = json.loads((STORED / "expected" / "models.json").read_text())


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the current folder: what reads them also writes."""
    shutil.copytree(STORED, tmp_path / "stored")
    monkeypatch.chdir(tmp_path / "stored")
    return tmp_path / "stored"


def configs(data: Any) -> Iterator[dict[str, Any]]:
    for value in data if isinstance(data, list) else data.values() if isinstance(data, dict) else ():
        yield from configs(value)
    if isinstance(data, dict) and "is" in data:
        yield data


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_upgrade(path: Path) -> None:
    old = json.loads(path.read_text())
    assert upgrade.is_old(old)
    new = upgrade.config(old)
    assert upgrade.config(new) == new
    recipe = from_json(old)
    assert isinstance(recipe, Recipe) and from_json(new) == recipe
    recipe.build_on_meta()


def test_every_old_class_is_in_the_table_and_leads_to_a_class_of_today() -> None:
    old = [config for path in RECIPES for config in configs(json.loads(path.read_text()))]
    in_table = {f"dualfuse.{line.split()[0]}" for line in upgrade.CLASSES.splitlines() if re.match(r"\w", line)}
    assert {config["is"] for config in old} == in_table
    for config in old:
        new = upgrade.config(config)
        assert isinstance(new, dict)
        assert new.keys() - {"is"} <= {field.name for field in fields(from_json(new))}


@pytest.mark.parametrize(
    ("address", "name", "old", "new_name", "new"),
    [
        ("recipe:Recipe", "train_only", ["word_head.*", "model.*"], "train_only", ["mlm_head.*", "model.*"]),
        ("recipe:Recipe", "train_only", ["*.experts.both.*"], "train_only", ["*.experts.vl.*"]),
        ("recipe:Recipe", "train_only", ["*log_scale"], "train_only", ["*logit_scale"]),
        ("recipe:Optim", "decay", "released", "decay_rule", "official"),
        ("recipe:Run", "best", "words", "best", "mlm/accuracy"),
        ("recipe:Run", "best", "*/R@*", "best", "*/R@*"),
        ("tasks.pairs:PairsConfig", "patches_kept", 0.75, "patch_dropout", 0.25),
        ("tasks.pairs:PairsConfig", "gather", "released", "gather_with_grad", False),
        ("tasks.pairs:PairsConfig", "gather", "gradient", "gather_with_grad", True),
        ("tasks.pairs:PairsConfig", "views", "plain", "itc_features", "unimodal"),
        ("tasks.pairs:PairsConfig", "negatives", "own", "negatives", "local"),
        ("tasks.pairs:PairsConfig", "negatives", "source", "negatives", "source"),
        ("tasks.pairs:PairsConfig", "masking", "tokens", "masking", "token"),
        ("models.vlmo:VLMoConfig", "bias", "alike", "share_relative_bias", True),
        ("data.images:Looks", "fit", "squeeze", "resize_mode", "squash"),
        ("tasks.vqa:VQAConfig", "answers", 17, "num_answers", 17),
        ("tasks.vqa:VQAConfig", "vocabulary", ["a"], "answers", ["a"]),
    ],
)  # fmt: skip
def test_old_values_upgrade(address: str, name: str, old: Any, new_name: str, new: Any) -> None:
    changed = (
        {"both_experts": "random"} if address.endswith("Recipe") else {"keep": 1} if address.endswith("Run") else {}
    )
    upgraded = upgrade.config({"is": f"dualfuse.{address}", name: old, **changed})
    assert isinstance(upgraded, dict) and upgraded[new_name] == new


def test_files_of_today_pass_unchanged() -> None:
    today = {"is": "dualfuse.recipe:Run", "best": "words", "keep_last": 2}
    assert upgrade.config(today) == today
    assert upgrade.log([{"step": 1, "match": 0.5, "grad_norm": 1.0}]) == [{"step": 1, "match": 0.5, "grad_norm": 1.0}]


def test_unknown_old_fields_and_values_are_refused_by_name() -> None:
    with pytest.raises(DualfuseError, match="patience_of_old"):
        from_json({"is": "dualfuse.recipe:Run", "keep": 2, "patience_of_old": 3})
    with pytest.raises(DualfuseError, match=r"PairsConfig.patches_kept .*'half'"):
        from_json({"is": "dualfuse.tasks.pairs:PairsConfig", "patches_kept": "half"})


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_model_folders_give_what_they_gave(name: str) -> None:
    loaded = hub.load(STORED / "models" / name)
    task, expected = loaded.task, EXPECTED[name]
    heads = [
        tensor.double().abs().sum()
        for key, tensor in task.state_dict().items()
        if not key.startswith("model.") and tensor.is_floating_point()
    ]
    assert float(sum(heads)) == pytest.approx(expected["heads"], rel=1e-12)
    image = loaded.processor.image((STORED / "gallery" / "0.png").read_bytes(), np.random.default_rng(0))[None]
    if "codes" in expected:
        assert task.model(image).flatten().tolist() == expected["codes"]
        return
    encoded = task.model.encode(task.model.embed_image(image))[0]
    torch.testing.assert_close(encoded, torch.tensor(expected["image"]))
    if "text" in expected:
        ids = torch.from_numpy(loaded.processor.text.encode("the red cat").ids)[None]
        encoded = task.model.encode(task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool)))[0]
        torch.testing.assert_close(encoded, torch.tensor(expected["text"]))


def test_search_predict_and_evaluate_give_what_they_gave(stored: Path) -> None:
    expected = json.loads((stored / "expected" / "results.json").read_text())
    pairs = hub.load("models/pairs")
    hits = Index.build(pairs, "gallery").search("the red cat", top=4, rerank=2)
    assert [hit.name for hit in hits] == [hit["name"] for hit in expected["search"]]
    assert [hit.score for hit in hits] == pytest.approx([hit["score"] for hit in expected["search"]], rel=1e-5)
    answer = predict(pairs, Path("gallery/0.png"), "the red cat").record()
    assert list(answer.values()) == pytest.approx(list(expected["predict"].values()), rel=1e-5)
    metrics = evaluate(pairs, "data/val-*.tar", Plan(batch_size=4, rerank=2, num_workers=0, all_metrics=True)).metrics
    assert metrics == {upgrade.METRICS.get(name, name): value for name, value in expected["evaluate"].items()}


def test_an_unfinished_run_resumes(stored: Path) -> None:
    recipe = from_json(json.loads(Path("run/recipe.json").read_text()))
    assert isinstance(recipe, Recipe)
    final = train((recipe,), Path("run"))
    weights = load_file(final / "model.safetensors")
    expected = upgrade.tensors(load_file(stored / "expected" / "finished.safetensors"))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, msg=name)
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    finished = upgrade.log([json.loads(line) for line in Path("expected/finished-log.jsonl").read_text().splitlines()])
    clocks = {"seconds", "samples_per_second"}
    for line, before in zip(lines, finished, strict=True):
        assert line.keys() - clocks == before.keys() - clocks
        assert line.get("loss/itc", 0.0) == pytest.approx(before.get("loss/itc", 0.0), rel=1e-5)
    assert not upgrade.is_old(json.loads(Path("run/recipe.json").read_text()))


def test_logs_of_old_runs_are_read_with_current_names() -> None:
    lines = read_log(STORED / "run")
    assert lines[0]["loss/itc"] == pytest.approx(2.143279790878296)
    assert {"grad_norm", "loss/itm", "loss/mlm", "accuracy/mlm"} <= lines[0].keys()
    assert upgrade.log([{"gradient_norm": 1, "validation/words": 2, "validation/words/loss": 3}]) == [
        {"grad_norm": 1, "validation/mlm/accuracy": 2, "validation/mlm/loss": 3}
    ]


def test_the_best_model_so_far_is_known_under_the_current_name() -> None:
    best = BestModel("mlm/accuracy").restored({"best": {"by": "words", "value": 0.5, "step": 3}})
    assert best == BestModel("mlm/accuracy", 0.5, 3)


def test_a_run_starts_from_an_old_model_folder(stored: Path) -> None:
    recipe = hub.read_recipe(Path("models/pairs"))
    task = recipe.build()
    init_from(task, hub.with_tokenizer(recipe, Path("models/pairs")), "models/pairs", stored / "out")
    loaded = hub.load("models/pairs").task.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in task.state_dict().items())


def test_prepared_folders_are_recognized_and_unfinished_ones_resume(stored: Path) -> None:
    options = PrepareOptions(num_workers=1)
    shard = Path("prepared/train-00000.tar").read_bytes()
    finished = prepare(Path("source"), Path("prepared"), PrepareOptions(num_workers=1, split="val=0.3")).tally
    resumed = prepare(Path("source"), Path("preparing"), options).tally
    anew = prepare(Path("source"), Path("anew"), options).tally
    assert Path("prepared/train-00000.tar").read_bytes() == shard
    assert finished.skipped == resumed.skipped == anew.skipped == {"no caption": 1, "unreadable image": 1}
    assert resumed.listing == anew.listing
    for name in ("train-00000.tar", "skipped.jsonl"):
        assert Path("preparing", name).read_bytes() == Path("anew", name).read_bytes()
    assert not list(stored.glob("prepar*/left-out.jsonl"))
    assert len(Path("prepared/skipped.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--data.batch", "--data.batch-size"),
        ("--pairs.data.batch", "--pairs.data.batch-size"),
        ("--run.no-shard", "--run.no-fsdp"),
        ("--task.contrast", "--task.itc-weight"),
        ("--task.projection.width", "--task.itc-head.width"),
        ("--data.looks.mean", "--data.preprocess.mean"),
        ("--task.patches-kept", "--task.patch-dropout (1 minus the old value)"),
        ("--optim.adamw released", "--optim.adamw (released is now official)"),
        ("--optim.adamw official", None),
        ("--run.best words", "--run.best"),
        ("--model.bias", "--model.share-relative-bias (each is now False, alike is now True)"),
        ("--task.mask-share", "--task.mask-probability or --task.mlm-probability"),
        ("--both-experts", "--vl-expert-init"),
        ("--sheet", "--save-image"),
        ("--workers", "--num-workers"),
        ("--data.batch-size", None),
        ("--optim.lr", None),
        ("--nonsense", None),
    ],
)
def test_old_flags_are_answered_with_the_new_ones(old: str, new: str | None) -> None:
    answer = upgrade.new_flag(*old.split())
    assert answer == new or (new and answer and answer.startswith(f"{new} ("))


def test_old_names_of_recipes_and_stages() -> None:
    for old, new in upgrade.RECIPES.items():
        assert recipes.find_recipe(old) == recipes.find_recipe(new)
    first, second = override(
        recipes.find_recipe("demo-contrast"), ["--contrast.optim.lr=1", "--itc-only.run.seed", "3"], prog="x"
    )
    assert (first.optim.lr, second.run.seed) == (1.0, 3)
    mine = tuple(replace(first, name=name) for name in ("contrast", "itc"))
    assert [each.optim.lr for each in override(mine, ["--contrast.optim.lr", "2"], prog="x")] == [2.0, 1.0]


def test_the_fixture_names_no_path_of_a_machine() -> None:
    for path in STORED.rglob("*.json*"):
        assert not re.search(r'"/\w', path.read_text()), path
