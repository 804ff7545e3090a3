"""BatchNorm over the images of all processes, for decoders that are trained on one or two images on each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualfuse import distributed as dist

MOMENTUM = 0.1


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose mean and variance are those of all processes, with gradient.

    torch's own SyncBatchNorm needs GPUs, and to be put in the place of another module where there are several
    processes; this one is the same with and without, on any device. Every process must bring as many pixels.
    """

    def __init__(self, channels: int) -> None:
        """``channels`` C are normalised one by one."""
        super().__init__(channels, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  torch calls it input
        """Return (B, C, H, W)."""
        if not self.training or dist.world_size() == 1:
            return super().forward(x)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(exact, dim=(0, 2, 3), correction=0)
        means, variances = dist.all_gather(torch.stack([mean, variance])[None]).unbind(1)  # (W, C) each
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        self._remember(mean.detach(), variance.detach(), x.numel() // x.shape[1] * dist.world_size())
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (exact * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move what is used in evaluation; ``count`` values were seen of each channel."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.running_mean.lerp_(mean.to(self.running_mean), MOMENTUM)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), MOMENTUM)
        self.num_batches_tracked += 1
