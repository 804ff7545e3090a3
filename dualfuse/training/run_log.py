"""The log of a run: lines of numbers in a file, on the console and in trackers; and the skipped samples."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse import upgrade
from dualfuse.config import JSON
from dualfuse.data.loader import Skipped
from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_TABLE, read_bounded
from dualfuse.io import atomic_write, to_json
from dualfuse.training.log_console import SilentConsole, open_console
from dualfuse.training.trackers import Trackers

logger = logging.getLogger(__name__)

LOG, SKIPPED = "log.jsonl", "skipped.jsonl"
STATE = "log"
"""The key in checkpoints of the state of the log."""
COUNT = "count/"
SAMPLES = "count/samples"
SKIPPED_SAMPLES = "count/skipped"
MIN_SKIPPED = 100
"""Number of skipped samples from which their share is checked."""


class Log:
    """The log of one run: ``folder``/log.jsonl, the console, and trackers such as TensorBoard.

    Values whose name starts with "count/" are summed over the whole run, all others are averaged since the last line.
    The rate is in samples per second if "count/samples" is logged, otherwise in steps per second. All processes add
    their values and must call :meth:`write`; the first one writes the line.
    """

    def __init__(
        self, folder: Path, *, steps: int, start: int, trackers: Trackers | None = None, state: JSON = None
    ) -> None:
        """Continue the log after step ``start`` of ``steps``; later lines, of a killed run, are removed.

        ``state`` is the :meth:`state` that the checkpoint of step ``start`` holds; None: a line was written there.
        """
        self._is_first = dist.rank() == 0
        if self._is_first:
            folder.mkdir(parents=True, exist_ok=True)
            cut_back(folder / LOG, start)
        earlier = read_log(folder) if self._is_first else []
        self.steps, self.start = steps, start
        self.counts = {name: value for line in earlier for name, value in line.items() if name.startswith(COUNT)}
        """Sums up to the last line."""
        self._trackers = trackers or Trackers({})
        self._file = (folder / LOG if self._is_first else Path(os.devnull)).open("ab", 0)
        self._console = open_console(steps, start) if self._is_first else SilentConsole()
        self._sums: dict[str, tuple[Tensor | float, int]] = {}
        self._earlier = earlier[-1].get("seconds", 0.0) if earlier else 0.0
        self._began = self._before = time.perf_counter()
        self._step = start
        self._restore(state)
        self._folder = folder
        self._reasons: Counter[str] = Counter()
        """Reasons for which samples were skipped since the last line, in this process."""
        self._new: Counter[str] = Counter()
        """Counts of all processes since this log was opened; equal in all of them."""

    def state(self) -> JSON:
        """Return what was added since the last line, for a checkpoint between lines; all processes must call this."""
        now, world = time.perf_counter(), dist.world_size()
        sums = {
            name: [total * world if name.startswith(COUNT) else total, self._sums[name][1]]
            for name, total in self._totals().items()
        }
        return {
            "step": self._step,
            "seconds": self._earlier + now - self._began,
            "seconds_since": now - self._before,
            "sums": {name: list[JSON](values) for name, values in sums.items()},
        }

    def _restore(self, state: JSON) -> None:
        match state:
            case {"step": int(step), "seconds": float(seconds), "seconds_since": float(since), "sums": dict(sums)}:
                self._step, self._earlier, self._before = step, seconds, self._began - since
                for name, sum_and_times in sums.items():
                    match sum_and_times:
                        case [float(total) | int(total), int(times)]:
                            world = dist.world_size() if name.startswith(COUNT) else 1
                            self._sums[name] = total / world, times
                        case _:
                            raise DualfuseError(f"the state of the log in the checkpoint is damaged: {name}")
            case _:  # a checkpoint of an earlier version, which wrote a line at each
                pass

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file and the console's progress line."""
        self._console.close()
        if self._is_first and self._new[SKIPPED_SAMPLES]:
            logger.warning("%s; %s lists them", self._skipped(self._new), self._folder / SKIPPED)
        with suppress(OSError):  # a full disk was reported when the line was written
            self._file.close()
        self._trackers.close()

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Add the values of one step, each of one element, without synchronizing with the device."""
        for name, value in values.items():
            value = value.detach().float() if isinstance(value, Tensor) else value
            total, times = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, times + 1  # a new tensor: the caller may modify its own

    def add_skipped(self, skipped: Sequence[Skipped]) -> None:
        """Count skipped samples; the first one is reported at once."""
        if skipped and self._is_first and not (self._new[SKIPPED_SAMPLES] or self._reasons):
            logger.warning("sample %s is skipped: %s", skipped[0].key, skipped[0].reason)
        self._reasons.update(sample.reason for sample in skipped)
        self.add({SKIPPED_SAMPLES: len(skipped)})

    def check_skipped(self, max_share: float) -> None:
        """Raise ``DualfuseError`` if more than ``max_share`` of the samples read so far are skipped."""
        skipped = self._new[SKIPPED_SAMPLES]
        if skipped >= MIN_SKIPPED and skipped > max_share * (skipped + self._new[SAMPLES]):
            raise DualfuseError(
                f"{self._skipped(self._new)}, more than run.max_skipped_share ({max_share:g}); repair the set, for "
                f"example with dualfuse prepare, or raise that share. {self._folder / SKIPPED} lists them"
            )

    def _skipped(self, counts: Mapping[str, int]) -> str:
        """Return "5 of 20 samples skipped and replaced"."""
        skipped = counts[SKIPPED_SAMPLES]
        return f"{skipped:,} of {skipped + counts.get(SAMPLES, 0):,} samples skipped and replaced"

    def write(self, step: int, **fixed: float) -> None:
        """Write a line: means since the last one, counts, and ``fixed`` values such as the learning rate."""
        means, new = self._settle()
        now = time.perf_counter()  # after the device has caught up
        rate = self._rate(step, new.get(SAMPLES), now - self._before)
        self._new.update(new)
        note = ""
        if new.get(SKIPPED_SAMPLES):
            reason = f", mostly because: {self._reasons.most_common(1)[0][0]}" if self._reasons else ""
            note = f"{self._skipped(new)}{reason}"
        self._reasons.clear()
        self._append(step, {**means, **self.counts, **rate, **fixed}, {**means, **fixed, **rate}, note)
        self._before, self._step = now, step

    def write_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line of metrics; the means of the next line of :meth:`write` are the same as without it."""
        self._append(step, {**(self.counts if step == self._step else {}), **metrics}, metrics)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the duration of the block from the training speed."""
        began = time.perf_counter()
        yield
        self._before += time.perf_counter() - began

    def _append(self, step: int, values: Mapping[str, float], shown: Mapping[str, float], note: str = "") -> None:
        spent = time.perf_counter() - self._began
        line = {"step": step, "seconds": round(self._earlier + spent, 3), **values}
        _append(self._file, line)
        self._console.show(step, shown, (self.steps - step) * spent / max(1, step - self.start), note)
        self._trackers.log(step, line)

    def _totals(self) -> dict[str, float]:
        """Return the sums since the last line as means over processes; this synchronizes with the device."""
        totals = torch.tensor([float(total) for total, _ in self._sums.values()], dtype=torch.float64)
        return dict(zip(self._sums, dist.all_reduce_mean(totals).tolist(), strict=True))

    def _settle(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return the means and the new counts since the last line; this synchronizes with the device."""
        means: dict[str, float] = {}
        new: dict[str, int] = {}
        for name, total in self._totals().items():
            if name.startswith(COUNT):
                new[name] = round(total * dist.world_size())
                self.counts[name] = self.counts.get(name, 0) + new[name]
            else:
                means[name] = total / self._sums[name][1]
        self._sums.clear()
        return means, new

    def _rate(self, step: int, samples: int | None, seconds: float) -> dict[str, float]:
        """Return the training speed; nothing for a second line of the same step, which follows an evaluation."""
        if step == self._step:
            return {}
        if samples is None:
            return {"steps_per_second": round((step - self._step) / seconds, 4)}
        return {"samples_per_second": round(samples / seconds, 2)}


class SkippedLog:
    """The log of skipped samples, ``folder``/skipped.jsonl."""

    def __init__(self, folder: Path, start: int) -> None:
        """Continue the log after step ``start``; the file is created with the first skipped sample."""
        cut_back(folder / SKIPPED, start)
        self._path = folder / SKIPPED
        self.count = len(_read_lines(self._path))
        """Samples skipped since the beginning of the run."""

    def extend(self, step: int, skipped: Iterable[Skipped]) -> None:
        """Record the samples that were skipped in ``step`` (1-based)."""
        for sample in skipped:
            self.append(step, sample.key, sample.reason, sample.replacement)

    def append(self, step: int, key: str, reason: str, replacement: str) -> None:
        """Record that in ``step`` (1-based) the sample ``replacement`` was used in place of the sample ``key``."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", 0) as file:
            _append(file, {"step": step, "key": key, "reason": reason, "replacement": replacement})
        self.count += 1


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the lines of ``folder``/log.jsonl, oldest first; values that were not finite are nan."""
    lines = _read_lines(folder / LOG)
    for line in lines:
        if not all(value is None or isinstance(value, int | float) for value in line.values()):
            raise DualfuseError(
                f"{folder / LOG} contains a line that is not of numbers, {line}; delete it, or the file"
            )
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]


def cut_back(path: Path, step: int) -> None:
    """Remove the lines after ``step`` (0: all lines), and an incomplete last line of a killed run."""
    if not path.exists():
        return
    kept = [line for line in _read_lines(path) if line["step"] <= step] if step else []
    with atomic_write(path) as partial, partial.open("wb", 0) as file:
        for line in kept:
            _append(file, line)


def _read_lines(path: Path) -> list[dict[str, Any]]:  # Any: JSON
    if not path.exists():
        return []
    lines = read_bounded(path, MAX_TABLE).decode().split("\n")
    try:
        read = [json.loads(line) for line in lines[:-1]]  # what follows the last line break is incomplete
    except (ValueError, RecursionError) as error:
        raise DualfuseError(
            f"{path} contains a line that is not JSON ({error}); delete that line, or the file"
        ) from error
    for number, line in enumerate(read, start=1):
        if not (isinstance(line, dict) and isinstance(line.get("step"), int)):
            raise DualfuseError(f"line {number} of {path} has no step; delete that line, or the file")
    return upgrade.log(read)


def _append(file: FileIO, line: Mapping[str, float | str | None]) -> None:
    """Write one line, or nothing if that fails; nan and infinity, which JSON lacks, become null."""
    content, size = to_json(line, ascii_only=True).encode() + b"\n", file.seek(0, os.SEEK_END)
    try:
        while content:
            content = content[file.write(content) :]
    except OSError as error:
        with suppress(OSError):  # half a line, which a later one would follow
            file.truncate(size)
        raise OSError(error.errno, error.strerror, file.name) from error
