"""Index arithmetic of the square grid of patches: pure functions, with errors that name the nearest
number that works.
"""

import math

import torch


def side_of(count: int, what: str) -> int:
    """Return the rows (and columns) of a square of `count` patches or tokens.

    Raises:
        ValueError: they fill no square; the message names the nearest number that does.
    """
    side = math.isqrt(count)
    if side * side != count or side == 0:
        nearest = max(1, round(math.sqrt(count))) ** 2
        raise ValueError(f"found {count} {what}, which fill no square; the nearest is {nearest}")
    return side


def merged_side(num_patches: int, scale: int) -> int:
    """Return the rows of a square grid of patches after every `scale x scale` of them became one.

    Raises:
        ValueError: no square grid, or `scale` does not divide its side; the message names the
            nearest number of patches that works.
    """
    side = side_of(num_patches, "patches of the encoder")
    if side % scale:
        nearest = max(1, round(side / scale)) * scale
        raise ValueError(
            f"projector.scale {scale} does not divide the grid of {side} x {side} patches; the "
            f"nearest is {nearest} x {nearest}"
        )
    return side // scale


def as_grid(patches: torch.Tensor, side: int) -> torch.Tensor:
    """Turn `(images, side * side, width)` into `(images, width, side, side)`, as convolutions take
    it.
    """
    return patches.transpose(1, 2).unflatten(2, (side, side))


def as_sequence(grid: torch.Tensor) -> torch.Tensor:
    """Turn `(images, width, rows, columns)` into `(images, rows * columns, width)`."""
    return grid.flatten(2).transpose(1, 2)


def windows(patches: torch.Tensor, side: int, scale: int) -> torch.Tensor:
    """Gather the `scale x scale` neighbours that become one token: of `(images, side * side,
    width)` make `(images, tokens, scale * scale, width)`, with the tokens and the neighbours of
    each in raster order.
    """
    rows = side // scale
    cut = patches.unflatten(1, (rows, scale, rows, scale))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)
