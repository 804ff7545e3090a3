from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dualfuse.recipe import Optim
from dualfuse.tensor_files import describe_file, load_tensors, save_tensors
from dualfuse.training.checkpoint import latest, restore, save
from dualfuse.training.optim import build_optimizer


class Tiny(nn.Module):
    """What makes trouble: tied weights, a parameter without gradient, a buffer, bfloat16, a turned matrix."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(6, width)
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, 6)
        self.decoder.weight = self.words.weight
        self.never = nn.Parameter(torch.ones(2))
        self.brief = nn.Linear(width, width, dtype=torch.bfloat16)
        self.turned = nn.Parameter(torch.arange(6.0).view(2, 3).t())
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.words(ids)) + self.turned.sum()
        return self.decoder(self.brief(x.bfloat16()).float()).square().mean()


def _start(seed: int = 0, adamw: str = "torch") -> tuple[Tiny, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    task = Tiny()
    return task, build_optimizer(task, Optim(lr=0.1, adamw=adamw))


def _train(task: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        task(torch.randint(6, (5,), generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step()


def _bytes(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, bytes]:
    tensors = dict(task.state_dict())
    for name, parameter in task.named_parameters():
        tensors |= {f"{name}.{field}": value for field, value in optimizer.state.get(parameter, {}).items()}
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("adamw", ["torch", "official"])
def test_ten_steps_equal_five_and_five(tmp_path: Path, adamw: str) -> None:
    whole = _start(adamw=adamw)
    _train(*whole, range(10))
    first = _start(adamw=adamw)
    _train(*first, range(5))
    path = save(tmp_path / "out", 5, *first, {"counts": {"samples": 25}, "seed": 1}, 2)
    second = _start(seed=1, adamw=adamw)
    assert restore(path, *second) == (5, {"counts": {"samples": 25}, "seed": 1})
    assert _bytes(*second) == _bytes(*first)
    _train(*second, range(5, 10))
    assert _bytes(*second) == _bytes(*whole)
    assert _bytes(*second) != _bytes(*first)
    assert second[0].decoder.weight is second[0].words.weight
    assert second[0].brief.weight.dtype == torch.bfloat16


def test_restore_keeps_the_optimizer_settings_of_the_recipe(tmp_path: Path) -> None:
    task, optimizer = _start()
    _train(task, optimizer, range(2))
    path = save(tmp_path, 2, task, optimizer, {}, 1)
    other = build_optimizer(task, Optim(decay_rule="official", weight_decay=0.3))
    restore(path, task, other)
    assert [group["weight_decay"] for group in other.param_groups] == [0.3, 0]
    assert torch.equal(other.state[task.norm.weight]["exp_avg"], optimizer.state[task.norm.weight]["exp_avg"])


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    assert latest(tmp_path / "nothing") is None
    start = _start()
    (tmp_path / "step-final").mkdir()
    for step in (8, 10, 99_999_999, 100_000_000, 99_999_999):
        path = save(tmp_path, step, *start, {"step": step}, 2)
        assert path.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"step-99999999", "step-100000000", "step-final"}
    assert latest(tmp_path) == tmp_path / "step-100000000"
    with pytest.raises(ValueError, match=r"run\.keep_last is 0"):
        save(tmp_path, 11, *start, {}, 0)


def test_checkpoint_of_an_older_step_is_kept(tmp_path: Path) -> None:
    start = _start()
    for step in (10, 20):
        save(tmp_path, step, *start, {}, 1)
    assert list(tmp_path.iterdir()) == [tmp_path / "step-00000020"]
    path = save(tmp_path, 5, *start, {}, 1)
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, sys
from pathlib import Path
import safetensors.torch
import torch
from torch import nn
from dualfuse.training import checkpoint

torch.set_num_threads(1)
whole_save, whole_replace, whole_remove = safetensors.torch.save_file, os.replace, checkpoint.shutil.rmtree

def kill(*_, **__):
    os.kill(os.getpid(), 9)

def half_of(name):
    def save_file(tensors, path, metadata):
        whole_save(tensors, path)
        if path.name == name:
            os.truncate(path, path.stat().st_size // 2)
            kill()
    safetensors.torch.save_file = save_file

def half_removed(path, **_):
    if path.exists():
        (path / "model.safetensors").unlink()
        kill()

def die(place):
    if place in ("model", "optimizer"):
        half_of(place + ".safetensors")
    elif place == "state":
        Path.write_text = kill
    elif place == "replace":
        os.replace = kill
    elif place == "remove":
        checkpoint.shutil.rmtree = half_removed

task = nn.Linear(3, 3)
optimizer = torch.optim.AdamW(task.parameters())
task(torch.ones(1, 3)).sum().backward()
optimizer.step()
for place in sys.argv[2:]:
    child = os.fork()
    if not child:
        folder = Path(sys.argv[1]) / place
        for step in range(1, 10):
            if step == 3:
                die(place)
            checkpoint.save(folder, step, task, optimizer, {"step": step}, 2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9, place
"""


@pytest.mark.slow
def test_kill_at_any_moment_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    places = ("model", "optimizer", "state", "replace", "remove")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *places], check=True)
    for place in places:
        folder = tmp_path / place
        assert len(list(folder.glob("*.partial"))) == 1
        path = latest(folder)
        assert path is not None
        task = nn.Linear(3, 3)
        optimizer = torch.optim.AdamW(task.parameters())
        step, extra = restore(path, task, optimizer)
        assert step == extra["step"] == (3 if place == "remove" else 2)
        save(folder, 3, task, optimizer, {}, 2)
        assert {path.name for path in folder.iterdir()} == {"step-00000002", "step-00000003"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    start = _start()
    _train(*start, range(1))
    save(tmp_path, 50, *start, {}, 2)
    return save(tmp_path, 100, *start, {}, 2)


def _fails(path: Path, *words: str) -> None:
    start = _start(seed=1)
    before = _bytes(*start)
    with pytest.raises(ValueError) as error:
        restore(path, *start)
    assert not [word for word in words if word not in str(error.value)], str(error.value)
    assert _bytes(*start) == before


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_damaged_files_are_named(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    advice = f"delete the folder {saved} to resume from step-00000050"
    (saved / name).write_bytes(whole[:12])
    _fails(saved, name, "a truncated or damaged safetensors file (12 bytes)", advice)
    (saved / name).write_bytes(whole[:-1])
    _fails(saved, f"a truncated safetensors file ({len(whole) - 1} of {len(whole)} bytes)", advice)
    (saved / name).write_bytes(b"?" * len(whole))
    _fails(saved, "truncated or not a safetensors file", advice)
    (saved / name).unlink()
    _fails(saved, "is not there", advice)


def test_file_of_another_checkpoint_is_named(saved: Path) -> None:
    size = (saved / "optimizer.safetensors").stat().st_size
    save_file({}, saved / "optimizer.safetensors")
    _fails(saved, "optimizer.safetensors is a safetensors file", f"not {size} bytes as saved")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_flipped_bits_are_named(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[content.index(b"100") if name == "state.json" else -7] ^= 4
    (saved / name).write_bytes(content)
    _fails(
        saved,
        f"{saved / name} has another content",
        "flipped",
        f"delete the folder {saved} to resume from step-00000050",
    )
    (saved / "checksums.json").unlink()  # a checkpoint of an earlier version
    restore(saved, *_start())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 3}'])
def test_damaged_state_is_named(saved: Path, text: str) -> None:
    (saved / "state.json").write_text(text)
    _fails(saved, "state.json is missing or not the state of a checkpoint", "to resume from step-00000050")
    earlier = saved.with_name("step-00000050")
    (earlier / "state.json").unlink()
    _fails(earlier, "there is no earlier checkpoint", f"delete the folder {earlier} to start from the beginning")


def test_another_task_is_refused_with_all_differences(saved: Path) -> None:
    task = Tiny(width=5)
    task.never = None
    task.more = nn.Parameter(torch.zeros(2))
    task.brief.float()
    with pytest.raises(ValueError) as error:
        restore(saved, task, build_optimizer(task, Optim()))
    text = str(error.value)
    assert "missing in the file: more" in text
    assert "not in the recipe's task: never" in text
    assert "words.weight is (6, 4) torch.float32 in the file, (6, 5) torch.float32 in the recipe's task" in text
    assert "brief.weight is (4, 4) torch.bfloat16 in the file, (5, 5) torch.float32" in text


def test_other_trained_parameters_are_refused(saved: Path) -> None:
    task, _ = _start()
    task.norm.weight.requires_grad = False
    with pytest.raises(ValueError, match=r"(?s)state.json does not fit.*not in the recipe's task: norm.weight"):
        restore(saved, task, build_optimizer(task, Optim()))


def test_state_is_small_and_readable(saved: Path) -> None:
    state = json.loads((saved / "state.json").read_text())
    assert state["step"] == 100
    assert state["sizes"]["model.safetensors"] == (saved / "model.safetensors").stat().st_size
    assert "never" in state["trained"] and "mean" not in state["trained"]


def test_describe_file(tmp_path: Path, saved: Path) -> None:
    def described(content: bytes) -> str:
        path = tmp_path / "file"
        path.write_bytes(content)
        return describe_file(path)

    torch.save({}, tmp_path / "model.pt")
    assert describe_file(tmp_path / "model.pt").startswith("a zip archive, as torch.save writes")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("a", "b")
    assert describe_file(tmp_path / "empty.zip").startswith("a zip archive")
    torch.save({}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert describe_file(tmp_path / "old.pt").startswith("a Python pickle")
    assert described(b"") == "an empty file (0 bytes)"
    assert described(b"\n<!DOCTYPE html><p>log in").startswith("an HTML page")
    assert described(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n").startswith(
        "a git-lfs pointer"
    )
    assert described(b"hello") == "truncated or not a safetensors file (5 bytes)"
    size = (saved / "model.safetensors").stat().st_size
    assert describe_file(saved / "model.safetensors") == f"a safetensors file ({size} of {size} bytes)"
    assert describe_file(saved) == "a folder"
    assert describe_file(tmp_path / "nowhere") == "not there"


class TiedNet(nn.Module):
    """A decoder that shares the weight of the embedding, as in many language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(7, 3), nn.Linear(3, 7)
        self.decoder.weight = self.embedding.weight


def test_tied_weights_are_stored_once_and_restored(tmp_path: Path) -> None:
    net = TiedNet()
    optimizer = build_optimizer(net, Optim())
    net.decoder(net.embedding(torch.arange(7))).square().sum().backward()
    optimizer.step()
    path = save(tmp_path, 1, net, optimizer, {}, keep=1)
    assert set(load_file(path / "model.safetensors")) == {"embedding.weight", "decoder.bias"}
    other = TiedNet()
    restore(path, other, build_optimizer(other, Optim()))
    assert other.decoder.weight is other.embedding.weight and torch.equal(other.decoder.weight, net.decoder.weight)


def test_tied_tensors_are_loaded_under_each_name_and_views_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    tensors = {"whole": whole, "tied": whole, "row": whole[1], "turned": whole.T, "none": torch.zeros(0), "0": whole[0]}
    save_tensors(tensors, tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == tensors.keys() - {"tied"}
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("ties", ["[", "[1]", '{"a": "b"}'])
def test_damaged_ties_are_refused(tmp_path: Path, ties: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", {"tied": ties})
    with pytest.raises(ValueError):
        load_tensors(tmp_path / "a.safetensors")
