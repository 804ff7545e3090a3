"""What models over an image tower and a text tower share: BridgeTower and dual encoders."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.models.towers.base import Tower, TowerOutput


class TwoTowers(VisionLanguageModel):
    """Two towers, which alone are a dual encoder.

    ``Tokens.states`` begin with the state (B, 1, W) that ITC compares.
    """

    image_tower: Tower
    text_tower: Tower
    _encode_widths: tuple[int, int]

    @property
    def encode_widths(self) -> tuple[int, int]:
        """Widths of the image state and of the text state that ITC compares."""
        return self._encode_widths

    def run_image_tower(self, images: Tensor) -> TowerOutput:
        """Run the image tower on images (B, 3, H, W), or read its stored states."""
        tower, layers, stored = self.image_tower, self.layers_to_read(self.image_tower), self.stored_states
        return tower(images, layers=layers) if stored is None else stored.image(tower, images, layers)

    def run_text_tower(self, ids: Tensor, mask: Tensor) -> TowerOutput:
        """Run the text tower on texts (B, T), or read its stored states."""
        tower, layers, stored = self.text_tower, self.layers_to_read(self.text_tower), self.stored_states
        return tower(ids, mask, layers=layers) if stored is None else stored.text(tower, ids, mask, layers)

    def encode(self, tokens: Tokens) -> Tensor:
        """Return the tower's pooled state (B, W), of the width that ``encode_widths`` has for the modality."""
        return tokens.states[0][:, 0]

    def patch_states(self, images: Tensor) -> Tensor:
        """Return the image tower's top states (B, P, W) of the patches of images (B, 3, H, W)."""
        output: TowerOutput = self.image_tower(images, layers=(top_layer(self.image_tower),))
        return output.states[0][:, 1:]

    def towers(self) -> dict[str, Tower]:
        """Return both towers."""
        return {"image": self.image_tower, "text": self.text_tower}

    def fsdp_blocks(self) -> Iterable[nn.Module]:
        """Return the layers of both towers."""
        yield from self.image_tower.fsdp_blocks()
        yield from self.text_tower.fsdp_blocks()

    def lr_layers(self) -> Iterable[tuple[nn.Module, ...]]:
        """Return the towers' embeddings, then the towers' layers level with their tops."""
        (image, *image_levels), (text, *text_levels) = self.image_tower.lr_layers(), self.text_tower.lr_layers()
        yield *image, *text
        for below in reversed(range(max(len(image_levels), len(text_levels)))):
            yield tuple(
                part for levels in (image_levels, text_levels) if below < len(levels) for part in levels[-1 - below]
            )


def top_layer(tower: Tower) -> int:
    """Return the number of the highest layer."""
    return len(tower.fsdp_blocks()) - 1


def first_state(output: TowerOutput) -> Tensor:
    """Return the pooled state (B, W); of a tower without one, the state of the first token."""
    return output.states[-1][:, 0] if output.pooled is None else output.pooled
