"""The hashes of checkpoint/frozen.py for weights that lie in files: in threads, and a little at a time.

A hash is a sum, so its parts may be taken in any order. Pieces that stay in a core's cache are hashed 15 times as fast
as the long ones that suit a GPU (74 against 5 million elements a second and core, measured in bf16).
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
"""Elements; torch does not divide so few among threads of its own."""
TASK = 1 << 22
THREADS = min(16, os.cpu_count() or 1)


def hash_frozen(parts: FrozenParts, names: Mapping[str, str]) -> dict[str, str]:
    """Hashes of frozen weights in the run's precision; `names`: name in the manifest -> exported name."""
    stored = {name: parts.stored(exported).reshape(-1) for name, exported in names.items()}
    tasks = [(name, start) for name, values in stored.items() for start in range(0, values.numel(), TASK)]
    sums = dict.fromkeys(names, 0)
    total = sum(values.nbytes for values in stored.values())
    with ThreadPoolExecutor(THREADS) as pool, progress("checking frozen weights", total) as advance:
        done = pool.map(lambda task: _hash_from(parts, names[task[0]], stored[task[0]], task[1]), tasks)
        for (name, start), part in zip(tasks, done, strict=True):
            sums[name] += part
            advance(stored[name][start : start + TASK].nbytes)
    return {name: describe(parts.cast(names[name], stored[name][:0]), total) for name, total in sums.items()}


def _hash_from(parts: FrozenParts, exported: str, values: torch.Tensor, first: int) -> int:
    end = min(first + TASK, values.numel())
    starts = range(first, end, PIECE)
    pieces = ((start, values[start : min(start + PIECE, end)]) for start in starts)
    return sum(int(partial_hash(parts.cast(exported, piece), start)) for start, piece in pieces)
