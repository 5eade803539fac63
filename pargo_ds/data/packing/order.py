"""The order of an epoch: which items of a mixture come, how often, and one after another on each
canonical node.

Pure arithmetic over counts. An *item* is one conversation of one sample; a *stream* is one folder
of shards in the mixture. Items have global numbers: the items of all streams before, plus the
item's index within its stream.

A stream's whole copies and the part that completes a broken repeat are cut at the shards;
streaming's own `py1e` orders those units and mixes the items of neighbouring ones, node by node.
Then each node merges its parts of the streams at equal distances: all nodes, and every stretch of
the epoch, hold the streams by their shares. (py1e over all streams together mixes whole shards,
so shares would stray by the root of the shards in a stretch.) Neither ranks nor workers are known
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

SHUFFLE_BLOCK = 1 << 18
"""Items among which the items of a shard are spread (streaming's own lower limit)."""

SEEDS_APART = 1_000_003
"""Between the seeds of two streams, more than epochs (which py1e adds): streams of the same shards
come in different orders.
"""


def repeats_per_epoch(
    items: Sequence[int],
    repeats: Sequence[float | None],
    weights: Sequence[float | None],
    epoch_items: int | None,
) -> list[Fraction]:
    """Return how often each stream comes in an epoch; a fraction of a stream is a fraction of its
    items.

    `items` (streams,) counts the items of each stream. With weights, `epoch_items` (default: all
    items together) are shared out in whole items by the largest remainder: items [60, 40], weights
    [1, 3] -> 25 and 75 items, so repeats [25/60, 75/40]. Without, a stream's own repeat counts
    (default 1).

    Raises ValueError when a stream has no items.
    """
    if 0 in items:
        raise ValueError(
            f"stream {items.index(0)} of data.train has no conversations; remove it from the mixture"
        )
    if all(weight is None for weight in weights):
        return [_exact_repeat(repeat) for repeat in repeats]
    total = epoch_items
    if total is None:
        total = sum(items)
    exact = [_exact(weight or 0) for weight in weights]
    quotas = [total * weight / sum(exact) for weight in exact]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(
        range(len(items)), key=lambda stream: (counts[stream] - quotas[stream], stream)
    )
    for stream in by_remainder[: total - sum(counts)]:
        counts[stream] += 1
    return [Fraction(count, held) for count, held in zip(counts, items, strict=True)]


def epoch_order(
    items_per_shard: Sequence[NDArray[np.int64]],
    repeats: Sequence[Fraction],
    *,
    seed: int,
    epoch: int,
    canonical_nodes: int = 1,
) -> list[NDArray[np.uint32]]:
    """Return the items of one epoch in order, one array of item numbers for each canonical node.

    `items_per_shard` holds (shards,) counts for each stream. Within an epoch each item of a stream
    with repeat r comes floor(r) or ceil(r) times; over several epochs all its items come equally
    often, to one: repeat 0.5 takes one half in epoch 0 and the other half in epoch 1.

    Raises ValueError when there are fewer items than canonical nodes, or more than 32 bits can
    number.
    """
    if sum(int(counts.sum()) for counts in items_per_shard) > np.iinfo(np.uint32).max:
        raise ValueError("data.train holds more than 4,294,967,295 conversations; split the run")
    streams: list[tuple[NDArray[np.int64], NDArray[np.uint32]]] = []
    offset = 0
    for stream, (counts, repeat) in enumerate(zip(items_per_shard, repeats, strict=True)):
        held = int(counts.sum())
        copies, part = _of_epoch(held, repeat, seed, stream, epoch)
        whole = np.arange(offset, offset + held, dtype=np.uint32)
        in_part = np.diff(np.searchsorted(part, np.cumsum(counts)), prepend=0)
        units = np.concatenate([*[counts] * copies, in_part])
        streams.append(
            (units[units > 0], np.concatenate([*[whole] * copies, part + np.uint32(offset)]))
        )
        offset += held
    total = sum(len(items) for _, items in streams)
    if total < canonical_nodes:
        raise ValueError(
            f"epoch {epoch} has {total} conversations for data.canonical_nodes = {canonical_nodes}; use fewer nodes"
        )
    shuffled = []
    for stream, (units, items) in enumerate(streams):
        if len(items):
            own_seed, share = seed + stream * SEEDS_APART, len(items) / total
            shuffled.append(_shuffled(units, items, own_seed, epoch, canonical_nodes, share))
    return [_merged(parts) for parts in zip(*shuffled, strict=True)]


def _exact_repeat(repeat: float | None) -> Fraction:
    """A stream that does not say how often it comes is taken once."""
    if repeat is None:
        return Fraction(1)
    return _exact(repeat)


def _exact(number: float) -> Fraction:
    return Fraction(str(number))  # 0.1 as it is written, not its nearest binary fraction


def _of_epoch(
    held: int, repeat: Fraction, seed: int, stream: int, epoch: int
) -> tuple[int, NDArray[np.uint32]]:
    """Whole copies of a stream in this epoch, and the sorted items that come once more."""
    begin, end = int(epoch * repeat * held), int((epoch + 1) * repeat * held)
    copies, rest = divmod(end - begin, held)
    if not rest:
        return copies, np.zeros(0, np.uint32)
    # One permutation for all epochs, read round and round: so no epoch takes an item twice for its
    # fraction.
    permutation = np.arange(held, dtype=np.uint32)
    np.random.default_rng([seed, stream]).shuffle(permutation)
    first = begin % held
    part = np.concatenate(
        [permutation[first : first + rest], permutation[: max(0, first + rest - held)]]
    )
    return copies, np.sort(part)


def _shuffled(
    units: NDArray[np.int64],
    items: NDArray[np.uint32],
    seed: int,
    epoch: int,
    canonical_nodes: int,
    share: float,
) -> list[NDArray[np.uint32]]:
    """py1e over one stream's `units`, which hold its `items` one after another; cut where py1e cuts
    the canonical nodes.

    `share` of the epoch's items are this stream's, so its block spans as much of the epoch as any.
    """
    from streaming.base.shuffle import get_shuffle

    block = max(
        int(SHUFFLE_BLOCK * share), 2 * int(units.max())
    )  # a larger unit would not be mixed with its neighbours at all
    nodes = canonical_nodes
    if len(items) < nodes:  # py1e gives each node some
        nodes = 1
    places = get_shuffle("py1e", units, nodes, seed, epoch, block).astype(np.uint32)
    ends = [len(items) * node // canonical_nodes for node in range(canonical_nodes + 1)]
    return [items[places[begin:end]] for begin, end in zip(ends, ends[1:], strict=False)]


def _merged(parts: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    """One node's items of all streams, each stream's in its order and at equal distances.

    Streams of 4 and 2 items: a b a a b a.
    """
    if len(parts) == 1:
        return parts[0]
    shares = []
    for part in parts:
        shares.append((np.arange(len(part)) + 0.5) / max(1, len(part)))
    return np.concatenate(parts)[np.argsort(np.concatenate(shares), kind="stable")]
