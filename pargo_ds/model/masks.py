"""The partial-global and the cascaded masks of ParGo as plain booleans.

This file is the oracle of every attention backend: True means that the row attends to the column.

Axis legend: `partial` and `global` are the learned tokens of the projector (partial ones first),
`patches` leave the vision encoder in raster order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

CASCADES = ("shifted", "centered", "each_side", "none", "release")
GROUPINGS = ("raster", "block")


class Window(NamedTuple):
    """Half-open range `[start, stop)` of partial tokens seen by one partial token."""

    start: int
    stop: int


def partial_groups(num_partial: int, num_patches: int) -> list[int]:
    """Return the boundaries b of the patch groups: partial token i sees patches `[b[i], b[i + 1])`.

    The split is even, `b[i] = i * num_patches // num_partial`, so groups differ by at most one
    patch and equal the paper's `[i * n_s, (i + 1) * n_s)` whenever `num_patches` is a multiple.

    Example: 3 partial tokens over 8 patches -> [0, 2, 5, 8].

    Raises:
        ValueError: more partial tokens than patches; a token would see nothing.
    """
    if num_partial < 0 or num_patches < 1:
        raise ValueError(
            f"partial tokens {num_partial} and patches {num_patches}: need >= 0 and >= 1"
        )
    if num_partial > num_patches:
        raise ValueError(
            f"{num_partial} partial tokens but only {num_patches} patches per image: each partial token needs "
            "at least one patch. Lower projector.partial_tokens or raise the image size."
        )
    if num_partial == 0:
        return [0]
    return [i * num_patches // num_partial for i in range(num_partial + 1)]


def block_order(num_partial: int, rows: int, columns: int) -> list[int]:
    """Return the order of the patches in which `partial_groups` cuts 2-D blocks (ours, not the
    paper's): a permutation.

    The grid is cut into horizontal strips, and each strip is walked column by column. Where the
    counts tile (strips divide the rows, tokens per strip divide the columns) every group is one
    rectangle, as square as the counts allow (the taller one of two equally square), and blocks
    follow each other in raster order. Otherwise strips are about as high as a square block and
    every second one is walked backwards, so that a group that crosses strips stays in one piece;
    sizes still differ by at most one patch.

    Example: 4 partial tokens on 4 x 4 patches -> [0, 4, 1, 5, 2, 6, 3, 7, 8, ...], blocks of 2 x 2.

    Raises:
        ValueError: more partial tokens than patches.
    """
    partial_groups(num_partial, rows * columns)
    if num_partial == 0:
        return list(range(rows * columns))
    tilings = [n for n in range(1, num_partial + 1) if _tiles(n, num_partial, rows, columns)]
    if tilings:
        # Height over width of a block; the larger of it and its inverse is 1 for a square.
        shapes = {n: (rows // n) * (num_partial // n) / columns for n in tilings}
        strips = min(tilings, key=lambda n: (max(shapes[n], 1 / shapes[n]), -shapes[n]))
    else:
        side = (rows * columns / num_partial) ** 0.5
        strips = min(max(round(rows / side), 1), rows)
    order: list[int] = []
    for strip in range(strips):
        inside = range(strip * rows // strips, (strip + 1) * rows // strips)
        walk = list(range(columns))
        if not tilings and strip % 2 == 1:
            walk.reverse()
        for column in walk:
            order += [row * columns + column for row in inside]
    return order


def _tiles(strips: int, num_partial: int, rows: int, columns: int) -> bool:
    """Whether so many strips cut the grid into equal rectangles, one for each partial token."""
    if num_partial % strips or rows % strips:
        return False
    return columns % (num_partial // strips) == 0


def patches_of_partial(
    num_partial: int,
    num_patches: int,
    grouping: str = "raster",
    grid: tuple[int, int] | None = None,
) -> list[list[int]]:
    """Return the patches that each partial token sees; every patch belongs to exactly one of them.

    `raster` (the paper) cuts the raster order, `block` cuts `block_order` of `grid` (rows, columns;
    a square one when None).

    Raises:
        ValueError: unknown grouping, a grid that does not hold the patches, more partial tokens
            than patches.
    """
    bounds = partial_groups(num_partial, num_patches)
    order = patch_order(num_partial, num_patches, grouping, grid)
    return [list(order[start:stop]) for start, stop in zip(bounds, bounds[1:], strict=False)]


def patch_order(
    num_partial: int,
    num_patches: int,
    grouping: str = "raster",
    grid: tuple[int, int] | None = None,
) -> Sequence[int]:
    """Return the order of the patches that `partial_groups` cuts; see `patches_of_partial`."""
    if grouping not in GROUPINGS:
        raise ValueError(f"unknown grouping '{grouping}': choose one of {', '.join(GROUPINGS)}")
    if grouping == "raster":
        return range(num_patches)
    side = round(num_patches**0.5)
    rows, columns = grid or (side, side)
    if rows * columns != num_patches:
        shape = f"but a grid of {rows} x {columns}"
        if grid is None:
            shape = "and no grid, and they fill no square"
        raise ValueError(
            f"grouping 'block': {num_patches} patches {shape}. Blocks need rows x columns = patches; give the grid, "
            "or set projector.grouping to raster"
        )
    return block_order(num_partial, rows, columns)


def partial_global_mask(
    num_partial: int,
    num_global: int,
    num_patches: int,
    grouping: str = "raster",
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return the mask M of the paper's section 3 (PGP): bool `(partial + global, patches)`.

    A partial token sees its own group of patches, a global token sees all of them; every patch is
    seen by exactly one partial token.

    Raises:
        ValueError: as `patches_of_partial`.
    """
    mask = torch.ones(num_partial + num_global, num_patches, dtype=torch.bool)
    mask[:num_partial] = False
    for i, patches in enumerate(patches_of_partial(num_partial, num_patches, grouping, grid)):
        mask[i, patches] = True
    return mask


def window_width(num_partial: int, layer: int, depth: int) -> int:
    """Return the number of partial tokens seen in `layer` (1-based) of `depth`: round(n_p * l / d),
    at least 1 (paper's eq. 2).
    """
    if not 1 <= layer <= depth:
        raise ValueError(f"layer {layer} of {depth}: layers count from 1 to the depth")
    return max(1, round(num_partial * layer / depth))


def cascade_window(
    num_partial: int, layer: int, depth: int, cascade: str = "shifted"
) -> list[Window]:
    """Return the window of each partial token in `layer` (1-based): the paper's eq. 2 with the
    edges of its figure 2.

    With w = `window_width(...)`, token i sees:
        shifted    w tokens always; the window moves inwards at the edges (figure 2, the default)
        centered   the same window clipped at the edges, so the last layer is not full
        each_side  w neighbours on each side and itself, clipped
        none       itself only (the projector leaves the CPP step out)
        release    every partial token in every layer (bytedance/ParGo, one mask for all layers)

    Raises:
        ValueError: unknown cascade, or a layer outside 1..depth.
    """
    width = window_width(num_partial, layer, depth)
    if cascade == "shifted":
        starts = [min(max(i - width // 2, 0), num_partial - width) for i in range(num_partial)]
        return [Window(start, start + width) for start in starts]
    if cascade == "centered":
        raw = [(i - width // 2, i - width // 2 + width) for i in range(num_partial)]
    elif cascade == "each_side":
        raw = [(i - width, i + width + 1) for i in range(num_partial)]
    elif cascade == "none":
        raw = [(i, i + 1) for i in range(num_partial)]
    elif cascade == "release":
        raw = [(0, num_partial)] * num_partial
    else:
        raise ValueError(f"unknown cascade '{cascade}': choose one of {', '.join(CASCADES)}")
    return [Window(max(start, 0), min(stop, num_partial)) for start, stop in raw]


def cascade_mask(
    num_partial: int, layer: int, depth: int, cascade: str = "shifted"
) -> torch.Tensor:
    """Return the mask of CPP among the partial tokens in `layer` (1-based): bool `(partial,
    partial)`; see `cascade_window`.
    """
    mask = torch.zeros(num_partial, num_partial, dtype=torch.bool)
    for i, (start, stop) in enumerate(cascade_window(num_partial, layer, depth, cascade)):
        mask[i, start:stop] = True
    return mask
