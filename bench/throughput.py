"""Pairs per second and utilisation of training steps, one table for this machine: python bench/throughput.py --help

VLMo base at 224 pixels and BridgeTower base at 288: a joint step, ours and the published way, and a step of contrast
alone, ours and in ordinary PyTorch (plain.py). ``needed`` is what the objective costs by formula (flops.py), ``done``
what the step was counted to do. MFU is the needed operations per second, in parts of what this machine reaches in the
biggest matrix product of that model, measured in the same round. Times are processor seconds on a CPU, so of one core
with one thread, and seconds of the clock on a GPU. Candidates take turns in random order, and ratios are formed within
a round. Memory is the peak of a first step above that of the weights, gradients included.
"""

from __future__ import annotations

import multiprocessing
import platform
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
import tyro
from flops import Lengths, bridgetower, counted, vlmo
from plain import Contrast, Towers
from published_step import padded, published_loss
from step import SIZES, pairs
from torch import Tensor, nn

from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.recipes.bridgetower import BASE as BRIDGETOWER
from dualfuse.tasks.pretrain.pair_batch import PairBatch
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig
from dualfuse.training.memory import keep_big_blocks

Name = Literal["vlmo-relative", "vlmo-absolute", "bridgetower"]
CONTRAST = PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal")
JOINT = PairsConfig()


@dataclass(frozen=True)
class Options:
    """What is measured."""

    models: tuple[Name, ...] = ("vlmo-absolute", "bridgetower", "vlmo-relative")
    batch: int = 4
    rounds: int = 3
    threads: int = 1
    device: str = ""
    """cpu or cuda; empty: a GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: by autocast."""

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class Way:
    """One way to do a step: what has the weights, its loss of a batch, and what its objective needs for a pair."""

    module: nn.Module
    loss: Callable[[PairBatch], Tensor]
    needs: Callable[[Lengths], float]


@dataclass(frozen=True)
class Subject:
    """A model, the ways to train it, its batches, and the width of its biggest matrix product."""

    ways: Mapping[str, Way]
    draw: Callable[[int], PairBatch]
    width: int
    tokens: int
    """Of an image and a text together."""


def of_vlmo(positions: Literal["relative", "absolute"], batch: int) -> Subject:
    """Return VLMo base; the joint steps have the same loss and gradients."""
    size = replace(SIZES["base"], batch_size=batch)
    cfg = replace(size.model, positions=positions)
    model = cfg.build()
    joint, contrast = Pairs(JOINT, model), Pairs(CONTRAST, model)
    plain = Contrast(
        Towers(cfg.width, cfg.depth, cfg.heads, cfg.patch_size, cfg.image_size, cfg.vocab_size, cfg.text_length)
    )

    def needs(task: PairsConfig) -> Callable[[Lengths], float]:
        return lambda pair: vlmo(cfg, task, pair)

    ways = {
        "joint, published": Way(
            joint, lambda some: published_loss(joint, padded(some, size.text_length)), needs(JOINT)
        ),
        "joint, ours": Way(joint, lambda some: joint(some).loss, needs(JOINT)),
        "contrast, plain PyTorch": Way(plain, plain, needs(CONTRAST)),
        "contrast, ours": Way(contrast, lambda some: contrast(some).loss, needs(CONTRAST)),
    }
    return Subject(ways, lambda seed: pairs(size, seed), cfg.width, 237)


def of_bridgetower(batch: int) -> Subject:
    """Return BridgeTower base; the joint step of transformers runs its towers for every objective."""
    import bridgetower as other  # reason for the place: transformers may be missing, and is slow to import

    image, text = BRIDGETOWER.image, BRIDGETOWER.text
    found = other.candidates()
    ours, theirs = found["ours"], found["padded to 50"]
    contrast = Pairs(CONTRAST, ours.task.model) if isinstance(ours, other.Ours) else None
    assert contrast is not None
    assert isinstance(image, CLIPViTConfig) and isinstance(text, RobertaConfig)
    plain = Contrast(
        Towers(
            image.width, image.depth, text.heads, image.patch_size, image.image_size, text.vocab_size, text.text_length
        )
    )

    def needs(task: PairsConfig) -> Callable[[Lengths], float]:
        return lambda pair: bridgetower(BRIDGETOWER, task, pair)

    ways = {
        "joint, transformers": Way(
            theirs.module, lambda some: theirs.do("words+match", some), needs(other.PRETRAINING)
        ),
        "joint, ours": Way(ours.module, lambda some: ours.do("words+match", some), needs(other.PRETRAINING)),
        "contrast, plain PyTorch": Way(plain, plain, needs(CONTRAST)),
        "contrast, ours": Way(contrast, lambda some: contrast(some).loss, needs(CONTRAST)),
    }
    return Subject(ways, lambda seed: other.pairs(batch, seed), BRIDGETOWER.width, 325 + other.PUBLISHED_LENGTH)


class Bench:
    """One model on one device."""

    def __init__(self, name: Name, options: Options) -> None:
        """Build all ways."""
        torch.manual_seed(0)
        self.options, self.device = options, options.place
        batch = options.batch
        self.subject = of_bridgetower(batch) if name == "bridgetower" else of_vlmo(_positions(name), batch)
        for way in self.subject.ways.values():
            way.module.to(self.device).train()
        self.words_per_pair = Lengths.of(self.subject.draw(0))

    def step(self, name: str, batch: PairBatch) -> float:
        """Run forward and backward, and gives the seconds."""
        way = self.subject.ways[name]
        half = torch.autocast(self.device.type, torch.bfloat16) if self.options.precision == "bf16" else nullcontext()
        way.module.zero_grad(set_to_none=True)
        before = self.clock()
        with self.device, half:  # what the yardsticks create goes where the batch is
            loss = way.loss(batch)
        loss.backward()
        return self.clock() - before

    def clock(self) -> float:
        """Return seconds of the processor; on a GPU those of the clock, when it has done all it was given."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def product(self) -> float:
        """Return the operations per second of the model's widest linear layer on all tokens of a joint step."""
        rows, width = self.options.batch * self.subject.tokens * 4, self.subject.width
        kind = torch.bfloat16 if self.options.precision == "bf16" else torch.float32
        tokens = torch.randn(rows, width, device=self.device, dtype=kind)
        weight = torch.randn(4 * width, width, device=self.device, dtype=kind)
        seconds = []
        for _ in range(6):
            before = self.clock()
            for _ in range(REPEATS[self.device.type]):
                nn.functional.linear(tokens, weight)
            seconds.append((self.clock() - before) / REPEATS[self.device.type])
        return 8 * rows * width**2 / min(seconds)

    def batch(self, seed: int) -> PairBatch:
        """Return random pairs on the device."""
        batch = self.subject.draw(seed)
        for key, value in batch.items():
            batch[key] = value.to(self.device)  # type: ignore[literal-required]  # its own keys
        return batch

    def first(self, name: str) -> tuple[float, int]:
        """Return the MiB by which a first step raises the peak, and the operations it does for a pair."""
        if self.device.type == "cpu":  # a process of its own, whose peak starts at what it shares with this one
            with multiprocessing.get_context("fork").Pool(1, _forked.append, (self,)) as pool:
                return pool.apply(_first_of_forked, (name,))
        return _first_of(self, name)

    def memory(self) -> float:
        """Return the peak so far in MiB."""
        if self.device.type == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return torch.cuda.max_memory_allocated(self.device) / 2**20


REPEATS = {"cpu": 1, "cuda": 20}
_forked: list[Bench] = []  # of a process that measures one first step


def _first_of_forked(name: str) -> tuple[float, int]:
    return _first_of(_forked[-1], name)


def _first_of(bench: Bench, name: str) -> tuple[float, int]:
    batch = bench.batch(0)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    before = bench.memory()
    operations = counted(lambda: bench.step(name, batch))
    bench.subject.ways[name].module.zero_grad(set_to_none=True)
    return bench.memory() - before, operations // bench.options.batch


def _positions(name: Name) -> Literal["relative", "absolute"]:
    return "relative" if name == "vlmo-relative" else "absolute"


def report(bench: Bench, firsts: Mapping[str, tuple[float, int]], rounds: list[tuple[float, dict[str, float]]]) -> None:
    """Print one line per way."""
    ways, batch = bench.subject.ways, bench.options.batch
    rate = statistics.median(rate for rate, _ in rounds)
    print(f"matrix product: {rate / 1e9:,.0f} GFLOP/s ({min(r for r, _ in rounds) / 1e9:,.0f} the slowest round)")
    print("| | pairs/s | GFLOP needed | done | MFU (smallest to largest) | peak MiB |\n|---|---:|---:|---:|---:|---:|")
    for name, way in ways.items():
        needed = [way.needs(Lengths.of(bench.subject.draw(seed))) for seed in range(1, 1 + len(rounds))]
        speeds = [batch / times[name] for _, times in rounds]
        used = [100 * speed * work / rate for speed, work, (rate, _) in zip(speeds, needed, rounds, strict=True)]
        memory, done = firsts[name]
        numbers = f"{statistics.median(speeds):.3g} | {way.needs(bench.words_per_pair) / 1e9:.3g} | {done / 1e9:.3g}"
        spread = f"**{statistics.median(used):.0f} %** ({min(used):.0f} to {max(used):.0f})"
        print(f"| {name} | {numbers} | {spread} | {memory:,.0f} |", flush=True)
    for kind in ("joint", "contrast"):
        ours, other = f"{kind}, ours", next(n for n in ways if n.startswith(kind) and not n.endswith("ours"))
        ratios = [times[other] / times[ours] for _, times in rounds]
        print(f"{kind}: {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


def measure(model: Name, options: Options) -> None:
    """Measures one model and prints its table."""
    bench = Bench(model, options)
    firsts = {name: bench.first(name) for name in bench.subject.ways}
    rounds: list[tuple[float, dict[str, float]]] = []
    for seed in range(1, 1 + options.rounds):
        batch, names = bench.batch(seed), list(bench.subject.ways)
        random.shuffle(names)
        rounds.append((bench.product(), {name: bench.step(name, batch) for name in names}))
    report(bench, firsts, rounds)


def main() -> None:
    """Print a table for each model."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    keep_big_blocks()
    where = torch.cuda.get_device_name() if options.place.type == "cuda" else platform.processor() or platform.machine()
    print(
        f"{where}, torch {torch.__version__}, {options.threads} thread(s), {options.precision}, batch {options.batch}"
    )
    for model in options.models:
        print(f"\n{model}")
        measure(model, options)


if __name__ == "__main__":
    main()
