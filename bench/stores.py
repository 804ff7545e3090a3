"""Time of exact searches: the store at each precision against plain matrix products, one query and 32 at a time.

    python -m bench.stores --rows 1000000 --width 768

Embeddings are random unit vectors, the hardest case for bounds: the best scores lie closest together. Methods take
turns in every round. Printed are CPU and wall milliseconds of all threads (median, smallest to largest), the
ratio of CPU time to torch in the same round, and recall at 10 against torch in fp32; of the build, bytes and memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from dualfuse.search.stores.exact import ExactStore

BLOCK = 10_000


def main() -> None:
    """Build, then search in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.index"
        build(path, options.rows, options.width)
        stores = {
            precision: ExactStore.open("bench", [path], precision=precision) for precision in ("int8", "fp16", "bits")
        }
        stores["fp32"] = ExactStore.open("bench", [path])
        matrix = stores["fp32"].embeddings
        generator = torch.Generator().manual_seed(1)
        for count in (1, 32):
            queries = torch.nn.functional.normalize(torch.randn(count, options.width, generator=generator))
            compare(stores, matrix, queries, options.rounds)


def build(path: Path, rows: int, width: int) -> None:
    """Build an index in blocks, and print what it costs."""
    generator, before, started = torch.Generator().manual_seed(0), written(), time.process_time()
    store, anonymous = ExactStore.open("bench", [path], precision="int8"), 0
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        block = torch.nn.functional.normalize(torch.randn(count, width, generator=generator))
        names = [f"folder-{start % 7}/image-{number:09}.jpg" for number in range(start, start + count)]
        store.add(names, block, [{"folder": name[:8], "price": hash(name) % 1000} for name in names])
        if start // BLOCK % 5 == 4:
            store.flush()
            anonymous = max(anonymous, memory())
    store.flush()
    size = sum(file.stat().st_size for file in path.iterdir())
    print(
        f"{rows:,} x {width}: {(written() - before) / 1e9:.2f} GB written for {size / 1e9:.2f} GB of files, "
        f"{anonymous} MiB of memory that is not mapped, {time.process_time() - started:.0f} CPU s"
    )


def compare(stores: dict[str, ExactStore], matrix: Tensor, queries: Tensor, rounds: int) -> None:
    """Print one line per method."""
    array = matrix.numpy()
    methods: dict[str, Callable[[], object]] = {
        "torch, matmul + topk": lambda: (queries @ matrix.T).topk(10).indices,
        "numpy, matmul + argpartition": lambda: np.argpartition(array @ queries.numpy().T, -10, axis=0)[-10:],
        **{f"store, {name}": lambda store=store: store.search(queries, 10) for name, store in stores.items()},
        "store, int8, 50 % filter": lambda: stores["int8"].search(queries, 10, {"price": {"$lt": 500}}),
        "store, int8, 1 % filter": lambda: stores["int8"].search(queries, 10, {"price": {"$lt": 10}}),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            cpu, wall = time.process_time(), time.perf_counter()
            method()
            if number:  # the first round reads the files
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    order = list(stores["fp32"].entries())
    best = [{order[row] for row in rows} for rows in (queries @ matrix.T).topk(10).indices.tolist()]
    baseline = [cpu for cpu, _ in times["torch, matmul + topk"]]
    print(f"\n| {len(queries)} queries | CPU ms | wall ms | CPU / torch | recall@10 |\n|---|---|---|---|---|")
    for name, pairs in times.items():
        ratios = [cpu / base for (cpu, _), base in zip(pairs, baseline, strict=True)]
        store = stores.get(name.removeprefix("store, "))
        recall = ""
        if store:
            answer = store.search(queries, 10)
            shares = [len({m.name for m in some} & each) / 10 for some, each in zip(answer, best, strict=True)]
            recall = f"{np.mean(shares):.3f}"
        print(
            f"| {name} | {spread([c * 1e3 for c, _ in pairs])} | {spread([w * 1e3 for _, w in pairs])} | "
            f"{spread(ratios, 2)} | {recall} |",
            flush=True,
        )


def spread(values: list[float], digits: int = 0) -> str:
    """Return median, smallest and largest."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def memory() -> int:
    """Return MiB of anonymous memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("RssAnon"))


def written() -> int:
    """Return the bytes that this process has written so far."""
    return int(Path(f"/proc/{os.getpid()}/io").read_text().split("wchar: ")[1].split()[0])


if __name__ == "__main__":
    main()
