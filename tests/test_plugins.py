"""A third party's model, tower, task, metric, store and format work in every command, after consent."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from tiny import samples, shards, tokenizer
from toy_plugin.format import FORMAT
from toy_plugin.model import ToyModelConfig
from toy_plugin.recipes import toy
from toy_plugin.store import ToyStore
from toy_plugin.task import ToyTaskConfig

from dualfuse import config, find_recipe, hub, plugins
from dualfuse.cli.main import main
from dualfuse.convert.formats import FORMATS, register_format
from dualfuse.errors import DualfuseError
from dualfuse.testing import check_model, check_store, check_task


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def untrusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without trusted modules, as a new process does."""
    monkeypatch.setattr(config, "_trusted", set())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pairs, a folder of images, and a tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    shards(folder / "shards", 12)
    tokenizer(folder)
    (folder / "images").mkdir()
    for each in samples(6):
        (folder / "images" / f"{each.key}.png").write_bytes(each.image)
    return folder


def train(recipe: object, data: Path, out: Path) -> int:
    flags = ("--data.train", data / "shards", "--data.tokenizer", data / "tokenizer.json")
    return run("train", recipe, "--out", out, *flags, "--import", "toy_plugin")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy")
    assert train("toy_plugin.recipes:toy", data, out) == 0
    return out / "final"


def test_a_model_folder_names_its_plugins(trained: Path) -> None:
    stored = json.loads((trained / "config.json").read_text())
    assert stored["plugins"] == json.loads((trained.parent / "recipe.json").read_text())["plugins"] == ["toy_plugin"]
    assert stored["model"]["is"] == "toy_plugin.model:ToyModelConfig"


@pytest.mark.usefixtures("untrusting")
def test_a_plugin_is_refused_without_consent(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("card", trained), ("search", trained, data / "images", "a cat"), ("train", trained)):
        assert run(*command) == 2
        assert "--import toy_plugin" in capsys.readouterr().err
    assert run("card", trained, "--import", "toy_plugin") == 0
    with pytest.raises(DualfuseError, match="toy_plugin"):
        config.from_json({"is": "toy_plugin_of_another:Config"})


@pytest.mark.usefixtures("untrusting")
def test_no_file_imports_a_plugin(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_plugin"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(DualfuseError, match="toy_plugin"):
        hub.load(trained)
    assert "toy_plugin" not in sys.modules


@pytest.mark.usefixtures("untrusting")
def test_every_command_takes_a_plugin(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    consent = ("--import", "toy_plugin")
    monkeypatch.chdir(tmp_path)
    assert (
        run("evaluate", trained, data / "shards", "--num-workers", 0, "--rerank", 0, "--out", "m.json", *consent) == 0
    )
    assert json.loads(Path("m.json").read_text()).keys() == {"toy/own_text_first"}
    assert run("predict", trained, "--image", data / "images" / "000.png", "--text", "a cat", *consent) == 0
    assert "cosine" in capsys.readouterr().out
    assert run("search", trained, data / "images", "a cat", *consent, "--store", "toy_plugin.store:open_store") == 0
    assert "6 images: 6 embedded now" in capsys.readouterr().err
    assert [path.suffix for path in Path("toy-store").iterdir()] == [".json"]
    assert run("card", trained, *consent) == 0
    assert "ToyModel" in (trained / "README.md").read_text()
    assert run("train", trained, "--out", "more", "--data.train", data / "shards", "--run.steps", 1, *consent) == 0
    assert run("convert", trained, "exported", "--to", "toy", *consent) == 0
    tokens = ("--tokenizer", data / "tokenizer.json")
    assert run("convert", "exported/toy.safetensors", "back", *tokens, *consent) == 0
    one, other = hub.read_tensors(trained), hub.read_tensors(Path("back"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_a_bridgetower_takes_a_third_party_tower(data: Path, tmp_path: Path) -> None:
    assert train("toy_plugin.recipes:bridge", data, tmp_path) == 0
    stored = json.loads((tmp_path / "final" / "config.json").read_text())
    assert stored["model"]["text"]["is"] == "toy_plugin.tower:ToyTextConfig"
    assert run("search", tmp_path / "final", data / "images", "a cat", "--rerank", 2, "--import", "toy_plugin") == 0


def test_entry_points_are_imported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    points = [EntryPoint("toy", "toy_plugin", plugins.GROUP), EntryPoint("gone", "no_such_package", plugins.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == plugins.GROUP else [])
    monkeypatch.setattr(config, "_trusted", set())
    plugins.load()
    assert "toy_plugin" in config._trusted
    assert "no_such_package" in caplog.text


@pytest.mark.parametrize(
    ("name", "fact"),
    [("no_such_package", "No module"), ("nowhere/plugin.py", "not a file"), ("json.py", "json"), ("bad.py", "1 / 0")],
)
def test_plugins_that_cannot_be_imported_are_refused(
    name: str, fact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("json.py").write_text("")
    Path("bad.py").write_text("raise RuntimeError('1 / 0')\n")
    with pytest.raises(DualfuseError, match=fact):
        plugins.load([name])
    assert "bad" not in sys.modules


RECIPE = """
from dataclasses import dataclass, replace
from dualfuse.recipes.small_pairs import ten_seconds
from dualfuse.tasks.pretrain.pairs import PairsConfig

@dataclass(frozen=True)
class MyTask(PairsConfig):
    pass

def mine():
    made = ten_seconds()
    return replace(made, task=MyTask(), optim=replace(made.optim, lr=0.25))
"""


def test_an_edited_recipe_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "edited_recipe.py"
    file.write_text(RECIPE)
    (before,) = find_recipe(f"{file}:mine")
    assert find_recipe(f"{file}:mine") == (before,)
    file.write_text(RECIPE.replace("0.25", "0.75"))  # of the same size, within the same second
    (after,) = find_recipe(f"{file}:mine")
    assert (before.optim.lr, after.optim.lr) == (0.25, 0.75)
    file.write_text("1 / 0")
    with pytest.raises(DualfuseError, match="ZeroDivisionError"):
        find_recipe(f"{file}:mine")


@pytest.mark.parametrize("packaged", [True, False])
def test_a_class_is_the_same_by_file_and_by_module(
    packaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"lab_{'package' if packaged else 'folder'}"
    (tmp_path / package).mkdir()
    if packaged:
        (tmp_path / package / "__init__.py").touch()
    file = tmp_path / package / f"recipes_of_{package}.py"
    file.write_text(RECIPE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (by_file,) = find_recipe(f"{file}:mine")
    stored = config.to_json(by_file)
    (by_module,) = find_recipe(f"{package}.{file.stem}:mine")
    monkeypatch.setattr(config, "_trusted", {f"{package}.{file.stem}"})
    assert config.from_json(stored) == by_module
    stored = config.to_json(by_module)
    monkeypatch.setattr(config, "_trusted", {type(by_file.task).__module__})
    assert config.from_json(stored) == by_file


def test_classes_of_a_notebook_are_refused_before_training() -> None:
    code = (
        "from dataclasses import dataclass\nfrom dualfuse import DualfuseError, PairsConfig, find_recipe, train\n"
        "from dataclasses import replace\nfrom pathlib import Path\n"
        "@dataclass(frozen=True)\nclass Mine(PairsConfig):\n    pass\n"
        "(recipe,) = find_recipe('ten-seconds')\n"
        "try: train((replace(recipe, task=Mine()),), Path('nowhere'))\n"
        "except DualfuseError as error: assert 'notebook' in str(error), error\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_classes_of_a_script_are_found_again(tmp_path: Path) -> None:
    script = tmp_path / "my_script.py"
    script.write_text(
        RECIPE + "if __name__ == '__main__':\n"
        "    from dualfuse.config import from_json, to_json, trust\n"
        "    trust(mine())\n"
        "    assert from_json(to_json(mine())) == mine()\n"
        "    print(to_json(mine())['task']['is'])\n"
    )
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert done.stdout == "my_script:MyTask\n"


def test_a_format_may_be_registered_again_by_its_own_module() -> None:
    number = len(FORMATS)
    register_format(FORMAT)
    assert len(FORMATS) == number and FORMATS.count(FORMAT) == 1
    with pytest.raises(DualfuseError, match="'toy'"):
        register_format(replace(FORMAT, read=lambda source, tokenizer: FORMAT.read(source, tokenizer)))


def test_the_toy_classes_keep_the_contracts(data: Path, tmp_path: Path) -> None:
    processor = replace(toy().data, tokenizer=str(data / "tokenizer.json"), augment=None).processor()
    check_task(ToyTaskConfig(), ToyModelConfig(), samples(4), processor, batch_metrics=("toy/own_text_first", "loss"))
    check_model(ToyModelConfig())
    check_store(lambda fingerprint: ToyStore(fingerprint, tmp_path))
