"""Leaves a processor to each loader process: threads that wait for one another's cores make a step slower."""

from __future__ import annotations

import os

import torch


def limit_threads(workers: int) -> None:
    """Return torch the cores that ``workers`` loader processes leave over, at least one.

    Where the user has set OMP_NUM_THREADS (torchrun does), that stands.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - workers))
