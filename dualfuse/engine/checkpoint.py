"""Checkpoints: weights, optimiser state and step in a folder that is there as a whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
PARTIAL = ".partial"


@dataclass(frozen=True)
class State:
    """What state.json holds: the step, the file sizes in bytes, the names of the trained parameters, and extras."""

    step: int
    sizes: dict[str, int]
    trained: list[str]
    extra: dict[str, JSON]


def save(
    folder: Path,
    step: int,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, JSON],
    keep: int,
) -> Path:
    """Writes ``folder``/step-00000100 and removes all but the ``keep`` newest; gives its path.

    Everything is first written and synced to disk under another name, so a process killed at any moment leaves the
    earlier checkpoints as they were. ``extra`` comes back from :func:`restore`.
    """
    if keep < 1:
        raise ValueError(f"run.keep is {keep}, but the newest checkpoint is always kept; set it to 1 or more")
    target = folder / f"step-{step:08d}"
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # left by a kill
    partial.mkdir(parents=True)
    safetensors.torch.save_file(_apart(task.state_dict()), partial / MODEL)
    safetensors.torch.save_file(_apart(_moments(task, optimizer)), partial / OPTIMIZER)
    sizes = {name: (partial / name).stat().st_size for name in (MODEL, OPTIMIZER)}
    state = State(step, sizes, list(_names(task, optimizer).values()), dict(extra))
    (partial / STATE).write_text(json.dumps(asdict(state), indent=1) + "\n")
    for path in (partial / MODEL, partial / OPTIMIZER, partial / STATE, partial):
        _sync(path)
    if target.exists():  # the same step once more, by a run that was started anew
        _set_aside(target)
    os.replace(partial, target)
    _sync(folder)
    _tidy(folder, target, keep)
    return target


def latest(folder: Path) -> Path | None:
    """Gives the newest complete checkpoint in ``folder``, or None."""
    found = _complete(folder)
    return found[-1] if found else None


def restore(path: Path, task: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, JSON]]:
    """Loads the checkpoint ``path`` into ``task`` and ``optimizer``; gives its step and what ``save`` got as extra.

    Nothing is changed before all three files are known to be whole and to fit. The optimiser keeps its own
    settings (decay, betas); what comes from the file is its moments. Raises ``ValueError`` otherwise.
    """
    state = _read_state(path)
    weights, moments = _read_tensors(path / MODEL, state), _read_tensors(path / OPTIMIZER, state)
    _compare(path / MODEL, _forms(weights), _forms(task.state_dict()))
    names = _names(task, optimizer)
    _compare(path / STATE, dict.fromkeys(state.trained, "trained"), dict.fromkeys(names.values(), "trained"))
    numbers = {name: number for number, name in enumerate(names.values())}
    numbered: dict[int, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        name, _, field = key.removeprefix("optimizer.").rpartition(".")
        # load_file maps the file into memory: a copy lets a deleted checkpoint go
        numbered.setdefault(numbers[name], {})[field] = tensor.clone()
    task.load_state_dict(weights)
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
    return state.step, state.extra


def describe(path: Path) -> str:
    """Says what a file is that should have held tensors, in words that complete "it is …"."""
    if not path.exists():
        return "not there"
    if path.is_dir():
        return "a folder"
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    kinds = (
        (not head, "an empty file"),
        (head.startswith(b"version https://git-lfs"), "a git-lfs pointer, not the file itself (run: git lfs pull)"),
        (head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")), "an HTML page (a login or error page?)"),
        (head.startswith(b"PK\x03\x04"), "a zip archive, as torch.save writes"),
        (re.match(rb"\x80[\x02-\x05]", head), "a Python pickle, as older torch.save wrote"),
        (head[257:262] == b"ustar", "a tar archive"),
        (head.startswith(b"\x1f\x8b"), "a gzip archive"),
    )
    for fits, words in kinds:
        if fits:
            return f"{words} ({size} bytes)"
    return _describe_safetensors(path, head, size)


def _describe_safetensors(path: Path, head: bytes, size: int) -> str:
    """A safetensors file is the length of its header (8 bytes), the header (JSON), and the numbers."""
    length = int.from_bytes(head[:8], "little")
    if not head[8:].startswith(b"{"):
        return f"truncated or not a safetensors file ({size} bytes)"
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(8 + min(length, size))[8:])
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError):
        return f"a truncated or damaged safetensors file ({size} bytes)"
    whole = 8 + length + end
    return f"a {'' if size == whole else 'truncated '}safetensors file ({size} of {whole} bytes)"


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives tensors that share no memory: safetensors refuses tied weights and views."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


def _names(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    """Gives the optimiser's parameters with their names, in its own order."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in task.named_parameters()}
    return {parameter: names[parameter] for group in optimizer.param_groups for parameter in group["params"]}


def _moments(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Gives the optimiser's tensors by name; a parameter that never had a gradient has none."""
    return {
        f"optimizer.{name}.{field}": value
        for parameter, name in _names(task, optimizer).items()
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def _read_state(path: Path) -> State:
    try:
        return State(**json.loads((path / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path / STATE} is missing or not the state of a checkpoint; {_advice(path)}") from error


def _read_tensors(path: Path, state: State) -> dict[str, Tensor]:
    size = state.sizes.get(path.name, 0)
    if path.is_file() and path.stat().st_size == size:
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError:
            pass  # described below
    raise ValueError(f"{path} is {describe(path)}, but {size} bytes were saved; {_advice(path.parent)}")


def _advice(path: Path) -> str:
    earlier = [other for other in _complete(path.parent) if _number(other) < _number(path)]
    if earlier:
        return f"delete the folder {path} to resume from {earlier[-1].name}"
    return f"there is no earlier one: delete the folder {path} to start from the beginning"


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()}


def _compare(path: Path, given: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises ``ValueError`` with all differences between a file and the recipe's task."""
    lines = (
        *(f"missing in the file: {name}" for name in wanted if name not in given),
        *(f"not in the recipe's task: {name}" for name in given if name not in wanted),
        *(
            f"{name} is {given[name]} in the file, {form} in the recipe's task"
            for name, form in wanted.items()
            if name in given and given[name] != form
        ),
    )
    if lines:
        shown = "\n  ".join((*lines[:10], *([f"and {len(lines) - 10} more"] if len(lines) > 10 else [])))
        raise ValueError(
            f"{path} does not fit the recipe; resume with the recipe that wrote it, or train into another folder:\n"
            f"  {shown}"
        )


def _complete(folder: Path) -> list[Path]:
    """Gives the complete checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step-*") if _number(path) >= 0), key=_number)


def _number(path: Path) -> int:
    match = re.fullmatch(r"step-(\d+)", path.name)
    return int(match[1]) if match else -1


def _set_aside(path: Path) -> None:
    """Marks a checkpoint as unfinished: one that is removed by half must not look complete."""
    aside = path.with_name(path.name + ".old" + PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)


def _tidy(folder: Path, target: Path, keep: int) -> None:
    others = [path for path in _complete(folder) if path != target]
    for path in others[: max(0, len(others) - (keep - 1))]:
        _set_aside(path)
    for path in folder.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
