"""Two images of a batch in one: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualfuse.errors import DualfuseError


@dataclass(frozen=True)
class Mixup:
    """How images of one batch are mixed with each other; the defaults mix none.

    All of a batch are mixed alike: the first with the last, the second with the last but one. With both kinds every
    second batch, by chance, is cut and the others are faded.
    """

    mixup_alpha: float = 0.0
    """Mixup's alpha: shares of both images are drawn from Beta(alpha, alpha); 0: no mixup."""
    cutmix_alpha: float = 0.0
    """CutMix's alpha, which draws the area that is cut out; 0: no CutMix."""

    def __post_init__(self) -> None:
        """Refuse what no distribution has."""
        if min(self.mixup_alpha, self.cutmix_alpha) < 0:
            raise DualfuseError(
                f"fade is {self.mixup_alpha}, cut {self.cutmix_alpha}; give numbers above 0, or 0 to leave it out"
            )

    @property
    def mixes(self) -> bool:
        """Whether anything is mixed at all."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def __call__(self, images: Tensor) -> tuple[Tensor, float]:
        """Return ``images`` (B, 3, H, W), each mixed with that of ``images.flip(0)``, and its own share.

        Draws from torch's random state of the CPU, whatever the device, so that no device has to be waited for.
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
    """Return a box of 1 - ``share`` of the area of the image's shape; what lies beyond the border is cut off."""
    sides = []
    for length in size:
        half = int(length * (1 - share) ** 0.5) // 2
        middle = int(torch.randint(length, ()).item())
        sides.append(slice(max(0, middle - half), min(length, middle + half)))
    return sides[0], sides[1]
