"""The initial weights of a run, from an earlier run or a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.config import JSON
from dualfuse.convert.load import is_model_folder, locate, read_checkpoint
from dualfuse.data.text.tokenizer import load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json_object
from dualfuse.io import listing, write_json
from dualfuse.models.base import VisionLanguageModel
from dualfuse.recipe import Recipe
from dualfuse.run_folder import model_of
from dualfuse.tasks.base import Task
from dualfuse.training.start_notes import note_start
from dualfuse.training.text_positions import extend_positions
from dualfuse.training.weight_transfer import TransferredWeights, has_text_embedding, model_outline, transfer_weights

logger = logging.getLogger(__name__)

REPORT = "start.json"


@dataclass(frozen=True)
class Start:
    """A checkpoint under the names of this package: its source, the recipe of its model, and its tensors."""

    source: str
    recipe: Recipe
    tensors: dict[str, Tensor]
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    """Licence and origin of the weights, by their name."""


def init_from(task: Task, recipe: Recipe, source: str, out: Path) -> None:
    """Initialize ``task`` with the tensors of a checkpoint that fit it, resized where needed, and log the others.

    ``source`` is a model folder, a third-party checkpoint or a name on the Hugging Face hub. Every tensor is listed in
    ``out``/start.json. Raises ``DualfuseError`` if no tensor fits, if the checkpoint was trained on shorter texts, or
    with another tokenizer.
    """
    start = _open(source, recipe)
    note_start(start.source, start.recipe, recipe)
    transferred = _transfer(start, task, recipe)
    task.load_state_dict(transferred.tensors, strict=False)
    total = len(task.state_dict())
    logger.info("initialized %s of %s tensors from %s", len(transferred.tensors), total, start.source)
    for kind in ("resized", "experts", "copies", "new", "unused"):
        if names := vars(transferred)[kind]:
            logger.info("  %s: %s", kind, listing(names))
    if dist.rank() == 0:
        report = {name: value for name, value in vars(transferred).items() if name != "tensors"}
        report["resized"] = {name: asdict(resized) for name, resized in transferred.resized.items()}
        write_json(out / REPORT, {"source": start.source, "origins": dict(start.origins), **report})


def origins(out: Path) -> dict[str, JSON]:
    """Return the file of a model folder that names the weights which the run in ``out`` started from; may be empty."""
    found = read_json_object(out / REPORT).get("origins") if (out / REPORT).is_file() else None
    return {hub.ORIGINS: found} if isinstance(found, dict) and found else {}


def check_init_from(recipe: Recipe, earlier: Recipe | None) -> None:
    """Raise the errors of :func:`init_from` that can be found before training.

    ``earlier`` is the recipe of the same run that ``recipe`` starts from: its shapes are known before it has trained
    for days. Without it a model folder is checked by its config; other checkpoints are read when they are needed.
    """
    if earlier:
        start, name = earlier, earlier.name
    elif (path := Path(recipe.start_from or "-")).exists() and is_model_folder(folder := model_of(path)):
        start, name = hub.with_tokenizer(hub.read_recipe(folder), folder), recipe.start_from
    else:
        return
    _transfer(Start(name, start, model_outline(start).state_dict()), model_outline(recipe), recipe)


def _open(source: str, recipe: Recipe) -> Start:
    path = locate(source)
    if is_model_folder(path):
        recipe, tensors = hub.with_tokenizer(hub.read_recipe(path), path), hub.read_tensors(path)
        return Start(str(path), recipe, tensors, hub.read_origins(path))
    # a single file has no tokenizer beside it
    foreign = read_checkpoint(path, recipe.data.tokenizer if path.is_file() else "")
    return Start(foreign.report.source, foreign.recipe, foreign.tensors, foreign.report.origins)


def _transfer(start: Start, task: nn.Module, recipe: Recipe) -> TransferredWeights:
    """Return the weights to transfer; raises ``DualfuseError`` if the checkpoint does not suit the recipe."""
    if has_text_embedding(start.tensors, start.recipe, task):
        _compare_tokenizers(start, recipe)
    if recipe.extend_text_positions:
        start = Start(start.source, *extend_positions(start.recipe, start.tensors, recipe))
    transferred = transfer_weights(start.tensors, start.recipe, task, vl_expert_init=recipe.vl_expert_init)
    if not transferred.tensors:
        raise DualfuseError(
            f"no tensor in {start.source} fits this recipe's model in name and shape; "
            f"the checkpoint has {listing(start.tensors)}, the model {listing(task.state_dict())}"
        )
    replaced = _fusion_names(task)
    differing = [
        name for name in transferred.new if name in start.tensors and name.startswith("model.") and name not in replaced
    ]
    if len(differing) > len(transferred.tensors):  # biases and tables may fit by chance
        before, after = (tuple(tensors[differing[0]].shape) for tensors in (start.tensors, task.state_dict()))
        raise DualfuseError(
            f"{start.source} is a model of another size: {len(differing)} tensors have other shapes, such as "
            f"{differing[0]}, {before} there and {after} in this recipe; give the recipe the sizes of that model"
        )
    return transferred


def _fusion_names(task: nn.Module) -> set[str]:
    """Return the names of the parameters that fusion alone uses; a new fusion encoder may have other sizes."""
    model = task.get_submodule("model")
    fusion = {id(p) for part in _fusion_modules(model) for p in part.parameters()}
    return {name for name, parameter in task.named_parameters() if id(parameter) in fusion}


def _fusion_modules(model: nn.Module) -> Iterable[nn.Module]:
    return model.fusion_modules() if isinstance(model, VisionLanguageModel) else ()


def _compare_tokenizers(start: Start, recipe: Recipe) -> None:
    """Refuse another tokenizer, with which the rows of the token embedding would stand for other tokens."""
    paths = start.recipe.data.tokenizer, recipe.data.tokenizer
    before, after = (load_tokenizer(path).tokenizer.get_vocab() for path in paths)
    if before != after:
        names = [path or "the BERT tokens of this package" for path in paths]
        raise DualfuseError(
            f"{start.source} was trained with the tokenizer {names[0]} ({len(before):,} tokens), but this recipe uses "
            f"{names[1]} ({len(after):,}), so token ids would have other meanings. "
            f"Give --data.tokenizer {paths[0] or repr('')}"
        )
