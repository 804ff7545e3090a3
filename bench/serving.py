"""Numbers of the search service: latency, throughput with and without batching, the first query, and a load of minutes.

Each number is of a real server (uvicorn) in a process of its own, over ``--count`` random embeddings, and of clients in
this process that speak HTTP over kept connections. Texts are drawn from the tokenizer's words and never repeat, so the
cache of queries does not help. ``python bench/serving.py --model nano`` prints a table and the load of the machine;
``--parts latency`` runs one part. The plain loop answers the same queries by ``Index.search``, one after another,
without a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from PIL import Image

from dualfuse import hub
from dualfuse.data.text.tokenizer import BERT_VOCABULARY
from dualfuse.hub import LoadedModel
from dualfuse.recipe import Data, Recipe
from dualfuse.recipes.small_pairs import NANO, SMALL
from dualfuse.search.collection import Collection
from dualfuse.search.index import Index, fingerprint
from dualfuse.search.server.options import ServerOptions
from dualfuse.search.server.run import create_service, serve
from dualfuse.search.stores.exact import ExactStore
from dualfuse.tasks.pretrain.pairs import PairsConfig

MODELS = {"nano": NANO, "small": SMALL}
FILES = 64  # different image files, which the names of the collection share
TOP = 20
WORDS = [line for line in BERT_VOCABULARY.read_text().splitlines() if line.isalpha() and len(line) > 2]
Part = Literal["latency", "paced", "throughput", "loop", "first", "soak"]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: Literal["nano", "small"] = "nano"
    count: int = 100_000
    """embeddings in the index"""
    clients: int = 16
    seconds: float = 15.0
    """of each part"""
    parts: tuple[Part, ...] = ("latency", "paced", "throughput", "loop", "first", "soak")
    soak_clients: int = 100
    soak_seconds: float = 60.0
    threads: int = 1
    """of the model"""
    serve: str = ""
    """used by the program itself: start a server with these options, JSON"""


def main(options: Options) -> None:
    """Run the parts and print a line for each."""
    torch.set_num_threads(options.threads)
    if options.serve:
        serve_index(options, **json.loads(options.serve))
        return
    print(f"# {options.model}, {options.count:,} embeddings; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for part in options.parts:
        asyncio.run(PARTS[part](options)) if part != "loop" else plain_loop(options)


# ---- the server ----


def model(name: str, folder: Path) -> LoadedModel:
    """Return a model with random weights."""
    torch.manual_seed(0)
    config = MODELS[name]
    data = Data(image_size=config.image_size, text_length=config.text_length)
    recipe = Recipe(name, replace(config, drop_path=0.0), PairsConfig(), data)
    return hub.load(hub.save(folder / "model", recipe.task.build(recipe.model.build()), recipe))


def index(loaded: LoadedModel, folder: Path, count: int) -> Index:
    """Return an index of random embeddings, whose images are ``FILES`` files of noise."""
    rng, width = np.random.default_rng(0), 0
    for number in range(FILES):
        Image.fromarray(rng.integers(0, 256, (192, 256, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    with torch.inference_mode():
        ids = torch.tensor([[101, 2000, 102]])
        tokens = loaded.task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))
        width = loaded.task.text_features(tokens).shape[1]
    store = ExactStore(fingerprint(loaded))
    names = [f"{number // 1000:03}/{number:07}.jpg" for number in range(count)]
    for start in range(0, count, 10_000):
        some = names[start : start + 10_000]
        embeddings = torch.from_numpy(rng.standard_normal((len(some), width), dtype=np.float32))
        store.add(
            some, torch.nn.functional.normalize(embeddings), [{"folder": name[:3], "stamp": "1-1"} for name in some]
        )
    read = [(folder / f"{number}.jpg").read_bytes() for number in range(FILES)]
    collection = Collection(
        folder, folder, tuple(names), ("1-1",) * count, lambda number: read[number % FILES], are_files=False
    )
    return Index(loaded, collection, store, (), 0)


def serve_index(options: Options, **settings: float) -> None:
    """Serve until a signal; ``settings`` are fields of ServerOptions, and the port."""
    port = int(settings.pop("port"))
    with tempfile.TemporaryDirectory() as name:
        loaded = model(options.model, Path(name))
        made = index(loaded, Path(name), options.count)
        service = create_service(loaded, lambda: made, ServerOptions(**settings), options.model)  # type: ignore[arg-type]
        serve(service, "127.0.0.1", port)


@contextlib.contextmanager
def server(options: Options, **settings: float) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start a server in a process of its own; yields its port and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [f"--model={options.model}", f"--count={options.count}", f"--threads={options.threads}"]
    process = subprocess.Popen([sys.executable, __file__, *words, "--serve", json.dumps(settings | {"port": port})])
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None:
                raise RuntimeError("the server ended")
            time.sleep(0.05)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


# ---- the clients ----


class Client:
    """One kept connection; HTTP/1.1 by hand, as a library would take more of the two cores than the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Use an open connection."""
        self._reader, self._writer = reader, writer

    @staticmethod
    @contextlib.asynccontextmanager
    async def connect(port: int) -> AsyncIterator[Client]:
        """Open a connection, and close it at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()

    async def search(self, **body: object) -> tuple[int, bytes]:
        """Return status and body of the answer to a search."""
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        )
        self._writer.write(head.encode() + b"\r\n" + data)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(answer.split()[1]), await self._reader.readexactly(length)


def texts(seed: int) -> Iterator[str]:
    """Yield captions of 3 to 9 words, never the same."""
    rng = np.random.default_rng(seed)
    while True:
        yield " ".join(WORDS[number] for number in rng.integers(0, len(WORDS), rng.integers(3, 10)))


async def ask(port: int, seed: int, seconds: float, pause: float = 0.0, **body: object) -> list[float]:
    """Search one text after another, and return the seconds of each; ``pause`` seconds lie between two, on average."""
    taken, rng = list[float](), np.random.default_rng(seed)
    async with Client.connect(port) as client:
        end = time.perf_counter() + seconds
        for text in texts(seed):
            if pause:
                await asyncio.sleep(rng.exponential(pause))
            started = time.perf_counter()
            if started >= end:
                return taken
            status, _ = await client.search(text=text, top=TOP, **body)
            assert status == 200, status
            taken.append(time.perf_counter() - started)
    return taken


@dataclass(frozen=True)
class Load:
    """What clients saw, and what it cost the server."""

    taken: list[float]
    """Seconds of each search."""
    rate: float
    """Searches per second."""
    cpu: float
    """Seconds of processors that the server took for a search."""


async def load(port: int, pid: int, options: Options, pause: float = 0.0, **body: object) -> Load:
    """Search from all clients at the same time; the first second does not count."""
    await asyncio.gather(*(ask(port, 1000 + seed, 1.0, pause, **body) for seed in range(options.clients)))
    started, before = time.perf_counter(), processor_seconds(pid)
    each = await asyncio.gather(*(ask(port, seed, options.seconds, pause, **body) for seed in range(options.clients)))
    taken = [seconds for some in each for seconds in some]
    used = processor_seconds(pid) - before
    return Load(taken, len(taken) / (time.perf_counter() - started), used / len(taken))


def processor_seconds(pid: int) -> float:
    """Return the seconds of processors that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def row(label: str, load: Load) -> None:
    """Print one line of the table: p50, p99, searches per second, processor time of the server, searches."""
    p50, p99 = np.quantile(np.array(load.taken) * 1000, (0.5, 0.99))
    values = f"{p50:.1f} | {p99:.1f} | {load.rate:.0f} | {1000 * load.cpu:.2f} | {len(load.taken)}"
    print(f"| {label} | {values} |", flush=True)


# ---- the parts ----


async def latency(options: Options) -> None:
    """Clients that ask without a pause."""
    with server(options) as (port, process):
        row(f"{options.clients} clients without pauses", await load(port, process.pid, options))


async def paced(options: Options) -> None:
    """Clients that ask every 100 ms on average, as people and pages do."""
    with server(options) as (port, process):
        made = await load(port, process.pid, options, pause=0.1)
        row(f"{options.clients} clients, a query every 100 ms each", made)


async def throughput(options: Options) -> None:
    """Batching on and off, in turns."""
    wide = replace(options, clients=64)
    settings = {"on": {}, "off": {"max_batch": 1, "window_ms": 0.0}}
    loads: dict[str, list[Load]] = {name: [] for name in settings}
    for _ in range(3):
        for name, each in settings.items():
            with server(wide, **each) as (port, process):
                made = await load(port, process.pid, replace(wide, seconds=options.seconds / 3))
            loads[name].append(made)
            row(f"64 clients, batching {name}", made)
    pairs = list(zip(*loads.values(), strict=True))
    for what, ratios in (
        ("searches per second, on / off", [on.rate / off.rate for on, off in pairs]),
        ("processor time, off / on", [off.cpu / on.cpu for on, off in pairs]),
    ):
        print(f"{what}: {statistics.mean(ratios):.2f} ({', '.join(f'{each:.2f}' for each in ratios)})", flush=True)


def plain_loop(options: Options) -> None:
    """``Index.search`` without a server."""
    with tempfile.TemporaryDirectory() as name:
        loaded = model(options.model, Path(name))
        made, taken = index(loaded, Path(name), options.count), list[float]()
        start, before = time.perf_counter(), time.process_time()
        for text in texts(7):
            begun = time.perf_counter()
            if begun - start > options.seconds:
                break
            made.search(text, top=TOP)
            taken.append(time.perf_counter() - begun)
        used = (time.process_time() - before) / len(taken)
        row("plain loop over Index.search", Load(taken, len(taken) / (time.perf_counter() - start), used))


async def first(options: Options) -> None:
    """The first query of a new server, against the median of the next 50 of the same single client."""
    for body in ({}, {"rerank": 16}):
        ratios = []
        for _ in range(3):
            with server(options, budget_ms=60_000) as (port, _process):
                async with Client.connect(port) as client:
                    taken = []
                    for _number, text in zip(range(51), texts(3), strict=False):
                        started = time.perf_counter()
                        await client.search(text=text, top=TOP, **body)
                        taken.append(time.perf_counter() - started)
            ratios.append((taken[0], statistics.median(taken[1:])))
        shown = ", ".join(f"{1000 * a:.1f} ms against {1000 * b:.1f} ms ({a / b:.2f})" for a, b in ratios)
        print(f"first query{' with re-ranking' if body else ''}: {shown}", flush=True)


async def soak(options: Options) -> None:
    """Many clients for minutes: memory, and every answer against that of the same query alone."""
    with server(options, max_queue=1024) as (port, process):
        some = [text for _, text in zip(range(500), texts(11), strict=False)]
        async with Client.connect(port) as client:
            alone = {text: ranking((await client.search(text=text, top=TOP))[1]) for text in some}
        megabytes, wrong, count = [memory(process.pid)], 0, 0
        end = time.perf_counter() + options.soak_seconds

        async def one(seed: int) -> None:
            nonlocal wrong, count
            rng, fresh = np.random.default_rng(seed), texts(1_000_000 + seed)
            async with Client.connect(port) as client:
                while time.perf_counter() < end:
                    text = some[rng.integers(len(some))]
                    status, body = await client.search(text=text, top=TOP)
                    wrong += status != 200 or not same(ranking(body), alone[text])
                    await client.search(text=next(fresh), top=TOP)  # fills the caches
                    count += 2

        async def watch() -> None:
            while time.perf_counter() < end:
                await asyncio.sleep(options.soak_seconds / 6)
                megabytes.append(memory(process.pid))

        await asyncio.gather(watch(), *map(one, range(options.soak_clients)))
    print(
        f"{options.soak_clients} clients for {options.soak_seconds:.0f} s: {count} answers, {wrong} lost or wrong; "
        f"MiB of the server: {', '.join(f'{each:.0f}' for each in megabytes)}",
        flush=True,
    )


def ranking(body: bytes) -> dict[str, float]:
    """Return the cosine by id of the hits of an answer."""
    return {hit["id"]: hit["cosine"] for hit in json.loads(body)["hits"]}


def same(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two answers are equal up to rounding: hits may differ at the end only if their cosines tie."""
    cosines = list(zip(sorted(one.values()), sorted(other.values()), strict=True))
    shared = one.keys() & other.keys()
    return (
        all(abs(a - b) < 1e-5 for a, b in cosines)
        and all(abs(one[name] - other[name]) < 1e-5 for name in shared)
        and len(shared) >= TOP - 1
    )


def memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


PARTS = {"latency": latency, "paced": paced, "throughput": throughput, "first": first, "soak": soak}

if __name__ == "__main__":
    main(tyro.cli(Options))
