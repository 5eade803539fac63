"""What a sweep found: a table with the spread over seeds, and curves with bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pargo_ds.learning.measures import first_reaching

Trials = Mapping[tuple[str, str], Mapping[int, Sequence[dict[str, Any]]]]
"""(world, variant) -> seed -> lines of that trial."""


def rows_of(trials: Trials, gaps: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row for each world and variant; every figure is a list with one number per seed, in
    the order of seeds.

    {"world", "variant", "seeds", "images", "right", "gap", "reached": {gap: [images or None, ...]},
    "first_norm", "rise"}: `rise` is the highest loss of the first 20 steps minus the first step's.
    """
    rows = []
    for (world, variant), by_seed in trials.items():
        seeds = sorted(by_seed)
        runs = [by_seed[seed] for seed in seeds]
        ends = [run[-1] for run in runs]
        rows.append(
            {
                "world": world,
                "variant": variant,
                "seeds": seeds,
                "images": [end["images"] for end in ends],
                "right": [end["right"] for end in ends],
                "gap": [end["gap"] for end in ends],
                "reached": {gap: _reaching(runs, gap) for gap in gaps},
                "first_norm": [run[1]["grad_norm"] for run in runs],
                "rise": [_rise(run) for run in runs],
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]], gaps: Sequence[float]) -> str:
    """Return the rows as a Markdown table: median [lowest, highest] over seeds; images to a gap as
    the median and how many seeds reached it.
    """
    head = [
        "world",
        "variant",
        "seeds",
        "images",
        "right",
        "gap",
        *(f"images to {gap:g} nats" for gap in gaps),
    ]
    head += ["first gradient norm", "rise of the loss"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row["world"], row["variant"], str(len(row["seeds"])), f"{max(row['images']):,}"]
        cells += [spread(row["right"]), spread(row["gap"])]
        cells += [reached(row["reached"][gap]) for gap in gaps]
        cells += [spread(row["first_norm"], ".0f"), spread(row["rise"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float], shape: str = ".2f") -> str:
    """Return `median [lowest, highest]`, one number alone as it is."""
    middle = format(float(np.median(values)), shape)
    if len(values) == 1:
        return middle
    return f"{middle} [{min(values):{shape}}, {max(values):{shape}}]"


def reached(images: Sequence[int | None]) -> str:
    """Return `640 (3 of 5)`: the median over the seeds that reached it, and how many did."""
    known = [count for count in images if count is not None]
    middle = "—"
    if known:
        middle = f"{int(np.median(known)):,}"
    return f"{middle} ({len(known)} of {len(images)})"


def curves(trials: Trials, title: str) -> Figure:
    """Draw the gap against images (above) and against updates (below), a panel for each world; the
    line is the median over seeds, the band from the lowest to the highest.
    """
    worlds = list(dict.fromkeys(world for world, _ in trials))
    figure = Figure(figsize=(5.5 * len(worlds), 8), layout="constrained")
    panels = figure.subplots(2, len(worlds), squeeze=False, sharey=True)
    for column, world in enumerate(worlds):
        for row, (axis, label) in enumerate((("images", "images seen"), ("step", "updates"))):
            axes = panels[row][column]
            for (own_world, variant), by_seed in trials.items():
                if own_world == world:
                    _draw(axes, variant, by_seed, axis)
            axes.set(xlabel=label, ylabel="gap (nats per target token)")
            axes.grid(alpha=0.25)
            axes.axhline(0, color="#555555", linewidth=0.8)
        panels[0][column].set_title(world)
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def _measured(run: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines at which the gap was measured."""
    return [line for line in run if "gap" in line]


def _reaching(runs: Sequence[Sequence[dict[str, Any]]], gap: float) -> list[int | None]:
    """The images after which each run reached the gap."""
    return [first_reaching(run, gap) for run in runs]


def _rise(run: Sequence[dict[str, Any]]) -> float:
    """The highest loss of the first 20 steps minus the first step's."""
    return max(line["loss"] for line in run[1:21]) - run[1]["loss"]


def _draw(
    axes: Any, variant: str, by_seed: Mapping[int, Sequence[dict[str, Any]]], axis: str
) -> None:
    measured = [_measured(run) for run in by_seed.values()]
    points = min(len(run) for run in measured)
    places, gaps = np.zeros((2, len(measured), points))
    for seed, run in enumerate(measured):
        places[seed] = [line[axis] for line in run[:points]]
        gaps[seed] = [line["gap"] for line in run[:points]]
    where = np.median(places, axis=0)
    (line,) = axes.plot(
        where, np.median(gaps, axis=0), linewidth=1.6, label=f"{variant} ({len(measured)})"
    )
    axes.fill_between(
        where, gaps.min(axis=0), gaps.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0
    )
