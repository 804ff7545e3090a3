"""Every task keeps the contract of tasks, and check_task finds one that breaks it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import BRIDGETOWER, MODEL, caption, png_image, tokenizer
from torch import Tensor, nn

from dualfuse import hub
from dualfuse.data.image.block_mask import BlockMask
from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.layers.vq.autoencoder import AutoencoderConfig
from dualfuse.models.base import ModelConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput
from dualfuse.tasks.finetune.captioning import CaptioningConfig
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig
from dualfuse.tasks.finetune.linear_probe import LinearProbeConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.finetune.segmentation import SegmentationConfig
from dualfuse.tasks.finetune.text_classification import TextClassificationConfig
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.prediction import Prediction, ScoredAnswer
from dualfuse.tasks.pretrain.distillation import DistillationConfig
from dualfuse.tasks.pretrain.masked_feature import MaskedFeatureConfig
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.tasks.pretrain.vq_tokenizer import VQTokenizerConfig
from dualfuse.testing import check_task

VLMO = replace(MODEL, drop_path=0.0, positions="absolute", image_slots=2)
LABELS = ("no", "yes")
VQ = AutoencoderConfig(codes=16, stride=4, width=8, blocks=1, code_width=4)
PATCHES = BlockMask(patches=6, smallest=2)
TASKS: dict[str, tuple[TaskConfig, ModelConfig]] = {
    "pairs": (PairsConfig(), VLMO),
    "pairs-bridgetower": (PairsConfig(), BRIDGETOWER),
    "pairs-mlm": (PairsConfig(itc_weight=0.0, itm_weight=0.0), VLMO),
    "masked-text": (MaskedTextConfig(), VLMO),
    "masked-image": (MaskedImageConfig(codes=16, patch=8, stride=4, mask=PATCHES), VLMO),
    "masked-feature": (MaskedFeatureConfig(channels=32, patch=8, teacher_patch=8, mask=PATCHES), VLMO),
    "distillation": (DistillationConfig(itc_head=ITCHeadConfig(width=24)), VLMO),
    "vq-tokenizer": (VQTokenizerConfig(), VQ),
    "ranking": (RankingConfig(num_negatives=2), BRIDGETOWER),
    "vqa": (VQAConfig(answers=LABELS), VLMO),
    "nlvr2": (NLVR2Config(labels=LABELS), VLMO),
    "entailment": (EntailmentConfig(labels=LABELS), BRIDGETOWER),
    "image-classification": (ImageClassificationConfig(labels=LABELS, head_scale=1.0), VLMO),
    "image-classification-tower": (
        ImageClassificationConfig(labels=LABELS, features="first", head_scale=1.0),
        BRIDGETOWER,
    ),
    "linear-probe": (LinearProbeConfig(labels=LABELS), VLMO),
    "text-classification": (TextClassificationConfig(labels=LABELS, dropout=0.0), BRIDGETOWER),
    "segmentation": (SegmentationConfig(num_classes=3, feature_layers=(1, 1, 2, 2)), replace(VLMO, vl_expert_start=2)),
    "captioning": (CaptioningConfig(), VLMO),
}
IMAGE_ONLY = ("image-classification", "image-classification-tower", "linear-probe", "captioning")


def label_map(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 3, (32, 32), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


SAMPLES = [
    Sample(
        f"{n}",
        png_image(n),
        (caption(n, 3 + n),),
        {"label": LABELS[n % 2], "answers": [LABELS[n % 2]]},
        other_images=(png_image(n + 9),),
        label_map=label_map(n),
    )
    for n in range(4)
]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    words = tokenizer(tmp_path_factory.mktemp("words"))
    return Processor(ImageTransform((32, 32), augment=None), TextTransform(12, words))


def saved(folder: Path, model: ModelConfig, task: TaskConfig, words: str) -> str:
    torch.manual_seed(1)
    recipe = Recipe("saved", model, task, Data(image_size=(32, 32), text_length=12, tokenizer=words))
    return str(hub.save(folder / "model", recipe.build(), recipe))


def inputs(name: str) -> Sequence[Sample]:
    """What the task predicts for: pairs, masked texts, images alone, or pairs of images."""
    if name == "masked-text":
        return [Sample("1", b"", ("the [MASK] cat",)), Sample("2", b"", ("a [MASK] runs [MASK]",))]
    if name == "nlvr2":
        return SAMPLES
    single = [replace(sample, other_images=()) for sample in SAMPLES]
    if name == "text-classification":
        return [replace(sample, image=b"") for sample in single]
    if name in IMAGE_ONLY:
        return [replace(sample, texts=()) for sample in single]
    if name.startswith("pairs"):
        masked = [replace(sample, texts=("the [MASK] cat sleeps",)) for sample in single]
        return masked if name == "pairs-mlm" else [*single, *masked]
    return single


@pytest.mark.parametrize("name", TASKS)
def test_task_keeps_the_contract(name: str, processor: Processor, tmp_path: Path) -> None:
    config, model = TASKS[name]
    if isinstance(config, MaskedImageConfig):
        config = replace(config, tokenizer=saved(tmp_path, VQ, VQTokenizerConfig(), processor.text.tokenizer))
    if isinstance(config, MaskedFeatureConfig):
        config = replace(config, teacher=saved(tmp_path, VLMO, EntailmentConfig(), processor.text.tokenizer))
    if isinstance(config, DistillationConfig):
        teacher = PairsConfig(itc_head=ITCHeadConfig(width=24))
        config = replace(config, teacher=saved(tmp_path, VLMO, teacher, processor.text.tokenizer))
    samples = SAMPLES
    if name == "vq-tokenizer" or name.startswith(("masked-image", "masked-feature")):
        samples = [replace(sample, texts=()) for sample in SAMPLES]
    check_task(config, model, samples, processor, inputs(name), batch_metrics=("mlm/accuracy_other_image",))


@dataclass(frozen=True)
class BrightnessConfig(TaskConfig):
    """A third party's task: predict the mean brightness of an image. ``fault`` is how it breaks the contract."""

    fault: str = ""

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> dict[str, Tensor]:
        if self.fault == "image" and len(sample.image) < 30:
            return {"image": torch.zeros(3, 32, 32)}
        image = processor.image(sample.image, rng)
        return {"image": image + torch.randn(()) if self.fault == "random" else image}

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        return {"image": torch.stack([example["image"] for example in examples])}

    def build(self, model: Any) -> Brightness:
        return Brightness(self, model)


class Brightness(Task):
    def __init__(self, cfg: BrightnessConfig, model: Any) -> None:
        super().__init__()
        self.cfg, self.model = cfg, model
        self.head = nn.Linear(model.width, 1)

    def brightness(self, images: Tensor) -> Tensor:
        return self.head(self.model.encode(self.model.embed_image(images)))[:, 0]

    def forward(self, batch: Any) -> TaskOutput:
        errors = (self.brightness(batch["image"]) - batch["image"].mean((1, 2, 3))).square()
        loss = {"vector": errors, "nan": errors.mean() * float("nan"), "constant": errors.mean().detach()}.get(
            self.cfg.fault, errors.mean()
        )
        if self.cfg.fault == "constant":
            loss = loss + 0 * errors.sum()
        return TaskOutput(loss, {"error": errors.mean() if self.cfg.fault == "log" else errors.mean().detach()})

    def read_input(self, sample: Sample, processor: Processor) -> Tensor:
        if self.cfg.fault == "refuses":
            raise DualfuseError("not today")
        return processor.image(sample.image, np.random.default_rng(0))

    def predict(self, inputs: Sequence[Tensor], processor: Processor, top: int) -> list[Prediction]:
        values = self.brightness(torch.stack(list(inputs)))
        if self.cfg.fault == "batch":
            values = values - values.mean()
        return [Prediction((ScoredAnswer("bright", float(value.sigmoid())),)) for value in values]


def test_third_party_task_keeps_the_contract(processor: Processor) -> None:
    check_task(BrightnessConfig(), VLMO, SAMPLES, processor)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("image", "an unusable sample raises an error"),
        ("random", "depends on its generator alone"),
        ("vector", "a scalar loss"),
        ("nan", "the loss is finite"),
        ("constant", "the loss has a gradient"),
        ("log", "are detached"),
        ("refuses", "takes the given inputs"),
        ("batch", "a batch of inputs gives the predictions of each input alone"),
    ],
)
def test_broken_contract_is_found(fault: str, rule: str, processor: Processor) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_task(BrightnessConfig(fault), VLMO, SAMPLES, processor)
