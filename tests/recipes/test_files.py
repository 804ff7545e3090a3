"""Recipes as YAML and JSON: every named one comes back equal; values are checked as those of Python and of flags."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import changed, weights

from dualfuse import hub, recipes
from dualfuse.cli import main as cli
from dualfuse.data.image.transform import Augment
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.recipe import Recipe
from dualfuse.recipes.files import read_recipe_file, write_recipe_file
from dualfuse.training import loop


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("ending", [".json", pytest.param(".yaml", marks=pytest.mark.slow)])
def test_every_named_recipe_comes_back_equal(tmp_path: Path, ending: str) -> None:
    for name in recipes.NAMES:
        found = recipes.find_recipe(name)
        write_recipe_file(found, path := tmp_path / f"{name}{ending}")
        assert read_recipe_file(path) == found


def test_config_of_a_model_folder_is_a_recipe_file(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    """And texts that look like numbers stay texts."""
    assert recipes.find_recipe(str(whole / "final" / "config.json")) == (tiny,)
    odd = replace(tiny, name="1e-4", data=replace(tiny.data, validation="no", tokenizer="0x10"))
    write_recipe_file((odd,), tmp_path / "odd.yaml")
    assert read_recipe_file(tmp_path / "odd.yaml") == (odd,)


def test_base_with_changes(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        recipe: vlmo-nano-pairs
        data: {train: [a.tar, b.tar], augment: null, preprocess: {resize_mode: crop}}
        optim:
          lr: 1e-4  # YAML 1.1 takes this for a text
          betas: [0.9, 0.95]
        run: {trackers: [tensorboard]}
        """,
    )
    [base] = recipes.find_recipe("vlmo-nano-pairs")
    [made] = recipes.find_recipe(path)
    assert made == changed(
        replace(base, data=replace(base.data, preprocess=replace(base.data.preprocess, resize_mode="crop"))),
        train=("a.tar", "b.tar"),
        augment=None,
        lr=1e-4,
        betas=(0.9, 0.95),
        trackers=("tensorboard",),
    )
    again = written(tmp_path, json.dumps({"recipe": "vlmo-nano-pairs", "optim": {"lr": 1e-4}}), "a.json")
    assert recipes.find_recipe(again)[0].optim.lr == 1e-4


def test_stages_are_changed_by_name(tmp_path: Path) -> None:
    first, second = recipes.find_recipe("demo")
    path = written(tmp_path, f"recipe: demo\n{second.name}: {{run: {{steps: 7}}}}")
    assert recipes.find_recipe(path) == (first, changed(second, steps=7))
    with pytest.raises(DualfuseError, match=f"no field {second.name}x; did you mean {second.name}"):
        recipes.find_recipe(written(tmp_path, f"recipe: demo\n{second.name}x: {{}}"))


def test_a_config_in_place_of_none(tmp_path: Path) -> None:
    folder = tmp_path / "none.json"
    [base] = recipes.find_recipe("vlmo-nano-pairs")
    hub.save(tmp_path / "model", base.build(), changed(base, augment=None))
    path = written(tmp_path, json.dumps({"recipe": str(tmp_path / "model"), "data": {"augment": {"flip": 0.25}}}))
    assert recipes.find_recipe(path)[0].data.augment == Augment(flip=0.25) and not folder.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {learning_rate: 1}", "optim has no field learning_rate; "),
        ("optim: {wieght_decay: 1}", "did you mean weight_decay"),
        ("optim: {schedule: cosin}", r"optim\.schedule is 'cosin'; allowed are 'linear', 'cosine'"),
        ("optim: {lr: fast}", r"optim\.lr is 'fast'; it should be of type float"),
        ("optim: {lr: -1}", r"optim\.lr is -1; it should be at least 0"),
        ("run: {steps: 1.5}", r"run\.steps is 1\.5; it should be of type int"),
        ("optim: 3", "optim is 3; give values by the names of its fields"),
        ("optim: {lr: {a: 1}}", r"optim\.lr takes a value, not fields \(a\)"),
        ("task: {is: 'lab.tasks:Mine'}", r"names no frozen dataclass .*--import lab"),
        ("optim: {lr: 1, lr: 2}", "'lr' is given twice"),
        ("data: &x {train: [a]}\nmodel: *x", r"no aliases \(\*name\)"),
        ("optim: !!python/object/apply:os.system ['touch /tmp/x']", "could not determine a constructor"),
        ("optim: [", "cannot be read"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DualfuseError, match=message) as error:
        recipes.find_recipe(path := written(tmp_path, f"recipe: vlmo-nano-pairs\n{text}"))
    assert str(error.value).startswith(path)


@pytest.mark.parametrize("base", ["evil.py:make", "evil:make", "other.yaml", "3"])
def test_a_file_runs_no_code(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('was run')")
    with pytest.raises(DualfuseError, match=r"which is code|give the name of a listed recipe"):
        recipes.find_recipe(written(tmp_path, f"recipe: {base}"))


@pytest.mark.parametrize("text", ["[]", "3", "{}", "- {a: 1}", '{"is": "dualfuse.recipe:Optim"}'])
def test_other_content_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DualfuseError):
        recipes.find_recipe(written(tmp_path, text))


def test_train_from_a_file_with_flags(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe_file((tiny,), tmp_path / "sub" / "short.yaml")
    assert cli.main(["train", "sub/short.yaml", "--run.steps", "2"]) == 0
    loop.train((changed(tiny, steps=2),), tmp_path / "out")
    expected = weights(tmp_path / "out")
    assert all(tensor.equal(expected[name]) for name, tensor in weights(tmp_path / "runs" / "short").items())


def test_recipes_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "mine.yaml")
    assert cli.main(["recipes", "ten-seconds", "--out", out]) == 0
    assert recipes.find_recipe(out) == recipes.find_recipe("ten-seconds")
    assert cli.main(["recipes", "ten-seconds"]) == 0
    assert (tmp_path / "mine.yaml").read_text() in capsys.readouterr().out
    assert cli.main(["recipes", "ten-seconds", "--out", out]) == 2
    assert "exists and would be replaced; give another name, or --force" in capsys.readouterr().err
    assert cli.main(["recipes", "demo", "--out", out, "--force"]) == 0
    assert cli.main(["recipes", "demo", "--out", str(tmp_path / "mine.txt")]) == 2
    assert cli.main(["recipes", "--out", out]) == 2


def test_yaml_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"pip install '.\[yaml\]'"):
        recipes.find_recipe(written(tmp_path, "recipe: demo"))
