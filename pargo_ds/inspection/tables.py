"""Tables and bar charts as plain data, and their text for a terminal; page.py shows them as
HTML.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

BAR_WIDTH = 30
"""Number of characters of the longest bar in a terminal."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Table:
    """A table. Each row has as many cells as the header; a header of empty texts is not shown."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Bars:
    """A bar chart: (label, count) for each bar, and one line about them."""

    title: str
    bars: Sequence[tuple[str, int]]
    note: str = ""

    def shares(self) -> list[tuple[str, int, float]]:
        """Return (label, count, share of all) for each bar."""
        total = sum(count for _, count in self.bars) or 1
        return [(label, count, count / total) for label, count in self.bars]


Block = Table | Bars


def as_text(block: Block) -> str:
    """Return a table or chart as text, with its title in the first line. Control characters in the
    data are replaced.
    """
    lines = _table_lines(block) if isinstance(block, Table) else _bar_lines(block)
    return "\n".join([block.title, *(f"  {line.rstrip()}" for line in lines)])


def warnings_as_text(warnings: Sequence[str]) -> str:
    """Return each warning as a wrapped paragraph, or a line that says that there is none."""
    if not warnings:
        return "There are no warnings."
    lines = [f"{len(warnings)} warnings"]
    if len(warnings) == 1:
        lines = ["1 warning"]
    for warning in warnings:
        lines += textwrap.wrap(
            printable(warning), 110, initial_indent="  ! ", subsequent_indent="    "
        )
    return "\n".join(lines)


def printable(text: str) -> str:
    """Return a text without control characters, which could move the cursor of a terminal or change
    its colours.
    """
    strange = {letter for letter in text if not letter.isprintable()}
    return text.translate(dict.fromkeys(map(ord, strange), "\ufffd"))


def _table_lines(table: Table) -> list[str]:
    rows = [list(map(printable, row)) for row in (table.header, *table.rows)]
    if not any(table.header):
        rows = rows[1:]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = zip(others, widths[1:], strict=True)
        line = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in cells)]
        lines.append("  ".join(line))
    return lines


def _bar_lines(chart: Bars) -> list[str]:
    rows = [(_cut(printable(label), 40), count, share) for label, count, share in chart.shares()]
    longest = max((share for *_, share in rows), default=0) or 1
    width = max((len(label) for label, *_ in rows), default=0)
    digits = max((len(f"{count:,}") for _, count, _ in rows), default=0)
    lines = []
    for label, count, share in rows:
        bar = _bar(share / longest).ljust(BAR_WIDTH)
        lines.append(f"{label.ljust(width)}  {bar} {count:>{digits},} {share:6.1%}")
    if chart.note:
        lines.append(printable(chart.note))
    return lines


def _bar(share: float) -> str:
    whole, rest = divmod(round(share * BAR_WIDTH * 8), 8)
    bar = "█" * whole
    if rest:
        bar += _EIGHTHS[rest]
    return bar


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return text[: most - 3] + "..."
