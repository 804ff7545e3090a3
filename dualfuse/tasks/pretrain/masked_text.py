"""Masked language modeling on text only: stage two of VLMo (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from dualfuse import distributed as dist
from dualfuse.data.map_dataset import MapDataset
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.corpus import Corpus, pack_share
from dualfuse.data.text.masking import mask_words
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.predictions import SampleLoss
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan
from dualfuse.layers.heads import MLMHead
from dualfuse.losses.mlm import mlm_loss
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput, keyed_batches
from dualfuse.tasks.prediction import Prediction, text_of
from dualfuse.tasks.pretrain.fill_mask import MaskedQuery, collate_queries, fill_masks, read_masked
from dualfuse.tasks.pretrain.pair_batch import TextBatch, TextExample, collate_texts


@dataclass(frozen=True)
class MaskedTextConfig(TaskConfig):
    """Masking, and initialization of the head."""

    training_data: ClassVar[str] = "TEXT (.txt, .jsonl, .parquet or .tar)"
    pipeline_tag: ClassVar[str] = "fill-mask"
    example: ClassVar[str] = 'print(predict(model, text="a red [MASK] on a table"))'

    mlm_probability: float = 0.15
    """Fraction of the words that is masked; always whole words."""
    init_std: float = 0.02
    """Standard deviation of the initial weights of the MLM head."""

    def open_data(self, sources: Sequence[str], text: TextTransform) -> tuple[MapDataset, ...]:
        """Pack the texts of each source; every process packs its share of the files."""
        for source in sources:
            pack_share(source, text, part=dist.rank(), of=dist.world_size())
        dist.barrier()
        return tuple(Corpus.open(source, text) for source in sources)

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> TextExample:
        """Mask words of the text; an image is ignored."""
        if not sample.texts:
            raise BrokenSample(sample.key, "it has no text")
        words = processor.text.encode(sample.texts[0])
        ids, labels = mask_words(words, processor.text.vocab_size, processor.text.mask_id, rng, self.mlm_probability)
        return {"ids": ids, "labels": labels}

    def collate(self, examples: Sequence[TextExample]) -> TextBatch:
        """Return a batch of texts padded to the longest."""
        return collate_texts(examples)

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare accuracy and loss."""
        return (*shares("mlm/accuracy"), MetricInfo("mlm/loss", higher_is_better=False))

    def build(self, model: VisionLanguageModel) -> MaskedText:
        """Return the task with a freshly initialized head."""
        return MaskedText(self, model)


class MaskedText(Task):
    """Predicts masked words from their context; the image parts of the model are not used."""

    cfg: MaskedTextConfig

    def __init__(self, cfg: MaskedTextConfig, model: VisionLanguageModel) -> None:
        """Build the MLM head, which pre-training on pairs continues to train."""
        super().__init__()
        self.cfg, self.model = cfg, model
        self.mlm_head = MLMHead(model.width, model.vocab_size, epsilon=model.mlm_head_eps, std=cfg.init_std)

    def forward(self, batch: TextBatch) -> TaskOutput:
        """Return the mean loss over the masked tokens of all processes."""
        text = self.model.embed_text(batch["ids"], batch["mask"])
        states = self.model.token_states(text, batch["positions"])
        loss, accuracy = mlm_loss(self.mlm_head, states, batch["targets"])
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy/mlm": accuracy})

    @property
    def has_sample_results(self) -> bool:
        """Losses of packed texts."""
        return True

    @torch.inference_mode()
    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Return "mlm/accuracy" and "mlm/loss", averaged over all masked tokens.

        Masks are the same in every evaluation. Lines that cannot be read were reported when the corpus was packed,
        and are excluded. Every process evaluates the whole set.
        """
        run = Evaluation(self, data, replace(plan, exclude_broken=True))
        correct, loss, number, losses = 0.0, 0.0, 0, list[SampleLoss]()
        for batch, keys in keyed_batches(self.cfg, run, "texts"):
            masked = int((batch["targets"] != -100).sum())
            output = self(batch)
            correct += float(output.log["accuracy/mlm"]) * masked
            loss += float(output.loss) * masked
            number += masked
            losses += [SampleLoss(keys[0], float(output.loss))] if plan.answers else []
        metrics = {"mlm/accuracy": correct / max(1, number), "mlm/loss": loss / max(1, number)}
        return run.result(metrics, f"{len(data.samples)} packed texts", losses)

    def read_input(self, sample: Sample, processor: Processor) -> MaskedQuery:
        """Read a text with masks."""
        if sample.image:
            raise DualfuseError("this model was trained on text alone and takes no image; omit it")
        text = read_masked(text_of(sample), processor.text)
        if not len(text.positions):
            raise DualfuseError("this model only fills masks; put [MASK] in place of a word")
        return text

    def predict(self, inputs: Sequence[MaskedQuery], processor: Processor, top: int) -> list[Prediction]:
        """Return the most probable tokens of each mask."""
        ids, mask, positions = collate_queries(inputs, self.device)
        states = self.model.token_states(self.model.embed_text(ids, mask), positions)
        return fill_masks(inputs, self.mlm_head(states), processor.text, top)
