"""Which items share a pack, and which packs make a step: a pure function of lengths, budgets, seed and epoch.

The epoch's order of each canonical node (order.py) is cut into the same number of windows of about the same load. A
window is planned by itself: each node packs its own items (best fit decreasing under a token and a picture budget),
surplus packs move to nodes with fewer, and the packs are put into rows of one pack per node. `packs_per_step` packs
make one optimizer step. So neither the cost of finding a position nor the memory grows with the data, and a node reads
its own share of the shards. Packs of one step have like picture counts, because ranks wait for the one with the most
pictures (measured on a synthetic mix over 8 ranks: 1.04 max over mean, and 1.6 for first-fit).

Nothing here knows ranks or workers: they only say who reads which packs of the same stream (`Step.packs_of`).
Axes: items (conversations), nodes (canonical ones), rows (of one pack per node), windows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

PLAN_VERSION = 2
"""Raised whenever the same inputs would give another stream: a resume across versions is refused."""

WINDOW_PACKS = 512
"""Load of one window in full packs per node: large, because each ends in a pack or two that stay half empty."""

WINDOW_STEPS = 8
"""And at least the load of so many steps, so that few of them are shared by two windows."""

CHUNK_ITEMS = 1 << 19
"""Items whose lengths are looked up at a time when windows are cut: bounds the temporary arrays."""

Items = NDArray[np.uint32]
"""(items,) global item numbers."""
Lookup = Callable[[Items], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Item numbers -> their tokens (visual ones included) and their pictures."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one pack may hold, and how many packs make an optimizer step."""

    tokens_per_pack: int
    pictures_per_pack: int
    packs_per_step: int
    padded_rows: bool = False
    """The LLM gets each item of a pack as a row of its own, padded to the longest: padding counts as tokens."""


class Position(NamedTuple):
    """A place between two steps of an epoch, from which `Plan.steps` goes on without looking at earlier windows."""

    window: int = 0
    """Window of the first row that no step has taken; the number of windows at the end of the epoch."""
    rows_before: int = 0
    """Rows of the epoch before that window."""
    step: int = 0
    """Steps of the epoch already taken."""


class Row(NamedTuple):
    """One pack of each canonical node; packs without items complete what does not divide."""

    packs: list[Items]
    pictures: list[int]


@dataclass(frozen=True)
class Step:
    """The packs of one optimizer step: rows, each with one pack per canonical node."""

    rows: list[Row]

    def packs_of(self, rank: int, world_size: int, nodes: int = 1) -> list[Items]:
        """Packs of one rank, micro-batch after micro-batch; all ranks together get each pack once.

        A physical node (ranks node * R ... node * R + R - 1, R = world_size / nodes) gets the packs of its canonical
        nodes, or its share of one. They are dealt to its ranks by falling picture count, so what ranks compute at the
        same time is as alike as it can be.
        """
        pictures = np.array([row.pictures for row in self.rows]).T  # (canonical nodes, rows)
        ranks_per_node = world_size // nodes
        node, local_rank = divmod(rank, ranks_per_node)
        numbers = np.arange(pictures.size).reshape(pictures.shape)
        if nodes % len(pictures) == 0:
            parts = nodes // len(pictures)
            of_node = _by_pictures(numbers[node // parts], pictures.reshape(-1))[node % parts :: parts]
        else:
            share = pictures.size // nodes
            of_node = numbers.reshape(-1)[node * share : (node + 1) * share]
        mine = _by_pictures(of_node, pictures.reshape(-1))[local_rank::ranks_per_node]
        return [self.rows[number % len(self.rows)].packs[number // len(self.rows)] for number in mine.tolist()]


def _by_pictures(numbers: NDArray[np.int64], pictures: NDArray[np.int64]) -> NDArray[np.int64]:
    return numbers[np.argsort(-pictures[numbers], kind="stable")]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of one epoch; the same on every rank. Made by `make_plan`; windows are packed when they are needed."""

    orders: Sequence[Items]
    """The epoch's order of items of each canonical node."""
    cuts: NDArray[np.int64]
    """(nodes, windows + 1) places in `orders` where windows begin."""
    lookup: Lookup
    budget: Budget
    seed: int
    epoch: int

    @property
    def num_windows(self) -> int:
        return self.cuts.shape[1] - 1

    @property
    def rows_per_step(self) -> int:
        return self.budget.packs_per_step // len(self.orders)

    def steps(self, position: Position | None = None) -> Iterator[tuple[Step, Position]]:
        """The steps from `position` (default: the start) to the end of the epoch, each with the position after it.

        The last step is completed with empty packs. Each position has `window == num_windows` exactly at the end.
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
            yield Step(taken), Position(window, first, step) if rows else Position(window + 1, end, step)

    def window_rows(self, window: int, rows_before: int) -> list[Row]:
        """The rows of one window in the order of training; `rows_before` says where in a step it begins."""
        packs, pictures = self._packs_of_window(window)
        num_rows = -(-sum(map(len, packs)) // len(packs))
        _level(packs, pictures, num_rows)
        rng = np.random.default_rng([self.seed, self.epoch, window])
        ranked = [_ranked(np.array(counts, np.int64), rng) for counts in pictures]
        return [
            Row(
                [packs[node][order[row]] for node, order in enumerate(ranked)],
                [pictures[node][order[row]] for node, order in enumerate(ranked)],
            )
            for row in _arranged(num_rows, self.rows_per_step, rows_before, rng).tolist()
        ]

    def _packs_of_window(self, window: int) -> tuple[list[list[Items]], list[list[int]]]:
        """For each node, the packs that it makes of its own items of a window, and their picture counts."""
        packs, pictures = [], []
        for order, cuts in zip(self.orders, self.cuts, strict=True):
            items = order[cuts[window] : cuts[window + 1]]
            item_tokens, item_pictures = self.lookup(items)
            pack_up = like_lengths_together if self.budget.padded_rows else best_fit_decreasing
            chosen = pack_up(item_tokens, item_pictures, self.budget)
            packs.append([items[pack] for pack in chosen])
            pictures.append([int(item_pictures[pack].sum()) for pack in chosen])
        return packs, pictures

    def _empty_row(self) -> Row:
        return Row([self.orders[0][:0]] * len(self.orders), [0] * len(self.orders))


def make_plan(orders: Sequence[Items], lookup: Lookup, budget: Budget, *, seed: int, epoch: int) -> Plan:
    """Plan one epoch: each entry of `orders` (one array of items per canonical node) in exactly one pack.

    `seed` and `epoch` only decide the order of like packs and of the steps within a window.

    Raises ValueError when an item exceeds the budget by itself, or packs_per_step does not divide over the nodes.
    """
    if budget.packs_per_step % len(orders):
        raise ValueError(
            f"packs_per_step = {budget.packs_per_step} does not divide over {len(orders)} canonical nodes; "
            "use a multiple"
        )
    cuts = _cut(orders, lookup, budget)
    return Plan(orders=orders, cuts=cuts, lookup=lookup, budget=budget, seed=seed, epoch=epoch)


def count_steps(plan: Plan) -> int:
    """Steps of an epoch. Packs all of it (about 0.2 million items a second; a progress bar on a terminal)."""
    windows = tqdm(range(plan.num_windows), desc=f"planning epoch {plan.epoch}", unit="window", disable=None)
    rows = sum(-(-sum(map(len, plan._packs_of_window(window)[0])) // len(plan.orders)) for window in windows)
    return -(-rows // plan.rows_per_step)


def best_fit_decreasing(tokens: NDArray[np.int64], pictures: NDArray[np.int64], budget: Budget) -> list[list[int]]:
    """Pack all items: longest first, each into the fullest pack that has room for it.

    Tokens [6, 5, 4, 3], no pictures, budget 10 -> [[0, 2], [1, 3]]. O(items log packs) as long as packs run
    out of tokens before pictures.
    """
    packs: list[list[int]] = []
    free_pictures: list[int] = []
    # (free tokens, pack), sorted. Packs with no picture to spare stand apart: only items without pictures
    # look there, so that a mix limited by pictures does not walk over them again and again.
    open_packs: list[tuple[int, int]] = []
    text_only_packs: list[tuple[int, int]] = []
    token_list, picture_list = tokens.tolist(), pictures.tolist()
    for item in np.argsort(-tokens, kind="stable").tolist():
        need, shown = token_list[item], picture_list[item]
        place, at = open_packs, bisect_left(open_packs, (need, -1))
        while shown and at < len(place) and free_pictures[place[at][1]] < shown:
            at += 1
        if not shown:
            other = bisect_left(text_only_packs, (need, -1))
            if other < len(text_only_packs) and (at == len(place) or text_only_packs[other][0] < place[at][0]):
                place, at = text_only_packs, other
        if at < len(place):
            free, pack = place.pop(at)
        else:
            free, pack = budget.tokens_per_pack, len(packs)
            packs.append([])
            free_pictures.append(budget.pictures_per_pack)
        packs[pack].append(item)
        free_pictures[pack] -= shown
        insort(open_packs if free_pictures[pack] else text_only_packs, (free - need, pack))
    return packs


def like_lengths_together(tokens: NDArray[np.int64], pictures: NDArray[np.int64], budget: Budget) -> list[list[int]]:
    """Pack all items so that items times the longest of them stay within the token budget: by falling length, a new
    pack whenever the next item does not fit.

    Tokens [6, 3, 5, 2], no pictures, budget 12 -> [[0, 2], [1, 3]].
    """
    packs: list[list[int]] = []
    longest, free_pictures = 0, 0
    for item in np.argsort(-tokens, kind="stable").tolist():
        shown = int(pictures[item])
        full = not packs or (len(packs[-1]) + 1) * longest > budget.tokens_per_pack
        if full or shown > free_pictures:
            packs.append([])
            longest, free_pictures = int(tokens[item]), budget.pictures_per_pack
        packs[-1].append(item)
        free_pictures -= shown
    return packs


def _loads(order: Items, lookup: Lookup, budget: Budget) -> Iterator[NDArray[np.int64]]:
    """The load of each item, chunk by chunk: its share of the scarcer budget, in whole numbers, so that every machine
    cuts at the same places."""
    for begin in range(0, len(order), CHUNK_ITEMS):
        items = order[begin : begin + CHUNK_ITEMS]
        tokens, pictures = lookup(items)
        too_large = np.flatnonzero((tokens > budget.tokens_per_pack) | (pictures > budget.pictures_per_pack))
        if len(too_large):
            first = too_large[0]
            raise ValueError(
                f"item {items[first]} has {tokens[first]} tokens and {pictures[first]} pictures, but a pack "
                f"holds {budget.tokens_per_pack} and {budget.pictures_per_pack}; leave it out before planning"
            )
        yield np.maximum(tokens * budget.pictures_per_pack, pictures * budget.tokens_per_pack)


def _cut(orders: Sequence[Items], lookup: Lookup, budget: Budget) -> NDArray[np.int64]:
    """(nodes, windows + 1) places that cut each node's order into runs of equal load."""
    totals = [sum(int(load.sum()) for load in _loads(order, lookup, budget)) for order in orders]
    packs = max(WINDOW_PACKS * len(orders), WINDOW_STEPS * budget.packs_per_step)
    windows = max(1, sum(totals) // (packs * budget.tokens_per_pack * budget.pictures_per_pack)) if sum(totals) else 0
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


def _level(packs: list[list[Items]], pictures: list[list[int]], rows: int) -> None:
    """Move packs from nodes with more than `rows` to those with fewer, and give the rest empty ones (in place)."""
    surplus = [(own.pop(), counts.pop()) for own, counts in zip(packs, pictures, strict=True) for _ in own[rows:]]
    none = next(pack[:0] for own in packs for pack in own) if rows else None
    for own, counts in zip(packs, pictures, strict=True):
        while len(own) < rows:
            pack, shown = surplus.pop() if surplus else (none, 0)
            own.append(pack)
            counts.append(shown)


def _ranked(pictures: NDArray[np.int64], rng: np.random.Generator) -> list[int]:
    """Packs by rising picture count; those of equal count in random order, not in the order of their fill."""
    shuffled = rng.permutation(len(pictures))
    return shuffled[np.argsort(pictures[shuffled], kind="stable")].tolist()


def _arranged(rows: int, rows_per_step: int, rows_before: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The order of a window's ranked rows: first those that complete a started step, then whole steps of like rows in
    random order, then the start of the next step.

    Both ends come from the middle of the ranks, so a step that two windows share is of like counts too.
    """
    ranked = np.arange(rows)
    head = min(-rows_before % rows_per_step, rows)
    tail = (rows - head) % rows_per_step
    begin = (rows - head - tail) // 2
    first, last = ranked[begin : begin + head], ranked[begin + head : begin + head + tail]
    steps = np.concatenate([ranked[:begin], ranked[begin + head + tail :]]).reshape(-1, rows_per_step)
    return np.concatenate([first, rng.permutation(steps).reshape(-1), last])
