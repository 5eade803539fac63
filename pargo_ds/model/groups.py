"""Which patches belong to which partial token, as index arithmetic without any (partial, patches) mask.

A batch of equal pictures and a ragged row of pictures look the same to a backend: `rows` of `groups_per_row` groups
over `patches_per_row` patches, group i being patches `order[bounds[i] : bounds[i + 1]]` of its row. A ragged batch is
one row with images * partial groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from .masks import partial_global_mask, partial_groups, patch_order, ragged_partial_mask

Grid = tuple[int, int]


@dataclass(frozen=True)
class PatchGroups:
    """Groups of patches of `num_partial` partial tokens per picture; hashable, so that its arithmetic is done once.

    Args:
        num_partial: partial tokens per picture.
        cu_patches: where each picture's patches start in one row, (images + 1) numbers from 0; for a batch of equal
            pictures only `(0, patches)`, and `ragged` is False.
        grouping: raster (the paper) | block (2-D, ours).
        grids: (rows, columns) of patches per picture; None: square ones. Only `block` asks for them.
        ragged: keys come as one row of all pictures' patches.

    Raises:
        ValueError: more partial tokens than patches, an unknown grouping, or boundaries that do not grow from 0.
    """

    num_partial: int
    cu_patches: tuple[int, ...]
    grouping: str = "raster"
    grids: tuple[Grid, ...] | None = None
    ragged: bool = False

    def __post_init__(self) -> None:
        if len(self.cu_patches) < 2 or self.cu_patches[0] != 0:
            raise ValueError(f"cu_patches {self.cu_patches}: expected 0 and then the end of each picture's patches")
        if self.grids is not None and len(self.grids) != len(self.cu_patches) - 1:
            raise ValueError(f"{len(self.grids)} grids for {len(self.cu_patches) - 1} pictures")
        _bounds(self)
        _order(self)

    @classmethod
    def uniform(
        cls, num_partial: int, num_patches: int, grouping: str = "raster", grid: Grid | None = None
    ) -> "PatchGroups":
        """Groups of a batch whose pictures all have `num_patches` patches."""
        return cls(num_partial, (0, num_patches), grouping, None if grid is None else (grid,))

    @classmethod
    def packed(
        cls,
        num_partial: int,
        cu_patches: torch.Tensor | Sequence[int],
        grouping: str = "raster",
        grids: Sequence[Grid] | None = None,
    ) -> "PatchGroups":
        """Groups of pictures of different sizes side by side; `cu_patches` int32 `(images + 1,)` (a tensor on a GPU
        costs one synchronisation)."""
        ends = cu_patches.tolist() if isinstance(cu_patches, torch.Tensor) else cu_patches
        shapes = None if grids is None else tuple((int(r), int(c)) for r, c in grids)
        return cls(num_partial, tuple(int(end) for end in ends), grouping, shapes, ragged=True)

    @property
    def num_images(self) -> int:
        """Pictures that cu_patches names: 1 for a batch of equal ones."""
        return len(self.cu_patches) - 1

    @property
    def groups_per_row(self) -> int:
        return self.num_images * self.num_partial

    @property
    def patches_per_row(self) -> int:
        return self.cu_patches[-1]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Patches of each group of a row."""
        return tuple(stop - start for start, stop in zip(_bounds(self), _bounds(self)[1:], strict=False))

    @cached_property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @cached_property
    def even(self) -> bool:
        """All groups hold equally many patches."""
        return len(set(self.lengths)) <= 1

    @property
    def permutes(self) -> bool:
        """The groups do not simply follow each other in the patches' own order."""
        return _order(self) is not None

    def bounds(self, device: torch.device) -> torch.Tensor:
        """First place of each group in `order` and the end, int32 `(groups_per_row + 1,)`."""
        return _bounds_tensor(self, device)

    def order(self, device: torch.device) -> torch.Tensor | None:
        """Patches of a row in the order of their groups, int64 `(patches_per_row,)`; None: their own order."""
        return _order_tensor(self, device)

    def mask(self, device: torch.device) -> torch.Tensor:
        """The dense oracle: bool `(groups_per_row, patches_per_row)` from masks.py; only the dense backend asks."""
        return _mask_tensor(self, device)


@dataclass(frozen=True)
class EqualLengths:
    """Groups of a row sorted into runs of equal length, so that each run is a plain reshape.

    `runs`: (groups, patches per group) of each; `tokens`, `patches`: the row's groups and patches in that order
    (int64, None for their own order); `back` puts tokens into their own order again.
    """

    runs: tuple[tuple[int, int], ...]
    tokens: torch.Tensor | None
    patches: torch.Tensor | None
    back: torch.Tensor | None


@lru_cache(maxsize=256)
def equal_lengths(groups: PatchGroups, device: torch.device) -> EqualLengths:
    """Runs of groups of equal length, built once per device."""
    if groups.even:
        return EqualLengths(((groups.groups_per_row, groups.longest),), None, groups.order(device), None)
    lengths, bounds = groups.lengths, _bounds(groups)
    order = _order(groups) or range(groups.patches_per_row)
    tokens = sorted(range(len(lengths)), key=lengths.__getitem__)  # stable: groups of a run keep their order
    patches = [patch for i in tokens for patch in order[bounds[i] : bounds[i + 1]]]
    back = sorted(range(len(tokens)), key=tokens.__getitem__)
    runs = tuple((lengths.count(length), length) for length in sorted(set(lengths)))
    return EqualLengths(runs, _index(tokens, device), _index(patches, device), _index(back, device))


@lru_cache(maxsize=256)
def _bounds(groups: PatchGroups) -> list[int]:
    bounds = [0]
    for start, stop in zip(groups.cu_patches, groups.cu_patches[1:], strict=False):
        bounds += [start + bound for bound in partial_groups(groups.num_partial, stop - start)[1:]]
    return bounds


@lru_cache(maxsize=256)
def _order(groups: PatchGroups) -> list[int] | None:
    order: list[int] = []
    for i, (start, stop) in enumerate(zip(groups.cu_patches, groups.cu_patches[1:], strict=False)):
        grid = None if groups.grids is None else groups.grids[i]
        order += [start + patch for patch in patch_order(groups.num_partial, stop - start, groups.grouping, grid)]
    return None if order == list(range(len(order))) else order


def _index(values: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    # An inference tensor could not be saved for a later backward pass, so leave inference mode while building.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=256)
def _bounds_tensor(groups: PatchGroups, device: torch.device) -> torch.Tensor:
    return _index(_bounds(groups), device, torch.int32)


@lru_cache(maxsize=256)
def _order_tensor(groups: PatchGroups, device: torch.device) -> torch.Tensor | None:
    order = _order(groups)
    return None if order is None else _index(order, device)


@lru_cache(maxsize=64)
def _mask_tensor(groups: PatchGroups, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        if groups.ragged:
            mask = ragged_partial_mask(groups.num_partial, groups.cu_patches, groups.grouping, groups.grids)
        else:
            grid = None if groups.grids is None else groups.grids[0]
            mask = partial_global_mask(groups.num_partial, 0, groups.patches_per_row, groups.grouping, grid)
        return mask.to(device)
