"""Linear probe of a frozen image encoder: a linear classifier on the states of each layer, as BEiT's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.data.loader import Batch
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.predictions import PredictedAnswer
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan
from dualfuse.metrics.accuracy import TopAccuracy
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import TaskOutput
from dualfuse.tasks.finetune.classification import Classification
from dualfuse.tasks.finetune.questions import ImageClassesConfig

BEST_LAYER = "accuracy/best_layer"
STD = 0.01


@dataclass(frozen=True)
class LinearProbeConfig(ImageClassesConfig):
    """Classes, and the layer that predicts.

    A sample has in its json a "label", by name or index; texts are ignored. Train it with ``train_only``
    ("classifiers.*",), and without drop path: the model stays as it is. The features of a layer are its class token
    and the mean of its patches, without a norm.
    """

    layer: int = 0
    """Layer, counted from 1, whose classifier gives predictions, "accuracy" and "accuracy/top5"; 0: the last one."""

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare the accuracies, and that of the best layer on the evaluated set."""
        return (*super().metrics(plan), *shares(BEST_LAYER, whole_set=True))

    def build(self, model: VisionLanguageModel) -> LinearProbe:
        """Return the task with fresh classifiers; DualfuseError for a model without states of its layers."""
        return LinearProbe(self, model)


class LinearProbe(Classification):
    """One linear classifier per layer; the loss is the sum of their losses."""

    top_k = 5

    def __init__(self, cfg: LinearProbeConfig, model: VisionLanguageModel) -> None:
        """Initialise weights with a normal distribution of 0.01, and biases with zero."""
        super().__init__(cfg, model, cfg.names)
        layers = len(list(model.fsdp_blocks()))
        if not 0 <= cfg.layer <= layers:
            raise DualfuseError(f"layer is {cfg.layer}; this model has layers 1 to {layers}, and 0 is the last one")
        self.chosen, self.layers = cfg.layer - 1, tuple(range(1, layers + 1))
        classifiers = [nn.Linear(2 * model.width, len(cfg.names)) for _ in self.layers]
        for classifier in classifiers:
            nn.init.normal_(classifier.weight, std=STD)
            nn.init.zeros_(classifier.bias)
        self.classifiers = nn.ModuleList(classifiers)

    def layer_logits(self, images: Tensor) -> Tensor:
        """Return the logits (L, B, C) in float32 of images (B, 3, H, W) by every layer."""
        states = self.model.layer_states(self.model.embed_image(images), self.layers)
        features = (torch.cat([state[:, 0], state[:, 1:].mean(1)], dim=1).float() for state in states)
        return torch.stack(
            [classifier(each).float() for classifier, each in zip(self.classifiers, features, strict=True)]
        )

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (B, C) of the layer that predicts."""
        return self.layer_logits(batch["image"])[self.chosen]

    def forward(self, batch: Batch) -> TaskOutput:
        """Return the sum of the losses of all layers for a batch with targets."""
        assert "target" in batch, "a batch of read_question() has no targets"
        logits, target = self.layer_logits(batch["image"]), batch["target"]
        loss = torch.stack([F.cross_entropy(each, target) for each in logits]).sum()
        accuracy = (logits[self.chosen].argmax(1) == target).float().mean()
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy": accuracy})

    @torch.inference_mode()
    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Return the accuracies of the layer that predicts, "accuracy/layerN" of each, and that of the best layer."""
        run, metric, predictions = Evaluation(self, data, plan), TopAccuracy(), list[PredictedAnswer]()
        right, labelled = torch.zeros(len(self.layers)), 0
        for batch in run.batches(self.cfg.read_question, self.cfg.collate, what="images"):
            probabilities = self.layer_logits(batch["image"]).softmax(2).cpu()
            best = probabilities[self.chosen].topk(min(self.top_k, len(self.names)), dim=1)
            for number, question in enumerate(batch["questions"]):
                names = [self.names[index] for index in best.indices[number].tolist()]
                predictions.append(PredictedAnswer(question.key, question.id, names[0], float(best.values[number, 0])))
                if question.target:
                    metric.add(question, names)
                    right += probabilities[:, number].argmax(1) == self.names.index(question.target[0])
                    labelled += 1
        accuracies = (right / max(1, labelled)).tolist()
        layers = {f"accuracy/layer{layer}": value for layer, value in zip(self.layers, accuracies, strict=True)}
        metrics = metric.result() | layers | {BEST_LAYER: max(accuracies)} if labelled else {}
        return run.result(metrics, f"{len(predictions)} images, {labelled} of them labelled", predictions)
