"""Student's t distribution for any positive degrees of freedom, on arrays; scipy is no dependency.

Source: Abramowitz and Stegun, 26.5.27 (tails by the incomplete beta function) and 26.5.8 (its
continued fraction), evaluated from the front by Lentz's method.
"""

from __future__ import annotations

import math

import numpy as np

TERMS = 300
"""Number of terms of the continued fraction, which converges after fewer terms in all uses here."""
MOST = 1e6
"""Larger numbers of degrees of freedom are replaced by this one, which is the normal distribution
up to 1e-6.
"""
_log_gamma = np.vectorize(math.lgamma, otypes=[float])


def two_sided_p(t: np.ndarray | float, df: np.ndarray | float) -> np.ndarray:
    """Return P(|T| >= |t|) of a variable T with `df` degrees of freedom; arrays are broadcast.

    Raises ValueError for degrees of freedom that are not positive.
    """
    t, df = np.broadcast_arrays(np.abs(np.asarray(t, float)), np.asarray(df, float))
    if not (df > 0).all():
        raise ValueError(f"degrees of freedom must be positive; the smallest is {df.min()}")
    df = np.minimum(df, MOST)
    with np.errstate(over="ignore"):
        square = t * t
        return _incomplete_beta(df / (df + square), df / 2, np.full_like(df, 0.5))


def critical_value(level: float, df: np.ndarray | float) -> np.ndarray:
    """Return the t with P(|T| <= t) = level, by bisection."""
    df = np.asarray(df, float)
    low, high = np.zeros_like(df), np.full_like(df, 1e6)
    for _ in range(80):
        middle = (low + high) / 2
        outside = two_sided_p(middle, df) > 1 - level
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    return (low + high) / 2


def _incomplete_beta(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The regularised incomplete beta function I_x(a, b)."""
    mirrored = x > (a + 1) / (a + b + 2)  # where the fraction converges for the other tail only
    x, a, b = (
        np.where(mirrored, 1 - x, x),
        np.where(mirrored, b, a),
        np.where(mirrored, a, b),
    )
    log_front = _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b)
    inside = (x > 0) & (x < 1)
    safe = np.where(inside, x, 0.5)
    log_front = log_front + a * np.log(safe) + b * np.log1p(-safe)
    value = np.exp(log_front) / a / _continued_fraction(safe, a, b)
    value = np.where(inside, value, (x >= 1).astype(float))
    return np.where(mirrored, 1 - value, value)


def _continued_fraction(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 + d1 / (1 + d2 / (1 + ...)) of 26.5.8."""
    tiny = 1e-300
    value = upper = np.ones_like(x)
    lower = np.zeros_like(x)
    for term in range(1, TERMS):
        m = term // 2
        if term % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 + d * lower
        lower = 1 / np.where(lower == 0, tiny, lower)
        upper = 1 + d / upper
        upper = np.where(upper == 0, tiny, upper)
        value = value * upper * lower
        if np.abs(upper * lower - 1).max(initial=0) < 1e-14:
            break
    return value
