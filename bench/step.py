"""Times one pre-training step on pairs against the same step done the published way: python bench/step.py --help

Candidates take turns in random order, on the same weights and the same pairs, so that a busy machine slows all of
them; times are processor seconds of forward and backward, ratios are formed within a round. Before that, the loss and
the gradients of the first two are compared, and each candidate's peak memory is measured in a process of its own.
"""

from __future__ import annotations

import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal
from unittest import mock

import numpy as np
import torch
import tyro
from published_step import heaviest, padded, published_loss
from torch import Tensor

from dualfuse.data.text.masking import mask_words
from dualfuse.data.text.tokenizer import EncodedText
from dualfuse.losses.hard_negatives import sample_negatives
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipes.small_pairs import NANO, OPENPICS
from dualfuse.recipes.vlmo import BASE
from dualfuse.tasks.pretrain.pairs import PairBatch, Pairs, PairsConfig
from dualfuse.training.memory import keep_big_blocks

PAPER = PairsConfig()
SHARED = replace(PAPER, itc_features="unimodal", itm_on_masked_text=True)
RECIPES = {"published": PAPER, "ours": PAPER, "shared": SHARED, "one-negative": replace(SHARED, negatives_per_pair=1)}
"""Settings of every candidate. The last two are not the paper's: matching sees the masked texts, contrast compares one
view only, and then one negative is drawn per pair."""

Seconds = tuple[float, float]
"""Of the processor, and on the clock."""


@dataclass(frozen=True)
class Size:
    """A model, the number of pairs in a batch, and the length published batches are padded to."""

    model: VLMoConfig
    batch: int
    text_length: int


SIZES = {"base": Size(BASE, batch=4, text_length=40), "nano": Size(NANO, OPENPICS.batch_size, NANO.text_length)}


@dataclass(frozen=True)
class Options:
    """What is measured."""

    size: Literal["base", "nano"] = "base"
    """base: 224 pixels, batch 4; nano: the demo's model, 64 pixels, batch 128."""
    positions: Literal["relative", "absolute"] = "relative"
    threads: int = 1
    rounds: int = 3
    peak_of: str = ""
    """Only print by how many MiB a first step of this candidate raises the peak memory of the process."""


class Bench:
    """The candidates, on one set of weights."""

    def __init__(self, options: Options) -> None:
        """Build the model once; candidates differ in their heads and settings."""
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        self.size = SIZES[options.size]
        self.model = replace(self.size.model, positions=options.positions).build()
        if self.model.relative_bias is not None:
            torch.nn.init.normal_(
                self.model.relative_bias.table, std=0.02
            )  # zeros, as initialised, would hide a mistake
        paper = Pairs(PAPER, self.model)
        self.tasks = {name: paper if cfg is PAPER else cfg.build(self.model) for name, cfg in RECIPES.items()}

    def loss(self, name: str, batch: PairBatch) -> Tensor:
        """Return a candidate's loss on pairs whose texts are padded to the longest of them."""
        task = self.tasks[name]
        if name == "published":
            return published_loss(task, padded(batch, self.size.text_length))
        return task(batch).loss

    def step(self, name: str, batch: PairBatch) -> Seconds:
        """Run forward and backward of a candidate."""
        self.tasks[name].zero_grad(set_to_none=True)
        processor, clock = time.process_time(), time.perf_counter()
        self.loss(name, batch).backward()
        return time.process_time() - processor, time.perf_counter() - clock

    def disagreement(self, batch: PairBatch) -> tuple[float, float]:
        """Return the differences of loss and gradients, published and ours, relative to their size.

        Drop-path is off, and both take the largest weight instead of drawing negatives.
        """
        task = self.tasks["ours"].eval()
        losses = {
            "published": lambda: published_loss(task, padded(batch, self.size.text_length), heaviest),
            "ours": lambda: task(batch).loss,
        }
        found = {name: _with_gradients(task, loss) for name, loss in losses.items()}
        task.train()
        (loss, gradients), (our_loss, ours) = found["published"], found["ours"]
        return abs(our_loss / loss - 1), float((ours - gradients).norm() / gradients.norm())


def pairs(size: Size, seed: int) -> PairBatch:
    """Return random images, and random words in texts as long as captions are.

    Lengths follow those of Flickr8k's captions in tokens: median 13, mean 14, 90 % up to 19, 99 % up to 26.
    """
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(math.log(13.2), 0.29, size.batch)).round().astype(int).clip(5, size.text_length)
    rows = []
    for number, length in enumerate(lengths.tolist()):
        places = np.arange(length)
        words = np.where((places == 0) | (places == length - 1), -1, places)
        ids = np.where(words == -1, 101, rng.integers(1000, size.model.vocab_size, length))
        masked_ids, labels = mask_words(EncodedText(ids, words, False), size.model.vocab_size, 103, rng)
        image = torch.from_numpy(rng.standard_normal((3, *size.model.image_size), dtype=np.float32))
        texts = {"ids": ids, "masked_ids": masked_ids, "labels": labels}
        rows.append({"image": image, **texts, "image_id": number, "text_id": number, "source": 0})
    return PAPER.collate(rows)


def _with_gradients(task: Pairs, loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
    task.zero_grad(set_to_none=True)
    with mock.patch("dualfuse.losses.hard_negatives.sample_negatives", _largest):
        value = loss()
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])


def _largest(logits: Tensor, allowed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    return sample_negatives(logits, allowed, torch.zeros_like(noise))


def peak(options: Options) -> float:
    """Return the MiB by which a step raises this process's peak: activations, gradients, and what is temporary."""
    bench = Bench(options)
    batch = pairs(bench.size, seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench.step(options.peak_of, batch)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peaks() -> dict[str, float]:
    """Return the peak of every candidate, each from a process of its own."""
    command = [sys.executable, *sys.argv]
    return {
        name: float(subprocess.run([*command, "--peak-of", name], check=True, capture_output=True).stdout)
        for name in RECIPES
    }


def report(rounds: list[dict[str, Seconds]], memory: Mapping[str, float]) -> None:
    """Print one line per candidate; ratios are published / candidate, with the smallest and the largest of a round."""
    print(f"{'':<14}{'CPU s':>8}{'wall s':>8}{'ratio':>8}{'(smallest to largest)':>24}{'peak MiB':>10}")
    for name in RECIPES:
        processor, clock = (statistics.median(times[name][kind] for times in rounds) for kind in (0, 1))
        ratios = [times["published"][0] / times[name][0] for times in rounds]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        ratio = f"{statistics.median(ratios):8.2f}{spread:>24}"
        print(f"{name:<14}{processor:8.3f}{clock:8.3f}{ratio}{memory[name]:10.0f}")


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options, description=__doc__)
    keep_big_blocks()
    if options.peak_of:
        print(peak(options))
        return
    memory = peaks()  # first: a child's peak counts the memory of the process that started it
    bench = Bench(options)
    loss, gradients = bench.disagreement(pairs(bench.size, seed=0))
    print(f"{options}\npublished and ours differ by {loss:.0e} (loss), {gradients:.0e} (gradients)")
    rounds = []
    for number in range(1, 1 + options.rounds):
        batch = pairs(bench.size, seed=number)
        names = random.sample(tuple(RECIPES), len(RECIPES))
        rounds.append({name: bench.step(name, batch) for name in names})
    report(rounds, memory)


if __name__ == "__main__":
    main()
