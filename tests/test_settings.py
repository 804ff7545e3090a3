"""Settings without sense are refused where they are given; torch's default dtype does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import recipe

from dualfuse.errors import DualfuseError
from dualfuse.prepare.options import PrepareOptions
from dualfuse.training.loop import train


@pytest.mark.parametrize(
    ("name", "value"), [("shard_samples", 0), ("shard_megabytes", 0), ("longest_side", -1), ("num_workers", -1)]
)
def test_a_number_without_sense_is_refused_by_prepare(name: str, value: int) -> None:
    with pytest.raises(DualfuseError, match=f"{name} is {value}; it must be at least"):
        PrepareOptions(**{name: value})


@pytest.fixture
def double() -> Iterator[None]:
    """Let the host program compute in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
def test_training_under_a_default_of_float64(tmp_path: Path) -> None:
    final = train((recipe(tmp_path / "in"),), tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(final / "model.safetensors").values()} == {torch.float32}
