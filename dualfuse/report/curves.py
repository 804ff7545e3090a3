"""The logged values of a run as curves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.training.run_log import read_log

SKIPPED = ("count/", "samples_per_second", "steps_per_second", "skipped")
"""Prefixes of logged values that are not drawn."""


@dataclass(frozen=True)
class Curve:
    """One logged value: ``points`` of (step, seconds, value)."""

    name: str
    points: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True)
class History:
    """The curves of one run, its number of steps and its duration."""

    name: str
    steps: int
    seconds: float
    curves: tuple[Curve, ...]

    def curve(self, name: str) -> Curve | None:
        """Return the curve ``name``; None if it was not logged."""
        return next((curve for curve in self.curves if curve.name == name), None)


def history(folder: Path, name: str) -> History:
    """Read ``folder``/log.jsonl without values that are not finite; raises ``DualfuseError`` if nothing was logged."""
    lines = read_log(folder)
    if not lines:
        raise DualfuseError(f"{folder} has no log of a run (log.jsonl); give the folder of a run that has trained")
    names = dict.fromkeys(key for line in lines for key in line if key not in ("step", "seconds"))
    curves = tuple(_curve(key, lines) for key in names if not key.startswith(SKIPPED))
    last = lines[-1]
    return History(name, int(last["step"]), last["seconds"], curves)


def joined(stages: tuple[History, ...], name: str) -> tuple[Curve, ...]:
    """Return the curve ``name`` of every stage that has it, shifted to begin at the end of the previous stage."""
    curves, steps, seconds = [], 0, 0.0
    for stage in stages:
        if curve := stage.curve(name):
            points = ((step + steps, second + seconds, value) for step, second, value in curve.points)
            curves.append(Curve(name, tuple(points)))
        steps, seconds = steps + stage.steps, seconds + stage.seconds
    return tuple(curves)


def merged(curves: tuple[Curve, ...]) -> Curve:
    """Return one curve through the points of one or more curves."""
    return Curve(curves[0].name, tuple(point for curve in curves for point in curve.points))


def _curve(name: str, lines: list[dict[str, float]]) -> Curve:
    finite = (line for line in lines if math.isfinite(line.get(name, math.nan)))
    return Curve(name, tuple((int(line["step"]), line["seconds"], line[name]) for line in finite))
