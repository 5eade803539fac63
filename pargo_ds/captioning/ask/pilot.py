"""What the captions of a run will cost, from the first answers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pargo_ds.evaluation.bootstrap import Interval, bootstrap_ratio

PILOT = 32
"""Images of a pilot."""


@dataclass(frozen=True)
class Estimate:
    """Dollars: one caption with its 95 % interval, and the `remaining` images at that price."""

    measured: int
    each: Interval
    remaining: int

    @property
    def total(self) -> Interval:
        """Dollars for what remains, with the interval of the mean."""
        mean, low, high = self.each.mean, self.each.low, self.each.high
        return Interval(mean * self.remaining, low * self.remaining, high * self.remaining)

    def said(self) -> str:
        """Return one line for people."""
        total = self.total
        return (
            f"{self.measured} answers cost ${self.each.mean:.6f} each [{self.each.low:.6f}, "
            f"{self.each.high:.6f}]; {self.remaining:,} more: ${total.mean:,.2f} "
            f"[{total.low:,.2f}, {total.high:,.2f}]"
        )


def estimate(costs: Sequence[float], remaining: int) -> Estimate:
    """Return the price of what remains, from the costs of measured answers. Raises ValueError for
    none.
    """
    return Estimate(
        len(costs), bootstrap_ratio(costs, [1.0] * len(costs), draws=2000), max(0, remaining)
    )
