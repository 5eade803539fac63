"""Tables and bar charts as plain data, and how a terminal shows them; inspection_page.py shows the same as HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

BAR_WIDTH = 30
"""Characters of the longest bar in a terminal."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Table:
    """`rows` of as many cells as `header` has; an empty header (all "") is not shown."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Bars:
    """(label, count) for each bar, and one line about them."""

    title: str
    bars: Sequence[tuple[str, int]]
    note: str = ""

    def shares(self) -> list[tuple[str, int, float]]:
        """(label, count, share of all)."""
        total = sum(count for _, count in self.bars) or 1
        return [(label, count, count / total) for label, count in self.bars]


Block = Table | Bars


def as_text(block: Block) -> str:
    """The block for a terminal, first line its title. Control characters in data are replaced."""
    lines = _table_lines(block) if isinstance(block, Table) else _bar_lines(block)
    return "\n".join([block.title, *(f"  {line.rstrip()}" for line in lines)])


def warnings_as_text(smells: Sequence[str]) -> str:
    """Each warning as a wrapped paragraph; a line that says so when there is none."""
    if not smells:
        return "Nothing smells."
    lines = [f"{len(smells)} warning{'s' if len(smells) > 1 else ''}"]
    for smell in smells:
        lines += textwrap.wrap(printable(smell), 110, initial_indent="  ! ", subsequent_indent="    ")
    return "\n".join(lines)


def printable(text: str) -> str:
    """Text without control characters, which could move a terminal's cursor or change its colours."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _table_lines(table: Table) -> list[str]:
    rows = [[printable(cell) for cell in row] for row in (table.header, *table.rows)]
    if not any(table.header):
        rows = rows[1:]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(zipped))
        for zipped in ([*zip(row, widths, strict=True)] for row in rows)
    ]


def _bar_lines(chart: Bars) -> list[str]:
    rows = [(_cut(printable(label), 40), count, share) for label, count, share in chart.shares()]
    longest = max((share for *_, share in rows), default=0) or 1
    width = max((len(label) for label, *_ in rows), default=0)
    digits = max((len(f"{count:,}") for _, count, _ in rows), default=0)
    lines = [
        f"{label.ljust(width)}  {_bar(share / longest).ljust(BAR_WIDTH)} {count:>{digits},} {share:6.1%}"
        for label, count, share in rows
    ]
    return [*lines, printable(chart.note)] if chart.note else lines


def _bar(share: float) -> str:
    whole, rest = divmod(round(share * BAR_WIDTH * 8), 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
