"""Contrastive training of pairs, evaluated by a metric of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import Processor, Sample, Task, TaskConfig, TaskOutput, Tokens, VisionLanguageModel
from dualfuse.data.text.padding import pad_texts
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan
from dualfuse.metrics.base import SHARE, MetricInfo
from dualfuse.tasks.prediction import Prediction
from toy_plugin.metric import own_text_first


@dataclass(frozen=True)
class ToyTaskConfig(TaskConfig):
    scale: float = 10.0

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> dict[str, Any]:
        return {"image": processor.image(sample.image, rng), "ids": processor.text.encode(sample.texts[0]).ids}

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        ids, mask = pad_texts([example["ids"] for example in examples])
        return {"image": torch.stack([example["image"] for example in examples]), "ids": ids, "mask": mask}

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        return (MetricInfo("toy/own_text_first", SHARE),)

    def build(self, model: VisionLanguageModel) -> ToyTask:
        return ToyTask(self, model)


class ToyTask(Task):
    can_search = True

    def __init__(self, cfg: ToyTaskConfig, model: VisionLanguageModel) -> None:
        super().__init__()
        self.cfg, self.model = cfg, model

    def similarities(self, batch: dict[str, Tensor]) -> Tensor:
        image = self.image_features(self.model.embed_image(batch["image"]))
        return image @ self.text_features(self.model.embed_text(batch["ids"], batch["mask"])).T

    def forward(self, batch: dict[str, Tensor]) -> TaskOutput:
        similarities = self.similarities(batch)
        loss = F.cross_entropy(
            self.cfg.scale * similarities, torch.arange(len(similarities), device=similarities.device)
        )
        return TaskOutput(loss, {"loss": loss.detach()})

    def image_features(self, image: Tokens) -> Tensor:
        return F.normalize(self.model.encode(image), dim=1)

    def text_features(self, text: Tokens) -> Tensor:
        return F.normalize(self.model.encode(text), dim=1)

    @torch.inference_mode()
    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        run = Evaluation(self, data, plan)
        values = [own_text_first(self.similarities(batch)) for batch in run.batches(self.cfg.read, self.cfg.collate)]
        return run.result({"toy/own_text_first": sum(values) / len(values)}, f"{len(data.samples)} pairs")

    def read_input(self, sample: Sample, processor: Processor) -> dict[str, Any]:
        return self.cfg.read(sample, processor, np.random.default_rng(0))

    @torch.inference_mode()
    def predict(self, inputs: Sequence[dict[str, Any]], processor: Processor, top: int) -> list[Prediction]:
        batch = self.cfg.collate(inputs)
        return [Prediction(cosine=value) for value in self.similarities(batch).diagonal().tolist()]
