"""The encoder of DALL-E's discrete autoencoder (Ramesh et al. 2021), under the names of its published tensors."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.vq.visual_tokenizer import VisualTokenizer, check_strides

GROUPS = 4
MARGIN = 0.1  # the published encoder expects pixels from 0.1 to 0.9


class DalleEncoder(VisualTokenizer):
    """Four groups of residual convolutions with pooling between; the code is the argmax over 8,192 channels."""

    stride = 2 ** (GROUPS - 1)

    def __init__(self, *, width: int = 256, blocks: int = 2, codes: int = 8192) -> None:
        """``width`` is that of the first group and doubles with every group; ``blocks`` is the number per group."""
        super().__init__()
        self.codes = codes
        widths = [width, *(width * 2**group for group in range(GROUPS))]
        gain = 1 / (GROUPS * blocks) ** 2
        layers: dict[str, nn.Module] = {"input": _Convolution(3, width, 7)}
        for group in range(1, GROUPS + 1):
            before, after = widths[group - 1 : group + 1]
            parts = {f"block_{n + 1}": _Residual(after if n else before, after, gain) for n in range(blocks)}
            pool = {"pool": nn.MaxPool2d(2)} if group < GROUPS else {}
            layers[f"group_{group}"] = nn.Sequential(OrderedDict(parts | pool))
        last = {"relu": nn.ReLU(), "conv": _Convolution(widths[-1], codes, 1)}
        layers["output"] = nn.Sequential(OrderedDict(last))
        self.blocks = nn.Sequential(OrderedDict(layers))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> DalleEncoder:
        """Return the encoder with the weights ``tensors``, whose shapes set its size.

        Raises ``DualfuseError`` if they are not those of DALL-E's encoder.
        """
        first, last = (tensors.get(f"blocks.{name}.w") for name in ("input", "output.conv"))
        if first is None or last is None:
            names = ", ".join(list(tensors)[:4])
            raise DualfuseError(f"DALL-E's encoder has blocks.input.w and blocks.output.conv.w, not {names}")
        numbers = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.group_1\.block_(\d+)\.", name))]
        with torch.random.fork_rng(devices=[]):  # keeps the RNG state: the random weights are overwritten
            encoder = cls(width=len(first), blocks=max(numbers, default=0), codes=len(last))
        try:
            encoder.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise DualfuseError(f"these tensors are not those of DALL-E's encoder: {error}") from error
        return encoder

    def forward(self, images: Tensor) -> Tensor:
        """Return the codes (B, h * w) of images (B, 3, 8 h, 8 w) from 0 to 1."""
        check_strides(images, self.stride)
        return self.blocks((1 - 2 * MARGIN) * images + MARGIN).argmax(1).flatten(1)


class _Convolution(nn.Module):
    """A convolution that keeps the map size, with parameters named w and b."""

    def __init__(self, before: int, after: int, side: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(after, before, side, side) / (before * side**2) ** 0.5)
        self.b = nn.Parameter(torch.zeros(after))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, gain: float) -> None:
        super().__init__()
        self.gain, inside = gain, after // 4
        self.id_path = nn.Identity() if before == after else _Convolution(before, after, 1)
        sizes = ((before, inside, 3), (inside, inside, 3), (inside, inside, 3), (inside, after, 1))
        layers: dict[str, nn.Module] = {}
        for number, size in enumerate(sizes, start=1):
            layers |= {f"relu_{number}": nn.ReLU(), f"conv_{number}": _Convolution(*size)}
        self.res_path = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)
