"""The report's images: loss curves, masks, accuracy bars and caption loss, drawn with matplotlib.

Every function draws into the Axes that it is given, so that report.png and report.html share them.
matplotlib.figure is used without pyplot: no display, no global state.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MODEL, BLIND, RIGHT, WRONG = "#2563a8", "#b9bfc7", "#1b7f3b", "#c0392b"
SIZE_ORDER = ("salient", "small", "scene")


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """Render a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, facecolor="white")
    return file.getvalue()


def image_tag(png: bytes, description: str) -> str:
    """Return an HTML element that holds a PNG file, so that a page needs no other file."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def draw_losses(axes: Axes, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the training loss of every step and the held-out loss where it was measured; rows are
    lines of metrics.jsonl.
    """
    train = _points(rows, "loss")
    validation = _points(rows, "validation_loss")
    if train:
        axes.plot(*zip(*train, strict=True), color=MODEL, linewidth=1.4, label="training")
    if validation:
        axes.plot(
            *zip(*validation, strict=True),
            "o--",
            color=WRONG,
            linewidth=1,
            markersize=5,
            label="held out",
        )
    axes.set(title=title, xlabel="step", ylabel="loss per target token (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    if train or validation:
        axes.legend(frameon=False)


def _points(rows: Sequence[Mapping[str, Any]], loss: str) -> list[tuple[int, float]]:
    """(step, loss) of the rows that have a loss of this name."""
    return [(row["step"], row[loss]) for row in rows if row.get(loss) is not None]


def draw_mask(axes: Axes, title: str, mask: np.ndarray, seen: str) -> None:
    """Draw one boolean mask (tokens, seen); dark means "the row may look at the column"."""
    axes.imshow(mask, cmap="Blues", vmin=0, vmax=1.25, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(seen, fontsize=8)
    axes.tick_params(labelsize=7)


def draw_accuracy(axes: Axes, accuracy: Mapping[str, Any], blind: Mapping[str, Any]) -> None:
    """Draw a pair of bars (model, blind baseline) for each question type and object size."""
    pairs = type_and_size_pairs(accuracy)
    places = np.arange(len(pairs))
    values = [accuracy["by_type_and_size"][kind][size] for kind, size in pairs]
    baseline = [blind["by_type_and_size"][kind][size] for kind, size in pairs]
    axes.barh(places - 0.2, values, height=0.4, color=MODEL, label="model")
    axes.barh(places + 0.2, baseline, height=0.4, color=BLIND, label="blind baseline")
    axes.set_yticks(places, [f"{kind}, {size}" for kind, size in pairs])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), title="Right answers, held-out scenes")
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False)


def type_and_size_pairs(accuracy: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the accuracy table: types in alphabetical order, salient before small
    objects.
    """
    rank = {size: place for place, size in enumerate(SIZE_ORDER)}
    pairs = []
    for kind, sizes in sorted(accuracy["by_type_and_size"].items()):
        for size in sorted(sizes, key=lambda name: (rank.get(name, len(rank)), name)):
            pairs.append((kind, size))
    return pairs


def draw_caption_loss(axes: Axes, caption_loss: Mapping[str, Any]) -> None:
    """Draw the caption loss with the right and a wrong image; the title holds the difference and
    its interval.
    """
    gap = caption_loss["wrong_minus_right"]
    bars = axes.bar(
        ["right image", "wrong image"],
        [caption_loss["right"], caption_loss["wrong"]],
        color=[MODEL, WRONG],
        width=0.55,
    )
    axes.bar_label(bars, fmt="%.3f")
    axes.set(
        title=f"Held-out caption loss\nwrong - right = {gap['mean']:.3f}  [{gap['low']:.3f}, {gap['high']:.3f}]",
        ylabel="nats per target token",
    )
    axes.margins(y=0.15)


def backend_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the forward + backward time of every backend, one panel per shape; rows as
    tools/bench_attention.py writes them.
    """
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    columns = min(3, len(shapes))
    lines = -(-len(shapes) // columns)
    figure = Figure(figsize=(5.0 * columns, 2.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, shape in zip(panels, shapes, strict=False):
        draw_backends(axes, shape, [row for row in rows if row["shape"] == shape])
    for axes in panels[len(shapes) :]:
        axes.set_axis_off()
    return figure


def draw_backends(axes: Axes, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the bars of one shape: forward and forward + backward; the dashed line is the bytes
    floor.
    """
    names = [_backend_title(row) for row in rows]
    both = axes.barh(
        names, [row["forward_backward_ms"] for row in rows], color=MODEL, label="forward + backward"
    )
    axes.barh(names, [row["forward_ms"] for row in rows], color=BLIND, height=0.45, label="forward")
    axes.bar_label(
        both, [f"{row['forward_backward_ms']:.3g}" for row in rows], fontsize=7, padding=2
    )
    axes.axvline(rows[0]["floor_ms"], color=WRONG, linestyle="--", linewidth=1)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("ms", fontsize=8)
    axes.tick_params(labelsize=7)


def _backend_title(row: Mapping[str, Any]) -> str:
    if row.get("provider"):
        return f"{row['backend']} ({row['provider']})"
    return row["backend"]


def loss_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw loss curves side by side, one per stage."""
    figure = Figure(figsize=(5.2 * len(curves), 3.4), layout="constrained")
    for axes, (title, rows) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        draw_losses(axes, title, rows)
    return figure


def mask_figure(masks: Sequence[tuple[str, np.ndarray, str]]) -> Figure:
    """Draw all masks side by side: (title, boolean mask, what the columns are)."""
    figure = Figure(figsize=(2.5 * len(masks), 2.8), layout="constrained")
    for axes, (title, mask, seen) in zip(
        figure.subplots(1, len(masks), squeeze=False)[0], masks, strict=True
    ):
        draw_mask(axes, title, mask, seen)
    return figure


def accuracy_figure(accuracy: Mapping[str, Any], blind: Mapping[str, Any]) -> Figure:
    """Draw the accuracy bars alone."""
    figure = Figure(
        figsize=(6.4, 0.45 * len(type_and_size_pairs(accuracy)) + 1.2), layout="constrained"
    )
    draw_accuracy(figure.subplots(), accuracy, blind)
    return figure


def caption_figure(caption_loss: Mapping[str, Any]) -> Figure:
    """Draw the caption loss alone."""
    figure = Figure(figsize=(3.8, 3.6), layout="constrained")
    draw_caption_loss(figure.subplots(), caption_loss)
    return figure
