"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualfuse.errors import DualfuseError


@dataclass(frozen=True)
class Mixup:
    """Mixup and CutMix of the images of a batch; the defaults mix nothing.

    Each batch is mixed with its reverse, with one mixing factor for all of its images. If both kinds are enabled, each
    is used with probability 0.5.
    """

    mixup_alpha: float = 0.0
    """Mixup: the share of each image is drawn from Beta(alpha, alpha); 0: no mixup."""
    cutmix_alpha: float = 0.0
    """CutMix: the area that is kept is drawn from Beta(alpha, alpha); 0: no CutMix."""

    def __post_init__(self) -> None:
        """Validate the parameters of the Beta distributions."""
        if min(self.mixup_alpha, self.cutmix_alpha) < 0:
            raise DualfuseError(
                f"mixup_alpha is {self.mixup_alpha}, cutmix_alpha {self.cutmix_alpha}; both must be 0 or more"
            )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed at all."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def __call__(self, images: Tensor) -> tuple[Tensor, float]:
        """Return ``images`` (B, 3, H, W), each mixed with that of ``images.flip(0)``, and the share of the former.

        Draws from torch's CPU random state on any device, to avoid a device synchronization.
        """
        cuts = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or torch.rand(()).item() < 0.5)
        alpha = self.cutmix_alpha if cuts else self.mixup_alpha
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        if not cuts:
            return torch.lerp(images.flip(0), images, share), share
        rows, columns = _box(images.shape[-2:], share)
        mixed = images.clone()
        mixed[..., rows, columns] = images.flip(0)[..., rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, 1 - area / (images.shape[-2] * images.shape[-1])


def _box(size: torch.Size, share: float) -> tuple[slice, slice]:
    """Return a random box with 1 - ``share`` of the area of an image, clipped at its border."""
    sides = []
    for length in size:
        half = int(length * (1 - share) ** 0.5) // 2
        middle = int(torch.randint(length, ()).item())
        sides.append(slice(max(0, middle - half), min(length, middle + half)))
    return sides[0], sides[1]
