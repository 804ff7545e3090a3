"""Checkpoints: weights, optimiser state and step in a folder that is there as a whole or not at all.

Those of a task that is shared out among processes are written by ``sharded_checkpoint``, and read here as well.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse import upgrade
from dualfuse.errors import DualfuseError
from dualfuse.io import PARTIAL, atomic_folder, listing, remove_folder, replace_folder, write_json
from dualfuse.tensor_files import describe_file

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
SHARDS, OF_OPTIMIZER = "shards", "optimizer."
NO_ROOM = (
    "Earlier checkpoints are whole. Make room for run.keep_last + 1 checkpoints (--run.keep-last 1 keeps the fewest), "
    "then run the same command again: it resumes from the newest"
)


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
    """Write ``folder``/step-00000100 and removes all but the ``keep`` newest; gives its path.

    Everything is first written and synced to disk under another name, so a process killed at any moment leaves the
    earlier checkpoints as they were. ``extra`` comes back from :func:`restore`.
    """
    target = _target(folder, step, keep)
    weights, moments = _apart(task.state_dict()), _apart(moments_of(task, optimizer))
    with atomic_folder(target, (*weights.values(), *moments.values()), NO_ROOM) as partial:
        safetensors.torch.save_file(weights, partial / MODEL)
        safetensors.torch.save_file(moments, partial / OPTIMIZER)
        describe_state(partial, step, trained(task, optimizer), extra)
    _tidy(target, keep)
    return target


def _target(folder: Path, step: int, keep: int) -> Path:
    if keep < 1:
        raise DualfuseError(f"run.keep_last is {keep}, but the newest checkpoint is always kept; set it to 1 or more")
    return folder / f"step-{step:08d}"


def begin(folder: Path, step: int, keep: int) -> Path:
    """Return the path that a checkpoint is written to until :func:`complete`; what a kill left there is removed."""
    target = _target(folder, step, keep)
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def describe_state(partial: Path, step: int, names: list[str], extra: Mapping[str, JSON]) -> None:
    """Write state.json beside the tensors of ``partial``."""
    files = [path for path in partial.rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
    write_json(partial / STATE, asdict(State(step, sizes, names, dict(extra))))


def complete(partial: Path, keep: int) -> None:
    """Make ``partial`` the newest checkpoint and remove all but the ``keep`` newest."""
    target = partial.with_name(partial.name.removesuffix(PARTIAL))
    replace_folder(partial, target)
    _tidy(target, keep)


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in ``folder``, or None."""
    found = _complete(folder)
    return found[-1] if found else None


def restore(path: Path, task: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, JSON]]:
    """Load the checkpoint ``path`` into ``task`` and ``optimizer``; gives its step and what ``save`` got as extra.

    Nothing is changed before all files are known to be whole and to fit. The optimiser keeps its own
    settings (decay, betas); what comes from the file is its moments. Raises ``DualfuseError`` otherwise. Whether it was
    written shared out among processes, and among how many, does not matter; all processes must take part.
    """
    state = _read_state(path)
    places, names = task.state_dict(), _names(task, optimizer)
    weights, moments = _read(path, state, places)
    _compare(path / MODEL, _forms(weights), _forms(places))
    trained_names = (_current(name, places) for name in state.trained)
    _compare(path / STATE, dict.fromkeys(trained_names, "trained"), dict.fromkeys(names.values(), "trained"))
    numbers = {name: number for number, name in enumerate(names.values())}
    numbered: dict[int, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        name, field = _owner(key)
        place = places[name]
        # load_file maps the file into memory: a copy lets a deleted checkpoint go
        own = dist.distribute_like(tensor, place) if tensor.shape == place.shape else tensor
        numbered.setdefault(numbers[name], {})[field] = own.clone()
    task.load_state_dict({name: dist.distribute_like(tensor, places[name]) for name, tensor in weights.items()})
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
    return state.step, state.extra


def _read(path: Path, state: State, places: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and moments, each as a whole or shared out as the weight in ``places`` that it belongs to."""
    if not (path / SHARDS).is_dir():
        files = (_read_tensors(path / name, state) for name in (MODEL, OPTIMIZER))
        weights, moments = ({_current(name, places): tensor for name, tensor in file.items()} for file in files)
        return weights, moments
    for name, size in state.sizes.items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            raise DualfuseError(
                f"{path / name} is {describe_file(path / name)}, but {size} bytes were saved; {_advice(path)}"
            )

    def wanted(name: str, shape: torch.Size) -> Tensor | None:
        name = _current(name, places)
        place = places.get(name if name in places else _owner(name)[0])
        return place if place is not None and place.shape == shape else None

    stored = dist.read_shards(path / SHARDS, wanted)
    tensors = {_current(name, places): tensor for name, tensor in stored.items()}
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(OF_OPTIMIZER)}
    return weights, {name: tensor for name, tensor in tensors.items() if name not in weights}


def _current(key: str, places: Mapping[str, Tensor]) -> str:
    """Return the current name of a weight or of a tensor of the optimiser; files of earlier versions have others."""
    if key in places:
        return key
    if key.startswith(OF_OPTIMIZER):
        name, field = _owner(key)
        return f"{OF_OPTIMIZER}{name if name in places else upgrade.tensor_name(name)}.{field}"
    return upgrade.tensor_name(key)


def _owner(key: str) -> tuple[str, str]:
    """Return the parameter that a tensor of the optimiser belongs to, and which of its tensors it is."""
    name, _, field = key.removeprefix(OF_OPTIMIZER).rpartition(".")
    return name, field


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory: safetensors refuses tied weights and views."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


def _names(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    """Return the optimiser's parameters with their names, in its own order."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in task.named_parameters()}
    return {parameter: names[parameter] for group in optimizer.param_groups for parameter in group["params"]}


def trained(task: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the parameters that an optimiser trains, in its own order."""
    return list(_names(task, optimizer).values())


def moments_of(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's tensors by name; a parameter that never had a gradient has none."""
    return {
        f"{OF_OPTIMIZER}{name}.{field}": value
        for parameter, name in _names(task, optimizer).items()
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def _read_state(path: Path) -> State:
    try:
        return State(**json.loads((path / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DualfuseError(f"{path / STATE} is missing or not the state of a checkpoint; {_advice(path)}") from error


def _read_tensors(path: Path, state: State) -> dict[str, Tensor]:
    size = state.sizes.get(path.name, 0)
    if path.is_file() and path.stat().st_size == size:
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError:
            pass  # described below
    raise DualfuseError(f"{path} is {describe_file(path)}, but {size} bytes were saved; {_advice(path.parent)}")


def _advice(path: Path) -> str:
    earlier = [other for other in _complete(path.parent) if _number(other) < _number(path)]
    if earlier:
        return f"delete the folder {path} to resume from {earlier[-1].name}"
    return f"there is no earlier one: delete the folder {path} to start from the beginning"


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()}


def _compare(path: Path, given: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raise ``DualfuseError`` with all differences between a file and the recipe's task."""
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
        shown = listing(lines, 10, "\n  ")
        raise DualfuseError(
            f"{path} does not fit the recipe; resume with the recipe that wrote it, or train into another folder:\n"
            f"  {shown}"
        )


def _complete(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step-*") if _number(path) >= 0), key=_number)


def _number(path: Path) -> int:
    match = re.fullmatch(r"step-(\d+)", path.name)
    return int(match[1]) if match else -1


def _tidy(target: Path, keep: int) -> None:
    """Remove all checkpoints but the ``keep`` newest, counting ``target``, and what killed processes left."""
    others = [path for path in _complete(target.parent) if path != target]
    for path in others[: max(0, len(others) - (keep - 1))]:
        remove_folder(path)
    for path in target.parent.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(path)
