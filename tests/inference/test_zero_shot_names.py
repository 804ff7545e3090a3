"""Zero-shot classification on the command line, against the formula."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import BRIDGETOWER, MODEL, png_image, shards, tokenizer

from dualfuse import hub
from dualfuse.cli import main as cli
from dualfuse.data.sample import Sample
from dualfuse.inference.zero_shot import class_names, read_templates
from dualfuse.models.base import ModelConfig
from dualfuse.models.vlmo import InitConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.zero_shot import CLIP, PLAIN
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

NAMES = ("red", "blue", "green", "small cat", "big cat", "dog", "tree", "house", "fish")
VLMO = replace(MODEL, drop_path=0.0, init=InitConfig(std=0.15, layer_scale=0.0))
TOWERS = replace(BRIDGETOWER, init_std=0.2)


def saved(folder: Path, task: TaskConfig, model: ModelConfig) -> hub.LoadedModel:
    """Save and load a model with random weights, whose outputs differ for every input."""
    torch.manual_seed(0)
    data = Data(image_size=(32, 32), text_length=12, tokenizer=tokenizer(folder / "words"))
    recipe = Recipe(name="tiny", model=model, task=task, data=data)
    hub.save(folder / "model", recipe.task.build(model.build()), recipe)
    return hub.load(folder / "model")


def cosines(loaded: hub.LoadedModel, image: bytes, template: str) -> np.ndarray:
    """Return the cosines of an image with one sentence per name, one at a time."""
    task, found = loaded.task, []
    assert isinstance(task, Pairs)
    pixels = loaded.processor.image(image, np.random.default_rng(0))[None]
    with torch.no_grad():
        image_features = task.image_features(task.model.embed_image(pixels))[0]
        for name in NAMES:
            ids = torch.from_numpy(loaded.processor.text.encode(template.replace("{}", name)).ids)[None]
            text = task.text_features(task.model.embed_text(ids, torch.ones_like(ids)))[0]
            found.append(float(image_features @ text))
    return np.array(found)


@pytest.mark.parametrize("model", [VLMO, TOWERS], ids=["vlmo", "bridgetower"])
def test_top_one_and_top_five(model: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = saved(tmp_path, PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal"), model)
    content = [Sample(f"{n:02d}", png_image(n), meta={"label": NAMES[n % 9] if n % 2 else n % 9}) for n in range(27)]
    data, template = shards(tmp_path / "data", content), "the {} sleeps"
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "templates.txt").write_text(template)
    ahead = []
    for n, sample in enumerate(content):
        near = cosines(loaded, sample.image, template)
        ahead.append(int((near > near[n % 9]).sum()))
    expected = {"accuracy": ahead.count(0) / 27, "accuracy/top5": sum(number < 5 for number in ahead) / 27}
    assert expected["accuracy"] < expected["accuracy/top5"]
    out = tmp_path / "numbers.json"
    flags = ("--zero-shot", str(tmp_path / "names.txt"), "--templates", str(tmp_path / "templates.txt"))
    flags += ("--out", str(out), "--num-workers", "0", "--answers", str(tmp_path / "answers.jsonl"))
    assert cli.main(["evaluate", str(tmp_path / "model"), data, *flags]) == 0
    assert json.loads(out.read_text()) == pytest.approx(expected)
    assert "accuracy/top5" in capsys.readouterr().out
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert answers[4]["answer"] == NAMES[int(cosines(loaded, content[4].image, template).argmax())]


def test_predict_names_the_class_of_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = saved(tmp_path, PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal"), VLMO)
    (tmp_path / "a.png").write_bytes(png_image(3))
    ask = ("predict", str(tmp_path / "model"), "--image", str(tmp_path / "a.png"), "--zero-shot", ",".join(NAMES))
    assert cli.main([*ask, "--top", "2"]) == 0
    near = cosines(loaded, png_image(3), "a photo of a {}.")
    assert isinstance(loaded.task, Pairs)
    shares = np.exp(near * float(loaded.task.itc_heads[0].scale.detach()))
    best = np.argsort(-near)[:2]
    expected = [f"{100 * shares[n] / shares.sum():6.1f} %  {NAMES[n]}" for n in best]
    assert capsys.readouterr().out.splitlines() == expected
    assert cli.main([*ask, "--text", "a cat"]) == 2
    assert "takes an image alone; omit the text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--templates", "clip"), "--templates clip needs the names of the classes: give --zero-shot NAMES, too"),
        (("--zero-shot", "names.txt"), "'names.txt' names no classes"),
        (("--zero-shot", "cat,dog", "--templates", "gone.txt"), "there is no file gone.txt"),
    ],
)
def test_missing_names_and_templates_are_refused(
    flags: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, PairsConfig(), VLMO)
    assert cli.main(["evaluate", str(tmp_path / "model"), "no.tar", *flags]) == 2
    assert message in capsys.readouterr().err


def test_models_without_itc_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task, message in (
        (EntailmentConfig(), "cannot search"),
        (PairsConfig(itc_weight=0.0), "trained without ITC"),
    ):
        saved(tmp_path, task, VLMO)
        assert cli.main(["evaluate", str(tmp_path / "model"), "no.tar", "--zero-shot", "cat,dog"]) == 2
        assert message in capsys.readouterr().err


def test_names_from_a_file_a_folder_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("red cat\ndog, brown\n")
    for source in (str(tmp_path), str(tmp_path / "labels.txt")):
        assert class_names(source) == ("red cat", "dog, brown")
    assert class_names("red cat, dog,fish ,") == ("red cat", "dog", "fish")
    for names, match in (
        ("names.txt", r"'names.txt' names no classes: give a file with one name per line, the folder .* labels.txt"),
        (str(tmp_path.parent), "names no classes"),
        ("cat, cat", "has 2 names, 1 of them different; give two or more"),
        ("cat,", "has 1 names"),
    ):
        with pytest.raises(ValueError, match=match):
            class_names(names)
    (tmp_path / "templates.txt").write_text("a {} here\nsee the {}\n")
    assert read_templates(str(tmp_path / "templates.txt")) == ("a {} here", "see the {}")
    assert (read_templates(""), read_templates("clip")) == (PLAIN, CLIP)
    with pytest.raises(ValueError, match=r"there is no file gone\.txt; give one with sentences such as"):
        read_templates("gone.txt")
