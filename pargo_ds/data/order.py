"""The order of an epoch: which items of a mixture come, how often, and one after another on each canonical node.

Pure arithmetic over counts. An *item* is one conversation of one sample; a *stream* is one folder of shards in the
mixture. Items have global numbers: the items of all streams before, plus the item's index within its stream.

Streams' whole copies and the parts that complete a broken repeat are cut at the shards; streaming's own `py1e` orders
those units and mixes the items of neighbouring ones, node by node. Neither ranks nor workers are known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

SHUFFLE_BLOCK = 1 << 18
"""Items among which the items of a shard are spread (streaming's own lower limit)."""


def repeats_per_epoch(
    items: Sequence[int], repeats: Sequence[float | None], weights: Sequence[float | None], epoch_items: int | None
) -> list[Fraction]:
    """How often each stream comes in an epoch; a fraction of a stream is a fraction of its items.

    `items` (streams,) counts the items of each stream. With weights, `epoch_items` (default: all items together) are
    shared out in whole items by the largest remainder: items [60, 40], weights [1, 3] -> 25 and 75 items, so repeats
    [25/60, 75/40]. Without, a stream's own repeat counts (default 1).

    Raises ValueError when a stream has no items.
    """
    if 0 in items:
        raise ValueError(f"stream {items.index(0)} of data.train has no conversations; remove it from the mixture")
    if all(weight is None for weight in weights):
        return [_exact(1 if repeat is None else repeat) for repeat in repeats]
    total = sum(items) if epoch_items is None else epoch_items
    exact = [_exact(weight or 0) for weight in weights]
    quotas = [total * weight / sum(exact) for weight in exact]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(items)), key=lambda stream: (counts[stream] - quotas[stream], stream))
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
    """The items of one epoch in order, one array of item numbers for each canonical node.

    `items_per_shard` holds (shards,) counts for each stream. Within an epoch each item of a stream with repeat r comes
    floor(r) or ceil(r) times; over several epochs all its items come equally often, to one: repeat 0.5 takes one half
    in epoch 0 and the other half in epoch 1.

    Raises ValueError when there are fewer items than canonical nodes, or more than 32 bits can number.
    """
    if sum(int(counts.sum()) for counts in items_per_shard) > np.iinfo(np.uint32).max:
        raise ValueError("data.train holds more than 4,294,967,295 conversations; split the run")
    sizes: list[NDArray[np.int64]] = []
    items: list[NDArray[np.uint32]] = []
    offset = 0
    for stream, (counts, repeat) in enumerate(zip(items_per_shard, repeats, strict=True)):
        held = int(counts.sum())
        copies, part = _of_epoch(held, repeat, seed, stream, epoch)
        for _ in range(copies):
            sizes.append(counts)
            items.append(np.arange(offset, offset + held, dtype=np.uint32))
        if len(part):
            ends = np.searchsorted(part, np.cumsum(counts))
            sizes.append(np.diff(ends, prepend=0))
            items.append(part + np.uint32(offset))
        offset += held
    return _shuffled(np.concatenate([np.zeros(0, np.int64), *sizes]), items, seed, epoch, canonical_nodes)


def _exact(number: float) -> Fraction:
    return Fraction(str(number))  # 0.1 as it is written, not its nearest binary fraction


def _of_epoch(held: int, repeat: Fraction, seed: int, stream: int, epoch: int) -> tuple[int, NDArray[np.uint32]]:
    """Whole copies of a stream in this epoch, and the sorted items that come once more."""
    begin, end = int(epoch * repeat * held), int((epoch + 1) * repeat * held)
    copies, rest = divmod(end - begin, held)
    if not rest:
        return copies, np.zeros(0, np.uint32)
    # One permutation for all epochs, read round and round: so no epoch takes an item twice for its fraction.
    permutation = np.arange(held, dtype=np.uint32)
    np.random.default_rng([seed, stream]).shuffle(permutation)
    first = begin % held
    part = np.concatenate([permutation[first : first + rest], permutation[: max(0, first + rest - held)]])
    return copies, np.sort(part)


def _shuffled(
    sizes: NDArray[np.int64], items: list[NDArray[np.uint32]], seed: int, epoch: int, canonical_nodes: int
) -> list[NDArray[np.uint32]]:
    """py1e over units of `sizes`, which hold `items` one after another; cut where py1e cuts the canonical nodes."""
    total = int(sizes.sum())
    if total < canonical_nodes:
        raise ValueError(
            f"epoch {epoch} has {total} conversations for data.canonical_nodes = {canonical_nodes}; use fewer nodes"
        )
    from streaming.base.shuffle import get_shuffle

    units = sizes[sizes > 0]
    block = max(SHUFFLE_BLOCK, 2 * int(units.max()))  # a larger unit would not be mixed with its neighbours at all
    places = get_shuffle("py1e", units, canonical_nodes, seed, epoch, block).astype(np.uint32)
    if len(items) > 1 or len(items[0]) <= int(items[0][-1]):  # else the units hold item 0, 1, 2, ... as they are
        places = np.concatenate(items)[places]
    ends = [total * node // canonical_nodes for node in range(canonical_nodes + 1)]
    return [places[begin:end] for begin, end in zip(ends, ends[1:], strict=False)]
