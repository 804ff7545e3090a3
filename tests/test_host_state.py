"""Every public function leaves the global state of the program that calls it as it was."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import changed, samples, shards

import dualfuse
from dualfuse import Index, Plan
from dualfuse.export.average import average
from dualfuse.export.export import export
from dualfuse.recipe import Recipe

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def on_signal(number: int, frame: object) -> None:
    raise AssertionError(number)


def state() -> dict[str, object]:
    """Return the global state as values that can be compared."""
    return {
        "random": random.getstate(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "matmul": torch.get_float32_matmul_precision(),
        "grad": torch.is_grad_enabled(),
        "signals": [signal.getsignal(number) for number in SIGNALS],
    }


@pytest.fixture
def odd_state() -> Iterator[dict[str, object]]:
    """Set values that no library would choose, and restore those of the tests."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    handlers = [signal.signal(number, on_signal) for number in SIGNALS]
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high")
    try:
        yield state()
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        for number, handler in zip(SIGNALS, handlers, strict=True):
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for sample in samples(3):
        (folder / f"{sample.key}.png").write_bytes(sample.image)
        (folder / f"{sample.key}.txt").write_text(sample.texts[0] if sample.texts else "a cat")
    return folder


def train(tiny: Recipe, whole: Path, images: Path, out: Path) -> object:
    return dualfuse.train((changed(tiny, steps=1, num_workers=1, validation=tiny.data.train[0]),), out)


def evaluate(tiny: Recipe, whole: Path, images: Path, out: Path) -> object:
    return dualfuse.evaluate(dualfuse.load(whole), shards(out, 4), Plan(rerank=2, num_workers=1))


def predict(tiny: Recipe, whole: Path, images: Path, out: Path) -> object:
    return dualfuse.predict(dualfuse.load(whole / "final"), images / "000.png", "a red [MASK]")


def explain(tiny: Recipe, whole: Path, images: Path, out: Path) -> object:
    return dualfuse.explain(dualfuse.load(whole / "final"), (images / "000.png",), "a red cat")


def search(tiny: Recipe, whole: Path, images: Path, out: Path) -> object:
    return Index.build(dualfuse.load(whole / "final"), str(images)).search("a red cat", top=2)


def prepare(tiny: Recipe, whole: Path, images: Path, out: Path) -> object:
    return dualfuse.prepare_data(images, out / "shards")


def convert(tiny: Recipe, whole: Path, images: Path, out: Path) -> object:
    dualfuse.convert_checkpoint(whole / "final", out / "official", to="official")
    tokenizer = str(whole / "final" / "tokenizer.json")
    return dualfuse.convert_checkpoint(out / "official" / "vlmo.ckpt", out / "back", tokenizer=tokenizer)


def export_and_average(tiny: Recipe, whole: Path, images: Path, out: Path) -> object:
    export(whole, out / "model")
    return average([whole], out / "average", last=2)


@pytest.mark.parametrize("call", [train, evaluate, predict, explain, search, prepare, convert, export_and_average])
def test_host_state_is_kept(
    tiny: Recipe,
    whole: Path,
    images: Path,
    tmp_path: Path,
    odd_state: dict[str, object],
    call: Callable[[Recipe, Path, Path, Path], object],
) -> None:
    call(tiny, whole, images, tmp_path)
    after = state()
    assert {name for name in after if after[name] != odd_state[name]} == set()
