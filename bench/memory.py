"""Times a pre-training step with and without a raised limit for mapped memory: python bench/memory.py --help

By default glibc gives every freed block above 32 MiB back to the system, and each page of the next one faults anew;
``dualfuse train`` raises that limit (dualfuse/training/memory.py). Two processes take turns, in random order.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import tyro
from step import Bench, Options, pairs

from dualfuse.training.memory import keep_big_blocks

LIMITS = {"default": False, "raised": True}


@dataclass(frozen=True)
class Cost:
    """Of one step: seconds of the processor, those of them spent in the system, page faults, and the peak so far."""

    processor: float
    system: float
    faults: int
    peak_mib: float


class Worker:
    """A process that keeps its model between steps."""

    def __init__(self, options: Options, *, raised: bool) -> None:
        """Build the model in the new process."""
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(options, raised))

    def step(self, seed: int) -> Cost:
        """Run one step."""
        return self.pool.submit(_step, seed).result()


_bench: list[Bench] = []  # of this process


def _start(options: Options, raised: bool) -> None:
    if raised:
        keep_big_blocks()
    _bench.append(Bench(options))


def _step(seed: int) -> Cost:
    batch = pairs(_bench[0].size, seed)
    before, processor = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    _bench[0].step("ours", batch)
    after, processor = resource.getrusage(resource.RUSAGE_SELF), time.process_time() - processor
    system, faults = after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt
    return Cost(processor, system, faults, after.ru_maxrss / 1024)


def main() -> None:
    """Print one line per limit."""
    options = tyro.cli(Options, description=__doc__)
    workers = {name: Worker(options, raised=raised) for name, raised in LIMITS.items()}
    rounds = []
    for number in range(options.rounds + 1):
        names = random.sample(tuple(workers), len(workers))
        rounds.append({name: workers[name].step(number) for name in names})
    rounds = rounds[1:]  # the first round fills the heap
    print(f"{options}\n{'limit':<10}{'CPU s':>8}{'system s':>10}{'faults':>10}{'peak MiB':>10}{'gain':>7}")
    for name in workers:
        costs = [costs[name] for costs in rounds]
        processor = statistics.median(cost.processor for cost in costs)
        system = statistics.median(cost.system for cost in costs)
        faults = statistics.median(cost.faults for cost in costs)
        gains = [costs["default"].processor / costs[name].processor for costs in rounds]
        gain = f"{statistics.median(gains):7.2f} ({min(gains):.2f} to {max(gains):.2f})"
        print(f"{name:<10}{processor:8.2f}{system:10.2f}{faults:10.0f}{costs[-1].peak_mib:10.0f}{gain}")


if __name__ == "__main__":
    main()
