"""Counts that stay small however many values they see: distributions of numbers, tallies of names, repeated texts."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

import numpy as np
import xxhash

MOST_NAMES = 1000
"""Different names that a tally keeps apart; further ones are counted together."""
MOST_TEXTS = 20_000
"""Different texts among which the commonest is looked for."""


class Distribution:
    """Whole numbers >= 0: exact count, mean, least and greatest; quantiles to three digits."""

    def __init__(self) -> None:
        self.count = self.total = self.greatest = 0
        self.least: int | None = None
        self._counts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        self.count += 1
        self.total += value
        self.greatest = max(self.greatest, value)
        self.least = value if self.least is None else min(self.least, value)
        step = 10 ** max(0, len(str(value)) - 3)
        self._counts[value // step * step] += 1

    @property
    def mean(self) -> float:
        """0 when nothing was counted."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> int:
        """The value that this share of all values does not exceed; 0 when nothing was counted."""
        wanted, passed = share * self.count, 0
        for value, count in sorted(self._counts.items()):
            passed += count
            if passed >= wanted:
                return value
        return self.greatest

    def below(self, bound: int) -> int:
        """How many values are smaller; exact for bounds to 1000."""
        return sum(count for value, count in self._counts.items() if value < bound)

    def bins(self, edges: Sequence[int]) -> list[tuple[str, int]]:
        """(label, count) below the first edge, from edge to edge, and from the last edge on; empty ends left out.

        [32, 64, 128] -> [("< 32", 5), ("32 - 63", 2)]
        """
        labels = [f"< {edges[0]:,}", *(_range(low, high) for low, high in zip(edges, edges[1:], strict=False))]
        return _without_empty_ends([*labels, f">= {edges[-1]:,}"], self._between(edges))

    def even_bins(self, number: int) -> list[tuple[str, int]]:
        """(label, count) in about `number` bins of one round width, from the least to the greatest value."""
        if self.least is None:
            return []
        rough = max(1.0, (self.greatest - self.least) / number)
        scale = 10 ** (len(str(int(rough))) - 1)
        width = next(step * scale for step in (1, 2, 5, 10) if step * scale >= rough)
        edges = list(range(self.least // width * width, self.greatest + width + 1, width))
        counts = self._between(edges)[1:-1]
        labels = [_range(low, high) for low, high in zip(edges, edges[1:], strict=False)]
        return _without_empty_ends(labels, counts)

    def _between(self, edges: Sequence[int]) -> list[int]:
        """Counts (edges + 1,): below the first edge, between two, from the last on."""
        counts = [0] * (len(edges) + 1)
        for value, count in self._counts.items():
            counts[bisect_right(edges, value)] += count
        return counts


def _range(low: int, high: int) -> str:
    return f"{low:,}" if high == low + 1 else f"{low:,} - {high - 1:,}"


def _without_empty_ends(labels: Sequence[str], counts: Sequence[int]) -> list[tuple[str, int]]:
    filled = [place for place, count in enumerate(counts) if count]
    return list(zip(labels, counts, strict=True))[filled[0] : filled[-1] + 1] if filled else []


class Tally:
    """Names and how often each came, the first MOST_NAMES different ones apart."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.others = 0

    def add(self, name: str, count: int = 1) -> None:
        if name in self._counts or len(self._counts) < MOST_NAMES:
            self._counts[name] += count
        else:
            self.others += count

    @property
    def total(self) -> int:
        return sum(self._counts.values()) + self.others

    def rows(self, most: int = 12) -> list[tuple[str, int]]:
        """The `most` commonest names, then the rest as one row."""
        common = self._counts.most_common(most)
        rest = self.total - sum(count for _, count in common)
        return [*common, ("(others)", rest)] if rest else common


class Repeats:
    """How many of many texts or files came before; 8 bytes of memory for each."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._texts: Counter[str] = Counter()

    def add(self, value: str | bytes) -> None:
        self._hashes.append(xxhash.xxh64_intdigest(value.encode() if isinstance(value, str) else value))
        if isinstance(value, str) and (value in self._texts or len(self._texts) < MOST_TEXTS):
            self._texts[value] += 1

    @property
    def count(self) -> int:
        return len(self._hashes)

    @property
    def repeated(self) -> int:
        """Values that are the same as an earlier one."""
        return self.count - len(np.unique(np.frombuffer(self._hashes, np.uint64))) if self.count else 0

    @property
    def commonest(self) -> tuple[str, int]:
        """The commonest of the first MOST_TEXTS texts and how often it came."""
        return self._texts.most_common(1)[0] if self._texts else ("", 0)
