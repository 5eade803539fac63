"""Which items share a pack, and which packs make a step: a pure function of lengths, budgets, seed and epoch.

An *item* is one conversation of one sample. The epoch's order of items is cut into windows of about the same
load; each window is packed by itself (best fit decreasing under a token and a picture budget), so that the
cost and the memory of packing do not grow with the data. Every `packs_per_step` packs make one optimizer
step. Packs of one step have like picture counts, because ranks wait for the one with the most pictures
(measured on a synthetic mix over 8 ranks: 1.16 max over mean against 1.7-2.2 without the grouping, at 98.6 %
fill).

Nothing here knows ranks or workers: they only say who reads which packs of the same stream
(`Plan.rank_packs`). Axes: items (conversations), packs, steps.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PLAN_VERSION = 1
"""Raised whenever the same inputs would give another stream: a resume across versions is refused."""

WINDOW_PACKS = 512
"""Load of one window in full packs: large, because each window ends in a pack or two that stay half empty."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one pack may hold, and how many packs make an optimizer step."""

    tokens_per_pack: int
    pictures_per_pack: int
    packs_per_step: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The packs of one epoch in the order of training; the same on every rank.

    Pack p holds `items[starts[p]:starts[p + 1]]`. Packs from `num_packs` to `num_steps * packs_per_step` are
    empty: they complete the last step.
    """

    items: NDArray[np.int64]
    """(items,) indices into the length arrays that the plan was made from."""
    starts: NDArray[np.int64]
    """(packs + 1,)"""
    packs_per_step: int

    @property
    def num_packs(self) -> int:
        """Packs that hold something."""
        return len(self.starts) - 1

    @property
    def num_steps(self) -> int:
        return -(-self.num_packs // self.packs_per_step)

    def pack(self, index: int) -> NDArray[np.int64]:
        """Items of one pack; none for a pack that completes the last step."""
        if index >= self.num_packs:
            return self.items[:0]
        return self.items[self.starts[index] : self.starts[index + 1]]

    def rank_packs(self, rank: int, world_size: int, first_step: int = 0) -> NDArray[np.int64]:
        """Pack indices of one rank from `first_step` to the end of the epoch, micro-batch after micro-batch.

        Rank r takes packs r, r + world_size, ... of each step. The packs of a step are sorted by picture
        count, so what the ranks compute at the same time is as alike as it can be.

        Raises ValueError when packs_per_step does not divide over the ranks.
        """
        if self.packs_per_step % world_size:
            raise ValueError(
                f"packs_per_step = {self.packs_per_step} does not divide over {world_size} ranks; use a multiple"
            )
        return np.arange(first_step * self.packs_per_step + rank, self.num_steps * self.packs_per_step, world_size)


def make_plan(
    order: NDArray[np.int64],
    tokens: NDArray[np.integer],
    pictures: NDArray[np.integer],
    budget: Budget,
    *,
    seed: int,
    epoch: int,
) -> Plan:
    """Plan one epoch: each item of `order` in exactly one pack.

    `order` (items,) is the epoch's shuffled order of item indices; `tokens` and `pictures` (all items,) are
    looked up by those indices. `seed` and `epoch` only decide the order of like steps within a window.

    Raises ValueError when an item exceeds the budget by itself.
    """
    order = np.asarray(order, np.int64)
    item_tokens, item_pictures = np.asarray(tokens, np.int64)[order], np.asarray(pictures, np.int64)[order]
    too_large = np.flatnonzero((item_tokens > budget.tokens_per_pack) | (item_pictures > budget.pictures_per_pack))
    if len(too_large):
        first = too_large[0]
        raise ValueError(
            f"item {order[first]} has {item_tokens[first]} tokens and {item_pictures[first]} pictures, but a pack "
            f"holds {budget.tokens_per_pack} and {budget.pictures_per_pack}; leave it out before planning"
        )
    packs: list[list[int]] = []  # of positions in `order`
    counts: list[NDArray[np.int64]] = []  # pictures of each pack, window by window
    for begin, end in _windows(item_tokens, item_pictures, budget):
        window = best_fit_decreasing(item_tokens[begin:end], item_pictures[begin:end], budget)
        shown = np.array([item_pictures[begin:end][pack].sum() for pack in window], np.int64)
        rng = np.random.default_rng([seed, epoch, begin])
        arranged = _arrange(shown, budget.packs_per_step, len(packs), rng)
        packs += [[begin + item for item in window[pack]] for pack in arranged]
        counts.append(shown[arranged])
    packs = _sort_within_steps(packs, np.concatenate([np.zeros(0, np.int64), *counts]), budget.packs_per_step)
    sizes = np.array([len(pack) for pack in packs], np.int64)
    flat = np.fromiter((item for pack in packs for item in pack), np.int64, count=int(sizes.sum()))
    return Plan(
        items=order[flat],
        starts=np.concatenate([np.zeros(1, np.int64), sizes.cumsum()]),
        packs_per_step=budget.packs_per_step,
    )


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


def _windows(tokens: NDArray[np.int64], pictures: NDArray[np.int64], budget: Budget) -> list[tuple[int, int]]:
    """Cut positions 0 ... items into runs of equal load; the load of an item is its share of the scarcer
    budget.

    Whole numbers throughout, so that every machine cuts at the same places.
    """
    load = np.maximum(tokens * budget.pictures_per_pack, pictures * budget.tokens_per_pack).cumsum()
    if not len(load):
        return []
    window_load = max(WINDOW_PACKS, 8 * budget.packs_per_step) * budget.tokens_per_pack * budget.pictures_per_pack
    windows = max(1, int(load[-1]) // window_load)
    marks = [int(load[-1]) * part // windows for part in range(windows + 1)]
    cuts = np.searchsorted(load, marks, side="right")
    cuts[0], cuts[-1] = 0, len(load)
    return [(int(begin), int(end)) for begin, end in zip(cuts[:-1], cuts[1:], strict=True) if begin < end]


def _arrange(
    pictures: NDArray[np.int64], packs_per_step: int, packs_before: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Order the packs of a window: first those that complete a started step, then whole steps of like picture
    count in random order, then the start of the next step.

    Both ends come from the middle of the sorted packs, so a step that two windows share is of like counts
    too.
    """
    # A random order first, then a stable sort: packs of equal count are not left in the order of their fill.
    shuffled = rng.permutation(len(pictures))
    ranked = shuffled[np.argsort(pictures[shuffled], kind="stable")]
    head = min(-packs_before % packs_per_step, len(ranked))
    tail = (len(ranked) - head) % packs_per_step
    begin = (len(ranked) - head - tail) // 2
    first, last = ranked[begin : begin + head], ranked[begin + head : begin + head + tail]
    steps = np.concatenate([ranked[:begin], ranked[begin + head + tail :]]).reshape(-1, packs_per_step)
    return np.concatenate([first, rng.permutation(steps).reshape(-1), last])


def _sort_within_steps(packs: list[list[int]], pictures: NDArray[np.int64], packs_per_step: int) -> list[list[int]]:
    """Within each step, the packs with most pictures first (see `Plan.rank_packs`)."""
    step = np.arange(len(packs)) // packs_per_step
    return [packs[pack] for pack in np.lexsort((-pictures, step)).tolist()]
