"""Choose the held-out samples: groups of samples that share an image or an id stay together, so
that no image is in both splits.
"""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from pargo_ds.data.building.duplicates import repeated
from pargo_ds.data.shards.schema import Sample
from pargo_ds.errors import BuildError


def image_digests(sample: Sample) -> list[int]:
    """Return an 8-byte hash of the file of each image, as it is stored."""
    return [xxhash.xxh64_intdigest(image) for image in sample.images]


def split_hash(groups: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return uniformly distributed 64-bit numbers (groups,) for the keys of groups.

    The keys themselves are not uniform, because each is the smallest of several hashes. The
    function has the mixing steps of splitmix64.
    """
    mixed = groups.astype(np.uint64)
    with np.errstate(over="ignore"):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def in_share(groups: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Return the mask (groups,) of the groups that belong to a share (0 to 1) of all groups. The
    decision for a group does not depend on the others, so it stays the same when data are added.
    """
    return split_hash(groups) < np.uint64(min(int(share * 2**64), 2**64 - 1))


def groups_of(
    units: NDArray[np.uint64], ids: NDArray[np.uint64], links: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Return the key of each sample's group (samples,): the smallest hash in the group.

    Args:
        units: (samples,) smallest hash of each sample's images, or the hash of its id if it has no
            image.
        ids: (samples,) hashes of the ids.
        links: (links, 2) pairs of hashes that belong together: images of the same sample.
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


def validation_samples(
    groups: NDArray[np.uint64], kept: NDArray[np.bool_], wanted: float | int | None
) -> NDArray[np.bool_]:
    """Return the mask (samples,) of the held-out samples: a share of the groups, or groups until a
    number of samples is reached.

    The last group may exceed the number by a few samples. Raises BuildError when no sample would be
    left to train on.
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
            "together by images or ids that they share, and go to one side; build held-out data from other files"
        )
    return found
