"""The report's drawings: differences with their intervals, and learning curves with bands."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pargo_ds.evaluation.figures import MODEL, RIGHT, WRONG
from pargo_ds.study.comparisons import BETTER, WORSE, Difference

GREY = "#8a929c"
COLOURS = {BETTER: RIGHT, WORSE: WRONG}
POINTS = 40
"""Number of points of a drawn curve; each point is the mean of several steps."""


def draw_forest(axes: Axes, group: str, differences: Sequence[Difference], reference: str) -> None:
    """Draw a row for each variant: its difference to the reference in points, with the interval."""
    places = np.arange(len(differences))
    for place, one in zip(places, differences, strict=True):
        colour = COLOURS.get(one.verdict, GREY)
        if np.isfinite(one.low):
            axes.plot([100 * one.low, 100 * one.high], [place, place], color=colour, linewidth=2)
        axes.plot(100 * one.mean, place, "o", color=colour, markersize=6)
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(places, [one.variant for one in differences])
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set(title=group, xlabel=f"points of accuracy minus {reference}")
    axes.grid(axis="x", alpha=0.25)


def forest_figure(by_group: Mapping[str, Sequence[Difference]], reference: str) -> Figure:
    """Draw a panel for each group."""
    rows = max(len(own) for own in by_group.values())
    figure = Figure(figsize=(5.4 * len(by_group), 0.36 * rows + 1.4), layout="constrained")
    panels = figure.subplots(1, len(by_group), squeeze=False, sharex=True)[0]
    for axes, (group, own) in zip(panels, by_group.items(), strict=True):
        draw_forest(axes, group, own, reference)
    return figure


def draw_curves(
    axes: Axes,
    title: str,
    by_variant: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    key: str,
) -> None:
    """Draw the mean over seeds of every variant, and the band from the lowest to the highest seed."""
    for place, (variant, curves) in enumerate(by_variant.items()):
        steps, values = binned(curves, key)
        if not steps.size:
            continue
        (line,) = axes.plot(
            steps, values.mean(0), linewidth=1.4, label=variant,
            linestyle=("-", "--", ":")[place // 10 % 3],
        )  # fmt: skip
        axes.fill_between(
            steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.12, linewidth=0
        )
    axes.set(title=title, xlabel="step", ylabel=YLABELS[key])
    axes.grid(alpha=0.25)


YLABELS = {
    "loss": "training loss (nats per target token)",
    "gap": "loss with another image minus own (nats)",
}


def binned(
    curves: Sequence[Sequence[Mapping[str, Any]]], key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps `(points,)`, values `(seeds, points)`) of the lines that have the key,
    neighbours put together; as far as all seeds come.
    """
    own = [_points(curve, key) for curve in curves]
    count = min(map(len, own), default=0)
    if not count:
        return np.empty(0), np.empty((len(own), 0))
    table = np.array([curve[:count] for curve in own], float)
    edges = np.unique(np.linspace(0, count, min(POINTS, count) + 1).astype(int))
    parts = [table[:, a:b].mean(1) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    joined = np.stack(parts, axis=1)
    return joined[0, :, 0], joined[:, :, 1]


def _points(curve: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of the lines that have the key."""
    return [(line["step"], line[key]) for line in curve if key in line]


def curve_figure(curves: Mapping[str, Any]) -> Figure:
    """Draw a panel for the loss of each stage, and for the gap where it was measured."""
    panels = []
    for stage in curves:
        panels += [(stage, key) for key in YLABELS if _has(curves[stage], key)]
    figure = Figure(figsize=(5.6 * max(1, len(panels)), 4.2), layout="constrained")
    for axes, (stage, key) in zip(
        figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False
    ):
        draw_curves(axes, stage, curves[stage], key)
    if panels:
        figure.axes[0].legend(frameon=False, fontsize=7)
    return figure


Bars = Sequence[tuple[str, float, float, float]]
"""(variant, mean, low, high) of each bar."""


def accuracy_figure(by_group: Mapping[str, Bars], blind: Mapping[str, float]) -> Figure:
    """Draw a panel for each group: bars with their intervals, and a line at what is right blindly,
    where that is known.
    """
    rows = max(len(own) for own in by_group.values())
    figure = Figure(figsize=(5.4 * len(by_group), 0.36 * rows + 1.4), layout="constrained")
    panels = figure.subplots(1, len(by_group), squeeze=False, sharex=True)[0]
    for axes, (group, own) in zip(panels, by_group.items(), strict=True):
        draw_bars(axes, group, own, blind.get(group))
    return figure


def draw_bars(axes: Axes, group: str, bars: Bars, blind: float | None) -> None:
    """Draw a row for each variant: its share of right answers, with the interval."""
    places = np.arange(len(bars))
    axes.barh(places, [100 * bar[1] for bar in bars], color=MODEL, height=0.6)
    for place, (_, _, low, high) in zip(places, bars, strict=True):
        if np.isfinite(low):
            axes.plot([100 * low, 100 * high], [place, place], color="#16181b", linewidth=1.2)
    if blind is not None:
        axes.axvline(100 * blind, color=WRONG, linestyle="--", linewidth=1.2, label="blind")
        axes.legend(frameon=False)
    axes.set_yticks(places, [bar[0] for bar in bars])
    axes.invert_yaxis()
    axes.set(xlabel="right answers (%)", title=group)
    axes.grid(axis="x", alpha=0.25)


def _has(by_variant: Mapping[str, Any], key: str) -> bool:
    curves = itertools.chain.from_iterable(by_variant.values())
    return any(_points(curve, key) for curve in curves)
