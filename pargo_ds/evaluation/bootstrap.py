"""Percentile bootstrap over scenes, the unit that is drawn independently (questions of one scene
are not).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A ratio with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return {"mean", "low", "high"}"""
        return asdict(self)


def bootstrap_ratio(
    sums: Sequence[float], weights: Sequence[float], *, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Return the interval of sum(sums) / sum(weights), scenes drawn with replacement.

    `sums` and `weights` hold one number per scene: for a difference of losses per token, the summed
    difference of the scene and its number of tokens; with all weights 1 this is the bootstrap of a
    plain mean.

    Raises ValueError for unequal lengths, no scene, or a weight that is not positive.
    """
    total, weight = np.asarray(sums, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if total.shape != weight.shape or total.ndim != 1 or total.size == 0:
        raise ValueError(
            f"{total.size} sums, {weight.size} weights; expected one of each per scene, at least one"
        )
    if not (weight > 0).all():
        raise ValueError(f"weights must be positive; the smallest is {weight.min()}")
    rng = np.random.default_rng(seed)
    ratios = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(0, total.size, total.size)
        ratios[draw] = total[chosen].sum() / weight[chosen].sum()
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(total.sum() / weight.sum()), float(low), float(high))


def drawn_weights(
    strata: Sequence[str], *, draws: int = 2000, seed: int = 0, block: int = 100
) -> Iterator[np.ndarray]:
    """Yield how often each cluster is drawn: blocks of shape `(block, clusters)`, `draws` rows in
    all.

    Clusters are drawn with replacement within their stratum, as many as it has. The same strata and
    seed give the same draws, so that two models are compared on the same ones.
    """
    rng = np.random.default_rng(seed)
    places: dict[str, list[int]] = {}
    for place, stratum in enumerate(strata):
        places.setdefault(stratum, []).append(place)
    members = [np.asarray(found) for found in places.values()]
    for start in range(0, draws, block):
        weights = np.zeros((min(block, draws - start), len(strata)))
        for own in members:
            chosen = rng.integers(0, own.size, (len(weights), own.size))
            for row, drawn in zip(weights, chosen, strict=True):
                row[own] = np.bincount(drawn, minlength=own.size)
        yield weights
