"""Which rows of a window make a step: packs that are computed at the same time are alike, and every
step holds of each kind what the window holds.

Rows come ranked by their images. The rank is cut into *strata*, a stratum into *clusters* of
neighbours, and a step takes one cluster of each stratum, by what it holds already: packs of a
cluster are alike, the clusters of a step are not. Then rows of equal image counts are dealt once
more, because to change those makes no rank wait.

All in whole numbers: each machine must come to the same steps, and sums of floats may differ. Axes:
rows, packs (of a row), features (counts that steps shall hold evenly), steps (one that is shared
with the window before or after counts as one).
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

UNIT = 1 << 10
"""One standard deviation of a feature, in the whole numbers of `normalized`."""


def dealt(features: Numbers, images: Numbers, rows_per_step: int, rows_before: int) -> Numbers:
    """Return (rows,) the step of each row, 0 being the one that the window before has begun, if
    any.

    `features` (rows, packs, features) are normalized; `images` (rows,), the most of a pack, rise.
    `rows_before`: rows of the epoch before this window, which say how much of step 0 is taken.

    Of as few strata as make whole steps evener than a random draw of packs: more would leave fewer
    like packs for ranks to compute at the same time.
    """
    rows = len(images)
    head = min(-rows_before % rows_per_step, rows)
    whole, tail = divmod(rows - head, rows_per_step)
    first = int(head > 0)
    of_rows = features.sum(axis=1)
    step_of = np.zeros(rows, np.int64)
    for strata in range(1, rows_per_step + 1):
        if rows_per_step % strata:
            continue
        shared = _middle_rows(rows, head + tail, strata)
        step_of[shared] = first + whole
        step_of[shared[_at_equal_distances(head, head + tail)]] = 0
        rest = np.delete(np.arange(rows), shared)
        step_of[rest] = first + _steps_of_clusters(of_rows[rest], rows_per_step, strata)
        step_of = _dealt_again(step_of, of_rows, images)
        held = _sums(of_rows, step_of)[first : first + whole]
        if are_even(held, features, rows_per_step):
            break
    return step_of


def are_even(held: Numbers, features: Numbers, rows_per_step: int) -> bool:
    """Whether steps that hold `held` (steps, features) are evener than random draws of packs, whose
    normalized `features` are (rows, packs, features).

    A sum of n drawn packs has n times the variance of packs. Two thirds of that, all features
    together, leave room for one of them and for windows that differ.
    """
    strays = len(features) * int((held**2).sum())
    return 3 * strays <= 2 * len(held) * rows_per_step * int((features**2).sum())


def normalized(features: Numbers) -> Numbers:
    """Return counts (..., features) as deviations from their mean, in UNIT-ths of their standard
    deviation.
    """
    flat = features.reshape(-1, features.shape[-1])
    deviations = len(flat) * features - flat.sum(axis=0)
    return UNIT * deviations // np.array([_spread(counts.tolist()) for counts in flat.T], np.int64)


def _spread(counts: list[int]) -> int:
    """The standard deviation times the number of counts, rounded down; 1 where it is less."""
    squares = len(counts) * sum(count * count for count in counts)  # int64 might not hold them
    return max(1, isqrt(squares - sum(counts) ** 2))


def _middle_rows(rows: int, some: int, strata: int) -> Numbers:
    """(some,) rows from the middle of each stratum: 4 of 8 in 2 strata -> [1, 2, 5, 6]."""
    parts = zip(
        np.array_split(np.arange(rows), strata),
        np.array_split(np.arange(some), strata),
        strict=True,
    )
    return np.concatenate(
        [stratum[(len(stratum) - len(own)) // 2 :][: len(own)] for stratum, own in parts]
    )


def _at_equal_distances(some: int, of: int) -> Numbers:
    """(some,) places among `of`: 2 of 4 -> [1, 3]."""
    return (2 * np.arange(some) + 1) * of // max(1, 2 * some)


def _steps_of_clusters(features: Numbers, rows_per_step: int, strata: int) -> Numbers:
    """(rows,) the step of each row, for rows that make whole steps; `features` (rows, features)."""
    cluster = rows_per_step // strata
    clusters = features.reshape(-1, cluster, features.shape[1]).sum(axis=1)
    in_turn = np.arange(len(clusters)) % max(1, len(clusters) // strata)
    stratum_of = np.arange(len(clusters)) * strata // max(1, len(clusters))
    return np.repeat(_dealt_again(in_turn, clusters, stratum_of), cluster)


def _dealt_again(step_of: Numbers, features: Numbers, kinds: Numbers) -> Numbers:
    """(things,) another step for each thing, so that each step has as many of each kind as before:
    first the kind whose things differ most, the most unusual thing first, each where it makes up
    best for what the step holds.

    `step_of` and `kinds` are (things,), `features` (things, features).
    """
    kind_of = np.unique(kinds, return_inverse=True)[1]
    usual = (_sums(features, kind_of) // np.bincount(kind_of)[:, None])[kind_of]
    unusual, held = features - usual, _sums(usual, step_of)
    room = np.zeros((kind_of.max(initial=0) + 1, len(held)), np.int64)
    np.add.at(room, (kind_of, step_of), 1)
    differs = (unusual**2).sum(axis=1)
    of_kind = _sums(differs[:, None], kind_of)[kind_of, 0]
    again = np.zeros_like(step_of)
    for thing in np.lexsort((-differs, kind_of, -of_kind)).tolist():
        left = room[kind_of[thing]]
        scores = np.where(left > 0, held @ unusual[thing], np.iinfo(np.int64).max)
        again[thing] = step = int(scores.argmin())
        left[step] -= 1
        held[step] += unusual[thing]
    return again


def _sums(features: Numbers, group_of: Numbers) -> Numbers:
    """(groups, features) sums over the things of each group; `group_of` (things,) are 0, 1, 2, ..."""
    sums = np.zeros((group_of.max(initial=-1) + 1, features.shape[1]), np.int64)
    np.add.at(sums, group_of, features)
    return sums
