"""Accuracy of each variant and its differences to the reference, by group of questions, with
intervals over scenes and seeds, and Holm's correction for what is claimed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pargo_ds.errors import UserError
from pargo_ds.study.intervals import Estimate, estimate, holm, pooled_seed_square
from pargo_ds.study.results import Results, groups_of

ALPHA = 0.05
BETTER, WORSE, NOT_SIGNIFICANT, NOT_TESTED = "better", "worse", "not significant", "not tested"


@dataclass(frozen=True)
class Figure:
    """One number of the report with its 95 % interval; NaN where it cannot be told."""

    variant: str
    group: str
    mean: float
    low: float
    high: float
    seed_deviation: float


@dataclass(frozen=True)
class Difference(Figure):
    """A variant's accuracy minus the reference's."""

    p: float
    holm_p: float
    """Corrected for the whole family; NaN where nothing is claimed about the group."""
    verdict: str
    """better, worse, or not significant: at 5 % for the whole family; not tested outside of it."""


def scene_scores(right: np.ndarray, scenes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (accuracy `(...)`, scores `(..., seeds, scenes)`) of answers `(..., seeds,
    questions)`.

    Accuracy is that of all questions, so a ratio of sums over scenes; the scores are its linear
    part (Cochran, Sampling Techniques, 6.3), with mean 0.
    """
    names, place = np.unique(np.asarray(scenes), return_inverse=True)
    member = np.zeros((right.shape[-1], len(names)))
    member[np.arange(right.shape[-1]), place] = 1.0
    counts = member.sum(0)
    sums = right @ member
    accuracy = right.mean((-2, -1))
    return accuracy, (sums - accuracy[..., None, None] * counts) / counts.mean()


def accuracy_figures(results: Results) -> list[Figure]:
    """Return the accuracy of every variant in every group."""
    found = []
    for group, (accuracy, scores) in _by_group(results).items():
        told = estimate(accuracy, scores)
        for place, variant in enumerate(results.variants):
            found.append(Figure(variant, group, *_numbers(told, place, least=0.0)))
    return found


def differences(results: Results, reference: str, claims: Sequence[str]) -> list[Difference]:
    """Return every other variant minus the reference, in every group.

    `claims` are the groups about which something is claimed: all of their differences together are
    the family that Holm's correction is for. The other groups have intervals and no claim.

    Raises UserError for an unknown reference or group.
    """
    if reference not in results.variants:
        raise UserError(
            f"the reference {reference} has no finished cell; there is {_known(results)}"
        )
    groups = _by_group(results)
    if unknown := [name for name in claims if name not in groups]:
        raise UserError(
            f"no group of questions is named {', '.join(unknown)}; there are {', '.join(groups)}"
        )
    told = {name: difference(*groups[name], results.variants.index(reference)) for name in groups}
    others = [n for n, name in enumerate(results.variants) if name != reference]
    family = list(itertools.product(claims, others))
    corrected = holm(np.array([told[group].p[place] for group, place in family]))
    of_family = dict(zip(family, corrected, strict=True))
    found = []
    for group, numbers in told.items():
        for place in others:
            own, verdict = np.nan, NOT_TESTED
            if (group, place) in of_family:
                own = of_family[group, place]
                verdict = verdict_of(numbers.mean[place], own)
            figures = _numbers(numbers, place, least=-1.0)
            p, corrected_p = float(numbers.p[place]), float(own)
            found.append(
                Difference(results.variants[place], group, *figures, p, corrected_p, verdict)
            )
    return found


def difference(accuracy: np.ndarray, scores: np.ndarray, reference: int) -> Estimate:
    """Return each variant minus the reference: accuracy `(..., variants)`, scores `(..., variants,
    seeds, scenes)`; the reference's own entry is 0.
    """
    pooled = pooled_seed_square(scores)
    if pooled is not None:
        pooled = type(pooled)(np.asarray(pooled.value)[..., None], pooled.df)
    mean = accuracy - accuracy[..., reference : reference + 1]
    return estimate(mean, scores - scores[..., reference : reference + 1, :, :], pooled)


def verdict_of(mean: float, holm_p: float) -> str:
    """Return what may be said of a difference: no more than that it is not significant, where it is
    not.
    """
    if not holm_p <= ALPHA:  # NaN: one seed tells nothing
        return NOT_SIGNIFICANT
    if mean > 0:
        return BETTER
    return WORSE


def _by_group(results: Results) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Group -> scene_scores, of groups with at least two scenes."""
    scenes = np.array([question.scene for question in results.questions])
    found = {}
    for name, mask in groups_of(results.questions).items():
        if len(set(scenes[mask])) > 1:
            found[name] = scene_scores(results.right[..., mask], scenes[mask])
    return found


def _numbers(told: Estimate, place: int, least: float) -> tuple[float, float, float, float]:
    """Mean, interval and deviation of the seeds. No share of answers lies outside `least` to 1, so
    neither does the interval: with two seeds Student's t alone would reach far beyond.
    """
    low, high = np.clip((told.low[place], told.high[place]), least, 1.0)  # NaN stays NaN
    return float(told.mean[place]), float(low), float(high), float(told.seed_deviation[place])


def _known(results: Results) -> str:
    return ", ".join(results.variants)
