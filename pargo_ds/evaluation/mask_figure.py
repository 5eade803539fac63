"""The paper's figure 2(b) for any configuration, and what each partial token sees of a photograph.

As in figures.py: drawn into Axes that are given, without pyplot.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from pargo_ds.evaluation.figures import draw_mask
from pargo_ds.model import ParGoConfig
from pargo_ds.model.masks import GROUPINGS, cascade_mask, partial_global_mask, patches_of_partial, window_width

MASKS_PER_ROW = 7
GOLDEN_RATIO = 0.618034  # steps around the colour circle, so that neighbours differ
NUMBER_POINTS = 170.0  # a number of three digits fits into one patch of a panel 6 inches wide


def projector_masks(config: ParGoConfig) -> list[tuple[str, np.ndarray, str]]:
    """(title, boolean mask, what the columns are) of the cascade in each layer, then of the partial and global tokens
    over the patches.

    Raises:
        ValueError: as pargo_ds.model.masks: more partial tokens than patches, patches that fill no square.
    """
    projector, patches = config.projector_config, config.vision_config.num_patches
    n, cascade = projector.partial_tokens, projector.cascade
    masks = []
    for layer in range(1, projector.layers + 1):
        mask = cascade_mask(n, layer, projector.layers, cascade)
        masks.append((f"layer {layer}: {cascade_title(config, layer)}", mask.numpy(), "partial tokens"))
    mask = partial_global_mask(n, projector.global_tokens, patches, projector.grouping)
    title = f"{n} partial + {projector.global_tokens} global"
    return [*masks, (f"{title}, {projector.grouping}", mask.numpy(), "patches (raster order)")]


def cascade_title(config: ParGoConfig, layer: int) -> str:
    """What one layer's cascade does, in a few words."""
    projector = config.projector_config
    if projector.cascade == "none":
        return "no cascade"
    if projector.cascade == "release":
        return f"all {projector.partial_tokens} (release)"
    width = window_width(projector.partial_tokens, layer, projector.layers)
    return {"shifted": f"one to {width}", "centered": f"up to {width}", "each_side": f"{width} each side"}[
        projector.cascade
    ]


def square_grid(num_patches: int) -> int:
    """Rows (and columns) of the patches of a square picture. Raises ValueError when they fill no square."""
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise ValueError(f"{num_patches} patches fill no square, so they have no place in a picture")
    return side


def owners(groups: Sequence[Sequence[int]], side: int) -> np.ndarray:
    """Partial token that sees each patch, int `(side, side)`."""
    owner = np.zeros(side * side, dtype=int)
    for token, patches in enumerate(groups):
        owner[list(patches)] = token
    return owner.reshape(side, side)


def draw_regions(axes: Axes, title: str, picture: Image.Image, groups: Sequence[Sequence[int]], side: int) -> None:
    """A square picture under one colour and number per partial token; white lines part what two tokens see."""
    owner = owners(groups, side)
    extent = (0, side, side, 0)
    colours = np.array([colorsys.hsv_to_rgb(i * GOLDEN_RATIO % 1, 0.75, 0.95) for i in range(len(groups))])
    axes.imshow(np.asarray(picture), extent=extent)
    axes.imshow(colours[owner], extent=extent, alpha=0.38, interpolation="nearest")
    axes.add_collection(LineCollection(borders(owner), colors="white", linewidths=0.9))
    size = min(11.0, max(3.0, NUMBER_POINTS / side))
    for token, patches in enumerate(groups):
        x, y = middle(patches, side)
        text = axes.text(x, y, str(token), fontsize=size, ha="center", va="center", color="white")
        text.set_path_effects([withStroke(linewidth=1.4, foreground="black")])
    axes.set(title=title, xticks=[], yticks=[])


def middle(patches: Sequence[int], side: int) -> tuple[float, float]:
    """Place of a token's number: the mean of its patches where that lies inside the region, else its nearest patch."""
    places = np.array([(patch % side + 0.5, patch // side + 0.5) for patch in patches])
    mean = places.mean(0)
    distances = np.abs(places - mean).max(1)
    place = mean if distances.min() <= 0.5 else places[distances.argmin()]
    return float(place[0]), float(place[1])


def borders(owner: np.ndarray) -> list[list[tuple[int, int]]]:
    """Line segments ((x, y), (x, y)) between patches of different tokens."""
    lines = [[(x + 1, y), (x + 1, y + 1)] for y, x in np.argwhere(owner[:, :-1] != owner[:, 1:])]
    return lines + [[(x, y + 1), (x + 1, y + 1)] for y, x in np.argwhere(owner[:-1] != owner[1:])]


def attention_figure(config: ParGoConfig, picture: Image.Image | None = None) -> Figure:
    """Masks of every layer, and below them the photograph in both groupings; `picture` is the square that the encoder
    sees.

    Raises:
        ValueError: as `projector_masks` and `square_grid`.
    """
    masks = projector_masks(config)
    columns = min(len(masks), MASKS_PER_ROW)
    rows = -(-len(masks) // columns)
    width = max(2.3 * columns, 12.0 if picture is not None else 0.0)
    heights = [2.6 * rows] + ([width * 0.5] if picture is not None else [])
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    places = parts[0].subplots(rows, columns, squeeze=False).flat
    for axes, (title, mask, seen) in zip(places, masks, strict=False):
        draw_mask(axes, title, mask, seen)
    for axes in list(parts[0].axes)[len(masks) :]:
        axes.set_axis_off()
    if picture is not None:
        draw_groupings(parts[1], config, picture)
    return figure


def draw_groupings(part: Any, config: ParGoConfig, picture: Image.Image) -> None:
    """The photograph twice, raster and block grouping; the run's own is named."""
    projector, patches = config.projector_config, config.vision_config.num_patches
    side = square_grid(patches)
    part.suptitle(f"{projector.partial_tokens} partial tokens on {side} x {side} patches: who sees which region")
    for axes, grouping in zip(part.subplots(1, len(GROUPINGS)), GROUPINGS, strict=True):
        mark = " (this run)" if grouping == projector.grouping else ""
        groups = patches_of_partial(projector.partial_tokens, patches, grouping)
        draw_regions(axes, f"{grouping}{mark}", picture, groups, side)
