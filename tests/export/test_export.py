"""Model folders of checkpoints, and of averages of several."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import BRIDGETOWER, changed, samples, shards

from dualfuse import hub
from dualfuse.cli import main as cli
from dualfuse.errors import DualfuseError
from dualfuse.export.average import average
from dualfuse.export.export import export
from dualfuse.recipe import Recipe, Towers, TowerTraining
from dualfuse.tensor_files import PICKLES, read_weights
from dualfuse.training import loop


@pytest.fixture(scope="module")
def run(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    loop.train((changed(tiny, steps=3, save_every=1, keep_last=3),), out)
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    found = tensors(folder)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_export_of_a_run_and_of_a_checkpoint(run: Path, tmp_path: Path) -> None:
    newest = export(run)
    assert newest == run / "exported" / "step-00000003"
    assert_equal(newest, tensors(run / "final"))
    earlier = export(run, tmp_path / "two", step=2)
    assert_equal(earlier, tensors(run / "checkpoints" / "step-00000002"))
    assert json.loads((earlier / "step.json").read_text()) == {"step": 2}
    assert len(json.loads((earlier / "provenance.json").read_text())["training"]) == 1
    assert (earlier / "README.md").is_file() and hub.load(earlier).task
    with pytest.raises(DualfuseError, match=r"no checkpoint of step 7; its steps are 1, 2, 3"):
        export(run, step=7)
    with pytest.raises(DualfuseError, match="neither the folder of a run"):
        export(tmp_path)
    assert not (tmp_path / "exported").exists()


def test_export_keeps_files_of_the_user(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(DualfuseError, match=r"holds model.safetensors, notes.txt.*--force"):
        export(run, tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "mine"
    export(run, tmp_path, force=True)
    assert_equal(tmp_path, tensors(run / "final"))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    own = export(run, tmp_path / "own")
    export(run, own, step=1)  # an earlier export, replaced as a whole
    (own / "README.md").write_text("edited")
    with pytest.raises(DualfuseError, match=r"README.md changed since"):
        export(run, own)
    with pytest.raises(DualfuseError, match="would replace"):
        export(run, run / "checkpoints", force=True)


def test_average_is_the_mean(run: Path, tmp_path: Path) -> None:
    paths = [run / "checkpoints" / f"step-{step:08d}" for step in (1, 2, 3)]
    first, second, third = map(tensors, paths)
    expected = {
        name: torch.from_numpy(
            ((first[name].double().numpy() + second[name].double().numpy() + third[name].double().numpy()) / 3).astype(
                "float32"
            )
        )
        for name in first
    }
    assert_equal(average(paths, tmp_path / "of paths"), expected)
    assert_equal(average([run], tmp_path / "of a run", last=3), expected)
    assert "mean of those of the models" in (tmp_path / "of a run" / "README.md").read_text()
    with pytest.raises(DualfuseError, match=r"has 3 checkpoints \(steps 1, 2, 3\), not 5"):
        average([run], tmp_path / "five", last=5)
    with pytest.raises(DualfuseError, match="at least 2"):
        average(paths[:1], tmp_path / "one")


def test_average_adds_in_double_precision_and_takes_counters_of_the_last(run: Path, tmp_path: Path) -> None:
    """In float32, 1 is lost beside 2**25."""
    content = tensors(run / "final")
    name = next(iter(content))
    folders = []
    for number, value in enumerate((2.0**25, 1.0, -(2.0**25), 3.0)):
        folder = tmp_path / str(number)
        shutil.copytree(run / "final", folder)
        (folder / "checksums.json").unlink()
        save_file(content | {name: torch.full_like(content[name], value)}, folder / "model.safetensors")
        folders.append(folder)
    assert torch.equal(tensors(average(folders, tmp_path / "mean"))[name], torch.ones_like(content[name]))
    from dualfuse.export import average as module

    for number, folder in enumerate(folders):
        save_file({"w": torch.ones(2), "count": torch.tensor(number)}, folder / "model.safetensors")
    assert int(module.mean(folders)["count"]) == 3


def test_average_refuses_other_models(tiny: Recipe, run: Path, tmp_path: Path) -> None:
    def edited(name: str, **changes: torch.Tensor | None) -> Path:
        folder = tmp_path / name
        shutil.copytree(run / "final", folder)
        (folder / "checksums.json").unlink()
        content = {key: value for key, value in (tensors(folder) | changes).items() if value is not None}
        save_file(content, folder / "model.safetensors")
        return folder

    name = "mlm_head.decoder.bias"
    with pytest.raises(DualfuseError, match=rf"the tensor {name} is \(19,\) torch.float32 in .*missing in .*less"):
        average([edited("less", **{name: None}), run / "final"], tmp_path / "out")
    with pytest.raises(DualfuseError, match=rf"tensor {name} is \(19,\) .* and \(3,\) torch.float32 in .*short"):
        average([edited("short", **{name: torch.ones(3)}), run / "final"], tmp_path / "out")
    loop.train((changed(tiny, steps=1, depth=3),), tmp_path / "deep")
    with pytest.raises(DualfuseError, match=r"different recipes: model.depth is 3 in .* and 2 in"):
        average([tmp_path / "deep" / "final", run / "final"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["checkpoints/step-00000003", "."])
def test_every_command_takes_checkpoints_and_runs(
    tiny: Recipe, run: Path, tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And gives the results of the model folder; ``.`` is the run, whose final model it names."""
    images = tmp_path / "images"
    images.mkdir()
    for sample in samples(3):
        (images / f"{sample.key}.png").write_bytes(sample.image)
    data, image = shards(tmp_path / "data", 8, "test"), str(images / "000.png")

    def outputs(model: Path) -> list[str]:
        commands = (
            ["evaluate", str(model), data, "--num-workers", "0"],
            ["predict", str(model), "--image", image, "--text", "a red cat"],
            ["search", str(model), str(images), "a red cat"],
            ["explain", str(model), "--image", image, "--text", "cat", "--save-image", f"{tmp_path}/e.png", "--force"],
        )
        printed = []
        for command in commands:
            assert cli.main(command) == 0, capsys.readouterr().err
            printed.append(capsys.readouterr().out)
        return printed

    expected = outputs(run / "final")
    assert outputs(run / where) == expected
    if where == ".":
        assert cli.main(["evaluate", str(run), data, "--num-workers", "0"]) == 0
        assert f"{run}: its model is {run / 'final'}, after 3 steps" in capsys.readouterr().err
    assert cli.main(["card", str(run / where)]) == 0
    flags = ["--data.train", tiny.data.train[0], "--run.steps", "1"]
    assert cli.main(["train", str(run / where), "--out", str(tmp_path / "t"), *flags]) == 0
    converted = [tmp_path / name for name in ("of the model", "of the run")]
    for source, out in zip((run / "final", run / where), converted, strict=True):
        assert cli.main(["convert", str(source), str(out), "--to", "official"]) == 0, capsys.readouterr().err
    first, second = (
        read_weights(next(each for each in out.iterdir() if each.suffix in PICKLES)).tensors for out in converted
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_lora_is_merged(tiny: Recipe, tmp_path: Path) -> None:
    towers = Towers(text=TowerTraining(mode="lora", rank=2))
    adapted = replace(tiny, model=BRIDGETOWER, towers=towers, run=replace(tiny.run, steps=2))
    loop.train((adapted,), tmp_path)
    assert any("lora_a" in name for name in tensors(tmp_path / "checkpoints" / "step-00000002"))
    assert_equal(export(tmp_path), tensors(tmp_path / "final"))
