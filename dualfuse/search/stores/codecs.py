"""Smaller forms of embeddings that a search scans first: half precision, 8-bit integers, bits, and fewer dimensions.

Half precision and 8-bit integers of all dimensions have a bound of their error. With the code ``c`` of an embedding
``x`` and the code ``p`` of a query ``q``, Cauchy and Schwarz give ``|<q, x> - <p, c>| <= |q| |x - c| + |q - p| |c|``,
and all these norms are measured. So every embedding whose approximate score is less than two errors below the k-th best
is a candidate, no other one can be among the k best, and the best candidates in fp32 are the best of all embeddings.

Integers and bits are of rotated embeddings, which have the same inner products. Without a rotation the few dimensions
with large values that many models have would take all of the range.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dualfuse.errors import DualfuseError

PRECISIONS = ("fp32", "fp16", "int8", "bits")
ROUNDING = 2.0**-24  # of fp32; the error of an inner product of D terms is at most D times this, for unit embeddings
MARGIN = 1.25  # of the largest values of the first rows: a clipped value costs more than a larger step
CACHE_ROWS = 2048  # rows converted at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class Codec(ABC):
    """How embeddings of ``width`` are coded: their first ``dimensions``, in some precision."""

    width: int
    dimensions: int

    @property
    def name(self) -> str:
        """Name of the codec in files and in the manifest."""
        return f"{type(self).__name__.lower()}-{self.dimensions}"

    @property
    def is_bounded(self) -> bool:
        """Whether the error of a score has a bound, so that searches are exact."""
        return self.dimensions == self.width

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers of a code."""
        return np.dtype(np.float32)

    @property
    def code_width(self) -> int:
        """Numbers of a code."""
        return self.dimensions

    def fit(self, rows: Tensor) -> Tensor:
        """Return the state that all codes of a segment share, fitted to its first rows (R, W)."""
        return torch.empty(0, dtype=torch.float32)

    def cut(self, rows: Tensor) -> Tensor:
        """Return the first dimensions of rows (R, W), of unit length if they are not all."""
        if self.dimensions == self.width:
            return rows
        return torch.nn.functional.normalize(rows[:, : self.dimensions])

    @abstractmethod
    def encode(self, rows: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of rows (R, W), and what bounds their errors (R, 2): the norms of error and code."""

    @abstractmethod
    def score(self, queries: Tensor, codes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return approximate scores (R, Q), and the norm (Q,) of the error of each query's code."""


class FP32(Codec):
    """Single precision, of fewer dimensions."""

    def encode(self, rows: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first dimensions."""
        return self.cut(rows), torch.zeros(len(rows), 2, dtype=torch.float32)

    def score(self, queries: Tensor, codes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return inner products."""
        return codes @ self.cut(queries).T, torch.zeros(len(queries), dtype=torch.float32)


class FP16(Codec):
    """Half precision."""

    @property
    def dtype(self) -> np.dtype:
        """Half precision."""
        return np.dtype(np.float16)

    def encode(self, rows: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Round to half precision."""
        rows = self.cut(rows)
        codes = rows.half()
        return codes, _bounds(rows - codes.float(), codes.float())

    def score(self, queries: Tensor, codes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return inner products, summed in single precision."""
        return _in_floats(codes, self.cut(queries)), torch.zeros(len(queries), dtype=torch.float32)


class INT8(Codec):
    """Integers of 8 bits of rotated embeddings, with one scale per dimension of a segment."""

    def cut(self, rows: Tensor) -> Tensor:
        """Rotate the first dimensions."""
        return super().cut(rows) @ rotation(self.dimensions)

    @property
    def dtype(self) -> np.dtype:
        """Signed bytes."""
        return np.dtype(np.int8)

    def fit(self, rows: Tensor) -> Tensor:
        """Return the scales (D,); much larger values than in the first rows are clipped, which their error contains."""
        largest = MARGIN * self.cut(rows).abs().amax(0)
        return (torch.maximum(largest, largest.max() * 1e-3) / 127).clamp(min=1e-12)

    def encode(self, rows: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Round to the nearest multiple of the scale."""
        rows = self.cut(rows)
        codes = (rows / state).round().clamp(-127, 127)
        return codes.to(torch.int8), _bounds(rows - codes * state, codes)

    def score(self, queries: Tensor, codes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return inner products of integers, which are exact; the query is rounded to integers, too."""
        scaled = self.cut(queries) * state
        if not int_products_are_exact():
            return _in_floats(codes, scaled), torch.zeros(len(queries), dtype=torch.float32)
        step = (scaled.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
        rounded = (scaled / step).round().clamp(-127, 127)
        scores = torch.ops.aten._int_mm(codes, rounded.to(torch.int8).T.contiguous())
        return scores * step.T, (scaled - rounded * step).norm(dim=1)


class BITS(Codec):
    """One bit per dimension: its sign. Scores are numbers of equal bits."""

    @property
    def is_bounded(self) -> bool:
        """Never."""
        return False

    @property
    def dtype(self) -> np.dtype:
        """Eight signs."""
        return np.dtype(np.uint8)

    @property
    def code_width(self) -> int:
        """Bytes of a code, a multiple of 8."""
        return -(-self.dimensions // 64) * 8

    def encode(self, rows: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Pack the signs after a rotation."""
        packed = np.packbits((rows[:, : self.dimensions] @ rotation(self.dimensions)).numpy() > 0, axis=1)
        padded = np.zeros((len(rows), self.code_width), np.uint8)
        padded[:, : packed.shape[1]] = packed
        return torch.from_numpy(padded), torch.zeros(len(rows), 2, dtype=torch.float32)

    def score(self, queries: Tensor, codes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return minus the number of bits that differ."""
        words = codes.numpy().view(np.uint64)
        scores = torch.empty(len(codes), len(queries), dtype=torch.float32)
        for number, query in enumerate(self.encode(queries, state)[0].numpy().view(np.uint64)):
            for start in range(0, len(words), CACHE_ROWS):
                differing = np.bitwise_count(words[start : start + CACHE_ROWS] ^ query).sum(1, dtype=np.int32)
                scores[start : start + CACHE_ROWS, number] = -torch.from_numpy(differing).float()
        return scores, torch.zeros(len(queries), dtype=torch.float32)


def codec(precision: str, dimensions: int, width: int) -> Codec | None:
    """Return the codec that is scanned first; None: the embeddings themselves are.

    ``dimensions`` 0 stands for all. Raises ``DualfuseError`` for an unknown precision and for too many dimensions.
    """
    if precision not in PRECISIONS:
        raise DualfuseError(f"precision is {precision!r}; give {', '.join(PRECISIONS)}")
    if not 0 <= dimensions <= width:
        raise DualfuseError(f"dimensions is {dimensions}; the embeddings have {width}")
    if precision == "fp32" and dimensions in (0, width):
        return None
    return {"fp32": FP32, "fp16": FP16, "int8": INT8, "bits": BITS}[precision](width, dimensions or width)


@cache
def rotation(dimensions: int) -> Tensor:
    """Return an orthogonal matrix that spreads every dimension over all: random signs, then a cosine transform."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], dimensions)
    angles = np.pi / dimensions * np.outer(np.arange(dimensions) + 0.5, np.arange(dimensions))
    cosines = np.cos(angles) * np.where(np.arange(dimensions) == 0, 1.0, np.sqrt(2.0)) / np.sqrt(dimensions)
    return torch.from_numpy((signs[:, None] * cosines).astype(np.float32))


@cache
def int_products_are_exact() -> bool:
    """Whether this processor's products of 8-bit integers neither saturate nor overflow; some of them do."""
    try:
        codes = torch.full((64, 256), -127, dtype=torch.int8)
        codes[::2] = 127
        query = torch.full((256, 1), 127, dtype=torch.int8)
        return torch.equal(torch.ops.aten._int_mm(codes, query), (codes.long() @ query.long()).int())
    except RuntimeError:  # not compiled in
        return False


def _bounds(errors: Tensor, codes: Tensor) -> Tensor:
    return torch.stack([errors.norm(dim=1), codes.norm(dim=1)], dim=1)


def _in_floats(codes: Tensor, queries: Tensor) -> Tensor:
    """Return the inner products (R, Q) of codes (R, D) and queries (Q, D) in single precision."""
    return torch.cat([part.float() @ queries.T for part in codes.split(CACHE_ROWS)])
