"""Declarations of metrics: unit, direction, and whether a mean over samples gives the metric of a set."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

SHARE = "share"
"""Unit of a share of one, which is printed in per cent."""


@dataclass(frozen=True)
class MetricInfo:
    """What a metric means, as ``TaskConfig.metrics`` declares it."""

    name: str
    """Name, or a pattern such as accuracy/* for metrics that the data name."""
    unit: str = ""
    """Unit that is printed after the value; "share": a share of one, printed in per cent; empty: a plain number."""
    higher_is_better: bool = True
    whole_set: bool = False
    """Whether the metric is computed over a whole set, not as the mean over its samples (perplexity, CIDEr-D)."""

    def matches(self, pattern: str) -> bool:
        """Return whether a pattern of ``run.best`` or a name selects this metric; see :func:`selects`."""
        return selects(pattern, self.name) or fnmatchcase(pattern, self.name)

    def text(self, value: float) -> str:
        """Return a value with its unit."""
        if self.unit == SHARE and math.isfinite(value):
            return f"{100 * value:.1f} %"
        return f"{value:.3f} {'' if self.unit == SHARE else self.unit}".rstrip()


LOSS = MetricInfo("loss", higher_is_better=False)


def selects(pattern: str, name: str) -> bool:
    """Return whether a pattern of ``run.best`` selects the metric ``name``.

    Wildcards stand for characters of one part of a name, between slashes, so that */R@* selects text_to_image/R@1 and
    not text_to_image/reranked/R@1. Only a last part that is * alone stands for all further parts: accuracy/* selects
    accuracy/yes/no.
    """
    patterns, parts = pattern.split("/"), name.split("/")
    if patterns[-1] == "*" and len(parts) > len(patterns):
        parts = [*parts[: len(patterns) - 1], "/".join(parts[len(patterns) - 1 :])]
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def shares(*names: str, whole_set: bool = False) -> tuple[MetricInfo, ...]:
    """Declare metrics that are shares of one, higher for better models."""
    return tuple(MetricInfo(name, SHARE, whole_set=whole_set) for name in names)


def find_metric(declared: Iterable[MetricInfo], name: str) -> MetricInfo | None:
    """Return the declaration of the metric ``name``; None if there is none."""
    return next((info for info in declared if fnmatchcase(name, info.name)), None)
