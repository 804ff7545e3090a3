"""The contract test of a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from dualfuse.config import from_json, to_json, trust
from dualfuse.data.loader import evaluation_batches
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.models.base import ModelConfig
from dualfuse.tasks.base import Task, TaskConfig

TOLERANCE = 1e-4


def check_task(
    config: TaskConfig,
    model: ModelConfig,
    samples: Sequence[Sample],
    processor: Processor,
    inputs: Sequence[Sample] | None = None,
    batch_metrics: Sequence[str] = (),
) -> None:
    """Check that a task keeps the contract of :class:`~dualfuse.tasks.base.TaskConfig` and ``Task``.

    ``model`` builds a small model that the task takes, without randomness in evaluation mode; ``samples`` are three or
    more that it trains on. ``inputs`` are what it predicts for, ``samples`` by default; a task that predicts nothing
    must refuse them with DualfuseError. ``batch_metrics`` name metrics that depend on the batch size by definition.
    Raises AssertionError that names the broken part of the contract. As for any config of your own,
    :func:`dualfuse.config.trust` is called on it.
    """
    _require(len(samples) > 2, "three samples or more are given")
    trust(config)
    _require(from_json(to_json(config)) == config, "a config equals its copy through JSON")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = config.build(model.build())
        _require(isinstance(task, Task), "build() returns a Task")
        _require(task.cfg.__class__.read is not TaskConfig.read, "cfg is a config that reads samples")
        _randomize(task)
        _check_loss(config, task, samples, processor)
        task.eval()
        _check_broken(config, samples, processor)
        _check_evaluation(task, EvaluationData(_Samples(samples), processor), batch_metrics)
        _check_predictions(task, samples if inputs is None else inputs, processor)


def _randomize(task: Task) -> None:
    """Make the outputs of all examples differ: some heads are initialised with zeros."""
    for parameter in task.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def _check_loss(config: TaskConfig, task: Task, samples: Sequence[Sample], processor: Processor) -> None:
    batches = []
    for _ in range(2):
        examples = [config.read(sample, processor, np.random.default_rng(n)) for n, sample in enumerate(samples)]
        batches.append(config.collate(examples))
    _require(_equal(*batches), "what read() draws depends on its generator alone")
    output = task.train()(batches[0])
    _require(output.loss.shape == (), "forward() returns a scalar loss")
    _require(bool(output.loss.isfinite()), "the loss is finite")
    _require(all(not value.requires_grad for value in output.log.values()), "values for the log are detached")
    _require(all(math.isfinite(float(value)) for value in output.log.values()), "values for the log are finite scalars")
    output.loss.backward()
    gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
    _require(any(bool(gradient.any()) for gradient in gradients), "the loss has a gradient")
    _require(all(bool(gradient.isfinite().all()) for gradient in gradients), "gradients are finite")


def _check_broken(config: TaskConfig, samples: Sequence[Sample], processor: Processor) -> None:
    """Check that an unusable sample is an error in read(), which the loader turns into ``BrokenSample``."""
    broken = _Samples([Sample("broken", samples[0].image[:20])])
    try:
        list(
            evaluation_batches(
                broken,
                lambda sample, rng: config.read(sample, processor, rng),
                config.collate,
                batch_size=1,
                num_workers=0,
                exclude_broken=False,
            )
        )
    except BrokenSample as error:
        _require(error.key == "broken", "BrokenSample names the sample")
    else:
        raise AssertionError("the contract of TaskConfig is broken: an unusable sample raises an error in read()")


def _check_evaluation(task: Task, data: EvaluationData, batch_metrics: Sequence[str]) -> None:
    results = [task.evaluate(data, Plan(batch_size=size, num_workers=0)) for size in (len(data.samples), 1, 1)]
    for result in results:
        _require(bool(result.metrics), "evaluate() returns metrics for labelled samples")
        _require(all(math.isfinite(value) for value in result.metrics.values()), "metrics are finite")
        _require(bool(result.predictions) == task.writes_predictions, "writes_predictions tells whether there are any")
    _require(results[1].metrics == results[2].metrics, "evaluating twice returns the same metrics")
    if type(task).evaluate is not Task.evaluate:  # the mean over batches depends on them
        whole, single = (
            {name: value for name, value in result.metrics.items() if name not in batch_metrics}
            for result in results[:2]
        )
        _require(_close(whole, single), "metrics do not depend on the batch size")


@torch.inference_mode()
def _check_predictions(task: Task, inputs: Sequence[Sample], processor: Processor) -> None:
    try:
        read = [task.read_input(sample, processor) for sample in inputs]
    except DualfuseError as error:
        _require(type(task).predict is Task.predict, f"read_input() takes the given inputs, but raises: {error}")
        return
    together = [prediction.record() for prediction in task.predict(read, processor, 3)]
    alone = [prediction.record() for one in read for prediction in task.predict([one], processor, 3)]
    _require(len(together) == len(inputs), "predict() returns a prediction per input")
    _require(all(together), "predictions are not empty")
    _require(_close(together, alone), "a batch of inputs gives the predictions of each input alone")


@dataclass(frozen=True)
class _Samples:
    """Samples in memory."""

    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Sample:
        return replace(self.samples[index])

    def key(self, index: int) -> str:
        return self.samples[index].key


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    return one == other


def _close(one: object, other: object) -> bool:
    """Return whether two nested values are equal, numbers up to rounding."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(_close(one[name], other[name]) for name in one)
        case list() | tuple(), list() | tuple():
            return len(one) == len(other) and all(map(_close, one, other))
        case float(), float():
            return abs(one - other) <= TOLERANCE * max(1.0, abs(one))
    return one == other


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise AssertionError(f"the contract of tasks is broken: {rule}")
