"""The commands as a user types them: their help, what they print, how they fail, and from training to searching."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import in_a_process
from safetensors.torch import load_file
from tiny import at_step, samples

from dualfuse import __version__, recipes
from dualfuse.cli import main as cli
from dualfuse.cli.train import FREQUENT, override
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.training import loop, measure
from dualfuse.training.run_log import read_log

ROOT = Path(__file__).parent.parent
VALIDATION = "examples/openpics-mini/openpics-mini-val-00000.tar"
QUICK = (
    *("--run.steps", "3", "--run.save-every", "2", "--run.log-every", "1"),
    *("--data.batch-size", "4", "--data.validation", ""),
)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def exit_code(*arguments: object) -> int | str | None:
    """Return the status of an end that argparse or tyro chose."""
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    return end.value.code


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = cli.COMMANDS[command]
    assert exit_code("--help") == 0
    summary = (module.run.__doc__ or "").splitlines()[0]
    assert f"{command} " in (listed := capsys.readouterr().out) and summary in listed
    assert exit_code(command, "--help") == 0
    printed = capsys.readouterr().out
    assert f"usage: dualfuse {command}" in printed and summary.rstrip(".") in printed
    assert "--import PACKAGE" in printed and "--debug" in printed
    examples = [f"  {line}" for line in module.EXAMPLES.strip().splitlines()]
    assert printed.rstrip().splitlines()[-len(examples) :] == examples
    assert not capsys.readouterr().err


def examples_of_help() -> list[str]:
    return [
        line
        for module in cli.COMMANDS.values()
        for line in module.EXAMPLES.replace("\\\n", "").strip().splitlines()
        if line.startswith("dualfuse ")
    ]


@pytest.mark.parametrize("line", examples_of_help())
def test_examples_of_the_help_have_valid_flags(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, name, *words = shlex.split(line)
    called: list[str] = []
    recipe = recipes.find_recipe("vlmo-nano-pairs")

    def recorded(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
        return functools.wraps(command)(lambda *values, **options: lambda: called.append(name))

    monkeypatch.setattr(cli, "deferred", recorded)
    monkeypatch.setattr(recipes, "find_recipe", lambda name, **given: recipe)
    monkeypatch.setattr(loop, "train", lambda chosen, out: called.append("train"))
    monkeypatch.setattr(measure, "measure", lambda *_: called.append("measure") or ())
    if "--help" in words:
        assert exit_code(name, *words) == 0
    else:
        assert (program, run(name, *words), called) == ("dualfuse", 0, [name])


def test_version_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"dualfuse {__version__}\n"
    assert run("recipes") == 0
    assert re.search(r"^ten-seconds +A run of ten seconds", capsys.readouterr().out, re.MULTILINE)


def test_help_of_a_recipe_starts_with_the_frequent_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("train", "ten-seconds", "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Frequent flags:") + 1
    listed = [line.split()[0] for line in lines[start : start + 1 + len(FREQUENT)]]
    assert listed == ["--out", *(f"--{path.replace('_', '-')}" for path in FREQUENT)]
    assert "--optim.lr X" in lines[start + 5] and "(default: 0.002)" in lines[start + 5]
    assert any("Maximum gradient norm; 0: no clipping." in line for line in lines[start:])
    assert not any("--itc.optim.lr" in line for line in lines)


def test_help_of_several_stages_has_the_flags_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("train", "demo", "--help") == 0
    printed = capsys.readouterr().out
    for flag in ("--itc.optim.lr", "--pairs.optim.lr", "--pairs.task.itm-weight", "--itc.model.depth"):
        assert flag in printed
    assert "with STAGE one of itc, pairs" in printed and "--STAGE.optim.lr" in printed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert run("train", "ten-seconds", "--out", out, *QUICK) == 0
    return out


def test_train_evaluate_search(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "ten-seconds", "--out", trained, *QUICK) == 0
    printed = capsys.readouterr()
    assert printed.out == f"model: {trained / 'final'}\n"
    assert "ten-seconds: already finished" in printed.err

    images = samples(12)
    write_shards(images, tmp_path / "data", "test")
    numbers = tmp_path / "numbers.json"
    data = tmp_path / "data" / "test-*.tar"
    assert run("evaluate", trained / "final", data, "--rerank", 4, "--num-workers", 0, "--out", numbers) == 0
    printed = capsys.readouterr().out
    metrics = json.loads(numbers.read_text())
    assert f"12 images, {sum(len(each.texts) for each in images)} texts, 0 excluded" in printed
    for name in ("text_to_image/R@1", "image_to_text/reranked/R@10", "itm/hard_negative", "mlm/accuracy"):
        (line,) = (line for line in printed.splitlines() if line.split()[0] == name)
        assert float(line.split()[1]) == pytest.approx(100 * metrics[name], abs=0.05)

    folder = tmp_path / "images"
    folder.mkdir()
    for each in images:
        (folder / f"{each.key}.png").write_bytes(each.image)
    query = ("search", trained / "final", folder, "a red cat", "--top", 3, "--rerank", 5)
    assert run(*query, "--save-image", tmp_path / "hits.png") == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["rank", "1", "2", "3"]
    assert "12 images: 12 embedded now" in printed.err
    assert (tmp_path / "hits.png").stat().st_size > 1000


def test_nothing_is_written_into_the_current_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(samples(4), tmp_path / "data", "test")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(samples(1)[0].image)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("doctor", tmp_path / "data") == 0
    assert run("search", trained / "final", tmp_path / "images", "a cat") == 0
    assert run("evaluate", trained / "final", tmp_path / "data" / "test-*.tar", "--num-workers", 0) == 0
    assert run("explain", trained / "final", "--image", tmp_path / "images" / "a.png", "--text", "a cat") == 0
    assert list((tmp_path / "here").iterdir()) == []


def test_flags_reach_the_recipe(trained: Path) -> None:
    stored = json.loads((trained / "recipe.json").read_text())
    assert (stored["run"]["steps"], stored["data"]["batch_size"]) == (3, 4)
    assert [line["step"] for line in read_log(trained)] == [1, 2, 3]


def test_recipe_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(samples(8), tmp_path, "mine")
    (tmp_path / "my_own_recipe.py").write_text(
        "from dataclasses import dataclass, replace\n"
        "from dualfuse.models.vlmo import VLMo, VLMoConfig\n"
        "from dualfuse.recipes.small_pairs import ten_seconds\n\n"
        "@dataclass(frozen=True)\n"
        "class Narrow(VLMoConfig):\n"
        "    width: int = 16\n\n"
        "def mine():\n"
        "    recipe = ten_seconds()\n"
        f"    data = replace(recipe.data, train=({str(tmp_path)!r},), validation='', batch_size=4)\n"
        "    return replace(recipe, model=Narrow(**vars(recipe.model) | {'width': 16}), data=data)\n\n"
        "def nothing():\n"
        "    return 7\n"
    )
    name = f"{tmp_path / 'my_own_recipe.py'}:mine"
    assert run("train", name, "--out", tmp_path / "out", "--run.steps", 1, "--optim.lr", 0.5) == 0
    stored = json.loads((tmp_path / "out" / "final" / "config.json").read_text())
    assert (stored["model"]["is"].rpartition(":")[2], stored["optim"]["lr"]) == ("Narrow", 0.5)
    assert load_file(tmp_path / "out" / "final" / "model.safetensors")["model.norm.weight"].shape == (16,)
    assert run("train", name, "--out", tmp_path / "out", "--run.steps", 1, "--optim.lr", 0.25) == 2
    assert "optim.lr was 0.5, is 0.25" in capsys.readouterr().err
    assert run("train", f"{tmp_path / 'my_own_recipe.py'}:nothing") == 2
    assert "int" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("train", "tiny"), "'tiny'"),
        (("train", "nowhere.py:mine"), "nowhere.py"),
        (("train", "dualfuse.recipes.small_pairs:nowhere"), "'nowhere'"),
        (("train", "no.module:mine"), "'no'"),
        (("train", "vlmo-nano-pairs", "--out", "OUT"), "--data.train"),
        (("train", "ten-seconds", "--out", "OUT", "--data.train", "OUT/x.tar"), "OUT/x.tar"),
        (("train", "ten-seconds", "--out", "OUT", "--train-only", "nothing.*"), "'nothing.*'"),
        (("evaluate", "examples", VALIDATION), "examples"),
        (("search", "examples/no-model", "examples", "a cat"), "no-model"),
        (("search", "model", "images"), "--queries"),
        (("search", "model", "examples", "a cat", "--save-image", "examples/a.png"), "examples/a.png"),
        (("prepare", "OUT/nothing", "OUT"), "OUT/nothing"),
        (("doctor", "OUT"), "OUT"),
        (("recipes", "--import", "no.such.package"), "no.such.package"),
        (("train", "ten-seconds", "--data.batch", "4"), "--data.batch is now --data.batch-size"),
        (("train", "demo", "--pairs.optim.clip", "4"), "--pairs.optim.clip is now --pairs.optim.grad-clip-norm"),
        (("evaluate", "model", "data", "--workers", "4"), "--workers is now --num-workers"),
        (("search", "model", "images", "a cat", "--sheet=a.png"), "--sheet is now --save-image"),
    ],
)
def test_an_error_of_the_user_is_one_message(
    arguments: tuple[str, ...], fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [argument.replace("OUT", str(tmp_path / "OUT")) for argument in arguments]
    assert run(*words) == 2
    printed = capsys.readouterr().err.split("give weak search")[-1]  # advice on few pairs may come first
    assert f"dualfuse {arguments[0]}: " in printed and fact.replace("OUT", str(tmp_path / "OUT")) in printed
    assert "Traceback" not in printed


def test_debug_shows_the_traceback_of_an_error_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", "model", "images", "--debug") == 2
    assert "Traceback" in (printed := capsys.readouterr().err) and "--queries" in printed


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DualfuseError("the option is 3"), "the option is 3"),
        (MissingExtraError("reading a.parquet", "arrow"), "pip install '.[arrow]'"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "a.json: No such file or directory"),
        (PermissionError(13, "Permission denied", "out"), "out: Permission denied"),
        (OSError(28, "No space left on device", "x.tar"), "free some disk space"),
    ],
)
def test_errors_of_the_machine_and_of_the_user_end_with_status_2(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "parse", failing(error))
    assert run("convert") == 2
    assert message in (printed := capsys.readouterr().err) and "Traceback" not in printed


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), ImportError("x"), RuntimeError("x")])
def test_any_other_error_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "parse", failing(error))
    with pytest.raises(type(error)):
        run("convert")


def failing(error: Exception) -> Callable[..., None]:
    def fail(*values: object, **options: object) -> None:
        raise error

    return fail


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
        ("search", "model"),
        ("recipes", "--all"),
    ],
    ids=" ".join,
)
def test_invalid_flags(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*arguments) == 2
    assert capsys.readouterr().err


def test_the_log_of_a_run_is_printed_by_the_command_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe,) = recipes.find_recipe("ten-seconds")
    recipe = override((recipe,), QUICK, prog="test")[0]
    loop.train((recipe,), tmp_path / "library")
    assert capsys.readouterr() == ("", "")
    assert run("train", "ten-seconds", "--out", tmp_path / "command", *QUICK) == 0
    assert "step 3/3  loss " in capsys.readouterr().err
    assert logging.getLogger("dualfuse").handlers == []


def test_stopped_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("train", "ten-seconds", "--out", tmp_path / "out", *QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "seed_step", at_step(0, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert run(*command) == 143
    assert "interrupted: stopped after step 1" in capsys.readouterr().err
    assert run(*command) == 0
    assert [line["step"] for line in read_log(tmp_path / "out")] == [1, 2, 3]


def test_in_a_process_of_its_own(tmp_path: Path, trained: Path) -> None:
    """The weights are the same as in this process, which has trained other models before."""
    command = [sys.executable, "-m", "dualfuse", "train", "ten-seconds", "--out", str(tmp_path), *QUICK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"model: {tmp_path / 'final'}\n"), done.stderr
    one, other = (load_file(out / "final" / "model.safetensors") for out in (tmp_path, trained))
    assert all((one[name] == other[name]).all() for name in one)


def test_a_reader_of_the_output_that_goes_away_does_not_end_training(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as after `| head -1`, or when a connection is lost

    def train() -> None:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        assert run("train", "ten-seconds", "--out", tmp_path, *QUICK) == 0
        sys.stdout.flush()  # as at the end of a process
        sys.stderr.flush()

    assert in_a_process(train) == 0
    os.close(writer)
    assert (tmp_path / "final" / "model.safetensors").is_file()
