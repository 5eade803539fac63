"""Who sees whom: the partial-global and the cascaded masks of ParGo, as plain booleans.

This file is the oracle of every attention backend: True means "the row may look at the column".

Axis legend: `partial` and `global` are the learned tokens of the projector (partial ones first),
`patches` leave the vision encoder in raster order.
"""

from typing import NamedTuple

import torch

CASCADES = ("shifted", "centered", "each_side", "none", "release")


class Window(NamedTuple):
    """Half-open range `[start, stop)` of partial tokens seen by one partial token."""

    start: int
    stop: int


def partial_groups(num_partial: int, num_patches: int) -> list[int]:
    """Boundaries of the patch groups: partial token i sees patches `[b[i], b[i + 1])`.

    The split is even, `b[i] = i * num_patches // num_partial`, so groups differ by at most one patch
    and equal the paper's `[i * n_s, (i + 1) * n_s)` whenever `num_patches` is a multiple.

    Example: 3 partial tokens over 8 patches -> [0, 2, 5, 8].

    Raises:
        ValueError: more partial tokens than patches; a token would see nothing.
    """
    if num_partial < 0 or num_patches < 1:
        raise ValueError(f"partial tokens {num_partial} and patches {num_patches}: need >= 0 and >= 1")
    if num_partial > num_patches:
        raise ValueError(
            f"{num_partial} partial tokens but only {num_patches} patches per picture: each partial token needs "
            "at least one patch. Lower projector.partial_tokens or raise the picture size."
        )
    if num_partial == 0:
        return [0]
    return [i * num_patches // num_partial for i in range(num_partial + 1)]


def partial_global_mask(num_partial: int, num_global: int, num_patches: int) -> torch.Tensor:
    """Mask M of the paper's section 3 (PGP): bool `(partial + global, patches)`.

    A partial token sees its own group of patches, a global token sees all of them; every patch is
    seen by exactly one partial token.

    Raises:
        ValueError: more partial tokens than patches.
    """
    mask = torch.ones(num_partial + num_global, num_patches, dtype=torch.bool)
    bounds = partial_groups(num_partial, num_patches)
    mask[:num_partial] = False
    for i in range(num_partial):
        mask[i, bounds[i] : bounds[i + 1]] = True
    return mask


def window_width(num_partial: int, layer: int, depth: int) -> int:
    """Number of partial tokens seen in `layer` (1-based) of `depth`: round(n_p * l / d), at least 1 (paper's eq. 2)."""
    if not 1 <= layer <= depth:
        raise ValueError(f"layer {layer} of {depth}: layers count from 1 to the depth")
    return max(1, round(num_partial * layer / depth))


def cascade_window(num_partial: int, layer: int, depth: int, cascade: str = "shifted") -> list[Window]:
    """Window of each partial token in `layer` (1-based): the paper's eq. 2 with the edges of its figure 2.

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


def cascade_mask(num_partial: int, layer: int, depth: int, cascade: str = "shifted") -> torch.Tensor:
    """Mask of CPP among the partial tokens in `layer` (1-based): bool `(partial, partial)`; see `cascade_window`."""
    mask = torch.zeros(num_partial, num_partial, dtype=torch.bool)
    for i, (start, stop) in enumerate(cascade_window(num_partial, layer, depth, cascade)):
        mask[i, start:stop] = True
    return mask
