"""How the cost of a joint step grows with batch, resolution, length of text and processes: python bench/growth.py -h

The demo's model (4 layers of 64), absolute positions, texts all as long as the length says; ours against the published
way on the same pairs. One size is changed at a time. Processes speak gloo on this machine and hold a batch each, so
that the batch of contrast grows with them. Times are processor seconds of one thread, the smallest of the rounds, in
which all sizes take turns; ``exponent`` is that of the power by which the cost of a step grows from one line to the
next: 1 is in proportion. For processes the seconds are those of all of them, and the clock is shown beside.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log

import numpy as np
import torch
import tyro
from published_step import padded, published_loss

from dualfuse import distributed as dist
from dualfuse.recipes.small_pairs import NANO
from dualfuse.tasks.pretrain.pair_batch import PairBatch, collate_pairs
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training.memory import keep_big_blocks

MASKED = 0.15


@dataclass(frozen=True)
class Size:
    """What a step is done with."""

    batch: int = 64
    pixels: int = 64
    text: int = 16


GROWING: dict[str, tuple[Size, ...]] = {
    "batch": tuple(Size(batch=batch) for batch in (16, 64, 256)),
    "pixels": tuple(Size(batch=16, pixels=pixels) for pixels in (64, 128, 256)),
    "text": tuple(Size(batch=32, text=text) for text in (8, 32, 128)),
}


@dataclass(frozen=True)
class Options:
    """What is measured."""

    rounds: int = 3
    processes: tuple[int, ...] = (1, 2, 4)


def pairs(size: Size, seed: int = 0) -> PairBatch:
    """Return random pairs with texts of equal length, 15 % of whose words are masked."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(size.batch):
        ids = rng.integers(1000, NANO.vocab_size, size.text)
        hidden = rng.permutation(np.arange(size.text) < max(1, round(MASKED * size.text)))
        image = torch.from_numpy(rng.standard_normal((3, size.pixels, size.pixels), dtype=np.float32))
        texts = {"ids": ids, "masked_ids": np.where(hidden, 103, ids), "labels": np.where(hidden, ids, -100)}
        rows.append({"image": image, **texts, "image_id": number, "text_id": number, "source": 0})
    return collate_pairs(rows)


def steps(size: Size) -> dict[str, Callable[[], None]]:
    """Return a step of both ways."""
    model = replace(NANO, image_size=(size.pixels, size.pixels), text_length=size.text)
    task, batch = PairsConfig().build(model.build()), pairs(size)

    def ours() -> None:
        task.zero_grad()
        task(batch).loss.backward()

    def published() -> None:
        task.zero_grad()
        published_loss(task, padded(batch, size.text)).backward()

    return {"ours": ours, "published": published}


def seconds(step: Callable[[], None]) -> float:
    """Return the processor seconds of a step."""
    before = time.process_time()
    step()
    return time.process_time() - before


def grown(kind: str, rounds: int) -> None:
    """Print how the cost grows with one size."""
    sizes = GROWING[kind]
    all_steps = [steps(size) for size in sizes]
    best = [dict.fromkeys(found, float("inf")) for found in all_steps]
    for _ in range(1 + rounds):
        for found, least in zip(all_steps, best, strict=True):
            for name, step in found.items():
                least[name] = min(least[name], seconds(step))
    before: dict[str, float] = {}
    for place, (size, least) in enumerate(zip(sizes, best, strict=True)):
        cells = []
        for name, cost in least.items():
            ratio = _value(size, kind) / _value(sizes[place - 1], kind)
            exponent = f"{log(cost / before[name]) / log(ratio):.2f}" if before else ""
            cells.append(f"{1000 * cost / size.batch:.2f} | {exponent}")
        before = least
        gain = least["published"] / least["ours"]
        print(f"| {kind} {_value(size, kind)} | {' | '.join(cells)} | {gain:.2f} |", flush=True)


def _value(size: Size, kind: str) -> int:
    return {"batch": size.batch, "pixels": size.pixels, "text": size.text}[kind]


def joined(rank: int, world: int, port: int, rounds: int, results: multiprocessing.Queue[tuple[float, float]]) -> None:
    """Run some steps as one of many processes, and tells processor and clock seconds of the quickest."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    with dist.process_group() as device:
        torch.manual_seed(0)
        task, batch = PairsConfig().build(NANO.build()), pairs(Size(), seed=rank)
        wrapped, found = dist.wrap(task, device), list[tuple[float, float]]()
        for _ in range(1 + rounds):
            dist.barrier()
            processor, clock = time.process_time(), time.perf_counter()
            wrapped(batch).loss.backward()
            dist.barrier()
            found.append((time.process_time() - processor, time.perf_counter() - clock))
        results.put(min(found[1:]))


def together_on_one_machine(world: int, rounds: int) -> tuple[float, float]:
    """Return the processor seconds of all processes in a step, and those of the clock."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    results: multiprocessing.Queue[tuple[float, float]] = context.Queue()
    started = [context.Process(target=joined, args=(rank, world, port, rounds, results)) for rank in range(world)]
    for process in started:
        process.start()
    found = [results.get() for _ in started]
    for process in started:
        process.join()
    return sum(processor for processor, _ in found), max(clock for _, clock in found)


def exchanged(worlds: Sequence[int], rounds: int) -> None:
    """Print what more processes cost."""
    for world in worlds:
        processor, clock = together_on_one_machine(world, rounds)
        pairs_in_step = world * Size().batch
        print(f"| {world} x {Size().batch} | {1000 * processor / pairs_in_step:.2f} | {pairs_in_step / clock:,.0f} |")


def main() -> None:
    """Print a table for the sizes, and one for processes."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_big_blocks()
    print("| | ours, CPU ms a pair | exponent | published | exponent | ratio |\n|---|---:|---:|---:|---:|---:|")
    for kind in GROWING:
        grown(kind, options.rounds)
    print("\n| processes x pairs | CPU ms a pair | pairs/s on the clock |\n|---|---:|---:|")
    exchanged(options.processes, 2 * options.rounds)


if __name__ == "__main__":
    main()
