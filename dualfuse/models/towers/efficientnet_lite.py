"""EfficientNet-Lite: EfficientNet (arXiv 1905.11946) with ReLU6 and without squeeze-and-excitation, an image tower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.embeddings import patch_grid
from dualfuse.models.towers.base import ImageTowerConfig, Tower, TowerOutput

EPSILON = 1e-3  # of BatchNorms, as in TensorFlow's implementation
STRIDE = 32  # pixels per cell of the last feature map
STEM = 32  # channels after the first convolution, at every width


@dataclass(frozen=True)
class Stage:
    """A row of Table 1 of the paper: equal blocks, of which the first may halve the map."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
"""The stages of Lite0; the first and the last keep their number of blocks at every size."""
LOWEST = 2  # the lowest stage whose states can be read: layer 0 is everything up to it


@dataclass(frozen=True)
class EfficientNetLiteConfig(ImageTowerConfig):
    """The sizes of an EfficientNet-Lite; the defaults are Lite0, and 1.1 with 1.2 are Lite2.

    There are five layers: the map of stride 8, those of stride 16 with 80 and with 112 channels (times
    ``channels_mult``), that of stride 32 with 192, and the last one with 1280.
    """

    width: int = 1280
    """Width of the last feature map."""
    depth: int = 5
    """Number of layers: always 5."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width of images, in multiples of 32. There are no positions: other sizes work as well."""
    channels_mult: float = 1.0
    """Multiplier of channels: Lite0 and Lite1 1.0, Lite2 1.1, Lite3 1.2, Lite4 1.4."""
    blocks_mult: float = 1.0
    """Multiplier of blocks: Lite0 1.0, Lite1 1.1, Lite2 1.2, Lite3 1.4, Lite4 1.8."""
    pooled_layers: int = 1
    """Number of layers, from the top, whose mean states the pooled state concatenates."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        if self.depth != len(STAGES) - LOWEST or not (1 <= self.channels_mult <= 2 and 1 <= self.blocks_mult <= 2):
            raise DualfuseError(
                f"depth is {self.depth}, channels_mult {self.channels_mult}, blocks_mult {self.blocks_mult}; depth "
                f"must be {len(STAGES) - LOWEST}, and the multipliers 1 to 2"
            )
        if any(side < STRIDE or side % STRIDE for side in self.image_size):
            raise DualfuseError(f"image_size {self.image_size} is not a multiple of {STRIDE}")
        widest = max(stage.channels * _cells(number) for number, stage in self.stages.items())
        if self.width < widest or not 1 <= self.pooled_layers <= self.depth:
            raise DualfuseError(
                f"width is {self.width}, pooled_layers {self.pooled_layers}; give a width of at least {widest}, that "
                f"of the widest states of a lower layer, and 1 to {self.depth} pooled layers"
            )

    @property
    def layer_channels(self) -> tuple[int, ...]:
        """Channels of the map of each layer, which lower layers fold to the grid of the last."""
        return (*(stage.channels for stage in list(self.stages.values())[LOWEST:-1]), self.width)

    @property
    def pooled_width(self) -> int:
        """Width of the pooled state."""
        return sum(self.layer_channels[-self.pooled_layers :])

    @property
    def stages(self) -> dict[int, Stage]:
        """The stages of this size, by their number."""
        scaled = dict[int, Stage]()
        for number, stage in enumerate(STAGES):
            inner = 0 < number < len(STAGES) - 1
            blocks = math.ceil(stage.blocks * self.blocks_mult) if inner else stage.blocks
            channels = _round_channels(stage.channels * self.channels_mult)
            scaled[number] = Stage(blocks, stage.kernel, stage.stride, stage.expansion, channels)
        return scaled

    def build(self) -> EfficientNetLite:
        """Return the tower with initial weights."""
        return EfficientNetLite(self)


def _round_channels(channels: float) -> int:
    """Return the nearest multiple of 8 that is at least 90 % of ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _cells(number: int) -> int:
    """Return how many cells of the map after a stage lie in one cell of the last map; 0 for stages below LOWEST."""
    stride = 2 * math.prod(stage.stride for stage in STAGES[: number + 1])
    return (STRIDE // stride) ** 2 if number >= LOWEST else 0


class EfficientNetLite(Tower):
    """An EfficientNet-Lite without its classifier.

    All states have the grid of the last map, stride 32. A lower layer's finer map is folded to it, channels first then
    the cells of each fold row by row (``pixel_unshuffle``), and padded with zeros to the width of the last map. The
    pooled state is the mean of the last map, preceded by those of ``pooled_layers`` - 1 lower layers. BatchNorms always
    use the statistics of pre-training, which are buffers: an image's states never depend on its batch, in training as
    in evaluation.
    """

    def __init__(self, cfg: EfficientNetLiteConfig) -> None:
        """Convolutions keep PyTorch's initial weights."""
        super().__init__()
        self.width, self.pooled_layers = cfg.width, cfg.pooled_layers
        self.stem = ConvNorm(3, STEM, kernel=3, stride=2)
        self.stages, channels = nn.ModuleList(), STEM
        for stage in cfg.stages.values():
            first = InvertedResidual(channels, stage)
            rest = Stage(stage.blocks, stage.kernel, 1, stage.expansion, stage.channels)
            channels = stage.channels
            others = (InvertedResidual(channels, rest) for _ in range(stage.blocks - 1))
            self.stages.append(nn.Sequential(first, *others))
        self.head = ConvNorm(channels, cfg.width)

    def forward(self, images: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the states (B, 1 + P, width) after ``layers`` of images (B, 3, H, W), each side a multiple of 32."""
        grid = patch_grid(images, STRIDE)
        x = F.relu6(self.stem(images.contiguous(memory_format=torch.channels_last)))
        states, means = dict[int, Tensor](), list[Tensor]()
        for number, stage in enumerate(self.stages[: 1 + LOWEST + max(layers)], start=-LOWEST):
            x = stage(x)
            if number == self.top:
                x = F.relu6(self.head(x))
            if number in layers:
                states[number] = self._tokens(x, grid)
            if number > self.top - self.pooled_layers:
                means.append(x.mean((2, 3)))
        pooled = torch.cat(means, dim=1) if layers[-1] == self.top else None
        return TowerOutput(tuple(states[number] for number in layers), grid, pooled)

    @property
    def top(self) -> int:
        """The number of the highest layer."""
        return len(self.stages) - 1 - LOWEST

    def _tokens(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the mean and the cells (B, 1 + P, width) of a map (B, C, h, w)."""
        folded = F.pixel_unshuffle(x, x.shape[2] // grid[0]).flatten(2).transpose(1, 2)
        padded = F.pad(folded, (0, self.width - folded.shape[2]))
        return torch.cat([padded.mean(1, keepdim=True), padded], dim=1)

    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """Return the stages whose states can be read."""
        return list(self.stages[LOWEST:])

    def lr_layers(self) -> list[tuple[nn.Module, ...]]:
        """Return the levels of every tower, with the last convolution at the level of the top stage."""
        *lower, top = super().lr_layers()
        return [*lower, (*top, self.head)]


class InvertedResidual(nn.Module):
    """Expand by a 1 x 1 convolution, filter each channel, project back; add the input if the shape is the same."""

    def __init__(self, channels: int, stage: Stage) -> None:
        """``channels`` are those of the input."""
        super().__init__()
        inner = channels * stage.expansion
        self.expand = ConvNorm(channels, inner) if stage.expansion > 1 else None
        self.depthwise = ConvNorm(inner, inner, kernel=stage.kernel, stride=stage.stride, groups=inner)
        self.project = ConvNorm(inner, stage.channels)
        self.residual = stage.stride == 1 and channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H / stride, W / stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class ConvNorm(nn.Module):
    """A convolution without bias, padded as TensorFlow's "SAME", and a BatchNorm with fixed statistics."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        """``inputs`` and ``outputs`` are channels."""
        super().__init__()
        self.stride, self.groups = stride, groups
        self.before, self.after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.weight, self.bias = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("variance", torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H / stride, W / stride): the statistics are folded into the convolution.

        ``(conv(x) - mean) * weight / sqrt(variance + eps) + bias``
        """
        scale = self.weight * (self.get_buffer("variance") + EPSILON).rsqrt()
        kernel, shift = self.conv.weight * scale[:, None, None, None], self.bias - self.get_buffer("mean") * scale
        if self.before == self.after:
            return F.conv2d(x, kernel, shift, self.stride, self.before, groups=self.groups)
        x = F.pad(x, (self.before, self.after, self.before, self.after))
        return F.conv2d(x, kernel, shift, self.stride, groups=self.groups)
