"""Questions -> units (batches), planned over all questions and independent of ranks.

One rank or eight, killed or not, therefore compute the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence

BUCKET = 16
"""Tokens within which lengths count as equal: the order of the files is then kept, so that images
are read one after another."""


def plan_units(
    lengths: Sequence[int],
    images: Sequence[str],
    *,
    rows: int,
    tokens: int,
    rows_each: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the units of positions of questions, longest first, questions of one image together.

    Args:
        lengths: tokens that each question may come to, answer included.
        images: what each question shows; equal names belong together.
        rows: rows of a batch at most.
        tokens: rows x longest at most; a question that is longer alone makes its own unit.
        rows_each: rows that each question takes, one where None (likelihood takes one an option).

    Example: lengths [20, 90, 25], images [a, b, a], rows 2 -> [[1], [0, 2]]
    """
    heights = rows_each or [1] * len(lengths)
    together: dict[str, list[int]] = {}
    for place, image in enumerate(images):
        together.setdefault(image, []).append(place)

    def order(group: list[int]) -> tuple[int, int]:
        return -(max(lengths[place] for place in group) // BUCKET), group[0]

    def fits(unit: list[int]) -> bool:
        height = sum(heights[place] for place in unit)
        return height <= rows and height * max(lengths[place] for place in unit) <= tokens

    units: list[list[int]] = [[]]
    for group in sorted(together.values(), key=order):
        if fits(units[-1] + group):
            units[-1] += group
            continue
        units.append([])
        for place in group:
            if units[-1] and not fits([*units[-1], place]):
                units.append([])
            units[-1].append(place)
    return [unit for unit in units if unit]


def units_of_rank(units: int, rank: int, ranks: int) -> range:
    """Return the numbers of the units that a rank asks: those with number % ranks == rank.

    Raises ValueError unless 0 <= rank < ranks.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} of {ranks}: expected a rank from 0 to {ranks - 1}")
    return range(rank, units, ranks)
