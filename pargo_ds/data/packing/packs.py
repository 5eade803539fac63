"""Which items share a pack: items -> packs under a token and an image budget.

Pure functions of lengths and budget. The plan (plan.py) packs one window of one node at a time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one pack may hold, and how many packs make an optimizer step."""

    tokens_per_pack: int
    images_per_pack: int
    packs_per_step: int
    padded_rows: bool = False
    """The LLM gets each item of a pack as a row of its own, padded to the longest: padding counts
    as tokens.
    """


def best_fit_decreasing(
    tokens: NDArray[np.int64], images: NDArray[np.int64], budget: Budget
) -> list[list[int]]:
    """Pack all items: longest first, each into the fullest pack that has room for it.

    Tokens [6, 5, 4, 3], no images, budget 10 -> [[0, 2], [1, 3]]. O(items log packs) as long as
    packs run out of tokens before images.
    """
    packs: list[list[int]] = []
    free_images: list[int] = []
    # (free tokens, pack), sorted. Packs with no image to spare stand apart: only items without
    # images look there, so that a mix limited by images does not walk over them again and again.
    open_packs: list[tuple[int, int]] = []
    text_only_packs: list[tuple[int, int]] = []
    token_list, image_list = tokens.tolist(), images.tolist()
    for item in np.argsort(-tokens, kind="stable").tolist():
        need, shown = token_list[item], image_list[item]
        place, at = open_packs, bisect_left(open_packs, (need, -1))
        while shown and at < len(place) and free_images[place[at][1]] < shown:
            at += 1
        if not shown:
            other = bisect_left(text_only_packs, (need, -1))
            if other < len(text_only_packs) and (
                at == len(place) or text_only_packs[other][0] < place[at][0]
            ):
                place, at = text_only_packs, other
        if at < len(place):
            free, pack = place.pop(at)
        else:
            free, pack = budget.tokens_per_pack, len(packs)
            packs.append([])
            free_images.append(budget.images_per_pack)
        packs[pack].append(item)
        free_images[pack] -= shown
        place = open_packs if free_images[pack] else text_only_packs
        insort(place, (free - need, pack))
    return packs


def like_lengths_together(
    tokens: NDArray[np.int64], images: NDArray[np.int64], budget: Budget
) -> list[list[int]]:
    """Pack all items so that items times the longest of them stay within the token budget: by
    falling length, a new pack whenever the next item does not fit.

    Tokens [6, 3, 5, 2], no images, budget 12 -> [[0, 2], [1, 3]].
    """
    packs: list[list[int]] = []
    longest, free_images = 0, 0
    for item in np.argsort(-tokens, kind="stable").tolist():
        shown = int(images[item])
        full = not packs or (len(packs[-1]) + 1) * longest > budget.tokens_per_pack
        if full or shown > free_images:
            packs.append([])
            longest, free_images = int(tokens[item]), budget.images_per_pack
        packs[-1].append(item)
        free_images -= shown
    return packs
