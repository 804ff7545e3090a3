"""Recipes of segmentation: whole, with the numbers of BEiT, and a small one that is prepared, trained and judged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import EDGE, NAMES, ade20k
from tiny import weights
from torch.nn import functional as F
from torch.nn.functional import interpolate

from dualfuse import hub, recipes
from dualfuse.cli.main import main
from dualfuse.cli.train import override
from dualfuse.config import from_json, to_json
from dualfuse.data.image.decode import decode
from dualfuse.data.image.label_map import decode_labels, encode_labels
from dualfuse.data.image.resize import resize
from dualfuse.data.loader import Skipped
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.predictions import SampleLoss
from dualfuse.evaluation.runner import Plan, check_outputs, check_test_augmentation, evaluate
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.recipe import Recipe, Run
from dualfuse.recipes import vlmo_segmentation
from dualfuse.tasks.finetune.segmentation import Segmentation
from dualfuse.tasks.finetune.sliding_window import sliding_window
from dualfuse.training.loop import train
from dualfuse.training.run_log import read_log

PLACES = {name: recipe for name, (_, recipe) in vlmo_segmentation.RECIPES.items()}
PLAN = Plan(num_workers=0)


@pytest.mark.parametrize("name", PLACES)
def test_recipe_is_complete(name: str) -> None:
    recipe = PLACES[name]
    assert recipes.find_recipe(name) == (recipe,)
    assert from_json(to_json(recipe)) == recipe
    flags = [
        *("--task.num-classes", "5", "--task.augment.scale", "1", "2"),
        *("--optim.layer-decay", "0.6", "--task.test", "whole"),
    ]
    (chosen,) = override((recipe,), flags, prog="train")
    assert (chosen.task.num_classes, chosen.task.augment.scale, chosen.optim.layer_decay) == (5, (1, 2), 0.6)
    assert recipe.model.image_size == recipe.data.image_size
    assert recipe.task.feature_layers[-1] == recipe.model.depth
    with torch.device("meta"):
        task = chosen.build()
        side = recipe.data.image_size[0]
        maps = task.maps(torch.zeros(2, 3, side, side))
    assert [side // level.shape[-1] for level in maps] == [4, 8, 16, 32]
    assert task.decoder(maps).shape == (2, 5, side // 4, side // 4)


def test_numbers_of_beit() -> None:
    """Looked up in its configs, which count layers from 0."""

    def said(name: str) -> tuple[object, ...]:
        recipe = PLACES[f"ade20k-vlmo-{name}"]
        model, optim = recipe.model, recipe.optim
        layers = [layer - 1 for layer in recipe.task.feature_layers]
        window = [int(side * recipe.task.stride) for side in recipe.data.image_size]
        return layers, optim.lr, optim.layer_decay, model.drop_path, recipe.data.image_size[0], window[0]

    assert said("base") == ([3, 5, 7, 11], 3e-5, 0.9, 0.1, 512, 341)
    assert said("base-direct") == ([3, 5, 7, 11], 7e-4, 0.65, 0.1, 512, 341)
    assert said("base-640") == ([3, 5, 7, 11], 3e-5, 0.9, 0.1, 640, 426)
    assert said("large") == ([7, 11, 15, 23], 2e-5, 0.95, 0.2, 512, 341)
    assert said("large-640") == ([7, 11, 15, 23], 2e-5, 0.95, 0.2, 640, 426)
    for name in PLACES.keys() - {"vlmo-nano-segmentation"}:
        recipe = PLACES[name]
        assert (recipe.run.steps, recipe.data.batch_size, recipe.optim.warmup, recipe.optim.weight_decay) == (
            *(160_000, 16, 1500),
            0.05,
        )
        assert recipe.task.auxiliary_weight == 0.4 and recipe.task.num_classes == 150 and recipe.task.ignore_zero


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a miniature of ADE20K."""
    folder = tmp_path_factory.mktemp("shapes")
    source = ade20k(folder / "ADEChallengeData2016", training=32, validation=8)
    prepare(source, folder / "shards", PrepareOptions(num_workers=1))
    return folder / "shards"


def small(data: Path) -> Recipe:
    """The recipe of a laptop, smaller still."""
    recipe = PLACES["vlmo-nano-segmentation"]
    return replace(
        recipe,
        model=replace(recipe.model, width=32, depth=2, vl_expert_start=2, patch_size=8, image_size=(32, 32)),
        task=replace(recipe.task, feature_layers=(1, 1, 2, 2), labels=NAMES, ignore_zero=True),
        data=replace(
            recipe.data,
            image_size=(32, 32),
            train=(str(data / "train-*.tar"),),
            validation=str(data / "val-*.tar"),
            batch_size=8,
            num_workers=0,
        ),
        optim=replace(recipe.optim, warmup=5, lr=4e-3),
        run=Run(steps=60, save_every=30, log_every=30),
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train([small(data)], out)
    return out


@pytest.mark.slow
def test_small_recipe_learns_and_evaluate_agrees(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four classes that are guessed by their share would reach a mean IoU of 0.15 at best."""
    last = read_log(trained)[-1]
    assert last["validation/mean_iou"] > 0.6 and last["validation/pixel_accuracy"] > 0.8
    assert not any("iou/" in name for name in last)  # 150 of them would drown the rest
    wishes = ["--save-image", str(tmp_path / "sheet.png"), "--out", str(tmp_path / "scores.json"), "--num-workers", "0"]
    main(["evaluate", str(trained / "final"), str(data / "val-*.tar"), *wishes])
    said = capsys.readouterr().out
    assert "mean_iou" in said and "iou/green ball" in said and "8 images" in said and "0 excluded" in said
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["mean_iou"] == pytest.approx(last["validation/mean_iou"], abs=1e-6)
    assert scores["mean_iou"] == pytest.approx(np.mean([scores[f"iou/{name}"] for name in NAMES]))
    with Image.open(tmp_path / "sheet.png") as grid:
        assert grid.width > 700 and grid.height > 8 * 200


def test_metrics_equal_those_of_the_predictions(trained: Path, data: Path) -> None:
    """Every image by itself, its shorter side brought to the window, judged where it has a class."""
    model = hub.load(trained / "final")
    assert isinstance(model.task, Segmentation)
    right = pixels = 0
    for sample in Shards.open(data / "val-*.tar"):
        truth, image = decode_labels(sample.label_map), decode(sample.image)
        assert (truth[:, :EDGE] == 0).all()
        row = model.task.cfg.read_whole(sample, model.processor, None)
        assert min(row["image"].shape[1:]) == 32 and row["target"].shape == image.shape[1:]
        with torch.no_grad():
            said = model.task.segment(row["image"], (32, 32), tuple(truth.shape))
        right += int((said + 1 == truth).sum())
        pixels += int((truth > 0).sum())
    found = evaluate(model, str(data / "val-*.tar"), PLAN)
    assert found.metrics["pixel_accuracy"] == pytest.approx(right / pixels)
    assert found.size == f"8 images, {pixels:,} pixels"


def test_sliding_windows_and_whole_images_agree_roughly(trained: Path, data: Path) -> None:
    model = hub.load(trained / "final")
    whole = replace(model, task=replace(model.recipe.task, test="whole").build(model.recipe.model.build()))
    whole.task.load_state_dict(model.task.state_dict())
    whole.task.eval()
    found = [evaluate(one, str(data / "val-*.tar"), PLAN).metrics["mean_iou"] for one in (model, whole)]
    assert found[0] != found[1] and found[1] > 0.5


def test_several_scales_and_flips_equal_a_naive_loop(trained: Path, data: Path) -> None:
    """Every view of every image by itself, in PIL's terms: resized, mirrored, scored, mirrored back, and averaged."""
    model, scales = hub.load(trained / "final"), (0.5, 1.0, 1.5)
    task, preprocess = model.task, model.processor.image.preprocess
    assert isinstance(task, Segmentation)
    right = pixels = 0
    for sample in Shards.open(data / "val-*.tar"):
        truth, image = decode_labels(sample.label_map), decode(sample.image)
        height, width = image.shape[1:]
        summed = torch.zeros(len(NAMES), height, width)
        for side in (32, 32, 48):  # 0.5 would be smaller than the window
            shape = (side, round(width * side / height)) if height < width else (round(height * side / width), side)
            view = preprocess.normalize(resize(image, shape, preprocess.resampling))
            for mirrored in (False, True):
                seen = view.flip(2) if mirrored else view
                with torch.no_grad():
                    scores = sliding_window(task.scores, seen, (32, 32), (21, 21))
                shares = interpolate(scores[None], (height, width), mode="bilinear").softmax(1)[0]
                summed += shares.flip(2) if mirrored else shares
        right += int((summed.argmax(0) + 1 == truth).sum())
        pixels += int((truth > 0).sum())
    found = evaluate(model, str(data / "val-*.tar"), replace(PLAN, scales=scales, flip=True)).metrics
    assert found["pixel_accuracy"] == pytest.approx(right / pixels)
    plain, flipped = (evaluate(model, str(data / "val-*.tar"), replace(PLAN, flip=flip)).metrics for flip in (0, 1))
    assert len({round(each["mean_iou"], 6) for each in (found, plain, flipped)}) == 3


def test_scales_are_for_segmentation(trained: Path) -> None:
    task = hub.load(trained / "final").task
    check_test_augmentation(task, Plan(scales=(0.5, 1.0), flip=True))
    task.averages_views = False
    with pytest.raises(DualfuseError, match="--scales and --flip"):
        check_test_augmentation(task, Plan(flip=True))
    with pytest.raises(DualfuseError, match=r"scales are \(0.0,\)"):
        Plan(scales=(0.0,))


def test_samples_without_label_map_are_named(trained: Path, data: Path, tmp_path: Path) -> None:
    good = Shards.open(data / "val-*.tar")[:2]
    model, bare = hub.load(trained / "final"), Sample("bare", good[0].image)
    labels = decode_labels(good[1].label_map)
    labels[3, 3] = 9
    mixed = [replace(good[0], key="good"), bare, Sample("high", good[1].image, label_map=encode_labels(labels))]
    write_shards(mixed, tmp_path, "mixed")
    with pytest.raises(BrokenSample, match="bare: it has no label map"):
        evaluate(model, str(tmp_path / "mixed-*.tar"), PLAN)
    found = evaluate(model, str(tmp_path / "mixed-*.tar"), replace(PLAN, exclude_broken=True))
    assert found.size.startswith("1 images") and len(found.excluded) == 2
    assert isinstance(found.excluded[1], Skipped)
    wanted = "its label map has the number 9; the task has 4 classes, numbered from 1 on, and 255 for none"
    assert found.excluded[1].reason == wanted
    check_outputs(model.task, answers=Path("a.csv"), save_image=None)


def test_loss_of_each_image(trained: Path, data: Path) -> None:
    """Equal to the cross-entropy of the scores, resized to the original, over labelled pixels."""
    model, path = hub.load(trained / "final"), str(data / "val-*.tar")
    plain, found = evaluate(model, path, PLAN), evaluate(model, path, replace(PLAN, answers=True))
    assert found.metrics == pytest.approx(plain.metrics, abs=1e-6) and not plain.predictions
    rng = np.random.default_rng(0)
    for sample, result in zip(Shards.open(path), found.predictions, strict=True):
        example = model.task.cfg.read_whole(sample, model.processor, rng)
        with torch.inference_mode():
            scores = model.task._image_scores(example["image"], model.processor.image.size)
            scores = F.interpolate(scores[None], example["target"].shape, mode="bilinear", align_corners=False)
        expected = F.cross_entropy(scores, example["target"][None].long(), ignore_index=-1)
        assert result == SampleLoss(sample.key, pytest.approx(float(expected), rel=1e-4))


def test_resume_is_bitwise(data: Path, tmp_path: Path) -> None:
    """Statistics of the norms, crops and light come back as well."""
    whole = small(data)
    short = replace(
        whole, run=replace(whole.run, steps=4, save_every=2, keep_last=9), data=replace(whole.data, validation="")
    )
    train([short], tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "final")
    shutil.rmtree(max((tmp_path / "again" / "checkpoints").iterdir()))
    train([short], tmp_path / "again")
    first, again = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any("running_mean" in name for name in first)


def test_batch_norm_with_one_crop_is_refused(data: Path, tmp_path: Path) -> None:
    recipe = small(data)
    alone = replace(recipe, run=replace(recipe.run, micro_batch=1))
    with pytest.raises(ValueError, match=r"give --run\.micro-batch 2 or more"):
        train([alone], tmp_path / "run")
