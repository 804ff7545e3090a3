"""What a run starts from: the weights of an earlier one, and which parameters are trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.convert.convert import is_ours, locate
from dualfuse.convert.foreign import read_checkpoint
from dualfuse.data.text.tokenizer import load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.io import listing, write_json
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Batch, Task
from dualfuse.training.weight_transfer import TransferredWeights, has_text_embedding, model_outline, transfer_weights

logger = logging.getLogger(__name__)

REPORT = "start.json"


@dataclass(frozen=True)
class Start:
    """A checkpoint under our names: where it came from, the recipe of its model, and its tensors."""

    source: str
    recipe: Recipe
    tensors: dict[str, Tensor]


def init_from(task: Task, recipe: Recipe, source: str, out: Path) -> None:
    """Copy from a checkpoint whatever serves ``task``, resized where that has a meaning, and says what did not.

    ``source`` is a model folder, a foreign checkpoint or a name on the Hugging Face hub. Every tensor is listed in
    ``out``/start.json. Raises ``DualfuseError`` if nothing fits, if texts were shorter, or tokens others.
    """
    start = _open(source, recipe)
    handed = _fitted(start, task, recipe)
    task.load_state_dict(handed.tensors, strict=False)
    total = len(task.state_dict())
    logger.info("initialized %s of %s tensors from %s", len(handed.tensors), total, start.source)
    for word in ("resized", "experts", "new", "unused"):
        if names := vars(handed)[word]:
            logger.info("  %s: %s", word, listing(names))
    if dist.rank() == 0:
        report = {name: value for name, value in vars(handed).items() if name != "tensors"}
        report["resized"] = {name: asdict(resized) for name, resized in handed.resized.items()}
        write_json(out / REPORT, {"source": start.source, **report})


def check_init_from(recipe: Recipe, earlier: Recipe | None) -> None:
    """Raise ``DualfuseError`` now for what :func:`begin_with` will refuse after the days of an ``earlier`` recipe.

    Without one, where ``recipe.start_from`` is no name of the tuple, a model folder is looked at; other checkpoints are
    read when they are needed.
    """
    if earlier:
        _fitted(Start(earlier.name, earlier, model_outline(earlier).state_dict()), model_outline(recipe), recipe)
    elif recipe.start_from and is_ours(folder := Path(recipe.start_from)):
        begun = hub.with_tokenizer(hub.read_recipe(folder), folder)
        _fitted(Start(recipe.start_from, begun, model_outline(begun).state_dict()), model_outline(recipe), recipe)


def _open(source: str, recipe: Recipe) -> Start:
    path = locate(source)
    if is_ours(path):
        return Start(str(path), hub.with_tokenizer(hub.read_recipe(path), path), hub.read_tensors(path))
    # a single file comes without a tokenizer
    foreign = read_checkpoint(path, recipe.data.tokenizer if path.is_file() else "")
    return Start(foreign.report.source, foreign.recipe, foreign.tensors)


def _fitted(start: Start, task: nn.Module, recipe: Recipe) -> TransferredWeights:
    if has_text_embedding(start.tensors, start.recipe, task):
        _compare_words(start, recipe)
    handed = transfer_weights(start.tensors, start.recipe, task, both=recipe.vl_expert_init)
    if not handed.tensors:
        raise DualfuseError(
            f"nothing in {start.source} fits this recipe's model: no name and shape agree; "
            f"there it is {listing(start.tensors)}, here {listing(task.state_dict())}"
        )
    differing = [name for name in handed.new if name in start.tensors and name.startswith("model.")]
    if len(differing) > len(handed.tensors):  # biases and tables may fit by chance
        there, here = (tuple(tensors[differing[0]].shape) for tensors in (start.tensors, task.state_dict()))
        raise DualfuseError(
            f"{start.source} is a model of another size: {len(differing)} tensors have other shapes, such as "
            f"{differing[0]}, {there} there and {here} here; give this recipe the sizes of that model"
        )
    return handed


def _compare_words(start: Start, recipe: Recipe) -> None:
    """Refuse another tokenizer: every row of the word embedding would stand for another word."""
    there, here = start.recipe.data.tokenizer, recipe.data.tokenizer
    then, now = (load_tokenizer(path).tokenizer.get_vocab() for path in (there, here))
    if then != now:
        names = [path or "the BERT tokens of this package" for path in (there, here)]
        raise DualfuseError(
            f"{start.source} was trained with the tokenizer {names[0]} ({len(then):,} tokens), this recipe reads "
            f"with {names[1]} ({len(now):,}), so its words would mean others. Give --data.tokenizer {there or repr('')}"
        )


def freeze(task: Task, train_only: Sequence[str]) -> None:
    """Freeze every parameter that no pattern matches; no pattern freezes nothing."""
    names = [name for name, _ in task.named_parameters()]
    for pattern in train_only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DualfuseError(f"pattern {pattern!r} of train_only matches no parameter; there are {listing(names)}")
    for name, parameter in task.named_parameters():
        if train_only and not any(fnmatchcase(name, pattern) for pattern in train_only):
            parameter.requires_grad_(False)


def freeze_unused(task: Task, batch: Batch) -> None:
    """Freeze every parameter that the loss of a batch does not depend on, and says which.

    They would not learn, but processes that train together would wait for their gradients for ever. Which ones they
    are follows from task, model and weights of the objectives (without matching nothing reads the pooler), and here
    nobody has to list them.
    """
    named = [(name, parameter) for name, parameter in task.named_parameters() if parameter.requires_grad]
    loss = task(batch).loss
    if not loss.requires_grad:
        raise DualfuseError(
            "the loss depends on no trainable parameter; look at the recipe's train_only and task weights"
        )
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    unreached = [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]
    for name in unreached:
        task.get_parameter(name).requires_grad_(False)
    if unreached:
        logger.info("frozen, because the loss does not depend on them: %s", listing(unreached))
