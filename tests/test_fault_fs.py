"""ENOSPC, EIO or a kill at every change of the disk: the old state or the new one is left, and the cause is named."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tiny as tiny_helpers
import torch
from fault_fs import FAULTS, KILL, count_changes, run_with_fault, tree
from tiny import changed, png_image

from dualfuse import hub
from dualfuse.convert.convert import convert
from dualfuse.hub import LoadedModel
from dualfuse.prepare import output_folder
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.recipe import Recipe
from dualfuse.search.index import Index
from dualfuse.training import loop

SPREAD = 2
"""Points of each command in the default suite; the slow test takes all."""
CLOCKS = re.compile(rb'"seconds\w*": [-+.e\d]+|"state.json": "\w+"')
"""Times in the state of a checkpoint, and its checksum."""
Tree = dict[str, bytes]


@dataclass(frozen=True)
class Command:
    """A command that writes below a folder, and what may be there when it was interrupted."""

    name: str
    run: Callable[[Path], object]
    begin: Callable[[Path], object] = lambda _: None
    """Writes the old state."""
    whole: tuple[str, ...] = ()
    """Patterns of files that are absent, old or complete at any moment; other files may be unfinished."""
    together: tuple[str, ...] = ()
    """Patterns of folders whose files are all of the old state or all of the new one."""
    volatile: tuple[str, ...] = ()
    """Patterns of files that hold times."""
    anywhere: str = ""
    """Pattern of a file that may be in one folder or another."""
    may_succeed: bool = False
    """Whether the command does without a file that cannot be written."""
    intermediate: Tree = field(default_factory=dict)
    """Complete files that only an interrupted command leaves."""


def stable(root: Path, command: Command) -> Tree:
    """Return the files that equal those of an undisturbed run."""
    files = {name: data for name, data in tree(root).items() if not any(map(Path(name).match, command.volatile))}
    return {
        command.anywhere if command.anywhere and Path(name).match(command.anywhere) else name: CLOCKS.sub(b"", data)
        for name, data in files.items()
    }


def check_state(command: Command, root: Path, old: Tree, new: Tree) -> None:
    """Every complete file has its old or its new content, and folders are of one piece."""
    now = stable(root, command)
    for name, data in now.items():
        if any(map(Path(name).match, command.whole)) and ".partial" not in name:
            assert data in (old.get(name), new.get(name), command.intermediate.get(name)), f"{name} is unfinished"
    for pattern in command.together:
        for folder in filter(Path.is_dir, root.glob(pattern)):
            prefix = f"{folder.relative_to(root).as_posix()}/"
            part = {name: data for name, data in now.items() if name.startswith(prefix)}
            states = [
                {k: v for k, v in state.items() if k.startswith(prefix)} for state in (old, new, command.intermediate)
            ]
            assert part in states, f"{folder} holds {sorted(part)}"
    for name in old:  # what was there is there, or its successor
        assert name in now or name not in new, f"{name} is gone"


def survive(command: Command, folder: Path, step: Callable[[int], range]) -> int:
    """Inject faults of all kinds at the points that ``step`` chooses, and return the number of changes."""
    folder.mkdir()
    start, whole, root = folder / "start", folder / "whole", folder / "root"
    start.mkdir()
    command.begin(start)
    shutil.copytree(start, root)
    changes = count_changes(lambda: command.run(root), root)
    shutil.copytree(root, whole)
    old, new = stable(start, command), stable(whole, command)
    for number, at in enumerate(step(len(changes))):
        errors = list(FAULTS)
        for fault in (errors[number % len(errors)], KILL):
            point = f"{command.name}: {fault} at change {at} of {len(changes)}, {changes[at - 1]}"
            shutil.rmtree(root)
            shutil.copytree(start, root)
            try:
                message = run_with_fault(lambda: command.run(root), root, fault, at)
                check_state(command, root, old, new)
                if message is None:
                    assert fault != KILL, "the process was not killed"
                    assert command.may_succeed or changes[at - 1].split()[0] in ("unlink", "rmdir"), "no error"
                elif fault != KILL:
                    assert os.strerror(FAULTS[fault]) in message and str(root) in message, message
                    assert message.startswith("OSError"), message
                    leftovers = [name for name in tree(root) if ".partial" in name or name.endswith(".lock")]
                    assert not leftovers, leftovers
                command.run(root)
                assert stable(root, command) == new, sorted(set(stable(root, command)) ^ set(new))
            except BaseException as error:
                error.add_note(point)
                raise
    return len(changes)


def every(count: int) -> range:
    return range(1, count + 1)


def some(count: int) -> range:
    """Return about ``SPREAD`` points, others for every number of changes."""
    stride = max(1, count // SPREAD)
    return range(1 + count % stride, count + 1, stride)


@pytest.fixture(scope="module")
def commands(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    base = tmp_path_factory.mktemp("sources")
    tempfile.tempdir = str(base)
    return {
        command.name: command for command in (_train(tiny, base), _prepare(base), _search(tiny, base), *_converts(base))
    }


def _train(tiny: Recipe, base: Path) -> Command:
    recipe = changed(tiny, steps=2, save_every=1, log_every=1, keep_last=1)
    loop.train((changed(recipe, keep_last=2),), base / "run" / "out")
    return Command(
        "train",
        lambda root: loop.train((recipe,), root / "out"),
        whole=("out/*.json", "*.safetensors", "final/*", "step-*/*"),
        together=("out/final", "out/checkpoints/step-????????"),
        volatile=("log.jsonl", "out/provenance.json"),
        intermediate={
            name: CLOCKS.sub(b"", data) for name, data in tree(base / "run").items() if "step-00000001" in name
        },
    )


def _prepare(base: Path) -> Command:
    source = base / "images"
    source.mkdir()
    for number in range(6):
        (source / f"{number}.png").write_bytes(png_image(number, 8) if number != 3 else b"damaged")
        (source / f"{number}.txt").write_text("a cat\na dog\n")
    options = PrepareOptions(num_workers=1, shard_samples=2, split="val=0.3")
    return Command(
        "prepare",
        lambda root: prepare(source, root / "out", options),
        whole=("*.tar", "prepared.json"),
        volatile=("*.index.npz",),
        may_succeed=True,  # without the index of a tar
    )


def _search(tiny: Recipe, base: Path) -> Command:
    model = hub.save(base / "model", tiny.build().eval(), tiny)
    loaded: list[LoadedModel] = [hub.load(model)]

    def begin(root: Path) -> None:
        (root / "images").mkdir()
        for number in range(5):
            (root / "images" / f"{number}.png").write_bytes(png_image(number, 8))
            os.utime(root / "images" / f"{number}.png", (0, 0))

    return Command(
        "search",
        lambda root: Index.build(loaded[0], root / "images", batch_size=2),
        begin,
        volatile=("*.index/*",),  # tests/search/test_exact_store.py reads what is left
        may_succeed=True,
    )


def _converts(base: Path) -> tuple[Command, ...]:
    recipe = replace(
        tiny_helpers.recipe(base / "bridgetower"),
        model=replace(tiny_helpers.BRIDGETOWER, width=64, heads=2, feed_forward=64),
    )
    task = recipe.build()
    model = hub.save(base / "bridgetower" / "model", task, recipe)
    with torch.no_grad():
        next(task.parameters()).add_(1)
    earlier = hub.save(base / "bridgetower" / "earlier", task, recipe)
    convert(model, base / "huggingface", to="huggingface")
    convert(earlier, base / "huggingface-earlier", to="huggingface")
    vlmo = hub.save(base / "vlmo", (own := tiny_helpers.recipe(base / "own")).build(), own)

    def command(name: str, source: Path, before: Path | None = None, **options: str) -> Command:
        return Command(
            name,
            lambda root: convert(source, root / "out", **options),
            begin=lambda root: convert(before, root / "out", **options) if before else None,
            together=("out",),
        )

    return (
        command("convert to dualfuse", base / "huggingface"),
        command("convert to dualfuse again", base / "huggingface", base / "huggingface-earlier"),
        command("convert to huggingface again", model, earlier, to="huggingface"),
        command("convert to a pickle", vlmo, to="official"),
    )


NAMES = (
    "train",
    "prepare",
    "search",
    "convert to dualfuse",
    "convert to dualfuse again",
    "convert to huggingface again",
    "convert to a pickle",
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Save progress often, keep caches below the folder of a command, and do not wait for the disk of this machine."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(output_folder, "SAVE_EVERY", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "faults" / "root" / "cache"))


@pytest.mark.parametrize("name", ("train", "prepare", "search", "convert to dualfuse again"))
def test_a_fault_leaves_the_old_or_the_new_state(
    name: str, commands: dict[str, Command], tmp_path: Path, quick: None
) -> None:
    assert survive(commands[name], tmp_path / "faults", some) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_fault_at_every_change(name: str, commands: dict[str, Command], tmp_path: Path, quick: None) -> None:
    survive(commands[name], tmp_path / "faults", every)
