"""Which packs make a step: a pure function of lengths, budgets, seed and epoch.

The epoch's order of each canonical node (order.py) is cut into the same number of windows of about
the same load. A window is planned by itself: each node packs its own items (packs.py), surplus
packs move to nodes with fewer, and the packs are put into rows of one pack per node, of like image
counts, because ranks wait for the one with the most.
`packs_per_step` packs make one optimizer step, of rows of all kinds (dealing.py): only packs that
are computed at the same time need to be alike. So neither the cost of finding a position nor the
memory grows with the data, and a node reads its own share of the shards.

Nothing here knows ranks or workers: they only say who reads which packs of the same stream
(`Step.packs_of`). Axes: items (conversations), nodes (canonical ones), rows (of one pack per node),
windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pargo_ds.data.packing.dealing import Numbers, dealt, normalized
from pargo_ds.data.packing.packs import Budget, best_fit_decreasing, like_lengths_together

PLAN_VERSION = 3
"""Raised whenever the same inputs would give another stream: a resume across versions is refused.
"""

WINDOW_PACKS = 512
"""Load of one window in full packs per node: large, because each ends in a pack or two that stay
half empty.
"""

WINDOW_STEPS = 8
"""And at least the load of so many steps, so that few of them are shared by two windows."""

CHUNK_ITEMS = 1 << 19
"""Items whose lengths are looked up at a time when windows are cut: bounds the temporary arrays."""

Items = NDArray[np.uint32]
"""(items,) global item numbers."""
Lookup = Callable[[Items], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Item numbers -> their tokens (visual ones included) and their images."""


class Position(NamedTuple):
    """A place between two steps of an epoch, from which `Plan.steps` goes on without looking at
    earlier windows.
    """

    window: int = 0
    """Window of the first row that no step has taken; the number of windows at the end of the
    epoch.
    """
    rows_before: int = 0
    """Rows of the epoch before that window."""
    step: int = 0
    """Steps of the epoch already taken."""


class Row(NamedTuple):
    """One pack of each canonical node; packs without items complete what does not divide."""

    packs: list[Items]
    images: list[int]


@dataclass(frozen=True)
class Step:
    """The packs of one optimizer step: rows, each with one pack per canonical node."""

    rows: list[Row]

    def packs_of(self, rank: int, world_size: int, nodes: int = 1) -> list[Items]:
        """Return the packs of one rank, micro-batch after micro-batch; all ranks together get each
        pack once.

        A physical node (ranks node * R ... node * R + R - 1, R = world_size / nodes) gets the packs
        of its canonical nodes, or its share of one. They are dealt to its ranks by falling image
        count, so what ranks compute at the same time is as alike as it can be.
        """
        images = np.array([row.images for row in self.rows]).T  # (canonical nodes, rows)
        ranks_per_node = world_size // nodes
        node, local_rank = divmod(rank, ranks_per_node)
        numbers = np.arange(images.size).reshape(images.shape)
        if nodes % len(images) == 0:
            parts = nodes // len(images)
            of_node = _by_images(numbers[node // parts], images.reshape(-1))[node % parts :: parts]
        else:
            share = images.size // nodes
            of_node = numbers.reshape(-1)[node * share : (node + 1) * share]
        mine = _by_images(of_node, images.reshape(-1))[local_rank::ranks_per_node]
        packs = []
        for number in mine.tolist():
            canonical_node, row = divmod(number, len(self.rows))
            packs.append(self.rows[row].packs[canonical_node])
        return packs


def _by_images(numbers: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
    return numbers[np.argsort(-images[numbers], kind="stable")]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of one epoch; the same on every rank. Made by `make_plan`; windows are packed when
    they are needed.
    """

    orders: Sequence[Items]
    """The epoch's order of items of each canonical node."""
    cuts: NDArray[np.int64]
    """(nodes, windows + 1) places in `orders` where windows begin."""
    lookup: Lookup
    budget: Budget
    seed: int
    epoch: int
    stream_starts: NDArray[np.int64]
    """(streams,) number of each stream's first item."""

    @property
    def num_windows(self) -> int:
        """Windows of the epoch."""
        return self.cuts.shape[1] - 1

    @property
    def rows_per_step(self) -> int:
        """Rows (one pack per canonical node) of an optimizer step."""
        return self.budget.packs_per_step // len(self.orders)

    def steps(self, position: Position | None = None) -> Iterator[tuple[Step, Position]]:
        """Yield the steps from `position` (default: the start) to the end of the epoch, each with
        the position after it.

        The last step is completed with empty packs. Each position has `window == num_windows`
        exactly at the end.
        """
        window, first, step = position or Position()
        if window >= self.num_windows:
            return
        rows = self.window_rows(window, first)
        end = first + len(rows)  # rows of the epoch up to the end of the newest window
        rows = rows[step * self.rows_per_step - first :]
        while True:
            while len(rows) < self.rows_per_step and window + 1 < self.num_windows:
                window, first = window + 1, end
                fresh = self.window_rows(window, first)
                rows, end = rows + fresh, first + len(fresh)
            if not rows:
                return
            taken, rows = rows[: self.rows_per_step], rows[self.rows_per_step :]
            taken += [self._empty_row()] * (self.rows_per_step - len(taken))
            step += 1
            after = Position(window, first, step)
            if not rows:
                after = Position(window + 1, end, step)
            yield Step(taken), after

    def window_rows(self, window: int, rows_before: int) -> list[Row]:
        """Return the rows of one window in the order of training; `rows_before` says where in a
        step it begins.
        """
        packs, images = self._packs_of_window(window)
        num_rows = -(-sum(map(len, packs)) // len(packs))
        _level(packs, images, num_rows)
        rng = np.random.default_rng([self.seed, self.epoch, window])
        ranked = [_ranked(np.array(counts, np.int64), rng) for counts in images]
        rows = []
        for row in range(num_rows):
            chosen = [(node, order[row]) for node, order in enumerate(ranked)]
            own_packs = [packs[node][pack] for node, pack in chosen]
            own_images = [images[node][pack] for node, pack in chosen]
            rows.append(Row(own_packs, own_images))
        return [rows[row] for row in self._arranged(rows, rows_before, rng).tolist()]

    def _arranged(self, rows: list[Row], rows_before: int, rng: np.random.Generator) -> Numbers:
        """The order of a window's ranked rows: first those that complete a started step, then whole
        steps in random order, then the start of the next step.
        """
        if self.rows_per_step == 1 or not rows:
            return rng.permutation(len(rows))
        step_of = dealt(
            normalized(self._composition(rows)),
            np.array([max(row.images) for row in rows]),
            self.rows_per_step,
            rows_before,
        )
        begun = int(rows_before % self.rows_per_step > 0)
        whole = (rows_before % self.rows_per_step + len(rows)) // self.rows_per_step - begun
        turns = np.arange(step_of.max() + 1)
        if whole > 0:
            turns[begun : begun + whole] = begun + rng.permutation(whole)
        return np.argsort(turns[step_of], kind="stable")

    def _composition(self, rows: list[Row]) -> Numbers:
        """(rows, packs, features) what steps shall hold evenly: images, samples, those without
        images, and with several streams each one's samples and tokens.
        """
        packs = list(chain.from_iterable(row.packs for row in rows))
        items = np.concatenate(packs)
        tokens, images = self.lookup(items)
        pack_of = np.repeat(np.arange(len(packs)), list(map(len, packs)))
        stream_of = np.searchsorted(self.stream_starts, items, side="right") - 1
        samples, filled = np.zeros((2, len(packs), len(self.stream_starts)), np.int64)
        np.add.at(samples, (pack_of, stream_of), 1)
        np.add.at(filled, (pack_of, stream_of), tokens)
        shown = np.array([row.images for row in rows]).reshape(-1)
        text_only = np.bincount(pack_of[images == 0], minlength=len(packs))
        features = [shown, samples.sum(axis=1), text_only]
        if len(self.stream_starts) > 1:
            features += [*samples.T, *filled.T]
        return np.stack(features, axis=1).reshape(len(rows), len(self.orders), -1)

    def _packs_of_window(self, window: int) -> tuple[list[list[Items]], list[list[int]]]:
        """For each node, the packs that it makes of its own items of a window, and their image
        counts.
        """
        pack_up = like_lengths_together if self.budget.padded_rows else best_fit_decreasing
        packs, images = [], []
        for order, cuts in zip(self.orders, self.cuts, strict=True):
            items = order[cuts[window] : cuts[window + 1]]
            item_tokens, item_images = self.lookup(items)
            chosen = pack_up(item_tokens, item_images, self.budget)
            packs.append([items[pack] for pack in chosen])
            images.append([int(item_images[pack].sum()) for pack in chosen])
        return packs, images

    def _empty_row(self) -> Row:
        return Row([self.orders[0][:0]] * len(self.orders), [0] * len(self.orders))


def make_plan(
    orders: Sequence[Items],
    lookup: Lookup,
    budget: Budget,
    *,
    seed: int,
    epoch: int,
    stream_starts: Sequence[int] = (0,),
) -> Plan:
    """Plan one epoch: each entry of `orders` (one array of items per canonical node) in exactly one
    pack.

    `seed` and `epoch` only decide the order of like packs and of the steps within a window.
    `stream_starts` (the number of each stream's first item) lets steps hold the streams evenly.

    Raises ValueError when an item exceeds the budget by itself, or packs_per_step does not divide
    over the nodes.
    """
    if budget.packs_per_step % len(orders):
        raise ValueError(
            f"packs_per_step = {budget.packs_per_step} does not divide over {len(orders)} canonical nodes; "
            "use a multiple"
        )
    cuts = _cut(orders, lookup, budget)
    return Plan(
        orders=orders,
        cuts=cuts,
        lookup=lookup,
        budget=budget,
        seed=seed,
        epoch=epoch,
        stream_starts=np.array(stream_starts, np.int64),
    )


def count_steps(plan: Plan) -> int:
    """Return the number of steps of an epoch.

    Packs all of it (about 0.2 million items a second; a progress bar on a terminal).
    """
    windows = tqdm(
        range(plan.num_windows), desc=f"planning epoch {plan.epoch}", unit="window", disable=None
    )
    rows = 0
    for window in windows:
        packs, _ = plan._packs_of_window(window)
        rows += -(-sum(map(len, packs)) // len(packs))
    return -(-rows // plan.rows_per_step)


def _loads(order: Items, lookup: Lookup, budget: Budget) -> Iterator[NDArray[np.int64]]:
    """The load of each item, chunk by chunk: its share of the scarcer budget, in whole numbers, so
    that every machine cuts at the same places.
    """
    for begin in range(0, len(order), CHUNK_ITEMS):
        items = order[begin : begin + CHUNK_ITEMS]
        tokens, images = lookup(items)
        too_large = np.flatnonzero(
            (tokens > budget.tokens_per_pack) | (images > budget.images_per_pack)
        )
        if len(too_large):
            first = too_large[0]
            raise ValueError(
                f"item {items[first]} has {tokens[first]} tokens and {images[first]} images, but a pack "
                f"holds {budget.tokens_per_pack} and {budget.images_per_pack}; leave it out before planning"
            )
        yield np.maximum(tokens * budget.images_per_pack, images * budget.tokens_per_pack)


def _cut(orders: Sequence[Items], lookup: Lookup, budget: Budget) -> NDArray[np.int64]:
    """(nodes, windows + 1) places that cut each node's order into runs of equal load."""
    totals = []
    for order in orders:
        totals.append(sum(int(load.sum()) for load in _loads(order, lookup, budget)))
    packs = max(WINDOW_PACKS * len(orders), WINDOW_STEPS * budget.packs_per_step)
    windows = 0
    if sum(totals):
        full = packs * budget.tokens_per_pack * budget.images_per_pack
        windows = max(1, sum(totals) // full)
    cuts = np.zeros((len(orders), windows + 1), np.int64)
    for node, (order, total) in enumerate(zip(orders, totals, strict=True)):
        marks = np.array([total * window // max(1, windows) for window in range(windows + 1)])
        seen, place = 0, 0
        for load in _loads(order, lookup, budget):
            upto = load.cumsum() + seen
            here = (marks > seen) & (marks <= upto[-1])
            cuts[node, here] = place + np.searchsorted(upto, marks[here], side="right")
            seen, place = int(upto[-1]), place + len(load)
    return cuts


def _level(packs: list[list[Items]], images: list[list[int]], rows: int) -> None:
    """Move packs from nodes with more than `rows` to those with fewer, and give the rest empty ones
    (in place).
    """
    surplus = []
    for own, counts in zip(packs, images, strict=True):
        while len(own) > rows:
            surplus.append((own.pop(), counts.pop()))
    if not rows:
        return
    none = next(chain.from_iterable(packs))[:0]
    for own, counts in zip(packs, images, strict=True):
        while len(own) < rows:
            pack, shown = none, 0
            if surplus:
                pack, shown = surplus.pop()
            own.append(pack)
            counts.append(shown)


def _ranked(images: NDArray[np.int64], rng: np.random.Generator) -> list[int]:
    """Packs by rising image count; those of equal count in random order, not in the order of their
    fill.
    """
    shuffled = rng.permutation(len(images))
    return shuffled[np.argsort(images[shuffled], kind="stable")].tolist()
