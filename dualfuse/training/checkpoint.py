"""Checkpoints: weights, optimizer state and step in a folder that is complete or absent.

Checkpoints of a sharded task are written by ``sharded_checkpoint``, and read here as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse import upgrade
from dualfuse.checksums import FILE, differing_files, write_checksums
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json
from dualfuse.io import PARTIAL, atomic_folder, listing, remove_folder, replace_folder, write_json
from dualfuse.run_folder import MODEL, OF_OPTIMIZER, SHARDS, STATE, checkpoints, step_of
from dualfuse.tensor_files import describe_file, load_tensors, save_tensors

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

OPTIMIZER = "optimizer.safetensors"
NO_ROOM = (
    "Earlier checkpoints are intact. Make room for run.keep_last + 1 checkpoints (--run.keep-last 1 keeps the fewest), "
    "then run the same command again: it resumes from the newest"
)


@dataclass(frozen=True)
class State:
    """The contents of state.json: step, file sizes in bytes, names of the trained parameters, and extra values."""

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
    """Write ``folder``/step-00000100, remove all but the ``keep`` newest checkpoints, and return its path.

    The checkpoint is written and synced to disk under a temporary name, so a process killed at any moment leaves the
    earlier checkpoints intact. :func:`restore` returns ``extra``.
    """
    target = _target(folder, step, keep)
    weights, moments = task.state_dict(), optimizer_tensors(task, optimizer)
    with atomic_folder(target, (*weights.values(), *moments.values()), NO_ROOM) as partial:
        save_tensors(weights, partial / MODEL)
        save_tensors(moments, partial / OPTIMIZER)
        write_state(partial, step, trained_parameters(task, optimizer), extra)
    tidy(target, keep)
    return target


def _target(folder: Path, step: int, keep: int) -> Path:
    if keep < 1:
        raise DualfuseError(f"run.keep_last is {keep}, but the newest checkpoint is always kept; set it to 1 or more")
    return folder / f"step-{step:08d}"


def begin(folder: Path, step: int, keep: int) -> Path:
    """Return the temporary path of a checkpoint until :func:`complete`; files of a killed run there are removed."""
    target = _target(folder, step, keep)
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def write_state(partial: Path, step: int, names: list[str], extra: Mapping[str, JSON]) -> None:
    """Write state.json beside the tensors of ``partial``, and the checksums of all files."""
    files = [path for path in partial.rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
    write_json(partial / STATE, asdict(State(step, sizes, names, dict(extra))))
    write_checksums(partial)


def complete(partial: Path, keep: int) -> None:
    """Make ``partial`` the newest checkpoint and remove all but the ``keep`` newest."""
    target = partial.with_name(partial.name.removesuffix(PARTIAL))
    replace_folder(partial, target)
    tidy(target, keep)


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in ``folder``, or None."""
    complete = checkpoints(folder)
    return complete[-1] if complete else None


def restore(path: Path, task: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, JSON]]:
    """Load the checkpoint ``path`` into ``task`` and ``optimizer``, and return its step and ``extra``.

    The optimizer's moments are restored; its settings, such as weight decay, are kept. The number of processes that
    wrote the checkpoint, sharded or not, does not matter. All processes must call this. Raises ``DualfuseError``, and
    changes nothing, if a file is damaged or does not fit.
    """
    state = _read_state(path)
    targets, names = task.state_dict(), _names(task, optimizer)
    weights, moments = _read(path, state, targets)
    _compare(path / MODEL, _shapes(weights), _shapes(targets))
    trained = (_current(name, targets) for name in state.trained)
    _compare(path / STATE, dict.fromkeys(trained, "trained"), dict.fromkeys(names.values(), "trained"))
    _verify(path)
    numbers = {name: number for number, name in enumerate(names.values())}
    numbered: dict[int, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        name, field = _owner(key)
        target = targets[name]
        local = dist.distribute_like(tensor, target) if tensor.shape == target.shape else tensor
        # a copy: load_file maps the file into memory, which would keep a deleted checkpoint on disk
        numbered.setdefault(numbers[name], {})[field] = local.clone()
    task.load_state_dict({name: dist.distribute_like(tensor, targets[name]) for name, tensor in weights.items()})
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
    return state.step, state.extra


def _read(path: Path, state: State, targets: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and optimizer tensors under their current names, whole or sharded as the weights ``targets``."""
    if not (path / SHARDS).is_dir():
        files = (_read_tensors(path / name, state) for name in (MODEL, OPTIMIZER))
        weights, moments = ({_current(name, targets): tensor for name, tensor in file.items()} for file in files)
        return weights, moments
    for name, size in state.sizes.items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            raise DualfuseError(
                f"{path / name} is {describe_file(path / name)}, not {size} bytes as saved; {_advice(path)}"
            )

    def target_of(name: str, shape: torch.Size) -> Tensor | None:
        name = _current(name, targets)
        target = targets.get(name if name in targets else _owner(name)[0])
        return target if target is not None and target.shape == shape else None

    stored = dist.read_shards(path / SHARDS, target_of)
    tensors = {_current(name, targets): tensor for name, tensor in stored.items()}
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(OF_OPTIMIZER)}
    return weights, {name: tensor for name, tensor in tensors.items() if name not in weights}


def _verify(path: Path) -> None:
    """Raise ``DualfuseError`` on all processes, which share the files, if one file has another content than saved."""
    changed = differing_files(path, part=dist.rank(), of=dist.world_size())
    if dist.any_rank(bool(changed)):
        names = listing(changed) if changed else f"a file of {path}, as another process reports,"
        raise DualfuseError(f"{names} has another content than was saved ({FILE}): bits have flipped; {_advice(path)}")


def _current(key: str, targets: Mapping[str, Tensor]) -> str:
    """Return the current name of a weight or an optimizer tensor; files of earlier versions have other names."""
    if key in targets:
        return key
    if key.startswith(OF_OPTIMIZER):
        name, field = _owner(key)
        return f"{OF_OPTIMIZER}{name if name in targets else upgrade.tensor_name(name)}.{field}"
    return upgrade.tensor_name(key)


def _owner(key: str) -> tuple[str, str]:
    """Return the parameter that an optimizer tensor belongs to, and the name of the tensor, such as exp_avg."""
    name, _, field = key.removeprefix(OF_OPTIMIZER).rpartition(".")
    return name, field


def _names(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    """Return the optimizer's parameters with their names, in its order."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in task.named_parameters()}
    return {parameter: names[parameter] for group in optimizer.param_groups for parameter in group["params"]}


def trained_parameters(task: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the parameters that an optimizer trains, in its order."""
    return list(_names(task, optimizer).values())


def optimizer_tensors(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors by name; a parameter that never had a gradient has none."""
    return {
        f"{OF_OPTIMIZER}{name}.{field}": value
        for parameter, name in _names(task, optimizer).items()
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def _read_state(path: Path) -> State:
    try:
        return State(**read_json(path / STATE))
    except (OSError, ValueError, TypeError) as error:
        raise DualfuseError(f"{path / STATE} is missing or not the state of a checkpoint; {_advice(path)}") from error


def _read_tensors(path: Path, state: State) -> dict[str, Tensor]:
    size = state.sizes.get(path.name, 0)
    if path.is_file() and path.stat().st_size == size:
        try:
            return load_tensors(path)
        except (SafetensorError, ValueError):
            pass  # described below
    raise DualfuseError(f"{path} is {describe_file(path)}, not {size} bytes as saved; {_advice(path.parent)}")


def _advice(path: Path) -> str:
    earlier = [other for other in checkpoints(path.parent) if step_of(other) < step_of(path)]
    if earlier:
        return f"delete the folder {path} to resume from {earlier[-1].name}"
    return f"there is no earlier checkpoint: delete the folder {path} to start from the beginning"


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()}


def _compare(path: Path, stored: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raise ``DualfuseError`` with the differences between a file and the recipe's task."""
    lines = (
        *(f"missing in the file: {name}" for name in expected if name not in stored),
        *(f"not in the recipe's task: {name}" for name in stored if name not in expected),
        *(
            f"{name} is {stored[name]} in the file, {shape} in the recipe's task"
            for name, shape in expected.items()
            if name in stored and stored[name] != shape
        ),
    )
    if lines:
        differences = listing(lines, 10, "\n  ")
        raise DualfuseError(
            f"{path} does not fit the recipe; resume with the recipe that wrote it, or train into another folder:\n"
            f"  {differences}"
        )


def tidy(target: Path, keep: int) -> None:
    """Remove all checkpoints but the ``keep`` newest, counting ``target``, and what killed processes left."""
    others = [path for path in checkpoints(target.parent) if path != target]
    for path in others[: max(0, len(others) - (keep - 1))]:
        remove_folder(path)
    for path in target.parent.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(path)
