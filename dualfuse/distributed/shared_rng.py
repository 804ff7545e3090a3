"""What all processes draw alike, whatever else each of them draws, and however many they are."""

from __future__ import annotations

import torch

_alike = torch.Generator()


def seed_shared_rng(number: int) -> None:
    """Make what :func:`draw_alike` gives from here on a function of ``number``, the same in every process."""
    _alike.manual_seed(number)


def draw_shared() -> int:
    """Return a number from 0 to 2^31 - 1, the same in all processes if they draw as often.

    No process waits for another one: all have the same generator, which nothing else draws from.
    """
    return int(torch.randint(2**31, (), generator=_alike))
