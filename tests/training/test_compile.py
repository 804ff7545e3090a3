"""Compiled blocks: the same losses and gradients, and not compiled for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from many import start
from tiny import WORDS, changed, recipe, samples, weights

from dualfuse import distributed as dist
from dualfuse.data.sample import Sample
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Task
from dualfuse.training import loop, memory
from dualfuse.training.dataloader import training_dataloader

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's own


class Counting:
    """Compiles nothing and counts how often it is asked to, so that no compiler is needed."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        self.times += 1
        return graph.forward


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Captions of two to thirty words, two in a batch; nothing that is drawn depends on how long they are."""
    rng = np.random.default_rng(0)
    content = [
        Sample(sample.key, sample.image, (" ".join(rng.choice(WORDS, 2 + number % 29)),))
        for number, sample in enumerate(samples(40))
    ]
    made = changed(recipe(tmp_path_factory.mktemp("talkative"), images=content), drop_path=0.0, batch_size=2)
    return replace(made, model=replace(made.model, text_length=40), data=replace(made.data, text_length=40))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    torch.compiler.reset()


def steps(recipe: Recipe, task: Task, number: int) -> list[tuple[torch.Tensor, ...]]:
    """Return loss and gradients of each step."""
    found, parameters = [], [parameter for parameter in task.parameters() if parameter.requires_grad]
    for step, loaded_batch in enumerate(islice(training_dataloader(recipe, start=0), number)):
        dist.seed_shared_rng(step)
        loss = task(loaded_batch.batch).loss
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found.append((loss.detach(), *(gradient for gradient in gradients if gradient is not None)))
    return found


def build(recipe: Recipe) -> Task:
    torch.manual_seed(0)
    return recipe.build()


@pytest.mark.parametrize("recomputed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_same_losses_and_no_more_shapes_than_buckets(talkative: Recipe, recomputed: bool) -> None:
    """The first steps have both lengths of text; after them nothing is compiled again."""
    backend, task = Counting(), build(talkative)
    memory.compile_blocks(task.model.fsdp_blocks(), backend)
    if recomputed:
        memory.checkpoint_activations(task.model.fsdp_blocks())
    recipe = changed(talkative, compile=True)
    compiled, plain = steps(recipe, task, 8), steps(talkative, build(talkative), 8)
    for here, there in zip(compiled, plain, strict=True):
        for one, other in zip(here, there, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    first, batches = (
        backend.times,
        [loaded_batch.batch for loaded_batch in islice(training_dataloader(recipe, start=0), 20)],
    )
    assert {batch["ids"].shape[1] for batch in batches[:8]} == {16, 32}
    assert first > 0
    assert (
        len(
            {loaded_batch.batch["ids"].shape[1] for loaded_batch in islice(training_dataloader(talkative, start=0), 20)}
        )
        > 5
    )
    for batch in batches[8:]:
        task(batch)
    with memory.uncompiled():  # as while judging
        task({name: value[:1] for name, value in batches[0].items()})
    assert backend.times == first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's own import in a new process
def test_sharded_and_compiled(talkative: Recipe, tmp_path: Path) -> None:
    recipe = changed(talkative, steps=3, eps=1e-3)
    loop.train((recipe,), tmp_path / "alone")

    def work() -> None:
        loop.compile_blocks = partial(memory.compile_blocks, backend=Counting())
        loop.train((changed(recipe, fsdp=True, compile=True, activation_checkpointing=True),), tmp_path / "two")

    assert start(2, work) == [0, 0]
    expected = weights(tmp_path / "alone")
    for name, tensor in weights(tmp_path / "two").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
