"""Which option is the likeliest; pure, so that scoring needs no model."""

from __future__ import annotations

from collections.abc import Sequence


def likeliest(losses: Sequence[tuple[float, int]]) -> int:
    """Return the place of the option with the lowest loss a token; the first of equals, as argmin
    gives it.

    `losses`: (summed loss in nats, tokens) of each option.
    """
    means = [total / tokens for total, tokens in losses]
    return means.index(min(means))
