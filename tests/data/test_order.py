"""Promises of the epoch's order: exact counts for every mixture, a node's own shards, no rank in
it.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming.base.shuffle import get_shuffle

from pargo_ds.data.packing.order import SHUFFLE_BLOCK, epoch_order, repeats_per_epoch


def counted(orders: list[np.ndarray], items: int) -> np.ndarray:
    """(items,) how often each item comes."""
    return np.bincount(np.concatenate(orders), minlength=items)


shards = (
    st.lists(st.integers(0, 9), min_size=1, max_size=6)
    .map(np.array)
    .filter(lambda counts: counts.sum() > 0)
)
repeats = st.sampled_from(
    [Fraction(1), Fraction(1, 2), Fraction(5, 2), Fraction(7, 10), Fraction(3, 100), Fraction(3)]
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(shards, repeats), min_size=1, max_size=3),
    st.integers(0, 5),
    st.integers(0, 2**31),
)
def test_items_come_as_often_as_the_mixture_says(streams: list, epoch: int, seed: int) -> None:
    """In each epoch floor(r) or ceil(r) times; over the epochs so far all equally often, to one."""
    per_shard, times = [counts for counts, _ in streams], [repeat for _, repeat in streams]
    sizes = [int(counts.sum()) for counts in per_shard]
    if (
        sum(
            int((epoch + 1) * r * n) - int(epoch * r * n) for r, n in zip(times, sizes, strict=True)
        )
        == 0
    ):
        return
    every = np.zeros((epoch + 1, sum(sizes)), int)
    for past in range(epoch + 1):
        try:
            every[past] = counted(epoch_order(per_shard, times, seed=seed, epoch=past), sum(sizes))
        except ValueError:  # an epoch without items, of a tiny stream and a tiny repeat
            assert every[past].sum() == 0
    offset = 0
    for repeat, size in zip(times, sizes, strict=True):
        own = every[:, offset : offset + size]
        offset += size
        assert own.sum() == int((epoch + 1) * repeat * size)
        assert set(np.unique(own)) <= {int(repeat), -int(-repeat // 1)}
        assert np.ptp(own.sum(axis=0)) <= 1


def test_half_an_epoch_then_the_other_half() -> None:
    per_shard = [np.full(10, 7)]
    first, second = (
        counted(epoch_order(per_shard, [Fraction(1, 2)], seed=3, epoch=e), 70) for e in (0, 1)
    )
    assert first.sum() == second.sum() == 35
    assert (first + second == 1).all()


def test_one_stream_has_streamings_own_order() -> None:
    """The oracle is py1e itself; canonical nodes are its parts."""
    per_shard = np.arange(1, 40)
    for nodes in (1, 3):
        found = epoch_order([per_shard], [Fraction(1)], seed=11, epoch=2, canonical_nodes=nodes)
        expected = get_shuffle("py1e", per_shard, nodes, 11, 2, SHUFFLE_BLOCK)
        assert np.array_equal(np.concatenate(found), expected)
        assert [len(part) for part in found] == [780 // nodes] * nodes
        assert found[0].dtype == np.uint32


def test_a_node_keeps_its_shards_in_every_epoch() -> None:
    per_shard = [np.full(64, 25)]
    nodes = [
        epoch_order(per_shard, [Fraction(1)], seed=1, epoch=epoch, canonical_nodes=4)
        for epoch in range(3)
    ]
    for node in range(4):
        own = [set((epoch[node] // 25).tolist()) for epoch in nodes]
        assert own[0] == own[1] == own[2]
        assert len(own[0]) == 16
        assert not np.array_equal(nodes[0][node], nodes[1][node])


@pytest.mark.parametrize("nodes", [1, 4])
def test_every_stretch_of_a_node_holds_the_streams_by_their_shares(nodes: int) -> None:
    """To one item of each stream, however few shards it has, and each stream in py1e's order."""
    per_shard = [np.full(3, 400), np.full(60, 40), np.full(1, 100)]
    orders = epoch_order(per_shard, [Fraction(1)] * 3, seed=5, epoch=1, canonical_nodes=nodes)
    ends = np.array([1200, 3600, 3700])
    for order in orders:
        streams = np.searchsorted(ends, order, side="right")[:, None] == np.arange(3)
        so_far, done = streams.cumsum(axis=0), np.arange(1, len(order) + 1)[:, None]
        assert (np.abs(so_far - done * so_far[-1] / len(order)) <= 1.5).all()
        assert np.array_equal(so_far[-1] * nodes, [1200, 2400, 100])
    assert sorted(np.concatenate(orders)) == list(range(3700))


def test_a_stream_of_fewer_items_than_nodes_is_shared_out() -> None:
    orders = epoch_order(
        [np.full(8, 10), np.array([3])], [Fraction(1)] * 2, seed=0, epoch=0, canonical_nodes=8
    )
    assert sorted(np.concatenate(orders)) == list(range(83))
    assert max(np.count_nonzero(order >= 80) for order in orders) == 1


def test_streams_of_the_same_shards_come_in_different_orders() -> None:
    """Two kinds of captions of the same images, say."""
    (order,) = epoch_order([np.full(20, 10)] * 2, [Fraction(1)] * 2, seed=0, epoch=0)
    assert not np.array_equal(order[order < 200], order[order >= 200] - 200)


def test_shares_by_weight_are_whole_items() -> None:
    found = repeats_per_epoch([60, 40], [None, None], [1, 3], None)
    assert found == [Fraction(25, 60), Fraction(75, 40)]
    thirds = repeats_per_epoch([10, 10, 10], [None] * 3, [0.1, 0.1, 0.1], 100)
    assert [share * 10 for share in thirds] == [34, 33, 33]
    per_shard = [np.array([6]), np.array([4])]
    orders = epoch_order(
        per_shard, repeats_per_epoch([6, 4], [None] * 2, [1, 1], 9), seed=0, epoch=0
    )
    assert Counter((np.concatenate(orders) >= 6).tolist()) == {False: 5, True: 4}


def test_repeats_are_taken_as_they_are_written() -> None:
    assert repeats_per_epoch([10, 10, 10], [None, 0.1, 2.5], [None] * 3, None) == [
        1,
        Fraction(1, 10),
        Fraction(5, 2),
    ]


@pytest.mark.parametrize(
    "call, said",
    [
        (
            lambda: repeats_per_epoch([3, 0], [None] * 2, [None] * 2, None),
            "stream 1 of data.train has no conversations",
        ),
        (
            lambda: epoch_order([np.array([3])], [Fraction(1)], seed=0, epoch=4, canonical_nodes=4),
            "epoch 4 has 3 conversations for data.canonical_nodes = 4; use fewer nodes",
        ),
        (
            lambda: epoch_order([np.array([2**32])], [Fraction(1)], seed=0, epoch=0),
            "holds more than 4,294,967,295 conversations",
        ),
    ],
)
def test_what_cannot_be_ordered_is_named(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
