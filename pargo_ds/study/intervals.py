"""Intervals over seeds and scenes, the two things that are drawn at random in a study.

Scores form a table of seeds x scenes, and both are drawn: another seed trains another model,
another scene asks other questions. So the variance of their mean has three parts,

    V = seeds / S + scenes / C + rest / (S C),

estimated without bias from the mean squares of the two-way table, (MS_seeds + MS_scenes - MS_rest)
/ (S C). With few seeds MS_seeds is poorly known, which a normal or a percentile bootstrap interval
leaves out: with three seeds the bootstrap covers too seldom. Here the interval is that of Student's
t with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946), which are S - 1 where seeds
decide and rise to C - 1 where scenes do. docs/study.md has the coverage that was measured.

When several variants were trained from the same seeds, all of them tell how much seeds matter. The
mean square of seeds is then the larger of a comparison's own and the one pooled over all variants
(that of a two-way analysis of variance): pooling gives degrees of freedom, and the larger one keeps
a variant that depends on its seed more than the others from borrowing their calm.

Arrays: scores `(..., seeds, scenes)`, so that simulations and variants are computed together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

LEVEL = 0.95


@dataclass(frozen=True)
class SeedSquare:
    """Mean square of seeds, pooled over variants, and its degrees of freedom."""

    value: np.ndarray
    df: int


@dataclass(frozen=True)
class Estimate:
    """Means with their intervals; arrays of one shape. NaN where it cannot be told: with one seed,
    or where all answers were alike (then p is 1).
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    """Of a mean that is 0 in truth, two-sided, before any correction."""
    df: np.ndarray
    seed_deviation: np.ndarray
    """Standard deviation of the seeds' means around their mean."""


def mean_squares(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (seeds, scenes, rest) of the two-way table, each of shape `scores.shape[:-2]`."""
    seeds, scenes = scores.shape[-2:]
    by_seed, by_scene = scores.mean(-1), scores.mean(-2)
    centre = scores.mean((-2, -1))[..., None, None]
    rest = scores - by_seed[..., None] - by_scene[..., None, :] + centre
    return (
        scenes * by_seed.var(-1, ddof=1),
        seeds * by_scene.var(-1, ddof=1),
        (rest**2).sum((-2, -1)) / ((seeds - 1) * (scenes - 1)),
    )


def pooled_seed_square(scores: np.ndarray) -> SeedSquare | None:
    """Return the mean square of seeds of a difference of two variants, from all of them: scores
    `(..., variants, seeds, scenes)`; None for fewer than three variants, whose difference tells as
    much.

    What all variants share in a seed (the order of the data) cancels in a difference, so it is
    taken out.
    """
    variants, seeds, scenes = scores.shape[-3:]
    if variants < 3 or seeds < 2:
        return None
    means = scores.mean(-1)
    rest = means - means.mean(-1, keepdims=True)
    rest = rest - rest.mean(-2, keepdims=True)
    df = (variants - 1) * (seeds - 1)
    return SeedSquare(2 * scenes * (rest**2).sum((-2, -1)) / df, df)


def estimate(mean: np.ndarray, scores: np.ndarray, pooled: SeedSquare | None = None) -> Estimate:
    """Return interval and p of `mean`, of shape `scores.shape[:-2]`.

    `scores` vary as the mean does: their own mean counts for nothing, so that they may be the
    linear part of a ratio.

    Raises ValueError for fewer than two scenes.
    """
    seeds, scenes = scores.shape[-2:]
    if scenes < 2:
        raise ValueError(f"{scenes} scene: an interval over scenes needs at least two")
    mean = np.asarray(mean, float)
    if seeds < 2:
        unknown = np.full(mean.shape, np.nan)
        return Estimate(mean, unknown, unknown, unknown, unknown, unknown)
    own, of_scenes, rest = mean_squares(scores)
    deviation = np.sqrt(own / scenes)
    of_seeds, seed_df = own, np.full(own.shape, float(seeds - 1))
    if pooled is not None:
        of_seeds, seed_df = np.maximum(own, pooled.value), np.full(own.shape, float(pooled.df))
    # Below the seeds' part alone the sum can fall only by chance.
    total = np.maximum(of_seeds + of_scenes - rest, of_seeds)
    squares = of_seeds**2 / seed_df + of_scenes**2 / (scenes - 1)
    squares = squares + rest**2 / ((seeds - 1) * (scenes - 1))
    varies = total > 0
    df = np.where(varies, total**2 / np.where(varies, squares, 1.0), seed_df)
    df = np.maximum(df, seed_df)
    error = np.sqrt(total / (seeds * scenes))
    half = np.where(varies, student_t.ppf((1 + LEVEL) / 2, df) * error, np.nan)
    p = np.where(varies, 2 * student_t.sf(np.abs(mean) / np.where(varies, error, 1.0), df), 1.0)
    return Estimate(mean, mean - half, mean + half, p, df, deviation)


def holm(p: np.ndarray) -> np.ndarray:
    """Return p values corrected for all of the last axis by Holm's step-down method (Scand. J.
    Statist. 6, 1979): the chance of any false claim among them stays below the level. NaN stays NaN
    and does not count.
    """
    p = np.asarray(p, float)
    order = np.argsort(p, axis=-1)  # NaN last
    ranked = np.take_along_axis(p, order, -1)
    count = (~np.isnan(p)).sum(-1, keepdims=True)
    factors = np.maximum(count - np.arange(p.shape[-1]), 1)
    corrected = np.minimum(np.maximum.accumulate(ranked * factors, -1), 1.0)
    found = np.empty_like(p)
    np.put_along_axis(found, order, corrected, -1)
    return found
