"""The index of sharded checkpoints is a pickle: one that would run something is refused before it does."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as shards

from dualfuse import distributed as dist


class Hostile:
    def __init__(self, what: tuple[object, ...]) -> None:
        self.what = what

    def __reduce__(self) -> tuple[object, ...]:
        return self.what


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3, 4), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(7)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        shards.save(dict(tensors), checkpoint_id=tmp_path, no_dist=True)
    read = dist.read_shards(tmp_path, lambda name, shape: None)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("form", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_index_runs_nothing(tmp_path: Path, form: int) -> None:
    touched = tmp_path / "touched"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Hostile((Path.touch, (touched,))), protocol=form))
    with pytest.raises(ValueError, match="which no index needs"):
        dist.read_shards(tmp_path, lambda name, shape: None)
    (tmp_path / ".metadata").write_bytes(b"\x80\x04\x8c\x05torch\x8c\x11hub.load.__name__\x93.")
    with pytest.raises(ValueError, match="which no index needs"):
        dist.read_shards(tmp_path, lambda name, shape: None)
    assert not touched.exists()
