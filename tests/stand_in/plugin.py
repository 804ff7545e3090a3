"""Lets tests run on a device that is not the CPU where there is no GPU: ``make test-device``.

Whatever asks for the device of its process gets the one of stand_in.cpp, so that a tensor left behind on the CPU, or
types that do not fit under autocast, fail here as they would on a GPU. It needs a C++ compiler. Tests that start
processes are skipped: torch computes no gradients in a fork of one that has used such a device.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils import cpp_extension

from dualfuse import distributed as dist

NAME = "stand_in"


def start() -> torch.device:
    """Compiles the device, once, and makes torch know it."""
    torch.utils.rename_privateuse1_backend(NAME)  # pyright: ignore[reportPrivateImportUsage]
    source = Path(__file__).with_name("stand_in.cpp")
    cpp_extension.load(NAME, [str(source)], extra_cflags=["-O1", "-w"]).register()  # pyright: ignore
    module = ModuleType(f"torch.{NAME}")
    answers = {
        "is_available": True,
        "is_initialized": True,
        "_is_in_bad_fork": False,
        "device_count": 1,
        "current_device": 0,
        "get_amp_supported_dtype": [torch.bfloat16],
    }
    for name, answer in answers.items():
        setattr(module, name, lambda answer=answer: answer)
    vars(module).update(
        manual_seed_all=lambda _: None,
        get_rng_state=lambda *_: torch.get_rng_state(),
        set_rng_state=lambda *_: None,  # its random numbers are the CPU's
        device=lambda _: nullcontext(),
    )
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()  # pyright: ignore[reportPrivateImportUsage]
    return torch.device(NAME, 0)


DEVICE = start()
for place in (dist, sys.modules["dualfuse.distributed.process_group"]):
    vars(place)["device"] = lambda: DEVICE
os.fork = lambda: pytest.skip("starts a process, which cannot use the stand-in for a GPU")
