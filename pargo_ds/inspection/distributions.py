"""Counters whose memory does not grow with the number of values: distributions of numbers, tallies
of names, and repeated texts.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

import numpy as np
import xxhash

MOST_NAMES = 1000
"""Number of different names that a tally counts separately; all further names are counted
together.
"""
MOST_TEXTS = 20_000
"""Number of different texts among which the commonest text is searched."""


class Distribution:
    """The distribution of whole numbers >= 0. Count, mean, least and greatest are exact; quantiles
    have three digits.
    """

    def __init__(self) -> None:
        self.count = self.total = self.greatest = 0
        self.least: int | None = None
        self._counts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Count one value."""
        self.count += 1
        self.total += value
        self.greatest = max(self.greatest, value)
        if self.least is None or value < self.least:
            self.least = value
        step = 10 ** max(0, len(str(value)) - 3)
        self._counts[value // step * step] += 1

    @property
    def mean(self) -> float:
        """The mean of all values; 0 if there are none."""
        if not self.count:
            return 0.0
        return self.total / self.count

    def quantile(self, share: float) -> int:
        """Return the value that a share of all values does not exceed; 0 if there are none."""
        wanted, passed = share * self.count, 0
        for value, count in sorted(self._counts.items()):
            passed += count
            if passed >= wanted:
                return value
        return self.greatest

    def below(self, bound: int) -> int:
        """Return the number of values below `bound`; it is exact for bounds up to 1000."""
        return sum(count for value, count in self._counts.items() if value < bound)

    def bins(self, edges: Sequence[int]) -> list[tuple[str, int]]:
        """Return (label, count) for the values below the first edge, between two edges, and from
        the last edge on; empty bins at both ends are left out.

        [32, 64, 128] -> [("< 32", 5), ("32 - 63", 2)]
        """
        labels = [
            f"< {edges[0]:,}",
            *(_range(low, high) for low, high in zip(edges, edges[1:], strict=False)),
        ]
        return _without_empty_ends([*labels, f">= {edges[-1]:,}"], self._between(edges))

    def even_bins(self, number: int) -> list[tuple[str, int]]:
        """Return (label, count) for about `number` bins of the same round width, from the least to
        the greatest value.
        """
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
        """Return the counts (edges + 1,) below the first edge, between two edges, and from the last
        edge on.
        """
        counts = [0] * (len(edges) + 1)
        for value, count in self._counts.items():
            counts[bisect_right(edges, value)] += count
        return counts


def _range(low: int, high: int) -> str:
    if high == low + 1:
        return f"{low:,}"
    return f"{low:,} - {high - 1:,}"


def _without_empty_ends(labels: Sequence[str], counts: Sequence[int]) -> list[tuple[str, int]]:
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return []
    return list(zip(labels, counts, strict=True))[filled[0] : filled[-1] + 1]


class Tally:
    """Names and how often each occurred; only the first MOST_NAMES names are counted separately."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.others = 0

    def add(self, name: str, count: int = 1) -> None:
        """Count a name, `count` times."""
        if name in self._counts or len(self._counts) < MOST_NAMES:
            self._counts[name] += count
        else:
            self.others += count

    @property
    def total(self) -> int:
        """The number of all counted occurrences."""
        return sum(self._counts.values()) + self.others

    def rows(self, most: int = 12) -> list[tuple[str, int]]:
        """Return the `most` commonest names, and all others as one row."""
        common = self._counts.most_common(most)
        rest = self.total - sum(count for _, count in common)
        if rest:
            common.append(("(others)", rest))
        return common


class Repeats:
    """Counts texts or files that repeat an earlier one, with 8 bytes of memory for each."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._texts: Counter[str] = Counter()

    def add(self, value: str | bytes) -> None:
        """Count a text, or the bytes of a file."""
        data = value.encode() if isinstance(value, str) else value
        self._hashes.append(xxhash.xxh64_intdigest(data))
        if isinstance(value, str) and (value in self._texts or len(self._texts) < MOST_TEXTS):
            self._texts[value] += 1

    @property
    def count(self) -> int:
        """The number of all values."""
        return len(self._hashes)

    @property
    def repeated(self) -> int:
        """The number of values that are equal to an earlier one."""
        if not self.count:
            return 0
        return self.count - len(np.unique(np.frombuffer(self._hashes, np.uint64)))

    @property
    def commonest(self) -> tuple[str, int]:
        """The commonest of the first MOST_TEXTS different texts, and how often it occurred."""
        if not self._texts:
            return "", 0
        return self._texts.most_common(1)[0]
