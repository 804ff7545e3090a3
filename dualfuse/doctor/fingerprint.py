"""Tells near-same images: re-encoded, resized or slightly touched copies of one another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

HASH_DISTANCE = 5  # of 64 bits
COLOUR_DISTANCE = 10  # grey levels, in the worst of 4 x 4 fields
NOISE = 2  # grey levels by which JPEG makes an even area uneven
TURNS = 8  # 5 bits that differ leave a run of equal ones, which one of 8 turns brings to the front
NEIGHBOURS = 32


def fingerprint(pixels: np.ndarray) -> tuple[int, bytes]:
    """Return a 64-bit hash and the mean colours of 4 x 4 fields (48 bytes) of an image, uint8 (H, W, 3).

    The hash (dHash) says for 8 x 8 places whether it gets darker to the right. Alone it takes all pictograms on white
    for the same; the colours tell them apart.
    """
    image = Image.fromarray(pixels)
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)  # (8, 9)
    falls = grey[:, :-1] > grey[:, 1:] + NOISE  # (8, 8)
    return int.from_bytes(np.packbits(falls).tobytes(), "big"), image.resize((4, 4), Image.Resampling.BOX).tobytes()


def near_pairs(hashes: np.ndarray, colours: np.ndarray) -> Iterator[tuple[int, int]]:
    """Return the pairs of near-same images, some more than once, from hashes (N,) uint64 and colours (N, 48) uint8.

    Images are sorted by the hash, turned by 8 bits again and again, and compared with the next few: the effort grows
    with N and not with its square. In a crowd of alike hashes some pair may be missed, though hardly the whole crowd.
    """
    for turn in range(TURNS):
        shift = np.uint64(64 // TURNS * turn)
        turned = (hashes >> shift) | (hashes << (np.uint64(64) - shift)) if turn else hashes
        order = np.argsort(turned, kind="stable")
        for distance in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            first, second = order[:-distance], order[distance:]
            is_near = np.bitwise_count(hashes[first] ^ hashes[second]) <= HASH_DISTANCE
            first, second = first[is_near], second[is_near]
            gap = np.abs(colours[first].astype(np.int16) - colours[second]).max(axis=1, initial=0)
            yield from zip(*(side[gap <= COLOUR_DISTANCE].tolist() for side in (first, second)), strict=True)


def group(pairs: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Return the groups that ``pairs`` connect, each sorted, in the order of their first members."""
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
