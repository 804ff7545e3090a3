"""Modules that resize their own tensors for a model of other image sizes, text lengths or numbers of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError


class Resizable(nn.Module):
    """A module with tensors whose shape depends on the size of images, the length of texts, or the number of either."""

    embeds_text: bool = False
    """Whether the module is a text embedding, with a table ``word`` of tokens."""

    def resize_tensor(
        self, name: str, tensor: Tensor, source: Any, *, has_text: bool
    ) -> tuple[Tensor, str] | None:  # Any: a module with the same rule
        """Return the tensor ``name`` of ``source`` resized for this module, and the rule.

        None: the tensor fits, or there is no rule. ``has_text`` tells whether ``source`` was trained on texts. Raises
        ``DualfuseError`` if this module takes longer texts.
        """
        raise NotImplementedError

    def extend_tensor(self, name: str, tensor: Tensor, source: Any) -> Tensor | None:  # Any: a module of the same kind
        """Return the tensor ``name`` of ``source`` with positions for longer texts; None: it needs none."""
        return None


def cut_positions(name: str, tensor: Tensor, position: nn.Embedding | None, unused: int) -> tuple[Tensor, str] | None:
    """Return absolute positions of texts, of which the first ``unused`` rows stand for no token, without the last."""
    if not name.startswith("position.") or position is None or position.num_embeddings == len(tensor):
        return None
    before, after = len(tensor) - unused, position.num_embeddings - unused
    check_text_length(before, after)
    return tensor[: position.num_embeddings], f"texts {before} to {after}"


def check_text_length(before: int, after: int) -> None:
    """Raise ``DualfuseError`` if texts become longer."""
    if after > before:
        raise DualfuseError(
            f"the start was trained on texts of {before} tokens, the model of this recipe takes {after}: the positions "
            f"beyond are untrained. Set --model.text-length {before} (and --data.text-length to at most that), or "
            "start from a model of longer texts; --extend-text-positions adds positions"
        )


def extend_positions(tensor: Tensor, position: nn.Embedding | None, unused: int) -> Tensor | None:
    """Return absolute positions of texts (N, D) with the number of rows of ``position``; None if it has no more.

    The rows that exist are kept, as LongCLIP keeps the well-trained ones. A new row is the value, at its place, of the
    trained table stretched to the new length by linear interpolation. The first ``unused`` rows stand for no token.
    """
    if position is None or position.num_embeddings <= len(tensor):
        return None
    before, after = len(tensor) - unused, position.num_embeddings - unused
    trained = tensor[unused:]
    places = torch.arange(before, after, dtype=torch.float64) * (before - 1) / (after - 1)
    low = places.floor().long()
    share = (places - low).to(tensor)[:, None]
    return torch.cat([tensor, trained[low] * (1 - share) + trained[(low + 1).clamp(max=before - 1)] * share])


def times(shape: Sequence[int]) -> str:
    """Return "14 x 14"."""
    return " x ".join(map(str, shape))
