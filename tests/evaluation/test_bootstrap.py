"""The bootstrap interval on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from pargo_ds.evaluation.bootstrap import bootstrap_ratio, drawn_weights


def test_constant_data_has_an_interval_of_no_width() -> None:
    interval = bootstrap_ratio([2.0, 4.0, 6.0], [1, 2, 3], draws=200)
    assert (interval.mean, interval.low, interval.high) == (2.0, 2.0, 2.0)


def test_interval_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(0.5, 1.0, 400)
    interval = bootstrap_ratio(values, np.ones(400), draws=4000)
    half = 1.96 * values.std() / 20
    # 4,000 draws leave the ends uncertain by about 3 % of the half width
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        interval = bootstrap_ratio(rng.normal(0, 1, 40), np.ones(40), draws=300, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_longer_scenes_weigh_more() -> None:
    assert bootstrap_ratio([1.0, 0.0], [1, 3], draws=10).mean == 0.25


def test_same_seed_same_interval() -> None:
    values = list(range(20))
    assert bootstrap_ratio(values, [1] * 20, seed=3) == bootstrap_ratio(values, [1] * 20, seed=3)


@pytest.mark.parametrize(("sums", "weights"), [([], []), ([1.0], [1, 2]), ([1.0], [0])])
def test_faulty_input_is_an_error(sums: list[float], weights: list[float]) -> None:
    with pytest.raises(ValueError):
        bootstrap_ratio(sums, weights)


def test_clusters_are_drawn_within_their_stratum() -> None:
    strata = ["a", "b", "a", "a", "b"]
    weights = np.concatenate(list(drawn_weights(strata, draws=250, block=100)))
    assert weights.shape == (250, 5)
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()
    assert (weights[:, [1, 4]].sum(1) == 2).all()
    assert len(np.unique(weights, axis=0)) > 20
    again = np.concatenate(list(drawn_weights(strata, draws=250, block=100)))
    assert (weights == again).all()


def test_drawn_weights_give_the_interval_of_the_ratio() -> None:
    sums = np.random.default_rng(3).random(50)
    means = np.concatenate(list(drawn_weights([""] * 50, draws=4000))) @ sums / 50
    interval = bootstrap_ratio(sums, np.ones(50), draws=4000)
    # 4,000 draws leave the ends uncertain by about 3 % of the half width, twice
    width = interval.high - interval.low
    assert np.quantile(means, [0.025, 0.975]) == pytest.approx(
        [interval.low, interval.high], abs=0.06 * width
    )
