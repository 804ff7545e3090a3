"""A recipe: everything one training run needs, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import torch
from tyro.conf import AvoidSubcommands

from dualfuse.config import check_numbers, check_types
from dualfuse.data.image.transform import Augment, ImageTransform, Preprocess
from dualfuse.data.processor import Processor
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.errors import DualfuseError
from dualfuse.models.base import ModelConfig
from dualfuse.tasks.base import Task, TaskConfig

Model = TypeVar("Model", bound=ModelConfig, covariant=True)
Learning = TypeVar("Learning", bound=TaskConfig, covariant=True)


@dataclass(frozen=True)
class Data:
    """Data sets, preprocessing, augmentation and batches."""

    train: tuple[str, ...] = ()
    """Training data, one entry per data set: a tar file, a folder of tars, or a pattern such as pairs/train-*.tar.
    Training on text alone also reads .txt, .jsonl and .parquet files."""
    weights: tuple[float, ...] = ()
    """Sampling weight of each data set, in the order of ``train``; empty: proportional to the number of samples, which
    ``sample_by`` counts."""
    sample_by: Literal["image", "caption"] = "image"
    """Unit of an epoch and of a mixture. image: every image once, with one of its captions drawn at random; caption:
    every caption once, with its image, as in the official pre-training, where an image with 50 captions occurs 50
    times."""
    validation: str = ""
    """Data to evaluate on during training, in the forms of ``train``; empty: no evaluation."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width of the model's input in pixels."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    """Resizing of evaluation images, and normalization of all images."""
    augment: AvoidSubcommands[Augment | None] = field(default_factory=Augment)  # plain flags, no subcommand
    """Augmentation of training images. None (only from Python): training images are preprocessed as in evaluation."""
    text_length: int = 40
    """Maximum text length in tokens, including the two special tokens; longer texts are truncated."""
    tokenizer: str = ""
    """Path of a tokenizer.json; empty: the uncased BERT tokenizer that is part of the package."""
    batch_size: int = 1024
    """Samples per optimizer step, summed over processes and micro-batches."""
    shuffle_block: int = 0
    """Samples per block: blocks are read sequentially and their order is shuffled (for slow disks); 0: full shuffle."""
    num_workers: int = 2
    """Data loader processes per training process; 0: load in the training process."""

    def __post_init__(self) -> None:
        """Validate the ranges of numbers."""
        check_numbers(
            self,
            positive=("image_size", "text_length", "batch_size"),
            not_negative=("weights", "shuffle_block", "num_workers"),
        )

    @property
    def image_transform(self) -> ImageTransform:
        """The transform of training images."""
        return ImageTransform(self.image_size, self.augment, self.preprocess)

    @property
    def text_transform(self) -> TextTransform:
        """The tokenization of texts."""
        return TextTransform(self.text_length, self.tokenizer)

    def processor(self) -> Processor:
        """Return the image and text transforms of training samples."""
        return Processor(self.image_transform, self.text_transform)


@dataclass(frozen=True)
class Optim:
    """AdamW and the learning rate schedule."""

    lr: float = 2e-4
    """Peak learning rate, reached after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's first and second moment."""
    eps: float = 1e-8
    """Term that AdamW adds to the denominator."""
    weight_decay: float = 0.01
    """Decoupled weight decay of the parameters that ``decay_rule`` selects."""
    decay_rule: Literal["matrices", "official", "beit"] = "matrices"
    """Parameters with weight decay. matrices: weights of linear, convolution and embedding layers; official: those of
    the official VLMo, METER and BridgeTower code; beit: all with two or more dimensions, except class token and
    position embeddings."""
    adamw: Literal["torch", "official"] = "torch"
    """AdamW implementation. torch: torch.optim.AdamW; official: that of transformers 4.8, which VLMo's code used."""
    warmup: float = 0.0
    """Length of the linear warm-up in steps; below 1: as a fraction of ``run.steps``."""
    schedule: Literal["linear", "cosine", "constant", "poly"] = "linear"
    """Shape of the decay from ``lr`` to ``min_lr`` after the warm-up; constant: no decay; poly: linear from the first
    step on, and multiplied by the warm-up (mmcv's policy of power 1)."""
    plateaus: int = 0
    """Equal parts of the run after the warm-up, in each of which the learning rate is constant; 0: it changes in every
    step. With as many as there are epochs it changes once an epoch."""
    min_lr: float = 0.0
    """Learning rate at the last step."""
    grad_clip_norm: float = 0.0
    """Maximum gradient norm; 0: no clipping."""
    head_lr_mult: float = 1.0
    """Learning rate multiplier of the heads."""
    layer_decay: float = 1.0
    """Layer-wise decay: each layer's learning rate is this times that of the layer above it; the heads are on top."""
    fusion_lr_mult: float = 1.0
    """Learning rate multiplier of the fusion-only layers (BridgeTower's cross-modal layers and bridges)."""

    def __post_init__(self) -> None:
        """Validate the ranges of numbers."""
        rates = ("lr", "min_lr", "head_lr_mult", "fusion_lr_mult")
        check_numbers(
            self,
            positive=("eps", "layer_decay"),
            not_negative=(*rates, "betas", "weight_decay", "warmup", "grad_clip_norm", "plateaus"),
        )


@dataclass(frozen=True)
class Run:
    """Training length, precision, evaluation and checkpointing."""

    steps: int = 200_000
    """Optimizer steps of the whole run; with ``epochs`` they are computed when training starts."""
    epochs: float = 0.0
    """Passes over the training data: above 0, ``steps`` becomes epochs x samples / ``data.batch_size``, rounded up. 0:
    ``steps`` is the length. On the command line --run.steps replaces the epochs of a recipe."""
    micro_batch: int = 0
    """Samples per process and forward pass; gradients are accumulated up to the batch size. 0: one pass per step."""
    seed: int = 1
    """Seed of initialization, data order, augmentation and dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32: single precision; bf16: autocast to bfloat16, with weights and optimizer in single precision."""
    log_every: int = 10
    """Steps between lines of the log; 0: only at the last step."""
    eval_every: int = 0
    """Steps between evaluations on ``data.validation``; 0: only after the last step."""
    eval_epochs: float = 0.0
    """Passes over the training data between evaluations: above 0, ``eval_every`` is computed from them when training
    starts. On the command line --run.eval-every replaces them."""
    eval_rerank: int = 0
    """Candidates per query that these evaluations re-rank by fusion; 0: no re-ranking."""
    best: str = ""
    """Validation metric that selects the model in OUT/best, such as accuracy; a pattern such as */R@* selects by the
    mean of several. The task declares whether higher is better. Needs ``data.validation``. Empty: no OUT/best."""
    early_stopping: int = 0
    """Early stopping: evaluations in a row without a better ``best`` after which the run ends; 0: all steps are
    trained."""
    save_every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = 2
    """Number of checkpoints to keep; older ones are deleted."""
    activation_checkpointing: bool = False
    """Activation checkpointing: keep the inputs of blocks and recompute the rest in the backward pass. Needs much
    less memory and about a third more compute."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer states over the processes (FSDP2), for models too large for one device;
    each process writes its part of a checkpoint in the background."""
    compile: bool = False
    """Compile each block with torch.compile; texts are padded to multiples of 16 tokens to limit recompilation."""
    dist_timeout: float = 30.0
    """Minutes that a process waits for the others before the run fails."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Reaction to a loss or gradient that is not finite. stop: end the run without another checkpoint; skip: skip the
    step, log its samples, and stop after ten such steps in a row (synchronizes with the device in every step)."""
    max_skipped_share: float = 0.2
    """Maximum share of unusable samples among those read: a run that skips more, and at least 100, stops. 1: no
    maximum."""
    tensorboard: bool = False
    """Write TensorBoard events to OUT/tensorboard, as ``trackers`` tensorboard does."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Experiment trackers that record the numbers of the log: tensorboard in OUT/tensorboard (extra track), wandb
    (Weights & Biases) and trackio, each an extra of its name. A tracker that fails never ends the run."""

    def __post_init__(self) -> None:
        """Validate the ranges of numbers."""
        every = ("log_every", "eval_every", "save_every")
        check_numbers(
            self,
            positive=("steps", "keep_last", "dist_timeout"),
            not_negative=(*every, "micro_batch", "seed", "eval_rerank", "epochs", "eval_epochs", "early_stopping"),
        )


@dataclass(frozen=True)
class TowerTraining:
    """How one pre-trained tower is trained."""

    mode: Literal["full", "frozen", "last", "lora"] = "full"
    """full: all parameters; frozen: none, and without dropout; last: the last ``blocks`` blocks and the final norm;
    lora: low-rank additions to the linear layers of its blocks, which are merged when the model is saved."""
    blocks: int = 2
    """With mode last: number of blocks to train, from the top."""
    rank: int = 8
    """With mode lora: rank of the additions."""
    alpha: float = 16.0
    """With mode lora: the additions are multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """With mode lora: patterns of the names of linear layers in a block, such as attention.*; empty: all."""
    lr_mult: float = 1.0
    """Learning rate multiplier of the tower."""

    def __post_init__(self) -> None:
        """Validate the ranges of numbers."""
        check_numbers(self, positive=("blocks", "rank", "alpha"), not_negative=("lr_mult",))


@dataclass(frozen=True)
class Towers:
    """Training of pre-trained towers, and the stored states of frozen ones; for models with towers (BridgeTower)."""

    image: TowerTraining = field(default_factory=TowerTraining)
    text: TowerTraining = field(default_factory=TowerTraining)
    cache_gb: float = 20.0
    """If both towers are frozen: maximum gigabytes of their stored states on disk, over all models, so that towers run
    once per image and text instead of once per step; 0: nothing is stored."""
    views: int = 0
    """Augmented views of each training image whose states are stored, in place of a new one in every epoch; 0: with
    ``data.augment`` nothing is stored. Without ``data.augment`` there is one view."""

    def __post_init__(self) -> None:
        """Validate the ranges of numbers."""
        check_numbers(self, not_negative=("cache_gb", "views"))


@dataclass(frozen=True)
class Mining:
    """Hard negatives from the whole training set: similar samples meet in one batch, for ITC and ITM."""

    group: int = 0
    """Samples of a batch that are neighbors of each other by the dual encoder; 0: batches are random."""
    neighbors: int = 50
    """Nearest samples of each from which groups are filled."""
    refresh_epochs: float = 1.0
    """Epochs between two searches for neighbors; 0: only one, at the first step, as for a dual encoder that is not
    trained. An epoch in which neighbors change may repeat samples."""

    def __post_init__(self) -> None:
        """Validate the ranges of numbers."""
        check_numbers(self, positive=("neighbors",), not_negative=("group", "refresh_epochs"))


@dataclass(frozen=True)
class Recipe(Generic[Model, Learning]):
    """Everything one training run needs; saved with its checkpoints."""

    name: str
    """Name of the run; with several stages also the name of its folder."""
    model: Model
    task: Learning
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)
    start_from: str = ""
    """Initial weights: an earlier stage of the same run by name, a model folder, or a checkpoint that dualfuse converts
    (file, folder, or name on the Hugging Face hub); empty: random initialization."""
    vl_expert_init: Literal["random", "language", "vision"] = "random"
    """Initialization of vision-language experts that ``start_from`` lacks: random, as in the official code, or copies
    of its language or vision experts."""
    extend_text_positions: bool = False
    """Extend the text positions of ``start_from`` to ``data.text_length``: trained rows are kept, and new rows are
    interpolated (absolute positions) or repeat the largest trained distance (relative ones)."""
    train_only: tuple[str, ...] = ()
    """Patterns of the names of trainable parameters, each with at least one match; all others are frozen. Empty: train
    all parameters."""
    towers: Towers = field(default_factory=Towers)
    mining: Mining = field(default_factory=Mining)

    def __post_init__(self) -> None:
        """Validate the types of all values, and that copied experts have a source."""
        check_types(self)
        if self.vl_expert_init != "random" and not self.start_from:
            raise DualfuseError(f"vl_expert_init={self.vl_expert_init!r} copies experts of start_from, which is empty")

    def build(self) -> Task:
        """Return the task with its model, randomly initialized, in single precision whatever torch's default is."""
        return self.task.build(self.model.build()).float()

    def build_on_meta(self) -> Task:
        """Return the task on the meta device: names and shapes without storage."""
        with torch.device("meta"):
            return self.build()
