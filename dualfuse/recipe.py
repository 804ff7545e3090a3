"""A recipe: everything one training run needs, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import torch
from tyro.conf import AvoidSubcommands

from dualfuse.data.image.transform import Augment, ImageTransform, Preprocess
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.errors import DualfuseError
from dualfuse.models.base import ModelConfig
from dualfuse.tasks.base import Processor, Task, TaskConfig

Model = TypeVar("Model", bound=ModelConfig, covariant=True)
Learning = TypeVar("Learning", bound=TaskConfig, covariant=True)


@dataclass(frozen=True)
class Data:
    """Which samples are read, and how they are shown to the model."""

    train: tuple[str, ...] = ()
    """Shards to learn from, one entry per set: a tar file, a folder of tars, or a pattern like pairs/train-*.tar. To
    learn from text alone also .txt, .jsonl and .parquet files."""
    weights: tuple[float, ...] = ()
    """Share of each set in the mixture; empty: by the number of samples."""
    validation: str = ""
    """Shards to evaluate on during training; empty: none."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    """How images of any shape become the model's, in evaluation; and their normalisation, always."""
    augment: AvoidSubcommands[Augment | None] = field(default_factory=Augment)  # plain flags, no subcommand
    """What happens to training images. None, which only a recipe in Python can say: they look as in evaluation."""
    text_length: int = 40
    """Longest text in tokens, both special tokens included."""
    tokenizer: str = ""
    """A tokenizer.json file; empty: the uncased BERT tokens that come with the package."""
    batch_size: int = 1024
    """Samples per optimiser step, over all processes and micro-batches."""
    shuffle_block: int = 0
    """Samples that are read one after the other and shuffled in blocks (slow disks); 0: a full shuffle."""
    num_workers: int = 2
    """Loader processes per training process; 0: read in the training process."""

    @property
    def image_transform(self) -> ImageTransform:
        """How training images become tensors."""
        return ImageTransform(self.image_size, self.augment, self.preprocess)

    @property
    def text_transform(self) -> TextTransform:
        """How texts become tokens."""
        return TextTransform(self.text_length, self.tokenizer)

    def processor(self) -> Processor:
        """Return what a loader worker needs to read training samples."""
        return Processor(self.image_transform, self.text_transform)


@dataclass(frozen=True)
class Optim:
    """The optimiser and its schedule."""

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_rule: Literal["matrices", "official", "beit"] = "matrices"
    """What is decayed: the weights of linear, convolution and embedding layers; what the official code of VLMo, METER
    and BridgeTower decays; or BEiT's: all that has two dimensions, but class token and positions."""
    adamw: Literal["torch", "official"] = "torch"
    """Whose update: torch.optim.AdamW; or the one of transformers 4.8, which the official VLMo code used."""
    warmup: float = 0.0
    """Steps of linear warm-up; below 1: a share of all steps."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    min_lr: float = 0.0
    """The learning rate that it falls to."""
    grad_clip_norm: float = 0.0
    """Largest gradient norm; 0: no clipping."""
    head_lr_mult: float = 1.0
    """Learning rate of the heads, in parts of ``lr``."""
    layer_decay: float = 1.0
    """Learning rate of each layer of the model in parts of the one above it; the top one's in parts of the heads'."""
    fusion_lr_mult: float = 1.0
    """Learning rate of what serves fusion alone (BridgeTower's cross-modal part), in parts of ``lr``."""


@dataclass(frozen=True)
class Run:
    """How long, how exactly, and what is kept."""

    steps: int = 200_000
    micro_batch: int = 0
    """Samples per process and forward pass; a step accumulates the gradients of as many as it needs. 0: one pass."""
    seed: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every: int = 10
    eval_every: int = 0
    """Steps between evaluations on ``data.validation``; 0: only at the end."""
    eval_rerank: int = 0
    """Candidates per query that these evaluations re-rank; 0: none."""
    best: str = ""
    """Validation number by which the best model is kept in OUT/best, such as accuracy; a pattern like */R@* means the
    mean of several. Less is better if it ends in loss or error. Empty: only the last model is kept."""
    save_every: int = 1000
    """Steps between checkpoints; there is always one at the end."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    activation_checkpointing: bool = False
    """Keep what blocks compute on the way only where they begin, and compute it again in the backward pass: a third
    more work, a fraction of the memory."""
    fsdp: bool = False
    """Many processes: each holds its part of every weight, gradient and moment only (FSDP2), for models that are too
    large for one device, and writes its part of checkpoints while training goes on."""
    compile: bool = False
    """Compile each block (torch.compile), once for each shape: texts are padded to a multiple of 16 for few shapes."""
    dist_timeout: float = 30.0
    """Minutes that a process waits for the others before the run ends."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is no finite number: the run stops and saves nothing more; or the step is left out
    (which waits for the device in every step) and its samples are noted, up to ten such steps in a row."""
    tensorboard: bool = False


@dataclass(frozen=True)
class Recipe(Generic[Model, Learning]):
    """Everything one training run needs; saved beside its checkpoints."""

    name: str
    model: Model
    task: Learning
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)
    start_from: str = ""
    """The name of an earlier recipe of the same tuple, a model folder, or any checkpoint that dualfuse converts (a
    file, a folder, a name on the Hugging Face hub); empty: random weights."""
    vl_expert_init: Literal["random", "language", "vision"] = "random"
    """What vision-language experts begin as where the start has none: random as in the official code, or copies of its
    language or vision experts."""
    train_only: tuple[str, ...] = ()
    """Patterns of parameter names; everything else is frozen. Each must match something. Empty: all are trained."""

    def __post_init__(self) -> None:
        """Refuse to copy experts from nowhere."""
        if self.vl_expert_init != "random" and not self.start_from:
            raise DualfuseError(
                f"vl_expert_init={self.vl_expert_init!r} copies from what a run starts from; set start_from too"
            )

    def build(self) -> Task:
        """Return the task around its model, with initial weights."""
        return self.task.build(self.model.build())

    def build_on_meta(self) -> Task:
        """Return the task without any numbers in it: names and shapes, whatever memory those would need."""
        with torch.device("meta"):
            return self.build()
