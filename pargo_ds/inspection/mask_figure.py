"""Draw the paper's figure 2(b) for any configuration, and the region of a photograph that each
partial token attends to.

As in figures.py, the functions draw into given Axes and do not use pyplot.
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

MASKS_PER_ROW = 7
GOLDEN_RATIO = 0.618034  # steps around the colour circle, so that neighbours differ
NUMBER_POINTS = 170.0  # a number of three digits fits into one patch of a panel 6 inches wide


def projector_masks(config: ParGoConfig) -> list[tuple[str, np.ndarray, str]]:
    """Return (title, boolean mask, meaning of the columns) of each attention mask of the projector;
    [] for a projector without masks.

    Raises:
        ValueError: as the projector says: more partial tokens than patches, patches that fill no
            square.
    """
    masks = config.projector_config.masks(config.vision_config.num_patches)
    return [(title, mask.numpy(), columns) for title, mask, columns in masks]


def square_grid(num_patches: int) -> int:
    """Return the number of rows (and columns) of the patches of a square image.

    Raises ValueError when they fill no square.
    """
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise ValueError(f"{num_patches} patches fill no square, so they have no place in an image")
    return side


def owners(groups: Sequence[Sequence[int]], side: int) -> np.ndarray:
    """Return the number of the partial token that attends to each patch, int `(side, side)`."""
    owner = np.zeros(side * side, dtype=int)
    for token, patches in enumerate(groups):
        owner[list(patches)] = token
    return owner.reshape(side, side)


def draw_regions(
    axes: Axes, title: str, image: Image.Image, groups: Sequence[Sequence[int]], side: int
) -> None:
    """Draw a square image with a colour and a number for each partial token, and white lines
    between the regions of the tokens.
    """
    owner = owners(groups, side)
    extent = (0, side, side, 0)
    hues = [token * GOLDEN_RATIO % 1 for token in range(len(groups))]
    colours = np.array([colorsys.hsv_to_rgb(hue, 0.75, 0.95) for hue in hues])
    axes.imshow(np.asarray(image), extent=extent)
    axes.imshow(colours[owner], extent=extent, alpha=0.38, interpolation="nearest")
    axes.add_collection(LineCollection(borders(owner), colors="white", linewidths=0.9))
    size = min(11.0, max(3.0, NUMBER_POINTS / side))
    for token, patches in enumerate(groups):
        x, y = middle(patches, side)
        text = axes.text(x, y, str(token), fontsize=size, ha="center", va="center", color="white")
        text.set_path_effects([withStroke(linewidth=1.4, foreground="black")])
    axes.set(title=title, xticks=[], yticks=[])


def middle(patches: Sequence[int], side: int) -> tuple[float, float]:
    """Return the place of a token's number: the mean of its patches if it is inside the region,
    else the patch that is nearest to the mean.
    """
    places = np.array([(patch % side + 0.5, patch // side + 0.5) for patch in patches])
    mean = places.mean(0)
    distances = np.abs(places - mean).max(1)
    place = mean
    if distances.min() > 0.5:
        place = places[distances.argmin()]
    return float(place[0]), float(place[1])


def borders(owner: np.ndarray) -> list[list[tuple[int, int]]]:
    """Return the line segments ((x, y), (x, y)) between patches of different tokens."""
    lines = [[(x + 1, y), (x + 1, y + 1)] for y, x in np.argwhere(owner[:, :-1] != owner[:, 1:])]
    return lines + [[(x, y + 1), (x + 1, y + 1)] for y, x in np.argwhere(owner[:-1] != owner[1:])]


def attention_figure(config: ParGoConfig, image: Image.Image | None = None) -> Figure:
    """Draw the masks of all layers, and below them the photograph with both groupings. `image` is
    the square that the encoder sees.

    Raises:
        ValueError: the projector has no masks; as `projector_masks` and `square_grid`.
    """
    masks = projector_masks(config)
    if not masks:
        raise ValueError(
            f"projector.type {config.projector_config.type} has no masks to draw: every one of its tokens "
            "may look at all patches, or at fixed neighbours"
        )
    columns = min(len(masks), MASKS_PER_ROW)
    rows = -(-len(masks) // columns)
    width, heights = 2.3 * columns, [2.6 * rows]
    if image is not None:
        width = max(width, 12.0)
        heights.append(width * 0.5)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    places = parts[0].subplots(rows, columns, squeeze=False).flat
    for axes, (title, mask, seen) in zip(places, masks, strict=False):
        draw_mask(axes, title, mask, seen)
    for axes in list(parts[0].axes)[len(masks) :]:
        axes.set_axis_off()
    if image is not None:
        draw_groupings(parts[1], config, image)
    return figure


def draw_groupings(part: Any, config: ParGoConfig, image: Image.Image) -> None:
    """Draw the photograph once for each grouping of the projector; the run's grouping is named."""
    side = square_grid(config.vision_config.num_patches)
    regions = config.projector_config.regions(config.vision_config.num_patches)
    tokens = max(map(len, regions.values()))
    part.suptitle(f"{tokens} partial tokens on {side} x {side} patches: who sees which region")
    for axes, (title, groups) in zip(part.subplots(1, len(regions)), regions.items(), strict=True):
        draw_regions(axes, title, image, groups, side)
