"""The average of the weights of several models of one architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dualfuse import hub
from dualfuse.config import JSON, differences, to_json
from dualfuse.data.text.tokenizer import load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.export.output import AVERAGE, check_output, write_model_folder
from dualfuse.recipe import Recipe
from dualfuse.run_folder import CHECKPOINTS, STEP, checkpoints, is_run, step_of, trained_steps

TRAINING = frozenset({"init", "drop_path", "dropout"})
"""Fields of models that matter in training only."""


def average(sources: Sequence[Path], out: Path, *, last: int = 0, force: bool = False) -> Path:
    """Write a model folder whose weights are the means of those of ``sources``, and return its path.

    ``sources`` are checkpoints or model folders, or one run of which the newest ``last`` checkpoints are averaged.
    Floating-point tensors are added in float64 and stored in their own type; integer and boolean tensors, such as
    counters, are those of the last source, and so are the settings that do not determine the model. Raises
    ``DualfuseError`` if models, tasks or inputs differ, naming the setting or the tensor, and if ``out`` holds files
    that no export wrote, unless ``force``.

    The newest checkpoints of a run: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization
    (2018). Models that were fine-tuned differently: Wortsman et al., Model soups (2022).
    """
    paths = _sources(sources, last)
    check_output(out, *paths, force=force)
    recipes = [hub.with_tokenizer(hub.read_recipe(path), path) for path in paths]
    for path, recipe in zip(paths, recipes, strict=True):
        _compare_inputs(path, recipe, paths[-1], recipes[-1])
    averaged = hub.load(paths[-1])
    averaged.task.load_state_dict(mean(paths))
    step = trained_steps(paths[-1])
    notes: dict[str, JSON] = {
        AVERAGE: {"models": ["/".join(path.absolute().parts[-3:]) for path in paths]},
        **({} if step is None else {STEP: {"step": step}}),
    }
    return write_model_folder(out, averaged.task, recipes[-1], notes, force=force)


def mean(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the means of the tensors of checkpoints or model folders, which are read one after the other.

    Raises ``DualfuseError`` that names the first tensor that one of them lacks, or that has another shape or type.
    """
    sums: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for number, path in enumerate(paths):
        earlier, tensors = tensors, hub.read_tensors(path)
        if number:
            _compare_tensors(path, tensors, paths[number - 1], earlier)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                sums[name] = sums[name].add_(tensor) if name in sums else tensor.to(torch.float64, copy=True)
    return tensors | {name: (total / len(paths)).to(tensors[name].dtype) for name, total in sums.items()}


def _sources(sources: Sequence[Path], last: int) -> list[Path]:
    """Return the checkpoints and model folders to average."""
    if last < 0:
        raise DualfuseError(f"--last is {last}; give the number of checkpoints to average, 2 or more")
    runs = [source for source in sources if is_run(source)]
    if last and len(sources) == len(runs) == 1:
        saved = checkpoints(runs[0] / CHECKPOINTS)
        if len(saved) < last:
            steps = ", ".join(str(step_of(path)) for path in saved) or "none"
            raise DualfuseError(
                f"{runs[0]} has {len(saved)} checkpoints (steps {steps}), not {last}; run.keep_last sets how many are "
                "kept"
            )
        sources = saved[-last:]
    elif last or runs:
        raise DualfuseError("give checkpoints and model folders, or the folder of one run with --last N")
    if len(sources) < 2:
        raise DualfuseError(f"an average needs at least 2 models, not {len(sources)}")
    return list(sources)


def _compare_inputs(path: Path, recipe: Recipe, other_path: Path, other: Recipe) -> None:
    """Raise ``DualfuseError`` if two recipes have different models, tasks, or inputs."""
    for name, before, now in differences(_essence(recipe), _essence(other)):
        if not TRAINING & set(name.split(".")):
            raise DualfuseError(
                f"the models are of different recipes: {name} is {before} in {path} and {now} in {other_path}"
            )
    first, second = (load_tokenizer(each.data.tokenizer).tokenizer.get_vocab() for each in (recipe, other))
    if first != second:
        raise DualfuseError(f"{path} and {other_path} have different tokenizers, so their embeddings do not correspond")


def _essence(recipe: Recipe) -> JSON:
    data = recipe.data
    return {
        "model": to_json(recipe.model),
        "task": type(recipe.task).__name__,
        "data": {"image_size": list(data.image_size), "preprocess": to_json(data.preprocess)},
    }


def _compare_tensors(path: Path, tensors: Mapping[str, Tensor], other_path: Path, others: Mapping[str, Tensor]) -> None:
    for name in {**others, **tensors}:
        found, other = (_describe(each.get(name)) for each in (tensors, others))
        if found != other:
            raise DualfuseError(f"the tensor {name} is {found} in {path} and {other} in {other_path}")


def _describe(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
