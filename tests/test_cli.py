"""The commands, as a user types them: what they print, how they fail, and from training to searching."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import at_step, samples

from dualfuse import __version__
from dualfuse.cli import main as cli
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.training import loop
from dualfuse.training.run_log import read_log

ROOT = Path(__file__).parent.parent
VALIDATION = "examples/openpics-mini/openpics-mini-val-00000.tar"
QUICK = ("--run.steps", "3", "--run.save-every", "2", "--data.batch_size-size", "4", "--data.validation", "")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def exit_code(*arguments: object) -> int | str | None:
    """Of an end that argparse or tyro chose."""
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    return end.value.code


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    summary = (cli.COMMANDS[command].__doc__ or "").splitlines()[0]
    assert f"{command} " in (listed := capsys.readouterr().out) and summary in listed
    assert exit_code(command, "--help") == 0
    said = capsys.readouterr().out
    assert f"usage: dualfuse {command}" in said and summary.rstrip(".").split(";")[0] in said
    assert not capsys.readouterr().err


def test_version_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"dualfuse {__version__}\n"
    assert run("recipes") == 0
    assert re.search(r"^ten-seconds +A run of ten seconds on the demo's data", capsys.readouterr().out, re.MULTILINE)


def test_help_of_a_recipe_shows_the_flags_of_all_its_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("train", "demo", "--help") == 0
    said = capsys.readouterr().out
    for flag in ("--contrast.optim.lr", "--pairs.optim.lr", "--pairs.task.match", "--contrast.model.depth"):
        assert flag in said
    assert "Largest gradient norm; 0: no clipping" in said
    assert exit_code("train", "ten-seconds", "--help") == 0
    said = capsys.readouterr().out
    assert "--optim.lr" in said and "--contrast.optim.lr" not in said


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert run("train", "ten-seconds", "--out", out, *QUICK) == 0
    return out


def test_train_evaluate_search(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "ten-seconds", "--out", trained, *QUICK) == 0
    said = capsys.readouterr()
    assert said.out == f"the model is in {trained / 'final'}\n"
    assert "ten-seconds: finished before" in said.err

    images = samples(12)
    write_shards(images, tmp_path / "data", "test")
    numbers = tmp_path / "numbers.json"
    data = tmp_path / "data" / "test-*.tar"
    assert run("evaluate", trained / "final", data, "--rerank", 4, "--num-workers", 0, "--out", numbers) == 0
    said = capsys.readouterr().out
    metrics = json.loads(numbers.read_text())
    assert f"12 images, {sum(len(each.texts) for each in images)} texts, 0 excluded" in said
    for name in ("text_to_image/R@1", "image_to_text/reranked/R@10", "itm/hard_negative", "mlm/accuracy"):
        (line,) = (line for line in said.splitlines() if line.split()[0] == name)
        assert float(line.split()[1]) == pytest.approx(100 * metrics[name], abs=0.05)

    folder = tmp_path / "images"
    folder.mkdir()
    for each in images:
        (folder / f"{each.key}.png").write_bytes(each.image)
    query = ("search", trained / "final", folder, "a red cat", "--top", 3, "--rerank", 5)
    assert run(*query, "--save-image", tmp_path / "sheet.png") == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["rank", "1", "2", "3"]
    assert "12 images: 12 embedded now" in said.err
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_flags_reach_the_recipe(trained: Path) -> None:
    stored = json.loads((trained / "recipe.json").read_text())
    assert (stored["run"]["steps"], stored["data"]["batch"]) == (3, 4)
    assert [line["step"] for line in read_log(trained)] == [2, 3]


def test_a_recipe_of_your_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(samples(8), tmp_path, "mine")
    (tmp_path / "my_own_recipe.py").write_text(
        "from dataclasses import dataclass, replace\n"
        "from dualfuse.models.vlmo import VLMo, VLMoConfig\n"
        "from dualfuse.recipes.small_pairs import ten_seconds\n\n"
        "@dataclass(frozen=True)\n"
        "class Narrow(VLMoConfig):\n"
        "    width: int = 16\n\n"
        "def mine():\n"
        "    made = ten_seconds()\n"
        f"    data = replace(made.data, train=({str(tmp_path)!r},), validation='', batch=4)\n"
        "    return replace(made, model=Narrow(**vars(made.model) | {'width': 16}), data=data)\n\n"
        "def nothing():\n"
        "    return 7\n"
    )
    name = f"{tmp_path / 'my_own_recipe.py'}:mine"
    assert run("train", name, "--out", tmp_path / "out", "--run.steps", 1, "--optim.lr", 0.5) == 0
    stored = json.loads((tmp_path / "out" / "final" / "config.json").read_text())
    assert (stored["model"]["is"], stored["optim"]["lr"]) == ("my_own_recipe:Narrow", 0.5)
    assert load_file(tmp_path / "out" / "final" / "model.safetensors")["model.norm.weight"].shape == (16,)
    assert run("train", name, "--out", tmp_path / "out", "--run.steps", 1, "--optim.lr", 0.25) == 1
    assert "optim.lr was 0.5, is 0.25" in capsys.readouterr().err

    assert run("train", f"{tmp_path / 'my_own_recipe.py'}:nothing") == 1
    assert "nothing gives a int where a Recipe" in capsys.readouterr().err
    (tmp_path / "json.py").write_text("raise AssertionError\n")
    assert run("train", f"{tmp_path / 'json.py'}:mine") == 1
    assert "a module is called json already; rename the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "tiny"), "no recipe is called 'tiny'; give file.py:function, a model folder, or one of"),
        (("train", "nowhere.py:mine"), "nowhere.py is no file; a recipe of your own is given as path/file.py:function"),
        (("train", "dualfuse.recipes.small_pairs:nowhere"), "has no function 'nowhere' that makes a recipe"),
        (("train", "no.module:mine"), "No module named 'no'"),
        (("train", "vlmo-nano-pairs", "--out", "OUT"), "no training data: give --data.train SHARDS"),
        (("train", "ten-seconds", "--out", "OUT", "--data.train", "OUT/x.tar"), "no tar file matches"),
        (("train", "ten-seconds", "--out", "OUT", "--train-only", "nothing.*"), "pattern 'nothing.*' of train_only"),
        (("evaluate", "examples", VALIDATION), "is no model folder: it holds"),
        (("search", "examples/no-model", "examples", "a cat"), "no-model is not there; examples is, and holds"),
        (("prepare", "OUT/nothing", "OUT"), "nothing"),
        (("doctor", "OUT"), "OUT"),
    ],
)
def test_a_mistake_ends_in_a_sentence(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(argument.replace("OUT", str(tmp_path / "OUT")) for argument in arguments)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"dualfuse {arguments[0]}: ") and said in error and "Traceback" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("--fast",),
        ("train",),
        ("train", "ten-seconds", "--optim.speed", "3"),
        ("train", "ten-seconds", "--run.steps", "many"),
        ("train", "ten-seconds", "--run.precision", "fp8"),
        ("train", "demo", "--optim.lr", "1"),
        ("evaluate",),
        ("evaluate", "model", "data", "--rerank"),
        ("search", "model", "images"),
        ("recipes", "all"),
    ],
    ids=" ".join,
)
def test_wrong_flags(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*arguments) == 2
    assert capsys.readouterr().err


def test_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("train", "ten-seconds", "--out", tmp_path / "out", *QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "seed_step", at_step(0, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert run(*command) == 143
    assert "stopped after step 1; the same command goes on from there" in capsys.readouterr().err
    assert run(*command) == 0
    assert [line["step"] for line in read_log(tmp_path / "out")] == [1, 2, 3]


def test_in_a_process_of_its_own(tmp_path: Path, trained: Path) -> None:
    """The same weights as in this process, which has trained other things before."""
    command = [sys.executable, "-m", "dualfuse", "train", "ten-seconds", "--out", str(tmp_path), *QUICK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"the model is in {tmp_path / 'final'}\n"), done.stderr
    one, other = (load_file(out / "final" / "model.safetensors") for out in (tmp_path, trained))
    assert all((one[name] == other[name]).all() for name in one)
