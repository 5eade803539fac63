"""Which samples are held out: whole groups of samples that share a picture or an id, so no picture is on both sides."""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from pargo_ds.data.build_plan import BuildError
from pargo_ds.data.duplicates import repeated
from pargo_ds.data.schema import Sample


def picture_digests(sample: Sample) -> list[int]:
    """8 bytes of each picture's file, as it is stored."""
    return [xxhash.xxh64_intdigest(image) for image in sample.images]


def split_hash(groups: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(groups,) even numbers of 64 bits from the keys of groups, which are smallest digests and so not even.

    These are the mixing steps of splitmix64.
    """
    mixed = groups.astype(np.uint64)
    with np.errstate(over="ignore"):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def in_share(groups: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which groups (groups,) a share from 0 to 1 of all of them holds; the same ones when others are added."""
    return split_hash(groups) < np.uint64(min(int(share * 2**64), 2**64 - 1))


def groups_of(units: NDArray[np.uint64], ids: NDArray[np.uint64], links: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The key of each sample's group (samples,): the smallest digest among all that hangs together.

    Args:
        units: (samples,) smallest digest of each sample's pictures, or that of its id where it has none.
        ids: (samples,) digests of the ids.
        links: (links, 2) pairs of digests that belong together: the pictures of samples with several.
    """
    again = repeated(ids) & (ids != units)
    pairs = np.concatenate([links.reshape(-1, 2), np.stack([units[again], ids[again]], axis=1)])
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent[above]
            node = above
        return node

    for one, other in pairs.tolist():
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    if not parent:
        return units
    nodes = np.array(sorted(parent), np.uint64)
    roots = np.array([root(node) for node in nodes.tolist()], np.uint64)
    places = np.searchsorted(nodes, units).clip(max=len(nodes) - 1)
    return np.where(nodes[places] == units, roots[places], units)


def held_out_samples(
    groups: NDArray[np.uint64], kept: NDArray[np.bool_], wanted: float | int | None
) -> NDArray[np.bool_]:
    """Which samples (samples,) are held out: a share of the groups, or groups until a number of samples is reached.

    A few more than the number may come, with the last group. Raises BuildError when nothing would be left to train on.
    """
    if wanted is None:
        return np.zeros(len(groups), np.bool_)
    if wanted < 1:
        found = in_share(groups, wanted)
    else:
        order = split_hash(groups)
        of_kept = np.sort(order[kept])
        if wanted >= len(of_kept):
            raise BuildError(
                f"{wanted:,} samples are to be held out, but there are only {len(of_kept):,}; hold out fewer"
            )
        found = order <= of_kept[int(wanted) - 1]
    if found[kept].all():
        most = int(np.unique(groups[kept], return_counts=True)[1].max())
        raise BuildError(
            f"holding out {wanted:,} would leave nothing to train on: {most:,} of {int(kept.sum()):,} samples hang "
            "together by pictures or ids that they share, and go to one side; build held-out data from other files"
        )
    return found
