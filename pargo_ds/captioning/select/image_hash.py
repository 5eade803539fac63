"""What an image is to the selection: its identity, its draw, and a hash that near copies share."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
"""Pixels of the small grey image that the hash is computed of."""
BANDS = 4
"""Pieces of a hash. Two hashes that differ in fewer bits than there are pieces share one piece."""


def image_digest(data: bytes) -> str:
    """Return SHA-256 of an image file in hexadecimal: the image's identity in selection and ledger."""
    return hashlib.sha256(data).hexdigest()


def draw_of(digest: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the image and the seed only.

    Who draws all images below 0.1 draws the same ones again when others are added, and equal
    images have equal draws.
    """
    mixed = hashlib.sha256(f"{seed}:{digest}".encode()).digest()
    return int.from_bytes(mixed[:8], "big") / 2**64


def perceptual_hash(image: Image.Image) -> int:
    """Return 64 bits of an image's coarse shape (pHash): which low frequencies exceed their median.

    Making an image smaller or compressing it anew changes few bits; see
    tests/captioning/test_select.py for how many.
    """
    grey = image.convert("RGB").convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    waves = _cosines()
    frequencies = (waves @ np.asarray(grey, np.float64) @ waves.T)[:8, :8].ravel()
    bits = frequencies > np.median(frequencies[1:])  # the first one is the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.cache
def _cosines() -> NDArray[np.float64]:
    """(8, SIDE) rows of the discrete cosine transform (type II)."""
    places = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    return np.cos(np.arange(8)[:, None] * places[None, :])


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """Return (pairs, 2) positions of different hashes that differ in at most `distance` bits.

    Exact by the pigeonhole principle: of four pieces of 16 bits one is equal. Raises ValueError for
    a distance that this cannot find.
    """
    if not 0 <= distance < BANDS:
        raise ValueError(f"near duplicates within {distance} bits; expected 0 to {BANDS - 1}")
    found = [np.zeros((0, 2), np.int64)]
    if not distance:
        return found[0]
    for band in range(BANDS):
        piece = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(piece, kind="stable")
        edges = np.flatnonzero(np.diff(piece[order])) + 1
        for group in np.split(order, edges):
            if len(group) > 1:
                found.append(_near_in(group, hashes, distance))
    pairs = np.concatenate(found)
    if not len(pairs):
        return pairs
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _near_in(
    group: NDArray[np.int64], hashes: NDArray[np.uint64], distance: int
) -> NDArray[np.int64]:
    """The near pairs within one group, row by row: memory stays that of the group."""
    found = [np.zeros((0, 2), np.int64)]
    for place, first in enumerate(group[:-1].tolist()):
        rest = group[place + 1 :]
        bits = np.bitwise_count(hashes[rest] ^ hashes[first])
        near = rest[bits <= distance]
        if len(near):
            found.append(np.stack([np.full(len(near), first), near], axis=1))
    return np.concatenate(found)
