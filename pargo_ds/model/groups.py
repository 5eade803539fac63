"""The patches of each partial token, by index arithmetic and without a mask.

All images of a batch have the same groups: partial token i of an image attends to the patches
`order[bounds[i] : bounds[i + 1]]` of this image.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from .masks import partial_global_mask, partial_groups, patch_order

Grid = tuple[int, int]


@dataclass(frozen=True)
class PatchGroups:
    """The groups of patches of one image; hashable, so that its arithmetic is done only once.

    Args:
        num_partial: the number of partial tokens, one for each group.
        num_patches: the number of patches.
        grouping: raster (the paper) | block (2-D, ours).
        grid: rows and columns of patches; None means a square. Only `block` asks for it.

    Raises:
        ValueError: more partial tokens than patches, an unknown grouping, or a grid that does not
            hold the patches.
    """

    num_partial: int
    num_patches: int
    grouping: str = "raster"
    grid: Grid | None = None

    def __post_init__(self) -> None:
        # Both of them check the arguments, so that a wrong one is an error here and not later.
        _bounds(self)
        _order(self)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The number of patches of each group."""
        return tuple(stop - start for start, stop in pairwise(_bounds(self)))

    @cached_property
    def longest(self) -> int:
        """The number of patches of the largest group."""
        return max(self.lengths, default=0)

    @cached_property
    def even(self) -> bool:
        """Whether all groups hold equally many patches."""
        return len(set(self.lengths)) <= 1

    def bounds(self, device: torch.device) -> Tensor:
        """Return the first place of each group in `order`, and the end: int32 `(partial + 1,)`."""
        return _bounds_tensor(self, device)

    def order(self, device: torch.device) -> Tensor | None:
        """Return the patches in the order of their groups, int64 `(patches,)`; None for their own
        order.
        """
        return _order_tensor(self, device)

    def mask(self, device: torch.device) -> Tensor:
        """Return the mask of masks.py, bool `(partial, patches)`; only the dense backend asks for
        it.
        """
        return _mask_tensor(self, device)


@dataclass(frozen=True)
class EqualLengths:
    """Groups sorted into runs of equal length, so that each run is a plain reshape.

    Args:
        runs: (groups, patches per group) of each run.
        tokens: the partial tokens in the order of the runs, int64; None for their own order.
        patches: the patches in the order of the runs, int64; None for their own order.
        back: the places that put the tokens into their own order again; None where `tokens` is.
    """

    runs: tuple[tuple[int, int], ...]
    tokens: Tensor | None
    patches: Tensor | None
    back: Tensor | None


@lru_cache(maxsize=256)
def equal_lengths(groups: PatchGroups, device: torch.device) -> EqualLengths:
    """Return the runs of groups of equal length, which are built once per device."""
    if groups.even:
        run = (groups.num_partial, groups.longest)
        return EqualLengths((run,), None, groups.order(device), None)
    lengths, bounds = groups.lengths, _bounds(groups)
    order = _order(groups) or range(groups.num_patches)
    # The sort is stable: the groups of a run keep their order.
    tokens = sorted(range(len(lengths)), key=lengths.__getitem__)
    patches: list[int] = []
    for token in tokens:
        patches += order[bounds[token] : bounds[token + 1]]
    back = sorted(range(len(tokens)), key=tokens.__getitem__)
    runs = tuple((lengths.count(length), length) for length in sorted(set(lengths)))
    return EqualLengths(runs, _index(tokens, device), _index(patches, device), _index(back, device))


@lru_cache(maxsize=256)
def _bounds(groups: PatchGroups) -> list[int]:
    return partial_groups(groups.num_partial, groups.num_patches)


@lru_cache(maxsize=256)
def _order(groups: PatchGroups) -> list[int] | None:
    order = list(patch_order(groups.num_partial, groups.num_patches, groups.grouping, groups.grid))
    if order == list(range(groups.num_patches)):
        return None
    return order


def _index(values: list[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    # An inference tensor could not be saved for a later backward pass, so leave inference mode.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=256)
def _bounds_tensor(groups: PatchGroups, device: torch.device) -> Tensor:
    return _index(_bounds(groups), device, torch.int32)


@lru_cache(maxsize=256)
def _order_tensor(groups: PatchGroups, device: torch.device) -> Tensor | None:
    order = _order(groups)
    if order is None:
        return None
    return _index(order, device)


@lru_cache(maxsize=64)
def _mask_tensor(groups: PatchGroups, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # as in _index
        sizes = (groups.num_partial, 0, groups.num_patches)
        return partial_global_mask(*sizes, groups.grouping, groups.grid).to(device)
