"""Near-duplicate images: re-encoded, resized or slightly edited copies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

HASH_DISTANCE = 5  # of 64 bits
COLOR_DISTANCE = 10  # gray levels; maximum over 4 x 4 fields
NOISE = 2  # gray levels of JPEG artifacts in uniform areas
ROTATIONS = 8  # 5 differing bits leave a run of equal ones, which one of 8 rotations moves to the front
NEIGHBOURS = 32


def fingerprint(pixels: np.ndarray) -> tuple[int, bytes]:
    """Return a 64-bit hash and the mean colors of 4 x 4 fields (48 bytes) of an image, uint8 (H, W, 3).

    The hash (dHash) has one bit for each of 8 x 8 fields: whether the field to the right is darker. It is equal for
    most pictograms on white, which the colors distinguish.
    """
    image = Image.fromarray(pixels)
    gray = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)  # (8, 9)
    is_darker = gray[:, :-1] > gray[:, 1:] + NOISE  # (8, 8)
    return int.from_bytes(np.packbits(is_darker).tobytes(), "big"), image.resize((4, 4), Image.Resampling.BOX).tobytes()


def near_pairs(hashes: np.ndarray, colors: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of near-duplicates, some repeatedly, from hashes (N,) uint64 and colors (N, 48) uint8.

    For each rotation of the hash by 8 bits, images are sorted by it and compared with the next few, so the time is
    linear in N up to sorting. Among many similar hashes some pairs may be missed, but hardly all pairs of an image.
    """
    for rotation in range(ROTATIONS):
        shift = np.uint64(64 // ROTATIONS * rotation)
        rotated = (hashes >> shift) | (hashes << (np.uint64(64) - shift)) if rotation else hashes
        order = np.argsort(rotated, kind="stable")
        for distance in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            first, second = order[:-distance], order[distance:]
            is_near = np.bitwise_count(hashes[first] ^ hashes[second]) <= HASH_DISTANCE
            first, second = first[is_near], second[is_near]
            gap = np.abs(colors[first].astype(np.int16) - colors[second]).max(axis=1, initial=0)
            yield from zip(*(side[gap <= COLOR_DISTANCE].tolist() for side in (first, second)), strict=True)


def group(pairs: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Return the connected components of ``pairs``, each sorted, in the order of their first members."""
    root: dict[int, int] = {}

    def find(number: int) -> int:
        while root.setdefault(number, number) != number:
            root[number] = number = root[root[number]]
        return number

    for pair in pairs:
        low, high = sorted(map(find, pair))
        root[high] = low
    groups: dict[int, list[int]] = {}
    for number in sorted(root):
        groups.setdefault(find(number), []).append(number)
    return [groups[first] for first in sorted(groups)]
