"""Compute the hashes of checkpoint/frozen.py for weights in files, in threads and small pieces.

A hash is a sum, so its pieces can be computed in any order. Pieces that fit into the cache of a
core are hashed 15 times as fast as the long pieces that suit a GPU (74 against 5 million elements
per second and core, measured in bf16).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from pargo_ds.checkpoint.frozen import describe, partial_hash
from pargo_ds.convert.weights import progress
from pargo_ds.convert.zero.frozen_parts import FrozenParts

PIECE = 1 << 15
"""Number of elements of a piece, which is too small for torch to use several threads."""
TASK = 1 << 22
THREADS = min(16, os.cpu_count() or 1)


def hash_frozen(parts: FrozenParts, names: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes of frozen weights in the run's precision. `names` maps names in the
    manifest to exported names.
    """
    stored = {name: parts.stored(exported).reshape(-1) for name, exported in names.items()}
    tasks: list[tuple[str, int]] = []
    for name, values in stored.items():
        tasks += [(name, start) for start in range(0, values.numel(), TASK)]

    def hashed(task: tuple[str, int]) -> int:
        name, start = task
        return _hash_from(parts, names[name], stored[name], start)

    sums = dict.fromkeys(names, 0)
    total = sum(values.nbytes for values in stored.values())
    with ThreadPoolExecutor(THREADS) as pool, progress("checking frozen weights", total) as advance:
        for (name, start), part in zip(tasks, pool.map(hashed, tasks), strict=True):
            sums[name] += part
            advance(stored[name][start : start + TASK].nbytes)
    # Of the tensors themselves only the type is described.
    typed = {name: parts.cast(exported, stored[name][:0]) for name, exported in names.items()}
    return {name: describe(typed[name], number) for name, number in sums.items()}


def _hash_from(parts: FrozenParts, exported: str, values: torch.Tensor, first: int) -> int:
    end = min(first + TASK, values.numel())
    starts = range(first, end, PIECE)
    pieces = ((start, values[start : min(start + PIECE, end)]) for start in starts)
    return sum(int(partial_hash(parts.cast(exported, piece), start)) for start, piece in pieces)
