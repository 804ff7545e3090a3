"""Trackers: TensorBoard, and W&B and trackio on this machine alone; a broken one changes nothing."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image
from tiny import changed, lines, weights

from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.recipe import Recipe
from dualfuse.training import loop
from dualfuse.training.run_log import Log
from dualfuse.training.trackers import Trackers, open_trackers


def log_two(recipe: Recipe, folder: Path, *, start: int = 0, rate: float = 0.5) -> None:
    trackers = open_trackers(recipe, folder, start)
    with Log(folder, steps=10, start=start, trackers=trackers) as log:
        if not start:
            log.add({"loss": 2.0})
            log.write(1, lr=0.25)
        log.write(2, lr=rate)
        trackers.log_image(2, "grid", Image.new("L", (4, 2), 128))


@pytest.mark.parametrize("field", [{"tensorboard": True}, {"trackers": ("tensorboard",)}])
def test_tensorboard_gets_the_same_numbers(tiny: Recipe, tmp_path: Path, field: Mapping[str, object]) -> None:
    log_two(changed(tiny, **field), tmp_path)
    log_two(changed(tiny, **field), tmp_path, start=1, rate=0.75)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("lr")] == [(1, 0.25), (2, 0.75)]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2)]
    assert [(event.step, event.width, event.height) for event in events.Images("grid")] == [(2, 4, 2)]


@pytest.mark.slow  # its service takes seconds to start
def test_wandb_without_a_network(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_two(changed(tiny, trackers=("wandb",)), tmp_path)
    [record] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    identifier = (tmp_path / "tracker-id.txt").read_text().strip()
    assert record.name == f"run-{identifier}.wandb" and wandb.run is None
    content = record.read_bytes()
    for text in (b"dualfuse", b"loss", b"itc_weight", b"grid"):
        assert text in content


@pytest.mark.filterwarnings("ignore")
def test_trackio_on_this_machine(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    pytest.importorskip("trackio")
    log_two(changed(tiny, trackers=("trackio",)), tmp_path / "run")
    assert b"itc_weight" in b"".join(path.read_bytes() for path in (tmp_path / "trackio").glob("dualfuse*"))
    assert not capsys.readouterr().out


class Recorded:
    """A stand-in for wandb or trackio: the calls that it receives."""

    def __init__(self, name: str, *, fails: str = "") -> None:
        self.calls: list[tuple[str, object]] = []
        self.module = types.ModuleType(name)
        for method in ("init", "log", "finish"):
            setattr(self.module, method, self.method(method, fails=method == fails))
        self.module.Settings = dict  # type: ignore[attr-defined]
        self.module.Image = lambda image: image.size  # type: ignore[attr-defined]

    def method(self, name: str, *, fails: bool) -> object:
        def call(*values: object, **options: object) -> None:
            self.calls.append((name, (*values, options)))
            if fails:
                raise ConnectionError("the server is away\nfor long")

        return call


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_calls_and_the_identifier_of_a_resumed_run(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recorded, recipe = Recorded(name), changed(tiny, trackers=(name,))
    monkeypatch.setitem(sys.modules, name, recorded.module)
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "mine")
    log_two(recipe, tmp_path)
    log_two(recipe, tmp_path, start=1)
    log_two(recipe, tmp_path)
    assert [method for method, _ in recorded.calls] == 1 * (
        ["init", "log", "log", "log", "finish", "init", "log", "log", "finish", "init", "log", "log", "log", "finish"]
    )
    first, resumed, anew = (values[-1] for method, values in recorded.calls if method == "init")
    assert first == resumed and first["name"] != anew["name"]
    assert (first["project"], first["resume"]) == ("mine", "allow")
    assert first["config"]["task"]["itc_weight"] == 1.0
    numbers, options = recorded.calls[1][1]
    assert (numbers["loss"], numbers["lr"], options) == (2.0, 0.25, {"step": 1})
    assert recorded.calls[3][1] == ({"grid": (4, 2)}, {"step": 2})


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_reported_once_and_changes_nothing(
    tiny: Recipe,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: str,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Recorded("wandb", fails=fails).module)
    loop.train((changed(tiny, trackers=("wandb",)),), tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "tracker wandb has failed and is omitted from now on (the server is away); log.jsonl is complete"
    ]
    assert lines(tmp_path) == lines(whole)
    expected = weights(whole)
    assert all(tensor.equal(expected[name]) for name, tensor in weights(tmp_path).items())


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_a_tracker_that_is_not_installed(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    extra = "track" if name == "tensorboard" else name
    with pytest.raises(MissingExtraError, match=rf"pip install '.\[{extra}\]'"):
        open_trackers(changed(tiny, trackers=(name,)), tmp_path, 0)


def test_names_of_trackers_are_checked(tiny: Recipe) -> None:
    with pytest.raises(DualfuseError, match=r"run\.trackers is \('wandbb',\)"):
        changed(tiny, trackers=("wandbb",))
    assert not Trackers({})
