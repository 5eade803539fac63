"""Intervals cover, false claims are rare and effects are found, in simulated studies of known truth."""

from __future__ import annotations

import numpy as np
import pytest

from pargo_ds.study.comparisons import difference, scene_scores
from pargo_ds.study.intervals import estimate, holm, mean_squares

SIMULATIONS = 1000
SCENES, QUESTIONS = 60, 4


def test_holm_on_the_worked_example_of_a_textbook():
    # Aickin and Gensler, Am. J. Public Health 86 (1996): the rules applied by hand.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    with_nothing = holm(np.array([0.01, np.nan, 0.04]))
    assert with_nothing[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
    assert np.isnan(with_nothing[1])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_mean_squares_are_those_of_an_analysis_of_variance_by_least_squares():
    """Sums of squares as differences of the residuals of nested regressions, by numpy's lstsq."""
    drawn = np.random.default_rng(0).normal(size=(4, 7))
    seeds = np.repeat(np.eye(4), 7, axis=0)
    scenes = np.tile(np.eye(7), (4, 1))
    one = np.ones((28, 1))

    def left(*columns: np.ndarray) -> float:
        design = np.hstack(columns)
        fitted = design @ np.linalg.lstsq(design, drawn.ravel(), rcond=None)[0]
        return float(((drawn.ravel() - fitted) ** 2).sum())

    both = left(one, seeds, scenes)
    expected = ((left(one, scenes) - both) / 3, (left(one, seeds) - both) / 6, both / 18)
    assert np.allclose([float(value) for value in mean_squares(drawn)], expected, rtol=1e-10)


def test_accuracy_is_that_of_all_questions_and_scores_say_how_it_varies():
    drawn = np.random.default_rng(1)
    scenes = [f"s{n}" for n in range(5) for _ in range(n + 1)]  # scenes of unequal size
    right = (drawn.random((2, 3, len(scenes))) < 0.5).astype(float)
    accuracy, scores = scene_scores(right, scenes)
    assert accuracy == pytest.approx(right.reshape(2, -1).mean(-1))
    assert np.abs(scores.mean((-2, -1))).max() < 1e-12
    # Leaving a scene out moves the ratio as its score says, to first order: the jackknife's view.
    for number, name in enumerate(dict.fromkeys(scenes)):
        kept = [place for place, own in enumerate(scenes) if own != name]
        moved = accuracy - right[..., kept].mean((-2, -1))
        share = scores[..., number].mean(-1) / 5
        shrunk = 1 - scenes.count(name) / len(scenes)
        assert moved * shrunk == pytest.approx(share)


def test_what_cannot_be_told_is_not_told():
    one_seed = estimate(np.array(0.3), np.zeros((1, 10)))
    assert np.isnan(one_seed.low)
    assert np.isnan(one_seed.p)
    all_alike = estimate(np.array(0.0), np.zeros((3, 10)))
    assert np.isnan(all_alike.low)
    assert all_alike.p == 1
    with pytest.raises(ValueError, match="1 scene"):
        estimate(np.array(0.3), np.zeros((3, 1)))


def simulated(
    variants: int, seeds: int, of_seed: float, of_scene: float, effects: list[float], draw: int
) -> tuple[np.ndarray, np.ndarray]:
    """(accuracy, scores) of many studies whose true accuracies are 0.5 + effects.

    Each answer is a coin of a known chance: that of its question, moved by variant x seed and by
    variant x scene (deviations `of_seed`, `of_scene`). Half of the coins are shared by all models,
    as easy and hard questions are.
    """
    drawn = np.random.default_rng(draw)
    shape = (SIMULATIONS, variants, seeds, SCENES)
    chance = drawn.uniform(0.3, 0.7, (SIMULATIONS, 1, 1, SCENES, QUESTIONS)).astype(np.float32)
    moved = of_seed * drawn.normal(size=(*shape[:3], 1)) + np.array(effects)[:, None, None]
    moved = moved + of_scene * drawn.normal(size=(SIMULATIONS, variants, 1, SCENES))
    chance = np.clip(chance + moved[..., None].astype(np.float32), 0, 1)
    coin = drawn.random((SIMULATIONS, 1, 1, SCENES, QUESTIONS), np.float32)
    own = drawn.random((*shape, QUESTIONS), np.float32)
    shared = drawn.random((*shape, QUESTIONS), np.float32) < 0.5
    right = (np.where(shared, coin, own) < chance).mean(-1)
    accuracy = right.mean((-2, -1))
    return accuracy, right - accuracy[..., None, None]


NO_EFFECT = [0.0] * 5
REGIMES = [(3, 0.03, 0.05), (3, 0.06, 0.15), (5, 0.03, 0.1), (5, 0.0, 0.0)]
"""Seeds, deviation by seed, deviation by scene."""


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "of_seed", "of_scene"), REGIMES)
def test_without_an_effect_a_study_claims_one_in_at_most_5_percent_and_its_intervals_cover(
    seeds, of_seed, of_scene
):
    told = difference(*simulated(5, seeds, of_seed, of_scene, NO_EFFECT, draw=seeds), 0)
    others = slice(1, None)
    covered = ((told.low <= 0) & (told.high >= 0))[:, others].mean()
    claims = (holm(told.p[:, others]) <= 0.05).any(-1).mean()
    print(f"covered {covered:.3f}, studies with a false claim {claims:.3f}")
    assert 0.93 <= covered <= 0.97
    assert claims <= 0.05


@pytest.mark.slow
def test_intervals_cover_a_planted_effect_and_it_is_found():
    effects = [0.0, 0.15, 0.0, 0.0, -0.15]
    told = difference(*simulated(5, 5, 0.03, 0.05, effects, draw=9), 0)
    covered = ((told.low <= effects) & (effects <= told.high))[:, 1:].mean()
    claimed = holm(told.p[:, 1:]) <= 0.05
    found = claimed[:, 0] & (told.mean[:, 1] > 0) & claimed[:, 3] & (told.mean[:, 4] < 0)
    false = claimed[:, 1:3].any(-1).mean()
    print(f"covered {covered:.3f}, both effects found {found.mean():.3f}, false {false:.3f}")
    assert 0.93 <= covered <= 0.97
    assert found.mean() > 0.8
    assert false <= 0.05


@pytest.mark.slow
def test_two_variants_of_three_seeds_cover_too_and_a_plain_bootstrap_does_not():
    accuracy, scores = simulated(2, 3, 0.05, 0.05, [0.0, 0.0], draw=4)
    told = difference(accuracy, scores, 0)
    covered = ((told.low <= 0) & (told.high >= 0))[:, 1].mean()
    drawn = np.random.default_rng(5)
    right = scores[:, 1] - scores[:, 0]
    right = right + (accuracy[:, 1] - accuracy[:, 0])[:, None, None]
    seeds, scenes = drawn.integers(0, 3, (500, 3)), drawn.integers(0, SCENES, (500, SCENES))
    weights = np.stack([np.bincount(row, minlength=SCENES) for row in scenes]) / SCENES
    by_seed = np.einsum("nsc,dc->nds", right, weights)
    means = np.take_along_axis(by_seed, seeds[None], -1).mean(-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    plain = ((low <= 0) & (high >= 0)).mean()
    print(f"covered {covered:.3f}; plain bootstrap of seeds and scenes {plain:.3f}")
    assert 0.93 <= covered <= 0.97
    assert plain < 0.93
