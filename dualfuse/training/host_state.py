"""The global state of a host program, which training changes and gives back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dualfuse.training.signals import outlive_terminal


@contextmanager
def host_state() -> Iterator[None]:
    """Restore random states, the number of threads, the default dtype and signal handlers when the block ends.

    In the block single precision is torch's default, as recipes assume.
    """
    python, numpy = random.getstate(), np.random.get_state()
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), outlive_terminal():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)
